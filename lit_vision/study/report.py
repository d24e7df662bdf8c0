"""Write a study's results.json, report.html, report.md and figures from its cells."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.splits import evenly_spaced
from lit_vision.evaluation.metrics import classification_report, confusion_matrix, format_classification_report
from lit_vision.io.processes import cores
from lit_vision.io.text import format_duration, printable
from lit_vision.results.environment import device_name
from lit_vision.results.schema import read_result, write_result
from lit_vision.results.tables import Table, grid_table, rows_from
from lit_vision.study import figures
from lit_vision.study.best_model import EXPLAINED_IMAGES, load_best, side_of, write_explanations, write_model
from lit_vision.study.cells import CellKey, CellResult, hash_inputs, to_cells
from lit_vision.study.presets import ON_LABELS, SCRATCH
from lit_vision.study.report_content import Content, Section, collect_answers, recommendation, report_markdown
from lit_vision.study.report_html import to_html
from lit_vision.study.runner import Study
from lit_vision.study.verdict import PROBED, Verdict, verdicts
from lit_vision.study.wandb_upload import log_study

MODEL = "model.safetensors"
PROTOCOLS = ("logreg", "knn", "linear", *ON_LABELS)  # order of the table's lines within an init


def write_report(study: Study, cell_results: Sequence[CellResult], wandb: str | None = None) -> list[Path]:
    """Write results.json, the figures, report.html and report.md.

    Args:
        study: after its run.
        cell_results: returned by the run.
        wandb: a Weights & Biases project that gets the same tables and figures.

    Returns:
        Paths for the user to open: report.html, report.md, the folder of figures, results.json, the model if there is
            one.
    """
    folder = study.folder
    cells = to_cells(list(cell_results), {init: encoder.seconds for init, encoder in study.encoders.items()})
    trainings = sum(cell["seconds"] for cell in cells) + sum(encoder.seconds for encoder in study.encoders.values())
    used = study.preset.fields([*SCRATCH, *study.inits], study.plan.protocols)
    results = write_result(
        folder / "results.json",
        recipe=f"study-{study.preset.size}px-{hash_inputs(used)}",
        seconds=round(max(study.reporter.elapsed, trainings), 1),  # a continued study reused earlier trainings
        data_fingerprint=study.images.fingerprint,
        cells=cells,
        test_images=len(study.images.test),
        pool_images=len(study.images.pool),
        classes=study.images.classes,
        plan={"pretrain": study.plan.pretrain, "tune": study.plan.tune, "scratch": study.plan.scratch},
        weights={init: encoder.sha256 for init, encoder in study.encoders.items()},
        weights_from=study.origins,
        inits={init.name: init.record for init in study.given},
    )
    result = read_result(results)
    content = _content(study, cells, result, results)
    html, text = folder / "report.html", folder / "report.md"
    html.write_text(printable(to_html(content)), encoding="utf-8")
    text.write_text(printable(report_markdown(content, folder)), encoding="utf-8")
    if wandb:
        log_study(wandb, folder, content, result)
    model = folder / MODEL
    return [html, text, folder / "samples", results, *([model] if model.exists() else [])]


def _content(study: Study, cells: list[dict[str, Any]], result: dict[str, Any], results: Path) -> Content:
    test_labels = study.images.test_labels
    tests_per_class = np.bincount(test_labels, minlength=len(study.images.classes)).tolist()
    found = verdicts(cells, len(test_labels), study.images.per_class, tests_per_class)
    rows = rows_from([results])
    pairs = dict.fromkeys((row["init"], row["protocol"]) for row in rows)
    inits = list(dict.fromkeys(init for init, _ in pairs))
    lines = sorted(pairs, key=lambda pair: (inits.index(pair[0]), PROTOCOLS.index(pair[1])))
    chance = 1 / len(study.images.classes)
    chosen_on = found[-1].chosen_on if found else "inside the labels"
    note = f"Top-1 on {len(study.images.test)} test images, mean ± sd over (n) seeds. Guessing gives {chance:.0%}."
    return Content(
        title="What should I do with these images?",
        advice=recommendation(found),
        answers=collect_answers(found),
        about=_about(study, result),
        table=_with_not_tried(grid_table(rows, lines, study.plan.labels, note), study),
        sections=_sections(study, cells, found),
        facts=_facts(study, result),
        footer=(
            "Seed = labeled subset + initialization + order, the same for every init. Intervals are Student's t over "
            "the paired seeds; all seeds share one test split and one pre-training per init. One of the two that are "
            f"compared was chosen without the test split ({chosen_on}), the other is the best of the other kind on the "
            "test split, to its advantage. A training from scratch gets "
            f"{study.preset.scratch_factor} times the steps of a fine-tuning and the same augmentation. More time may "
            "change the order."
        ),
    )


def _with_not_tried(table: Table, study: Study) -> Table:
    reasons = dict.fromkeys((init for init in SCRATCH if study.plan.max_seeds.get(init) == 0), "no time")
    reasons |= study.not_tried
    rows = [[init, "", *[f"not tried: {reason}"] * (len(table.columns) - 2)] for init, reason in reasons.items()]
    return Table(table.columns, [*table.rows, *rows], table.note)


def _about(study: Study, result: dict[str, Any]) -> str:
    images = study.images
    return " ".join(
        [
            f"{len(images.pool)} training images, of which {sum(images.per_class)} have labels, "
            f"{len(images.classes)} classes, {len(images.test)} test images, seen at {images.size} pixels.",
            *images.notes,
            *([f"The budget was too short for all: {'; '.join(study.plan.omitted)}."] if study.plan.omitted else []),
            f"The study took {format_duration(result['seconds'])} on {device_name()} ({cores()} cores) and "
            f"{result['peak_memory_mb'] / 1000:.1f} GB of memory.",
        ]
    )


def _sections(study: Study, cells: list[dict[str, Any]], found: Sequence[Verdict]) -> list[Section]:
    samples, images = study.folder / "samples", study.images
    sections: list[Section] = []

    def add(title: str, text: str, draw: Callable[[], Path]) -> None:
        sections.extend(_unless_it_fails(study, title, lambda: [Section(title, text, draw())]))

    def draw_curves() -> Path:
        notes = {init: study.folder / "weights" / f"{init}.json" for init in study.plan.pretrain}
        curves = {init: json.loads(note.read_text())["losses"] for init, note in notes.items()}
        return figures.curves(samples / "pretraining.png", curves)

    add("Accuracy against labels", "", lambda: figures.accuracy(samples / "accuracy.png", cells))
    text = "Seconds of all training that one model needs, its pre-training included."
    most = max(study.plan.labels)
    add("Accuracy against cost", text, lambda: figures.cost(samples / "cost.png", cells, most))
    if study.plan.pretrain:
        add("Pre-training", "", draw_curves)
    if (samples / "reconstructions.png").exists():
        text = "Test images; three quarters of each are hidden. Rows: original, visible patches, reconstruction."
        sections.append(Section("MAE reconstructions", text, samples / "reconstructions.png"))
    for init, encoder in study.encoders.items():
        text = f"Frozen features of {init} on test images, projected by t-SNE. Labels only color the points."
        path = samples / f"embedding-{init.replace(':', '_')}.png"
        add(f"Embedding map: {init}", text, partial(figures.embedding, path, encoder.test, images, init))
        text = "Left: a test image. Then its nearest training images by cosine similarity, with their classes."
        path = samples / f"neighbors-{init.replace(':', '_')}.png"
        add(f"Nearest neighbors: {init}", text, partial(figures.neighbors, path, encoder, images, init))
    (study.folder / MODEL).unlink(missing_ok=True)
    if found:
        best = _cell_key(found[-1].recommended)
        sections += _unless_it_fails(study, "Errors", lambda: _errors(study, best))
        sections += _unless_it_fails(study, "The model", lambda: _model(study, cells, found[-1]))
    sections.append(Section("Weights and licenses", table=_licenses(study)))
    return sections


def _unless_it_fails(study: Study, title: str, make: Callable[[], list[Section]]) -> list[Section]:
    """Return sections of the report or, if making them fails, one that says so: it must not cost hours of training."""
    try:
        return make()
    except Exception as error:  # a font, a library, a file that is gone: the numbers are measured already
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        study.reporter.log(f"the report lacks a part, {title}: {reason}")
        return [Section(title, f"This part could not be made ({reason}). Repeat the command: only the report is made.")]


def _cell_key(cell: Mapping[str, Any]) -> CellKey:
    """Return the first seed of a cell."""
    return CellKey(cell["init"], cell["protocol"], cell["labels"], cell["seeds"][0])


def _model_keys(cells: Sequence[Mapping[str, Any]], verdict: Verdict) -> list[CellKey]:
    """Return the cells whose model may be stored, best first: k-NN and pixels have no network, so others follow."""
    first = verdict.recommended
    named = [first, verdict.best, verdict.other, *([verdict.second] if verdict.second else [])]
    probes = [cell for cell in cells if (cell["init"], cell["labels"]) == (first["init"], first["labels"])]
    named[1:1] = [cell for cell in probes if cell["protocol"] == PROBED]
    return list(dict.fromkeys(_cell_key(cell) for cell in named if cell["protocol"] in (PROBED, *ON_LABELS)))


def _errors(study: Study, key: CellKey) -> list[Section]:
    samples, images = study.folder / "samples", study.images
    answer = study.store.probabilities(key)
    matrix = confusion_matrix(answer.argmax(1), images.test_labels, len(images.classes))
    title = f"{key.init}, {key.protocol}, {key.labels} labels, seed {key.seed}"
    picture = figures.confusion(samples / "confusion.png", matrix, images.classes, "Confusion, % of each true class")
    text = format_classification_report(classification_report(matrix, images.classes))
    sections = [Section("Confusion", title, picture, plain=text)]
    rows = most_certain_mistakes(answer, images.test_labels, figures.MISTAKES).tolist()
    if rows:
        picture = figures.mistakes(samples / "mistakes.png", images, answer, rows, "")
        sections.append(Section("The most certain mistakes", title, picture))
    return sections


def _model(study: Study, cells: Sequence[Mapping[str, Any]], verdict: Verdict) -> list[Section]:
    """Write the recommended model (or the next best that is a network) and explanations of its answers."""
    for key in _model_keys(cells, verdict):
        if (module := load_best(study, key)) is not None:
            break
    else:
        return []
    write_model(study.folder / MODEL, study, key, module)
    picture = write_explanations(
        study.folder / "samples" / "reasons.png",
        module,
        study.images,
        evenly_spaced(len(study.images.test), EXPLAINED_IMAGES).tolist(),
        side_of(study.preset, key),
    )
    text = (
        f"{key.init}, {key.protocol}, {key.labels} labels, seed {key.seed}: test images, and the regions that each "
        f"answer rests on. The model is {MODEL} in the folder of this report; use it with: "
        f"lit-vision predict --model {MODEL} IMAGES --out answers.csv"
    )
    return [Section("Explanations", text, picture)]


def _licenses(study: Study) -> Table:
    rows = []
    for init in study.encoders:
        license = study.licenses.get(init)
        origin = "public" if license else "trained here"
        if license and ("nc" in license.lower().split("-") or "non" in license.lower()):
            license += " (NON-COMMERCIAL)"
        network = study.preset.network(init)
        if init in study.origins:
            origin += f" ({study.origins[init]})"
        rows.append([init, f"{network.backbone}, {origin}", license or "yours: trained on these images only"])
    rows += [[init, "-", f"not tried: {reason}"] for init, reason in study.not_tried.items()]
    rows.append(["scratch-*", "trained here", "yours"])
    return Table(["init", "weights", "license"], rows, "The code is Apache-2.0.")


def _facts(study: Study, result: dict[str, Any]) -> list[str]:
    plan, facts = study.plan, []
    for init in plan.pretrain:
        encoder = study.encoders[init]
        count = plan.pretrain_images.get(init, len(study.encoder_store.source.pool))
        facts.append(
            f"{init}: {plan.pretrain[init]} epochs on {count} images without labels, "
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


def most_certain_mistakes(answer: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """Return the rows of at most `most` mistakes with the highest probabilities, in descending order."""
    wrong = np.flatnonzero(answer.argmax(1) != labels)
    return wrong[np.argsort(-answer[wrong].max(1), kind="stable")][:most]
