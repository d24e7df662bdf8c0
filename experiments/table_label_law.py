"""The law of the number of labels against truth: the first half of the numbers of labels predicts the second.

Each set and encoder is measured at eight numbers of labels with ten seeds; five seeds are one trial, as in a study.
A law is fitted to the first four numbers, and its 95 % intervals at the other four, up to 5 times as many labels, are
compared with the measurement. The law's constants were fixed on the garments. Nothing is trained but probes on
frozen features. Prints from experiments/results/label-law-*.json only.
Run: make table-label-law        Measure one seed of each set again: make verify-label-law
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from frozen_sets import ENCODERS, SETS, FrozenSet, print_sets, read_frozen, verify_sets
from table_script import RESULTS, ROOT, Tally, run_table

PROTOCOLS = ("linear", "knn")
SEEDS, SEEDS_OF_A_TRIAL = 10, 5
PER_CLASS, RATIO, COUNTS = 2, 1.5, 8  # labels a class at the first number; each number to the next; how many
TUNED_ON = ("garments", "turned garments")
FOLDER = ROOT / "runs" / "table-label-law"


def results_file(name: str) -> Path:
    """Return the path of a set's committed results."""
    return RESULTS / f"label-law-{name.replace(' ', '-')}.json"


def numbers_of_labels(images: FrozenSet) -> list[int]:
    """Return the numbers of labels that are measured, ascending; at most all images."""
    first = PER_CLASS * len(images.classes)
    return [count for i in range(COUNTS) if (count := round(first * RATIO**i)) <= len(images.labels)]


def accuracy(images: FrozenSet, protocol: str, labels: int, seed: int) -> float:
    """Return test top-1 with a stratified subset of the labels, nested in their number for a seed."""
    from lit_vision.data.splits import sample_stratified
    from lit_vision.evaluation.knn import weighted_knn
    from lit_vision.evaluation.linear import logistic_regression

    rows, classes = sample_stratified(images.labels, labels, seed), len(images.classes)
    if protocol == "knn":
        answer = weighted_knn(images.features[rows], images.labels[rows], images.test, classes).numpy().argmax(1)
    else:
        answer = logistic_regression(
            images.features[rows], images.labels[rows], images.test, classes, seed=seed
        ).predictions
    return float((answer == images.test_labels).mean())


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
            for protocol in PROTOCOLS:
                for labels in numbers_of_labels(images):
                    file = FOLDER / f"{name.replace(' ', '-')}-{encoder}-{protocol}-{labels}.json"
                    if not file.exists():
                        began = time.perf_counter()
                        values = [accuracy(images, protocol, labels, seed) for seed in range(SEEDS)]
                        seconds = round(time.perf_counter() - began, 1)
                        write_json(file, {"values": values, "seconds": seconds})
                        print(
                            f"{name}, {encoder}, {protocol}, {labels} labels: {100 * np.mean(values):.1f} %",
                            flush=True,
                        )
                    stored = json.loads(file.read_text())
                    cells.append(make_cell(encoder, protocol, labels, stored["values"], seconds=stored["seconds"]))
        if cells:
            facts = {
                "data_fingerprint": fingerprint,
                "test_images": len(images.test),
                "pool_images": len(images.labels),
            }
            seconds = round(sum(cell["seconds"] for cell in cells), 1)
            write_result(results_file(name), recipe="table-label-law", cells=cells, seconds=seconds, **facts)


