"""Describe pictures of unseen concepts: a decoder on frozen features against the nearest picture's caption.

Emoji and clipart, three splits by concept, titles and keywords apart: each is predicted from the training pictures' and
compared with the test pictures' own, one reference each. A two-layer decoder is trained on the pooled features of
EfficientNet-Lite0; the baseline copies the caption of the training picture with the most similar features. Prints from
experiments/results/captions-*.json only; captions.html there shows twenty pictures with their captions.
Run: make table-captions        Measure one split again: make verify-captions

The archives stand in runs/: npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0; apt-get download
openclipart-png openclipart-svg.
"""

from __future__ import annotations

import base64
import html
import io
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from frozen_sets import image_features
from studies.words_sets import SETS, draw_split, make_set, read_captions, stored
from table_script import RESULTS, ROOT, Tally, run_table

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

ENCODER = "lite0"
KINDS = {"titles": 0, "keywords": 1}  # number of the caption in its picture's list
SEEDS = 3
EPOCHS, BATCH, LR, WEIGHT_DECAY, BEAMS = 20, 64, 2e-3, 0.05, 5
CHOICES = (5, 10, 20)  # epochs after which a decoder may be kept
SIZES = {"width": 96, "depth": 2, "heads": 4, "dropout": 0.3}
VOCABULARY, TOKENS = 2048, 24  # longer captions are cut for training
METRICS = {"bleu4": ("BLEU-4, %", 100), "rouge_l": ("ROUGE-L, %", 100), "cider_tenth": ("CIDEr-D", 10)}
SHOWN = 10  # pictures of a set in the page
PAGE = RESULTS / "captions.html"
LICENSES = {"emoji": "Fluent emoji, Microsoft, MIT", "clipart": "Open Clip Art Library, public domain"}


@dataclass(frozen=True)
class CaptionSet:
    """Pictures with captions.

    Attributes:
        paths: of N pictures.
        features: (N, D) float32.
        captions: of each picture, one or more.
        concepts: of each picture.
        fingerprint: of pictures and captions.
    """

    paths: list[Path]
    features: np.ndarray
    captions: list[list[str]]
    concepts: list[str]
    fingerprint: str


@dataclass(frozen=True)
class Measured:
    """Test pictures of one split: their rows, and the captions and scores of the decoder and of the baseline."""

    rows: np.ndarray
    captions: dict[str, list[str]]
    scores: dict[str, dict[str, float]]


def results_file(name: str) -> Path:
    """Return the path of a set's committed results."""
    return RESULTS / f"captions-{name}.json"


def read_set(name: str) -> CaptionSet | None:
    """Return one of SETS with its features, computed once; None without its archives."""
    root = make_set(name)
    if root is None:
        return None
    paths, captions, concepts, fingerprint = read_captions(root)
    features = stored(f"{name}-{ENCODER}", fingerprint, lambda: image_features(paths, ENCODER))
    return CaptionSet(paths, features, captions, concepts, fingerprint)


