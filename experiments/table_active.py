"""Measure which images to label: accuracy by labels for each strategy of evaluation/acquisition.py, 50 paired seeds.

A seed draws the images to choose from, the same for all strategies; labels are bought in six rounds that double, up to
half of these images; after each round a ridge classifier on frozen EfficientNet-Lite0 features is fitted and measured
on the test split. The strategy is chosen on the garments, where the constants of the strategies were fixed too, and
reported on the other sets. Prints from experiments/results/active-*.json only.
Run: make table-active        Measure one seed of each set again: make verify-active
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from frozen_sets import FrozenSet, print_sets, read_frozen, verify_sets
from table_script import RESULTS, ROOT, Tally, run_table

ENCODER, CHOSEN_ON = "lite0", "garments"
NAMES = ("garments", "patches", "stamps")
SEEDS = 50
MOST = 400  # images to choose from, drawn anew for each seed
ROUNDS = 6
STRENGTH = 0.003  # of the ridge, times the number of labels and the mean squared length of the features
FOLDER = ROOT / "runs" / "table-active"


def results_file(name: str) -> Path:
    """Return the path of a set's committed results."""
    return RESULTS / f"active-{name}.json"


def numbers_of_labels(images: int) -> list[int]:
    """Return the number of labels after each round: half of the images, a quarter, ..., ascending."""
    return [images // 2 >> back for back in reversed(range(ROUNDS))]


def ridge(features: np.ndarray, labels: np.ndarray, queries: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (M, K) class probabilities of regularized least squares on one-hot targets, cut at 0 and scaled to sum 1.

    The regression estimates the probabilities themselves, so no temperature is needed.

    Args:
        features: (N, D), N small: an N x N system is solved.
        labels: (N,).
        queries: (M, D).
        num_classes: K.
    """
    mean = features.mean(0)
    x, targets = (features - mean).astype(np.float64), np.eye(num_classes)[labels]
    gram = x @ x.T
    penalty = STRENGTH * max(float(np.trace(gram)), 1e-12)
    weight = (x.T @ np.linalg.solve(gram + penalty * np.eye(len(x)), targets - targets.mean(0))).astype(np.float32)
    scores = np.maximum(queries @ weight - mean @ weight + targets.mean(0), 1e-6)
    return np.asarray(scores / scores.sum(1, keepdims=True))


def accuracies(images: FrozenSet, strategy: str, seed: int) -> list[float]:
    """Return test top-1 after each round of a strategy."""
    from lit_vision.evaluation.acquisition import choose_next

    rows = np.random.default_rng(seed).permutation(len(images.labels))[:MOST]
    labels, classes = images.labels[rows], len(images.classes)
    basis = np.linalg.qr(images.features[rows].T)[
        0
    ]  # (D, N): distances and ridge stay the same, at a third of the time
    features, test = images.features[rows] @ basis, images.test @ basis
    labeled, probabilities, found = np.array([], np.int64), None, []
    both = np.concatenate([features, test])
    for count in numbers_of_labels(len(rows)):
        new = choose_next(strategy, features, labeled, count - len(labeled), probabilities, seed=seed)
        labeled = np.concatenate([labeled, new])
        answer = ridge(features[labeled], labels[labeled], both, classes)
        probabilities = answer[: len(rows)]
        found.append(float((answer[len(rows) :].argmax(1) == images.test_labels).mean()))
    return found


def make() -> None:
    """Measure what is missing and write a results file for each set that can be had."""
    from lit_vision.evaluation.acquisition import STRATEGIES
    from lit_vision.io.atomic import write_json
    from lit_vision.results.schema import make_cell, write_result

    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        images = read_frozen(name, ENCODER)
        if images is None:
            print(f"{name}: its package was not found; see experiments/frozen_sets.py")
            continue
        stored = []
        for seed in range(SEEDS):
            file = FOLDER / f"{name}-{seed}.json"
            known = json.loads(file.read_text()) if file.exists() else {"values": {}, "seconds": 0.0}
            if missing := [strategy for strategy in STRATEGIES if strategy not in known["values"]]:
                start = time.perf_counter()
                known["values"] |= {strategy: accuracies(images, strategy, seed) for strategy in missing}
                known["seconds"] = round(known["seconds"] + time.perf_counter() - start, 1)
                write_json(file, known)
                if seed % 10 == 9:
                    print(f"{name}: {seed + 1} of {SEEDS} seeds", flush=True)
            stored.append(known)
        counts = numbers_of_labels(min(MOST, len(images.labels)))
        cells = [
            make_cell(ENCODER, strategy, count, [one["values"][strategy][i] for one in stored])
            for strategy in STRATEGIES
            for i, count in enumerate(counts)
        ]
        seconds = round(sum(one["seconds"] for one in stored), 1)
        facts = {"data_fingerprint": images.fingerprint, "test_images": len(images.test)}
        write_result(results_file(name), recipe="table-active", cells=cells, seconds=seconds, **facts)


def read_curves(name: str) -> tuple[list[int], dict[str, np.ndarray]]:
    """Return the numbers of labels and {strategy: (seeds, rounds) accuracies} of a set's committed results."""
    from lit_vision.results.schema import read_result

    curves: dict[str, list[list[float]]] = {}
    cells = read_result(results_file(name))["cells"]
    for cell in cells:
        curves.setdefault(cell["protocol"], []).append(cell["values"])
    return sorted({cell["labels"] for cell in cells}), {key: np.array(values).T for key, values in curves.items()}


def choose_strategy() -> str | None:
    """Return the strategy with the highest accuracy on CHOSEN_ON, averaged over rounds and seeds; None if not run."""
    if not results_file(CHOSEN_ON).exists():
        return None
    _, curves = read_curves(CHOSEN_ON)
    return max((one for one in curves if one != "random"), key=lambda one: curves[one].mean())


def show() -> None:
    """Print the tables and the choice; write them as Markdown."""
    from lit_vision.evaluation.labels_saved import labels_saved
    from lit_vision.evaluation.metrics import paired_difference
    from lit_vision.results.tables import Table, to_markdown

    chosen, text = choose_strategy(), ["# Which images to label\n"]
    for name in NAMES:
        if not results_file(name).exists():
            text.append(f"## {name}\n\nnot run yet\n")
            continue
        counts, curves = read_curves(name)
        lines = []
        for strategy, values in curves.items():
            line = [strategy]
            for i in range(len(counts)):
                gap = paired_difference(values[:, i].tolist(), curves["random"][:, i].tolist())
                top1 = f"{100 * values[:, i].mean():.1f}"
                line.append(
                    top1 if strategy == "random" else f"{top1} ({100 * gap.mean:+.1f} ± {100 * (gap.se or 0):.1f})"
                )
            lines.append(line)
        seeds = len(curves["random"])
        note = f"Test top-1, %, mean of {seeds} seeds (gain over random on the same images ± standard error)."
        table = Table(["strategy", *(f"{count} labels" for count in counts)], lines, note)
        text += [f"## {name}\n", to_markdown(table)]
        if chosen is None:
            continue
        saved = labels_saved(counts, curves["random"], curves[chosen])
        words = []
        for count, (mean, low, high) in zip(counts[:-1], saved):  # the last round has no curve of random above it
            bound = "at least " if count + mean > counts[-1] - 0.5 else ""
            words.append(f"{bound}{mean:.0f} ({low:.0f} to {high:.0f}) at {count}")
        where = "here, so that it looks too good" if name == CHOSEN_ON else f"on the {CHOSEN_ON}"
        text.append(
            f"Labels that {chosen} (chosen {where}) saves against random, 95 % interval: {', '.join(words)} labels; "
            f"random was measured up to {counts[-1]}.\n"
        )
    text.append(
        "Ridge classifier on frozen EfficientNet-Lite0 features. Gains may vanish against augmentation and "
        "semi-supervision (arXiv:1912.05361) and regularization (arXiv:2002.09564). Stamps: numbers only, GPL-2.\n"
    )
    print("\n".join(text))
    (RESULTS / "active.md").write_text("\n".join(text), encoding="utf-8")


def verify() -> int:
    """Measure the first seed of each set again; return 1 if a value moved, the data differ or nothing was measured."""

    def measure_again(tally: Tally, name: str, encoder: str, images: FrozenSet, cells: list[dict[str, Any]]) -> None:
        counts, curves = read_curves(name)
        for strategy, values in curves.items():
            for count, committed, value in zip(counts, values[0], accuracies(images, strategy, 0)):
                tally.add(f"{name} {strategy} {count}", committed, value, 0.02)  # rounding may choose another image

    return verify_sets(NAMES, [ENCODER], results_file, measure_again)


def print_commands() -> None:
    """Print the sets and the number of rounds."""
    print_sets(NAMES)
    print(f"{SEEDS} seeds, {ROUNDS} rounds, every strategy; nothing is trained but ridge classifiers")


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, verify, print_commands)


if __name__ == "__main__":
    sys.exit(main())
