"""Labels that look wrong: precision and recall where 2, 5 and 10 % of the labels were changed on purpose.

Labels are changed to any other class with equal probability (uniform), or to the class whose mean feature is nearest
(similar), which is harder to see. `lit_vision.evaluation.label_errors` ranks them, on frozen features; its order and
SUSPECT were fixed on the upright garments. Nothing is trained but probes. Prints from
experiments/results/label-errors-*.json only.
Run: make table-label-errors        Measure one seed of each set again: make verify-label-errors
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from frozen_sets import SETS, FrozenSet, print_sets, read_frozen, verify_sets
from table_script import RESULTS, ROOT, Tally, run_table

RATES = (0.02, 0.05, 0.1)
KINDS = ("uniform", "similar")
SEEDS = 5
MOST = 600  # images of a set, drawn anew for each seed
ENCODERS = ("lite0",)
FOLDER = ROOT / "runs" / "table-label-errors"
VALUES = (
    "first_precision",
    "suspect_precision",
    "suspect_recall",
    "suspect_share",
    "first_double_recall",
    "likely_right",
)


def results_file(name: str) -> Path:
    """Return the path of a set's committed results."""
    return RESULTS / f"label-errors-{name.replace(' ', '-')}.json"


def change_labels(features: np.ndarray, labels: np.ndarray, rate: float, kind: str, seed: int) -> np.ndarray:
    """Return labels of which `rate` (rounded to full images, at least one) were changed.

    Args:
        features: (N, D).
        labels: (N,) from 0 to K - 1, of at least two classes.
        rate: share of the labels.
        kind: one of KINDS.
        seed: of what is changed, and to what.
    """
    rng, changed = np.random.default_rng(seed), labels.copy()
    rows = rng.permutation(len(labels))[: max(1, round(rate * len(labels)))]
    classes = np.unique(labels)
    if kind == "uniform":
        for row in rows:
            changed[row] = rng.choice(classes[classes != labels[row]])
        return changed
    means = np.stack([features[labels == label].mean(0) for label in classes])
    distances = np.linalg.norm(means[:, None] - means, axis=2) + np.diag(np.full(len(classes), np.inf))
    changed[rows] = classes[distances.argmin(1)][np.searchsorted(classes, labels[rows])]
    return changed


def measure(images: FrozenSet, rate: float, kind: str, seed: int) -> dict[str, float]:
    """Return, as fractions, how well the changed labels of a drawn part of the set are found.

    With m changed labels: first_precision, the share of changed ones among the first m of the ranking (also their
    recall); first_double_recall, the share of the m that is among the first 2m; suspect_precision and suspect_recall of
    the suspects, suspect_share of all images; likely_right, the share of changed labels whose likely class is right.
    """
    from lit_vision.data.splits import sample_stratified
    from lit_vision.evaluation.label_errors import find_label_errors

    rows = np.arange(len(images.labels))
    if len(rows) > MOST:
        rows = sample_stratified(images.labels, MOST, seed)
    features, labels = images.features[rows], images.labels[rows]
    given = change_labels(features, labels, rate, kind, seed)
    ranking = find_label_errors(features, given, len(images.classes), seed=seed)
    wrong = (given != labels)[ranking.rows]
    changed = int(wrong.sum())
    found = wrong & ranking.suspects
    return {
        "first_precision": float(wrong[:changed].mean()),
        "first_double_recall": float(wrong[: 2 * changed].sum() / changed),
        "suspect_precision": float(found.sum() / max(1, ranking.suspects.sum())),
        "suspect_recall": float(found.sum() / changed),
        "suspect_share": float(ranking.suspects.mean()),
        "likely_right": float((ranking.likely == labels[ranking.rows])[wrong].mean()),
    }