def forecasts(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per trial and later number of labels: the law's error and gain beside the measured ones.

    Args:
        cells: of one encoder and protocol, in the order of their labels.

    Returns:
        Rows {factor, error: (true, median, low, high), gain: likewise}; in percentage points; factor is the number of
        labels divided by the largest of the fit.
    """
    from lit_vision.evaluation.label_law import fit_law

    counts = np.array([cell["labels"] for cell in cells])
    errors = 1 - np.array([cell["values"] for cell in cells]).T  # (seeds, counts)
    known, found = COUNTS // 2, []
    for first in range(0, len(errors), SEEDS_OF_A_TRIAL):
        trial = errors[first : first + SEEDS_OF_A_TRIAL]
        law, mean = fit_law(counts[:known], trial[:, :known]), trial.mean(0)
        last = counts[known - 1]
        for labels, true in zip(counts[known:], mean[known:]):
            error, gain = law.predict(labels), law.gain(last, labels - last)
            found.append(
                {
                    "factor": labels / last,
                    "error": (100 * true, *(100 * value for value in error)),
                    "gain": (100 * (mean[known - 1] - true), *gain),
                }
            )
    return found


def summary(rows: Sequence[dict[str, Any]], kind: str) -> list[str]:
    """Return distance of the law from truth, coverage of its intervals, and their width, as texts."""
    true, median, low, high = np.array([row[kind] for row in rows]).T
    held = (low <= true) & (true <= high)
    return [f"{np.abs(median - true).mean():.1f}", f"{held.sum()} of {len(held)}", f"{(high - low).mean():.1f}"]


def show() -> None:
    """Print the table and write it as Markdown, CSV and PNG."""
    from lit_vision.results.schema import read_result
    from lit_vision.results.tables import Table, to_csv, to_markdown, to_png

    lines, everything = [], []
    for name in SETS:
        if not results_file(name).exists():
            lines.append([name, *["not run yet"] * 9])
            continue
        cells = read_result(results_file(name))["cells"]
        for encoder in ENCODERS:
            for protocol in PROTOCOLS:
                chosen = [cell for cell in cells if (cell["init"], cell["protocol"]) == (encoder, protocol)]
                rows = forecasts(chosen)
                numbers = [str(cell["labels"]) for cell in chosen]
                measured = f"{100 * chosen[COUNTS // 2 - 1]['mean']:.1f} to {100 * chosen[-1]['mean']:.1f}"
                spans = [f"{numbers[0]} to {numbers[COUNTS // 2 - 1]}", f"{numbers[COUNTS // 2]} to {numbers[-1]}"]
                lines.append(
                    [name, f"{encoder}, {protocol}", *spans, measured, *summary(rows, "error"), *summary(rows, "gain")]
                )
                if name not in TUNED_ON:
                    everything += rows
    if everything:
        for factor in sorted({round(row["factor"], 1) for row in everything}):
            rows = [row for row in everything if round(row["factor"], 1) == factor]
            span = f"{factor:.1f} times as many"
            lines.append(["all but garments", "", "", span, "", *summary(rows, "error"), *summary(rows, "gain")])
        lines.append(["all but garments", "", "", "", "", *summary(everything, "error"), *summary(everything, "gain")])
    columns = ["set", "features", "labels of the fit", "predicted at", "top-1 there, %"]
    columns += ["error: off by", "in the interval", "its width", "gain: off by", "in the interval", "its width"]
    note = (
        f"Percentage points; 95 % intervals; a trial is {SEEDS_OF_A_TRIAL} seeds, so each row has "
        f"{SEEDS // SEEDS_OF_A_TRIAL} trials at each number; the numbers of one trial are not independent. Off by: "
        "mean distance of the law's median from the measured mean. Gain: over the largest number of the fit. The law's "
        "constants were fixed on the garments, upright and turned. pixels: 32 x 32; lite0: EfficientNet-Lite0, frozen."
    )
    table = Table(columns, lines, note)
    print(to_markdown(table))
    target = RESULTS / "label-law"
    target.with_suffix(".md").write_text(to_markdown(table), encoding="utf-8")
    target.with_suffix(".csv").write_text(to_csv(table), encoding="utf-8")
    to_png(table, target.with_suffix(".png"), title="The law of the number of labels against truth")


def verify() -> int:
    """Measure the first seed of each set again; return 1 if a value moved, the data differ or nothing was measured."""
    from lit_vision.study.verify import tolerance

    def measure_again(tally: Tally, name: str, encoder: str, images: FrozenSet, cells: list[dict[str, Any]]) -> None:
        for cell in cells:
            if cell["init"] == encoder:
                value = accuracy(images, cell["protocol"], cell["labels"], 0)
                label = f"{name} {encoder} {cell['protocol']} {cell['labels']}"
                tally.add(label, cell["values"][0], value, tolerance(cell["protocol"]))

    return verify_sets(SETS, ENCODERS, results_file, measure_again)


def print_commands() -> None:
    """Print the sets and the number of probes."""
    print_sets(SETS)
    print(f"{SEEDS} seeds, {COUNTS} numbers of labels, {PROTOCOLS} on {ENCODERS}; nothing is trained")


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, verify, print_commands)


if __name__ == "__main__":
    sys.exit(main())
