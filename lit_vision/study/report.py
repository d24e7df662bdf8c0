"""What a study leaves behind: results.json, report.html, report.md and pictures, all made from its cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.splits import evenly_spaced
from lit_vision.evaluation.metrics import classification_report, confusion_matrix, format_classification_report
from lit_vision.io.processes import cores
from lit_vision.io.text import format_duration
from lit_vision.results.environment import device_name
from lit_vision.results.schema import read_result, write_result
from lit_vision.results.tables import Table, grid_table, rows_from
from lit_vision.study import figures
from lit_vision.study.best_model import SHOWN, load_best, write_explanations, write_model
from lit_vision.study.cells import CellKey, CellResult, hash_inputs, to_cells
from lit_vision.study.presets import ON_LABELS
from lit_vision.study.report_content import Content, Section, collect_answers, recommendation, report_markdown
from lit_vision.study.report_html import to_html
from lit_vision.study.runner import Study
from lit_vision.study.schedule import SCRATCH
from lit_vision.study.verdict import FEWEST_SEEDS, PROBED, Verdict, verdicts
from lit_vision.study.wandb_upload import log_study

MODEL = "model.safetensors"
PROTOCOLS = ("logreg", "knn", "linear", *ON_LABELS)  # the order of the table's lines within a start


def write_report(study: Study, outcomes: Sequence[CellResult], wandb: str | None = None) -> list[Path]:
    """Write results.json, the pictures, report.html and report.md.

    Args:
        study: after its run.
        outcomes: what the run gave.
        wandb: a Weights & Biases project that gets the same tables and pictures.

    Returns:
        What a person should open: report.html, report.md, the folder of pictures, results.json.
    """
    folder = study.folder
    cells = to_cells(list(outcomes), {init: encoder.seconds for init, encoder in study.encoders.items()})
    trainings = sum(cell["seconds"] for cell in cells) + sum(encoder.seconds for encoder in study.encoders.values())
    used = study.preset.fields([*SCRATCH, *study.inits], study.plan.protocols)
    results = write_result(
        folder / "results.json",
        recipe=f"study-{study.preset.size}px-{hash_inputs(used)}",
        seconds=round(max(study.report.elapsed, trainings), 1),  # a study that went on kept what was trained before
        data_fingerprint=study.images.fingerprint,
        cells=cells,
        test_images=len(study.images.test),
        pool_images=len(study.images.pool),
        classes=study.images.classes,
        plan={"pretrain": study.plan.pretrain, "tune": study.plan.tune, "scratch": study.plan.scratch},
        weights={init: encoder.sha256 for init, encoder in study.encoders.items()},
    )
    result = read_result(results)
    content = _content(study, cells, result, results)
    html, text = folder / "report.html", folder / "report.md"
    html.write_text(to_html(content), encoding="utf-8")
    text.write_text(report_markdown(content, folder), encoding="utf-8")
    if wandb:
        log_study(wandb, folder, content, result)
    model = folder / MODEL
    return [html, text, folder / "samples", results, *([model] if model.exists() else [])]


def _content(study: Study, cells: list[dict], result: dict[str, Any], results: Path) -> Content:
    found = verdicts(cells, len(study.images.test))
    seconds = {init: encoder.seconds for init, encoder in study.encoders.items()}
    rows = rows_from([results])
    pairs = {(row["init"], row["protocol"]): None for row in rows}
    lines = sorted(
        pairs, key=lambda pair: (list(dict.fromkeys(s for s, _ in pairs)).index(pair[0]), PROTOCOLS.index(pair[1]))
    )
    chance = 1 / len(study.images.classes)
    note = f"Top-1 on {len(study.images.test)} test images, mean ± sd over (n) seeds. Guessing gives {chance:.0%}."
    return Content(
        title="What should I do with these images?",
        advice=recommendation(found, seconds),
        answers=collect_answers(found),
        about=_about(study, result),
        table=_with_not_tried(grid_table(rows, lines, study.plan.labels, note), study),
        sections=_sections(study, cells, found),
        facts=_facts(study, result),
        footer=(
            "Seed = labelled subset + initialisation + order, the same for every start. Standard errors are over seeds; all seeds share "
            "one test split and one pre-training per start. The pre-trained start was chosen inside the labels (fine-tuned; as a linear "
            f"probe where time left fewer than {FEWEST_SEEDS} fine-tunings); the baseline that it is "
            "compared with is the best of all on the test split. A training from scratch gets "
            f"{study.preset.scratch_factor} times the steps of a fine-tuning and the same augmentation. More time may change the order."
        ),
    )


def _with_not_tried(table: Table, study: Study) -> Table:
    why = {**dict.fromkeys((s for s in SCRATCH if study.plan.max_seeds.get(s) == 0), "no time"), **study.not_tried}
    more = [[init, "", *[f"not tried: {reason}"] * (len(table.columns) - 2)] for init, reason in why.items()]
    return Table(table.columns, [*table.rows, *more], table.note)


def _about(study: Study, result: dict[str, Any]) -> str:
    images = study.images
    return " ".join(
        [
            f"{len(images.pool)} training images, of which {sum(images.per_class)} have labels, {len(images.classes)} classes, "
            f"{len(images.test)} test images, seen at {images.size} pixels.",
            *images.notes,
            *([f"The budget was too short for all: {'; '.join(study.plan.cut)}."] if study.plan.cut else []),
            f"The whole study took {format_duration(result['seconds'])} on {device_name()} ({cores()} cores) and "
            f"{result['peak_memory_mb'] / 1000:.1f} GB of memory.",
        ]
    )


def _sections(study: Study, cells: list[dict], found: Sequence[Verdict]) -> list[Section]:
    samples, images = study.folder / "samples", study.images
    sections = [Section("Accuracy against labels", picture=figures.accuracy(samples / "accuracy.png", cells))]
    sections.append(
        Section(
            "Accuracy against cost",
            "Seconds of all training that one model needs, its pre-training included.",
            figures.cost(samples / "cost.png", cells, max(study.plan.labels)),
        )
    )
    if study.plan.pretrain:
        notes = {init: study.folder / "weights" / f"{init}.json" for init in study.plan.pretrain}
        curves = {init: json.loads(note.read_text())["losses"] for init, note in notes.items()}
        sections.append(Section("Pre-training", picture=figures.curves(samples / "pretraining.png", curves)))
    if (samples / "reconstructions.png").exists():
        text = "Test images; three quarters of each are hidden. Original, what the encoder sees, what it makes of it."
        sections.append(Section("MAE's reconstructions", text, samples / "reconstructions.png"))
    for init, encoder in study.encoders.items():
        text = f"Frozen features of {init} on test images, projected by t-SNE. Labels only colour the points."
        picture = figures.embedding(samples / f"embedding-{init.replace(':', '_')}.png", encoder.test, images, init)
        sections.append(Section(f"Embedding map: {init}", text, picture))
        text = "Left: a test image. Then its nearest training images by cosine similarity, with their classes."
        picture = figures.neighbors(samples / f"neighbours-{init.replace(':', '_')}.png", encoder, images, init)
        sections.append(Section(f"Nearest neighbours: {init}", text, picture))
    best = _best_cell_key(found)
    (study.folder / MODEL).unlink(missing_ok=True)
    if best:
        sections += _errors(study, best) + _model(study, best, found[-1])
    sections.append(Section("Weights and licenses", table=_licenses(study)))
    return sections


def _best_cell_key(found: Sequence[Verdict]) -> CellKey | None:
    """First seed of the chosen start, or of the baseline where that is better, at the most labels."""
    if not found:
        return None
    last = found[-1]
    cell = (
        last.best
        if last.best and (last.answer == "wins" or last.best["mean"] >= last.best_baseline["mean"])
        else last.best_baseline
    )
    return _cell_key(cell)


def _cell_key(cell: Mapping[str, Any]) -> CellKey:
    return CellKey(cell["init"], cell["protocol"], cell["labels"], cell["seeds"][0])


def _errors(study: Study, key: CellKey) -> list[Section]:
    samples, images = study.folder / "samples", study.images
    answer = study.store.probabilities(key)
    matrix = confusion_matrix(answer.argmax(1), images.test_labels, len(images.classes))
    which = f"{key.init}, {key.protocol}, {key.labels} labels, seed {key.seed}"
    picture = figures.confusion(samples / "confusion.png", matrix, images.classes, "Confusion, % of each true class")
    text = format_classification_report(classification_report(matrix, images.classes))
    sections = [Section("Confusion", which, picture, plain=text)]
    rows = worst(answer, images.test_labels, figures.MISTAKES)
    if len(rows):
        picture = figures.mistakes(samples / "mistakes.png", images, answer, rows, "")
        sections.append(Section("The most certain mistakes", which, picture))
    return sections


def _model(study: Study, key: CellKey, verdict: Verdict) -> list[Section]:
    """The best model as a file, and what its answers rest on; the chosen start's where the best is no network."""
    if key.protocol not in (*ON_LABELS, PROBED) and verdict.best:
        key = _cell_key(verdict.best)
    module = load_best(study, key)
    if module is None:
        return []
    write_model(study.folder / MODEL, study, key, module)
    picture = write_explanations(
        study.folder / "samples" / "reasons.png",
        module,
        study.images,
        evenly_spaced(len(study.images.test), SHOWN).tolist(),
        study.preset.side(key.init),
    )
    text = (
        f"{key.init}, {key.protocol}, {key.labels} labels, seed {key.seed}: each test image, and what in it spoke for the answer. "
        f"This model is {MODEL} beside this report; use it with: lit-vision predict --model {MODEL} IMAGES --out answers.csv"
    )
    return [Section("Why it answers so", text, picture)]