def train_decoder(features: Tensor, captions: list[str], val: tuple[Tensor, list[str]], seed: int) -> Any:
    """Return a function of features (M, D) that describes them, of the one of CHOICES with the best CIDEr-D on `val`.

    The loss on `val` is no choice: where no concept is known it is lowest for a decoder that says the same of all.

    Args:
        features: (N, D) of the training pictures.
        captions: N texts.
        val: features and captions of the validation pictures.
        seed: of weights, order and dropout.
    """
    import torch

    from lit_vision.data.captions import train_tokenizer
    from lit_vision.evaluation.cider import cider_d
    from lit_vision.methods.captioner.decoder import CaptionDecoder, beam_search
    from lit_vision.methods.captioner.network import ImagePrefix

    torch.manual_seed(seed)
    tokenizer = train_tokenizer(captions, VOCABULARY, TOKENS)
    prefix = ImagePrefix(features.shape[1], SIZES["width"], grid=0)
    decoder = CaptionDecoder(tokenizer.vocab_size, TOKENS, **SIZES, seed=seed)
    parameters = [*prefix.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, LR, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * (len(features) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    tokens, mask = tokenizer.encode(captions)

    def describe(x: Tensor) -> list[str]:
        with torch.no_grad():
            found = beam_search(decoder, prefix(x), BEAMS, tokenizer.start, tokenizer.end, tokenizer.pad)[0]
        return tokenizer.decode(found)

    best, kept = -1.0, None
    for epoch in range(EPOCHS):
        decoder.train()
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for rows in order.split(BATCH):
            if len(rows) < BATCH:
                continue
            keys = torch.stack([torch.full_like(rows, epoch), rows, torch.zeros_like(rows)], dim=1)
            s = int(mask[rows].sum(1).max())
            logits = decoder(prefix(features[rows]), tokens[rows, : s - 1], keys)
            wanted = tokens[rows, 1:s].masked_fill(~mask[rows, 1:s], -100)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()).backward()
            optimizer.step()
            schedule.step()
        decoder.eval()
        if epoch + 1 in CHOICES:
            reached = sum(cider_d(describe(val[0]), [[text] for text in val[1]]))
            if reached > best:
                best = reached
                kept = [{k: v.clone() for k, v in part.state_dict().items()} for part in (prefix, decoder)]
    assert kept is not None
    prefix.load_state_dict(kept[0])
    decoder.load_state_dict(kept[1])
    return describe


def measure(pictures: CaptionSet, kind: str, seed: int) -> Measured:
    """Return captions and scores on the test pictures of one split by concept that have a caption of this kind."""
    import torch

    from lit_vision.evaluation.captions import caption_scores, nearest_rows

    number = KINDS[kind]
    has = np.array([len(texts) > number for texts in pictures.captions])
    split = draw_split(pictures.concepts, "concept", seed)
    rows = {role: found[has[found]] for role, found in split.items()}
    x = {role: torch.from_numpy(pictures.features[found]) for role, found in rows.items()}
    texts = {role: [pictures.captions[row][number] for row in found] for role, found in rows.items()}
    describe = train_decoder(x["train"], texts["train"], (x["val"], texts["val"]), seed)
    nearest = nearest_rows(x["test"], x["train"]).tolist()
    captions = {"decoder": describe(x["test"]), "neighbor": [texts["train"][row] for row in nearest]}
    references = [[text] for text in texts["test"]]
    scores = {method: caption_scores(found, references) for method, found in captions.items()}
    for found in scores.values():
        found["cider_tenth"] = found.pop("cider") / 10  # results hold fractions
    return Measured(rows["test"], captions, scores)


def page(shown: dict[str, tuple[CaptionSet, dict[str, Measured]]]) -> str:
    """Return a page of the test pictures of the first split, evenly spaced by their index, with all captions."""
    from PIL import Image

    cells = []
    for name, (pictures, measured) in shown.items():
        common = sorted(set.intersection(*(set(found.rows.tolist()) for found in measured.values())))
        for index in np.linspace(0, len(common) - 1, SHOWN).round().astype(int):
            row = common[index]
            buffer = io.BytesIO()
            Image.open(pictures.paths[row]).convert("RGB").resize((96, 96)).save(buffer, "PNG")
            data = base64.b64encode(buffer.getvalue()).decode()
            lines = ""
            for kind, found in measured.items():
                place = found.rows.tolist().index(row)
                lines += f"<tr><th colspan=2>{kind}</th></tr><tr><td>reference</td><td>"
                lines += html.escape(pictures.captions[row][KINDS[kind]]) + "</td></tr>"
                for method in ("decoder", "neighbor"):
                    lines += f"<tr><td>{method}</td><td>{html.escape(found.captions[method][place])}</td></tr>"
            cells.append(f'<li><img src="data:image/png;base64,{data}" alt="{name} {row}"><table>{lines}</table></li>')
    licenses = "; ".join(f"{name}: {text}" for name, text in LICENSES.items() if name in shown)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Captions of twenty pictures</title><style>'
        "body{font:14px/1.35 sans-serif;margin:1.5rem;max-width:75rem}"
        "ul{display:grid;gap:1rem;padding:0;list-style:none;"
        "grid-template-columns:repeat(auto-fill,minmax(34rem,1fr))}li{display:flex;gap:1rem;border:1px solid #ccc;"
        "padding:.6rem}img{width:96px;height:96px}td,th{text-align:left;vertical-align:top;padding:0 .5rem 0 0}"
        "td:first-child{color:#555}</style><h1>Captions of twenty pictures</h1><p>Test pictures of the first split, "
        "whose concepts no training picture shows, evenly spaced by their index. decoder: two layers on frozen "
        "EfficientNet-Lite0, trained on the captions of this set. neighbor: the caption of the training picture with "
        f"the most similar features. Pictures: {licenses}.</p><ul>{''.join(cells)}</ul></html>\n"
    )


