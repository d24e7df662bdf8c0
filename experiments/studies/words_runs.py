"""Trainings of the table of pictures and words: each cell is stored when it is finished, and found again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_vision.data.captions import CaptionTokenizer, EncodedCaptions
from lit_vision.data.loader import identity_collate
from lit_vision.data.sampler import TrainBatches
from lit_vision.data.views.batch_views import make_batch_views
from lit_vision.data.views.keyed_rng import Key, derive_seed
from lit_vision.io.atomic import write_json
from lit_vision.methods.image_text.image_text import ImageText
from lit_vision.results.schema import SCHEMA
from lit_vision.study import training
from lit_vision.study.cells import hash_inputs, read_record
from lit_vision.study.encoders import pretrain_once
from lit_vision.study.images import StudyImages
from lit_vision.study.progress import Reporter
from lit_vision.study.training_data import StudyData
from lit_vision.study.weight_files import redirect_output
from studies import words_rows
from studies.words_baselines import METHODS, captions_of, measure, quality, recalls
from studies.words_rows import Row
from studies.words_sets import ENCODERS, SIDE, WordSet, draw_split, read_set
from studies.words_tables import SPLITS

SEEDS = 5
CAPTION_STREAM = 2  # of a seed: which of a picture's captions


@dataclass(frozen=True)
class Cell:
    """One measurement that can be made by itself: its place in the table, and the function that returns its record.

    `row` is None for a baseline.
    """

    init: str
    protocol: str
    by: str
    seed: int
    make: Callable[[], dict[str, Any]]
    row: Row | None = None


class Pairs(Dataset):
    """Some pictures of a set, or their features, with one of their captions each, drawn by key.

    Args:
        words: the set.
        rows: (n,) its pictures.
        tokenizer: of the captions; None: their stored vectors are given instead of tokens.
        pixels: give pixels under the training view; False: features.
        seed: of captions and views.
    """

    def __init__(
        self, words: WordSet, rows: np.ndarray, tokenizer: CaptionTokenizer | None, pixels: bool, seed: int
    ) -> None:
        self.words, self.rows, self.seed = words, rows, derive_seed(seed, CAPTION_STREAM)
        self.counts = np.bincount(words.owner)
        self.firsts = np.cumsum(self.counts) - self.counts
        self.encoded = EncodedCaptions(words.captions, tokenizer) if tokenizer else None
        self.views = make_batch_views("train", SIDE, seed, **words_rows.VIEWS) if pixels else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        """Return the batch of some keys."""
        used = self.rows[[key[1] for key in keys]]
        numbers = [derive_seed(self.seed, *key) % int(self.counts[i]) for i, key in zip(used, keys)]
        if self.encoded is None:
            tokens = torch.from_numpy(self.words.texts[self.firsts[used] + numbers])
            mask = torch.ones_like(tokens, dtype=torch.bool)
        else:
            tokens, mask = self.encoded.batch(used.tolist(), numbers)
        if self.views is None:
            images = torch.from_numpy(self.words.features[used])[:, None]
        else:
            assert self.words.pixels is not None
            images = self.views(self.words.pixels[used], keys)
        return {"images": images, "tokens": tokens, "token_mask": mask, "key": torch.tensor(keys)}


class PairBatches(LightningDataModule):
    """Data module of some pairs; order and draws are pure functions of `seed`."""

    planned_steps: int | None = None

    def __init__(self, pairs: Pairs, batch_size: int, seed: int) -> None:
        super().__init__()
        self.pairs = pairs
        self.batch_size = self.global_batch_size = len(pairs) // -(-len(pairs) // batch_size)
        self.batches = TrainBatches(len(pairs), self.batch_size, 0, 1, 1, seed)

    @property
    def batches_per_epoch(self) -> int:
        """Batches, hence steps, of one epoch."""
        return len(self.batches)

    def train_dataloader(self) -> DataLoader:
        """Return the batches of the epoch."""
        return DataLoader(self.pairs, batch_sampler=self.batches, collate_fn=identity_collate, num_workers=0)


def fit(row: Row, words: WordSet, rows: np.ndarray, steps: int, seed: int, **start: Any) -> ImageText:
    """Return a row's model, trained on some pictures; `start` as in `words_rows.build`."""
    module = words_rows.build(row, seed, **start)
    pairs = Pairs(words, rows, words_rows.tokenizer(row, words, rows), row.trains_image, seed)
    data: Any = PairBatches(pairs, row.batch, seed)
    training.train(module, data, seed=seed, steps=steps)
    return module.eval()