def make() -> None:
    """Measure what is missing and write a results file for each set that can be had."""
    from lit_vision.io.atomic import write_json
    from lit_vision.results.schema import make_cell, write_result

    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        cells, fingerprint = [], ""
        for encoder in ENCODERS:
            images = read_frozen(name, encoder)
            if images is None:
                print(f"{name}: its package was not found; see experiments/frozen_sets.py")
                break
            fingerprint = images.fingerprint
            for kind in KINDS:
                for rate in RATES:
                    file = FOLDER / f"{name.replace(' ', '-')}-{encoder}-{kind}-{rate}.json"
                    if not file.exists():
                        start = time.perf_counter()
                        values = [measure(images, rate, kind, seed) for seed in range(SEEDS)]
                        write_json(file, {"values": values, "seconds": round(time.perf_counter() - start, 1)})
                    stored = json.loads(file.read_text())
                    columns = {key: [one[key] for one in stored["values"]] for key in VALUES}
                    print(f"{name}, {encoder}, {kind}, {rate}: {np.mean(columns['first_precision']):.3f}", flush=True)
                    labels = min(MOST, len(images.labels))
                    cells.append(
                        make_cell(
                            encoder,
                            f"{kind}-{rate}",
                            labels,
                            columns.pop("first_precision"),
                            seconds=stored["seconds"],
                            **columns,
                        )
                    )
        if cells:
            seconds = round(sum(cell["seconds"] for cell in cells), 1)
            write_result(
                results_file(name),
                recipe="table-label-errors",
                cells=cells,
                seconds=seconds,
                data_fingerprint=fingerprint,
            )


def show() -> None:
    """Print the table and write it as Markdown, CSV and PNG."""
    from lit_vision.results.schema import read_result
    from lit_vision.results.tables import Table, to_csv, to_markdown, to_png

    lines = []
    for name in SETS:
        cells = read_result(results_file(name))["cells"] if results_file(name).exists() else []
        if not cells:
            lines.append([name, *["not run yet"] * 9])
        for cell in cells:
            kind, rate = cell["protocol"].split("-")
            changed = max(1, round(float(rate) * cell["labels"]))
            means = {key: 100 * float(np.mean(cell[key])) for key in VALUES if key in cell}
            lines.append(
                [
                    name,
                    "EfficientNet-Lite0" if cell["init"] == "lite0" else cell["init"],
                    kind,
                    f"{changed} of {cell['labels']}",
                    f"{100 * cell['mean']:.0f} ± {100 * cell['std']:.0f}",
                    f"{means['first_double_recall']:.0f}",
                    f"{means['suspect_share'] * cell['labels'] / 100:.0f}",
                    f"{means['suspect_precision']:.0f}",
                    f"{means['suspect_recall']:.0f}",
                    f"{means['likely_right']:.0f}",
                ]
            )
    columns = ["set", "features", "changed to", "labels changed", "precision of the first m, %"]
    columns += [
        "recall of the first 2m, %",
        "suspects",
        "their precision, %",
        "their recall, %",
        "right class named, %",
    ]
    note = (
        f"m labels changed on purpose; mean of {SEEDS} seeds (± sd), each with its own images and changes. uniform: to "
        "any other class; similar: to the class with the nearest mean feature. Precision at random is the share of "
        "changed labels. Labels that were wrong before count as right, so precision is a lower bound."
    )
    table = Table(columns, lines, note)
    print(to_markdown(table))
    target = RESULTS / "label-errors"
    target.with_suffix(".md").write_text(to_markdown(table), encoding="utf-8")
    target.with_suffix(".csv").write_text(to_csv(table), encoding="utf-8")
    to_png(table, target.with_suffix(".png"), title="Labels changed on purpose, found by the ranking")


def verify() -> int:
    """Measure the first seed of each set again; return 1 if a value moved, the data differ or nothing was measured."""

    def measure_again(tally: Tally, name: str, encoder: str, images: FrozenSet, cells: list[dict[str, Any]]) -> None:
        for cell in cells:
            if cell["init"] == encoder:
                kind, rate = cell["protocol"].split("-")
                value = measure(images, float(rate), kind, 0)["first_precision"]
                one = 1 / max(1, round(float(rate) * cell["labels"]))  # rounding may swap two images
                tally.add(f"{name} {encoder} {cell['protocol']}", cell["values"][0], value, 1.01 * one)

    return verify_sets(SETS, ENCODERS, results_file, measure_again)


def print_commands() -> None:
    """Print the sets and the number of rankings."""
    print_sets(SETS)
    print(f"{SEEDS} seeds, {RATES} of the labels changed, {KINDS}, on {ENCODERS}; nothing is trained")


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, verify, print_commands)


if __name__ == "__main__":
    sys.exit(main())