def make() -> None:
    """Measure the sets that can be had, write a results file for each and the page."""
    from lit_vision.results.schema import make_cell, write_result

    shown = {}
    for name in SETS:
        pictures, start, cells = read_set(name), time.perf_counter(), []
        if pictures is None:
            print(f"{name}: its archives are not in runs/; see the first lines of this script")
            continue
        first = {}
        for kind in KINDS:
            found = [measure(pictures, kind, seed) for seed in range(SEEDS)]
            first[kind] = found[0]
            train = draw_split(pictures.concepts, "concept", 0)["train"]
            count = sum(len(pictures.captions[row]) > KINDS[kind] for row in train)
            for method in ("decoder", "neighbor"):
                for metric in METRICS:
                    values = [one.scores[method][metric] for one in found]
                    chosen = "val" if method == "decoder" else "fixed recipe"
                    sizes = [len(one.rows) for one in found]
                    more = {"kind": kind, "metric": metric, "chosen_on": chosen, "test_images": sizes}
                    cells.append(make_cell(ENCODER, method, count, values, **more))
            print(f"{name}, {kind}: done after {time.perf_counter() - start:.0f} s", flush=True)
        shown[name] = (pictures, first)
        seconds = round(time.perf_counter() - start, 1)
        facts = {"data_fingerprint": pictures.fingerprint, "seconds": seconds}
        write_result(results_file(name), recipe="table-captions", cells=cells, **facts)
    if shown:
        PAGE.write_text(page(shown), encoding="utf-8")


def show() -> None:
    """Print the table from the committed results and write it as Markdown."""
    from lit_vision.evaluation.paired_intervals import interval_over_seeds
    from lit_vision.results.schema import read_result
    from lit_vision.results.tables import Table, to_markdown

    text = ["# Captions of pictures whose concepts were held out\n"]
    for name in SETS:
        text.append(f"## {name}\n")
        if not results_file(name).exists():
            text.append("not run yet\n")
            continue
        cells = {(c["kind"], c["protocol"], c["metric"]): c for c in read_result(results_file(name))["cells"]}
        rows = []
        for kind in KINDS:
            for method in ("decoder", "neighbor"):
                found = [cells[kind, method, metric] for metric in METRICS]
                values = [f"{s * c['mean']:.2f} ± {s * c['std']:.2f}" for c, (_, s) in zip(found, METRICS.values())]
                rows.append([kind, method, *values])
            gains = []
            for metric, (_, scale) in METRICS.items():
                pair = [cells[kind, method, metric]["values"] for method in ("decoder", "neighbor")]
                gain = interval_over_seeds(*pair)
                gains.append(f"{scale * gain.mean:+.2f} ({scale * gain.low:+.2f} to {scale * gain.high:+.2f})")
            rows.append([kind, "decoder - neighbor", *gains])
        sizes = {kind: cells[kind, "decoder", "rouge_l"]["test_images"] for kind in KINDS}
        counts = "; ".join(f"{kind}: {min(n)} to {max(n)} test pictures" for kind, n in sizes.items())
        note = f"Mean ± standard deviation of {SEEDS} splits; differences with 95 % intervals over them. {counts}."
        text.append(to_markdown(Table(["captions", "method", *(title for title, _ in METRICS.values())], rows, note)))
    text.append(
        "decoder: two layers of width 96 on the pooled features of EfficientNet-Lite0 (ImageNet-1k, 224 pixels, "
        "frozen); of 5, 10 and 20 epochs those with the best CIDEr-D on the validation pictures; 5 beams. "
        "neighbor: the caption of the training picture with the most similar features (cosine). One reference a "
        "picture; the documents of "
        "CIDEr-D are the test pictures' references. Twenty pictures with their captions: captions.html.\n"
    )
    print("\n".join(text))
    (RESULTS / "captions.md").write_text("\n".join(text), encoding="utf-8")


def verify() -> int:
    """Measure the titles of the first split again; return 1 if a value moved or nothing was measured."""
    from lit_vision.results.schema import read_result

    tally, total = Tally(), 0
    for name in SETS:
        result: dict[str, Any] = read_result(results_file(name)) if results_file(name).exists() else {"cells": []}
        total += sum(len(cell["values"]) for cell in result["cells"])
        pictures = read_set(name) if result["cells"] else None
        if pictures is None:
            continue
        if pictures.fingerprint != result["data_fingerprint"]:
            print(f"captions-{name}.json: made from other pictures or captions (fingerprint differs)")
            return 1
        found = measure(pictures, "titles", 0).scores
        for cell in result["cells"]:
            if cell["kind"] == "titles":
                method, metric = cell["protocol"], cell["metric"]
                tally.add(f"{name} {method} {metric}", cell["values"][0], found[method][metric], 0.02)
    return tally.close(total)


def print_commands() -> None:
    """Print what is measured."""
    print(str(__doc__).split("\n\n", 2)[2].strip())
    print(f"{', '.join(SETS)}: {', '.join(KINDS)}; {SEEDS} splits, a decoder of {EPOCHS} epochs in each")


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, verify, print_commands)


if __name__ == "__main__":
    sys.exit(main())