@torch.inference_mode()
def encode(
    row: Row, module: ImageText, words: WordSet, rows: np.ndarray, tokenizer: CaptionTokenizer | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors of some pictures and of all their captions."""
    from lit_vision.data.batch import normalize

    def picture_batch(start: int) -> Tensor:
        used = rows[start : start + 64]
        if not row.trains_image:
            return torch.from_numpy(words.features[used])
        assert words.pixels is not None
        return normalize(torch.from_numpy(words.pixels[used])[:, None], module.mean, module.std)[:, 0]

    pictures = [module(picture_batch(start)) for start in range(0, len(rows), 64)]
    captions, texts = captions_of(rows, words), []
    everything = [text for several in words.captions for text in several]
    for start in range(0, len(captions), 64):
        used = captions[start : start + 64]
        if tokenizer is None:
            tokens = torch.from_numpy(words.texts[used])
            mask = torch.ones_like(tokens, dtype=torch.bool)
        else:
            tokens, mask = tokenizer.encode([everything[i] for i in used])
        texts.append(module.encode_tokens(tokens, mask))
    return torch.cat(pictures).numpy(), torch.cat(texts).numpy()


class Runner:
    """Makes and stores the cells of one set.

    Args:
        name: of the set.
        folder: that cells and weights are stored in.
        reporter: shows the progress.
    """

    def __init__(self, name: str, folder: Path, reporter: Reporter) -> None:
        self.name, self.folder, self.reporter = name, folder / name, reporter
        self.log = folder / "training.log"
        self.folder.mkdir(parents=True, exist_ok=True)

    def cells(self, splits: int = SEEDS) -> Iterator[Cell]:
        """Yield all cells of the first so many splits: baselines, then the trained rows, in the order of the table."""
        for encoder in ENCODERS:
            for method in METHODS:
                for by in SPLITS:
                    for seed in range(splits):
                        yield Cell(encoder, method, by, seed, partial(self._baseline, encoder, method, by, seed))
        for row in words_rows.ROWS:
            for by in SPLITS if row.by_picture else ("concept",):
                for seed in range(min(splits, row.splits[self.name])):
                    yield Cell(row.init, row.protocol, by, seed, partial(self._trained, row, by, seed), row)

    def stored(self, cell: Cell) -> dict[str, Any] | None:
        """Return the record of a cell if it is finished."""
        return read_record(self._path(cell.init, cell.protocol, cell.by, cell.seed)) or None

    def _path(self, init: str, protocol: str, by: str, seed: int) -> Path:
        return self.folder / f"{init}-{protocol.replace(',', '').replace(' ', '-')}-{by}-{seed}.json"

    def _once(self, path: Path, inputs: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        record = read_record(path)
        if record.get("inputs") != inputs:
            start, cpu = time.perf_counter(), time.process_time()
            record = {"schema": SCHEMA, "inputs": inputs, **compute()}
            record |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
            write_json(path, record)
            self.reporter.log(f"{path.parent.name} {path.stem}: {record['cpu_seconds']:.0f} s of the processor")
        return record

    def words(self, encoder: str) -> WordSet:
        """Return the set with features of an encoder, if it has such, else those of lite0."""
        words = read_set(self.name, encoder if encoder in ENCODERS else "lite0")
        assert words is not None
        return words

    def _baseline(self, encoder: str, method: str, by: str, seed: int) -> dict[str, Any]:
        words = self.words(encoder)

        def compute() -> dict[str, Any]:
            found, chosen = measure(words, method, by, seed)
            return {"recalls": found, "chosen": chosen}

        return self._once(self._path(encoder, method, by, seed), hash_inputs(words.fingerprint), compute)

    def _trained(self, row: Row, by: str, seed: int) -> dict[str, Any]:
        words = self.words(row.init)
        rows = draw_split(words.concepts, by, seed)
        network = [words_rows.EMBED_WIDTH, words_rows.CNN, words_rows.OWN_TEXT, words_rows.VIEWS, words_rows.SIMCLR]

        def compute() -> dict[str, Any]:
            start: dict[str, Any] = {"weights": words_rows.image_weights(row)}
            if row.from_frozen:
                (frozen,) = (one for one in words_rows.ROWS if (one.init, one.protocol) == (row.init, "frozen"))
                steps = self._trained(frozen, by, seed)["chosen"]
                start["start"] = fit(frozen, words, rows["train"], steps, seed)
            if row.pretrain_steps:
                start["weights"] = self._pretrained(row, words, rows["train"], by, seed)
            tokenizer, best = words_rows.tokenizer(row, words, rows["train"]), None
            for steps in row.steps:
                module = fit(row, words, rows["train"], steps, seed, **start)
                on = {
                    part: recalls(*encode(row, module, words, rows[part], tokenizer), rows[part], words)
                    for part in ("val", "test")
                }
                if best is None or quality(on["val"]) > quality(best["val"]):
                    best = {**on, "chosen": steps}
            assert best is not None
            return {
                "recalls": best["test"],
                "val": best["val"],
                "chosen": best["chosen"],
                "pictures": len(rows["train"]),
            }

        with redirect_output(self.log):
            inputs = hash_inputs(words.fingerprint, row.training, network)
            return self._once(self._path(row.init, row.protocol, by, seed), inputs, compute)

    def _pretrained(self, row: Row, words: WordSet, rows: np.ndarray, by: str, seed: int) -> Path:
        """Pre-train an image tower on pictures without words; return the file of its weights."""
        assert words.pixels is not None
        none = np.full(len(words.pixels), -1)
        images = StudyImages(
            words.pixels, none, [], words.pixels[:0], none[:0], [], ["picture"], words.fingerprint, SIDE
        )

        def build() -> tuple[Any, StudyData]:
            data = StudyData(images, rows, "simclr", words_rows.SIMCLR_VIEWS, row.pretrain_batch, seed)
            return words_rows.pretraining(seed), data

        path = self.folder / f"{row.init}-{by}-{seed}.safetensors"
        inputs = hash_inputs(words.fingerprint, words_rows.CNN, words_rows.SIMCLR, row.pretrain_steps, by, seed)
        title = f"{self.name}, split {seed}: SimCLR"
        return pretrain_once(
            path, inputs, build, None, seed, self.reporter, title, self.log, steps=row.pretrain_steps
        ).weights