def _licenses(study: Study) -> Table:
    rows = []
    for init in study.encoders:
        license = study.licenses.get(init)
        origin = "public" if license else "trained here"
        if license and ("nc" in license.lower().split("-") or "non" in license.lower()):
            license += " (NON-COMMERCIAL)"
        network = study.preset.network(init)
        rows.append([init, f"{network.backbone}, {origin}", license or "yours: made from these images only"])
    rows += [[init, "-", f"not tried: {why}"] for init, why in study.not_tried.items()]
    rows.append(["scratch-*", "trained here", "yours"])
    return Table(["init", "weights", "license"], rows, "The code is Apache-2.0.")


def _facts(study: Study, result: dict[str, Any]) -> list[str]:
    plan, facts = study.plan, []
    for init in plan.pretrain:
        encoder = study.encoders[init]
        facts.append(
            f"{init}: {plan.pretrain[init]} epochs on {study.plan.pool.get(init, len(study.make.source.pool))} images without labels, "
            f"{format_duration(encoder.seconds)}; weights sha256 {encoder.sha256[:12]}"
        )
    for count in plan.labels:
        facts.append(
            f"{count} labels: {plan.tune[count]} epochs from pre-trained weights, {plan.scratch[count]} from scratch, "
            f"{plan.seeds[count]} seeds"
        )
    commit = (result["commit"] or "unknown")[:12] + ("+ (with changes)" if result["dirty"] else "")
    facts.append(f"commit {commit}, data fingerprint {result['data_fingerprint'][:12]}, recipe {result['recipe']}")
    return facts


def worst(answer: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """Rows of the most certain mistakes, the most certain first."""
    wrong = np.flatnonzero(answer.argmax(1) != labels)
    return wrong[np.argsort(-answer[wrong].max(1), kind="stable")][:most]
