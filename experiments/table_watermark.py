"""Watermark in a convolution's weights: bits read wrongly and accuracy, as trained and after what a thief might do.

A small ResNet is trained on 2,000 of the embedded garments at 14 x 14 pixels, with and without
`Classifier(watermark=...)` (Uchida et al. 2017), paired by seed: the same images, first weights and order. Marked
networks are then fine-tuned on 2,000 other images without the key, pruned by magnitude, rounded to int8, or distilled
into a new network. Prints from experiments/results/watermark.json only.
Run: make table-watermark        Train and measure one seed again: make verify-watermark
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from table_script import RESULTS, ROOT, Tally, run_table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lit_vision.methods import Classifier

SEEDS = 5
WRONG_KEYS = 200
SIZES = {"train": 2000, "other": 2000, "test": 2000}
EPOCHS, BATCH_SIZE, LR = 8, 50, 3e-3
TEMPERATURE = 4.0  # of distillation
SHARES = (30, 60, 90)  # percent of the weights pruned
STEM = {"stem": "small", "stem_type": "deep", "stem_width": 4}
NETWORK = {"in_chans": 1, **STEM, "layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}
PROTOCOLS = {  # in the order of the table
    "plain": "trained without a mark",
    "marked": "trained with the mark",
    "fine-tuned": "fine-tuned on other images",
    **{f"pruned-{share}": f"{share} % of the weights pruned" for share in SHARES},
    "int8": "weights rounded to int8",
    "distilled": "distilled into a new network",
}
FOLDER = ROOT / "runs" / "table-watermark"
RESULT = RESULTS / "watermark.json"


def key_of(seed: int, number: int = 0) -> bytes:
    """Return the key of a seed's mark (number 0) or a wrong one: not secret, since this is a table."""
    return f"table-watermark {seed} {number}".encode().ljust(32, b".")[:32]


def build(seed: int, marked: bool) -> Classifier:
    """Return a classifier with the first weights of a seed."""
    import torch

    from lit_vision.methods import Classifier

    torch.manual_seed(seed)
    pixels: dict[str, Any] = {"mean": [0.286], "std": [0.353]}
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "key"
        key.write_text(key_of(seed).hex())
        return Classifier("resnet18", 10, NETWORK, **pixels, watermark=str(key) if marked else None)


