"""What a study leaves behind: results.json, report.md and pictures, all made from its cells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.callbacks.progress import clock
from lit_vision.evaluation.metrics import classification_report, confusion_matrix, report_text
from lit_vision.evaluation.plots import Series
from lit_vision.evaluation.environment import cores, device_name
from lit_vision.evaluation.results import read_result, write_result
from lit_vision.study import pictures
from lit_vision.study.cells import Ask, Outcome, digest, to_cells
from lit_vision.study.runner import Study
from lit_vision.study.verdict import Verdict, is_baseline, sentence, verdicts
from lit_vision.tables import grid_table, rows_from, to_markdown

PROTOCOLS = ("logreg", "knn", "linear", "finetune")  # the order of the table's lines within a start
STARTS = ("pixels", "scratch-cnn", "scratch-vit", "mae", "simclr")


def write_report(study: Study, outcomes: Sequence[Outcome]) -> list[Path]:
    """Write results.json, the pictures and report.md.

    Returns:
        What a person should open: report.md, the folder of pictures, results.json.
    """
    folder = study.folder
    seconds = {start: encoder.seconds for start, encoder in study.encoders.items()}
    cells = to_cells(list(outcomes), seconds)
    results = write_result(
        folder / "results.json",
        recipe=f"study-{study.recipe.size}px-{digest(study.recipe.as_dict())}",
        seconds=round(study.report.elapsed, 1),
        data_fingerprint=study.images.fingerprint,
        cells=cells,
        test_images=len(study.images.test),
        pool_images=len(study.images.pool),
        classes=study.images.classes,
        plan={"pretrain": study.plan.pretrain, "tune": study.plan.tune, "scratch": study.plan.scratch},
        weights={start: encoder.sha256 for start, encoder in study.encoders.items()},
    )
    found = verdicts(cells, len(study.images.test))
    samples = folder / "samples"
    pictures.accuracy(samples / "accuracy.png", accuracy_series(cells))
    if study.encoders:
        curves = {s: json.loads((folder / "weights" / f"{s}.json").read_text())["losses"] for s in study.encoders}
        pictures.curves(samples / "pretraining.png", curves)
    best = _best_ask(found)
    text = ""
    if best:
        answer = study.store.probabilities(best)
        matrix = confusion_matrix(answer.argmax(1), study.images.test_labels, len(study.images.classes))
        title = f"{best.start}, {best.protocol}, {best.labels} labels, seed {best.seed}"
        pictures.confusion(samples / "confusion.png", matrix, study.images.classes, title)
        rows = worst(answer, study.images.test_labels, pictures.MISTAKES)
        if len(rows):
            pictures.mistakes(samples / "mistakes.png", study.images, answer, rows, f"Most certain mistakes: {title}")
        text = report_text(classification_report(matrix, study.images.classes))
    report = folder / "report.md"
    report.write_text(_markdown(study, found, results, best, text), encoding="utf-8")
    return [report, samples, results]


def _best_ask(found: Sequence[Verdict]) -> Ask | None:
    """First seed of the chosen start at the most labels."""
    chosen = [v.best for v in found if v.best]
    return (
        Ask(chosen[-1]["start"], chosen[-1]["protocol"], chosen[-1]["labels"], chosen[-1]["seeds"][0])
        if chosen
        else None
    )


def _markdown(study: Study, found: Sequence[Verdict], results: Path, best: Ask | None, text: str) -> str:
    images, result = study.images, read_result(results)
    rows = rows_from([results])
    pairs = {(row["start"], row["protocol"]) for row in rows}
    lines = [(start, protocol) for start in STARTS for protocol in PROTOCOLS if (start, protocol) in pairs]
    table = grid_table(
        rows,
        lines,
        study.plan.labels,
        "Test top-1, mean ± sd over (n) seeds; chance is " + f"{1 / len(images.classes):.0%}.",
    )
    parts = ["# What to do with this folder\n"]
    parts += [f"- {sentence(verdict)}" for verdict in found]
    parts.append("\n" + _about(study, result) + "\n")
    parts.append("## Accuracy\n\n" + to_markdown(table))
    parts.append("![Accuracy against labels](samples/accuracy.png)\n")
    parts.append("## How it was made\n\n" + _cost_lines(study, result))
    for name, title in (
        ("pretraining", "Pre-training loss"),
        ("reconstructions", "MAE: picture, what the encoder sees, reconstruction"),
        ("confusion", "Confusion on the test split"),
        ("mistakes", "The most certain mistakes"),
    ):
        if (study.folder / "samples" / f"{name}.png").exists():
            parts.append(f"## {title}\n\n![{title}](samples/{name}.png)\n")
    if best:
        parts.append(
            f"## Per class: {best.start}, {best.protocol}, {best.labels} labels, seed {best.seed}\n\n```\n{text}\n```\n"
        )
    return "\n".join(parts)


def _about(study: Study, result: dict[str, Any]) -> str:
    images = study.images
    notes = " ".join(images.notes)
    return (
        f"{len(images.pool)} training images, of which {sum(images.per_class)} have labels, {len(images.classes)} classes, "
        f"{len(images.test)} test images, {images.size} pixels. {notes} "
        f"{clock(result['seconds'])} on {device_name()}, {cores()} cores, {result['peak_memory_mb'] / 1000:.1f} GB. "
        "Seed = labelled subset + initialisation + order, the same for every start. The standard error is over seeds; all seeds "
        "share one test split and one pre-training per start. The pre-trained start was chosen inside the labels, the baseline "
        "that it is compared with is the best of all on the test split."
    )


def _cost_lines(study: Study, result: dict[str, Any]) -> str:
    plan, lines = study.plan, []
    for start, encoder in study.encoders.items():
        lines.append(
            f"- `{start}`: {plan.pretrain[start]} epochs on {len(study.images.pool)} images without labels, "
            f"{clock(encoder.seconds)}; weights sha256 {encoder.sha256[:12]}"
        )
    for count in plan.labels:
        lines.append(
            f"- {count} labels: {plan.tune[count]} epochs from pre-trained weights, {plan.scratch[count]} from scratch, "
            f"the same augmentation for both; {plan.seeds[count]} seeds"
        )
    commit = (result["commit"] or "unknown")[:12] + ("+" if result["dirty"] else "")
    lines.append(f"- commit {commit}, data fingerprint {result['data_fingerprint'][:12]}, recipe {result['recipe']}")
    return "\n".join(lines) + "\n"


def accuracy_series(cells: Sequence[dict[str, Any]]) -> list[Series]:
    """Accuracy over labels, one line per (start, protocol); k-NN is left to the table."""
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        if cell["protocol"] != "knn" and cell["values"]:
            lines.setdefault((cell["start"], cell["protocol"]), []).append(cell)
    series = []
    for (start, protocol), group in sorted(lines.items(), key=lambda item: STARTS.index(item[0][0])):
        group = sorted(group, key=lambda cell: cell["labels"])
        error = [cell["std"] or 0.0 for cell in group]
        x, y = [cell["labels"] for cell in group], [cell["mean"] for cell in group]
        series.append(Series(f"{start}, {protocol}", x, y, error, baseline=is_baseline(start)))
    return series


def worst(answer: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """Rows of the most certain mistakes, the most certain first."""
    wrong = np.flatnonzero(answer.argmax(1) != labels)
    return wrong[np.argsort(-answer[wrong].max(1), kind="stable")][:most]