def train(method: Classifier, images: Tensor, seed: int, loss: Callable[[Tensor], Tensor]) -> None:
    """Train a network with AdamW and a cosine schedule; the order of the images follows from the seed.

    Args:
        method: trained in place.
        images: (N, 1, H, W), normalized.
        seed: of the order.
        loss: takes the numbers of a batch's images.
    """
    import torch

    optimizer = torch.optim.AdamW(method.parameters(), LR, weight_decay=0.05)
    steps = EPOCHS * (len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    method.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
            schedule.step()
    method.eval()


def train_on_labels(method: Classifier, images: Tensor, labels: Tensor, seed: int) -> None:
    """Train with the method's own loss, which embeds the mark if it was given a key."""
    import torch

    method.log = lambda *_, **__: None  # no Trainer here
    keys = torch.zeros(BATCH_SIZE, 3, dtype=torch.long)

    def loss(rows: Tensor) -> Tensor:
        return method.training_step({"images": images[rows, None], "label": labels[rows], "key": keys}, 0)

    train(method, images, seed, loss)


def distill(teacher: Classifier, images: Tensor, seed: int) -> Classifier:
    """Return a new network trained on the teacher's softened probabilities alone (Hinton et al. 2015)."""
    import torch
    import torch.nn.functional as F

    student = build(seed + 1000, marked=False)
    with torch.no_grad():
        targets = F.softmax(teacher(images) / TEMPERATURE, 1)

    def loss(rows: Tensor) -> Tensor:
        logits = F.log_softmax(student(images[rows]) / TEMPERATURE, 1)
        return TEMPERATURE**2 * F.kl_div(logits, targets[rows], reduction="batchmean")

    train(student, images, seed, loss)
    return student


def changed_weights(method: Classifier, change: Callable[[Tensor], Tensor]) -> Classifier:
    """Return a copy whose weights of convolutions and linear maps are changed."""
    import torch

    other = copy.deepcopy(method)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.dim() > 1:
                parameter.copy_(change(parameter))
    return other


def pruned(weight: Tensor, share: float) -> Tensor:
    """Return a weight with this share of its entries, those of smallest magnitude, set to zero."""
    count = round(share * weight.numel())
    kept = weight.flatten().abs().argsort()[count:]
    flat = weight.new_zeros(weight.numel())
    flat[kept] = weight.flatten()[kept]
    return flat.reshape(weight.shape)


def rounded_to_int8(weight: Tensor) -> Tensor:
    """Return a weight rounded to 255 levels for each output channel, symmetric about zero."""
    step = weight.flatten(1).abs().amax(1).clamp_min(1e-12).reshape(-1, *[1] * (weight.dim() - 1)) / 127
    return (weight / step).round() * step


def measure(method: nn.Module, images: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
    """Return top-1 (a fraction), the bits that the right key reads wrongly, and its p-value."""
    import torch

    from lit_vision.methods.watermark import read_watermark, watermark_layer

    with torch.no_grad():
        top1 = float((method(images).argmax(1) == labels).float().mean())
    reading = read_watermark(watermark_layer(method.backbone)[1], key_of(seed))
    return {"top1": top1, "bit_errors": reading.errors, "p_value": reading.p_value}


def run_seed(seed: int) -> dict[str, Any]:
    """Return the measurements of every protocol for one seed, and the mean bit errors of wrong keys."""
    import torch
    import torch.nn.functional as F

    from lit_vision.data.make.fashion import embedded_fashion, stratified_splits
    from lit_vision.methods.watermark import read_watermark, watermark_layer

    torch.set_num_threads(1)
    pixels, classes = embedded_fashion()
    parts = {}
    for name, rows in stratified_splits(classes, SIZES, seed).items():
        images = (torch.from_numpy(pixels[rows])[:, None].float() / 255 - 0.286) / 0.353
        parts[name] = F.avg_pool2d(images, 2), torch.from_numpy(classes[rows])
    models = {name: build(seed, marked=name == "marked") for name in ("plain", "marked")}
    for model in models.values():
        train_on_labels(model, *parts["train"], seed)
    marked = models["marked"]
    models["fine-tuned"] = build(seed, marked=False)
    models["fine-tuned"].load_state_dict(marked.state_dict())
    train_on_labels(models["fine-tuned"], *parts["other"], seed + 1)
    for share in SHARES:
        models[f"pruned-{share}"] = changed_weights(marked, lambda weight, share=share: pruned(weight, share / 100))
    models["int8"] = changed_weights(marked, rounded_to_int8)
    models["distilled"] = distill(marked, parts["other"][0], seed)
    weight = watermark_layer(marked.backbone)[1]
    wrong = [read_watermark(weight, key_of(seed, number)).errors for number in range(1, WRONG_KEYS + 1)]
    return {
        "cells": {name: measure(model.eval(), *parts["test"], seed) for name, model in models.items()},
        "wrong_keys": float(np.mean(wrong)),
        "layer": watermark_layer(marked.backbone)[0],
        "weights": weight[0].numel(),
    }


def make() -> None:
    """Train and measure the seeds that are missing, and write the results file."""
    from lit_vision.io.atomic import write_json
    from lit_vision.results.schema import make_cell, write_result

    FOLDER.mkdir(parents=True, exist_ok=True)
    stored = []
    for seed in range(SEEDS):
        file = FOLDER / f"seed-{seed}.json"
        if not file.exists():
            start = time.process_time()
            found = run_seed(seed)
            write_json(file, {**found, "seconds": round(time.process_time() - start, 1)})
        stored.append(json.loads(file.read_text()))
        print(f"seed {seed}: {stored[-1]}", flush=True)
    cells = []
    for name in PROTOCOLS:
        columns = {key: [one["cells"][name][key] for one in stored] for key in ("top1", "bit_errors", "p_value")}
        cells.append(make_cell("scratch-resnet18", name, SIZES["train"], columns.pop("top1"), **columns))
    cells[1]["wrong_keys"] = [one["wrong_keys"] for one in stored]
    seconds = round(sum(one["seconds"] for one in stored), 1)
    place = {"layer": stored[0]["layer"], "weights": stored[0]["weights"]}
    write_result(RESULT, recipe="table-watermark", cells=cells, seconds=seconds, **place)


def show() -> None:
    """Print the table and write it as Markdown."""
    from lit_vision.methods.watermark import BITS, STRENGTH
    from lit_vision.results.schema import read_result
    from lit_vision.results.tables import Table, to_markdown

    result = read_result(RESULT)
    cells = {cell["protocol"]: cell for cell in result["cells"]}
    lines = []
    for name, text in PROTOCOLS.items():
        cell = cells[name]
        errors = cell["bit_errors"]
        share = 100 * float(np.mean(errors)) / BITS
        lines.append(
            [
                text,
                f"{100 * cell['mean']:.1f} ± {100 * cell['std']:.1f}",
                f"{share:.1f}",
                f"{min(errors)} to {max(errors)}",
                f"{max(cell['p_value']):.0e}",
            ]
        )
    difference = 100 * (np.array(cells["marked"]["values"]) - np.array(cells["plain"]["values"]))
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    wrong = 100 * float(np.mean(cells["marked"]["wrong_keys"])) / BITS
    sentences = [
        f"{SEEDS} seeds (± sd), test accuracy on {SIZES['test']} images.",
        f"{BITS} bits in the {result['weights']} weights of the mean filter of {result['layer']}, lambda {STRENGTH}.",
        "p: the probability of so few wrong bits with an unrelated key, largest over seeds.",
        f"{WRONG_KEYS} wrong keys a seed read {wrong:.1f} % of the bits of marked networks wrongly.",
        f"Accuracy with the mark less that without, paired: {difference.mean():+.2f} ± {error:.2f} points (se).",
        "Pruning and rounding are not followed by training.",
        "Distillation copies what the network answers and none of its weights, so the mark is gone.",
    ]
    table = to_markdown(
        Table(["network", "top-1, %", "wrong bits, %", f"of {BITS}", "p at most"], lines, " ".join(sentences))
    )
    print(table)
    RESULT.with_suffix(".md").write_text(table, encoding="utf-8")


def verify() -> int:
    """Train and measure the first seed again; return 1 if a value moved."""
    from lit_vision.results.schema import read_result

    tally, found, cells = Tally(), run_seed(0)["cells"], read_result(RESULT)["cells"]
    for cell in cells:
        name = cell["protocol"]
        tally.add(f"{name}, top-1", cell["values"][0], found[name]["top1"], 0.02)  # other machines round otherwise
        tally.add(f"{name}, wrong bits", cell["bit_errors"][0] / 256, found[name]["bit_errors"] / 256, 0.05)
    return tally.close(2 * len(cells))


def print_commands() -> None:
    """Print what would be trained."""
    print(f"{SEEDS} seeds: {', '.join(PROTOCOLS)}; four trainings of {EPOCHS} epochs on 2,000 images each")


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, verify, print_commands)


if __name__ == "__main__":
    sys.exit(main())
