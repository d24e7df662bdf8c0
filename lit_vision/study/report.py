"""Write a study's results.json, report.html, report.md and figures from its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_vision.io.processes import cores
from lit_vision.io.text import format_duration, printable
from lit_vision.results.environment import device_name
from lit_vision.results.schema import read_result, write_result
from lit_vision.results.tables import NOT_RUN, Table, grid_table, rows_from
from lit_vision.study.cells import CellResult, hash_inputs, to_cells
from lit_vision.study.chosen_report import chosen_section
from lit_vision.study.metrics_of_cells import MACRO_AP, metric_for
from lit_vision.study.more_labels import MoreLabels, more_labels
from lit_vision.study.presets import ON_LABELS, SCRATCH, method_of
from lit_vision.study.report_content import (
    PICTURE_TITLE,
    Content,
    Section,
    collect_answers,
    model_cost,
    recommendation,
    report_markdown,
    second_choice,
)
from lit_vision.study.report_html import to_html
from lit_vision.study.report_sections import (
    LABEL_ERRORS,
    MODEL,
    collect_sections,
    picture_of_first_screen,
    unless_it_fails,
)
from lit_vision.study.runner import Study
from lit_vision.study.verdict import Verdict, contender, images_that_count, verdicts
from lit_vision.study.wandb_upload import log_study
from lit_vision.weights.licenses import is_non_commercial

PROTOCOLS = ("logreg", "knn", "linear", *ON_LABELS)  # order of the table's lines within an init
NOT_MEASURED = "-"  # in the table: a contender that was not planned at this number of labels


def write_report(study: Study, cell_results: Sequence[CellResult], wandb: str | None = None) -> list[Path]:
    """Write results.json, the figures, report.html and report.md.

    Args:
        study: after its run.
        cell_results: returned by the run.
        wandb: a Weights & Biases project that gets the same tables and figures.

    Returns:
        Paths for the user to open: report.html, report.md, the folder of figures, results.json, and the table of
            doubtful labels and the model if there are any.
    """
    folder = study.folder
    costs = {(r.key.init, r.key.protocol, r.key.labels): study.multiply_adds(r) for r in cell_results}
    seconds = {init: encoder.seconds for init, encoder in study.encoders.items()}
    cells = to_cells(list(cell_results), seconds, costs, study.images.kind.metric)
    trainings = sum(cell["seconds"] for cell in cells) + sum(encoder.seconds for encoder in study.encoders.values())
    used = study.preset.fields([*SCRATCH, *study.inits], study.settings.protocols)
    results = write_result(
        folder / "results.json",
        recipe=f"study-{study.preset.size}px-{hash_inputs(used)}",
        seconds=round(max(study.reporter.elapsed, trainings), 1),  # a continued study reused earlier trainings
        data_fingerprint=study.images.fingerprint,
        cells=cells,
        test_images=len(study.images.test),
        pool_images=len(study.images.pool),
        classes=study.images.classes,
        steps=study.steps,
        not_tried=study.not_tried,
        weights={init: encoder.sha256 for init, encoder in study.encoders.items()},
        weights_from=study.origins,
        inits={init.name: init.record for init in study.given},
        chosen=study.chosen,
        metric_name=MACRO_AP.name if study.images.kind.several else "top1",
    )
    result = read_result(results)
    content = _content(study, cells, result, results)
    for answer in reversed(content.answers):  # the last line is about the most labels
        study.reporter.log(answer.text)
    html, text = folder / "report.html", folder / "report.md"
    html.write_text(printable(to_html(content)), encoding="utf-8")
    text.write_text(printable(report_markdown(content, folder)), encoding="utf-8")
    if wandb:
        log_study(wandb, folder, content, result)
    written = [path for path in (folder / LABEL_ERRORS, folder / MODEL) if path.exists()]
    return [html, text, folder / "samples", results, *written]


def _content(study: Study, cells: list[dict[str, Any]], result: dict[str, Any], results: Path) -> Content:
    images = study.images
    tests_per_class = images.kind.count(images.test_labels, len(images.classes))
    found = verdicts(cells, len(images.test_labels), images.per_class, tests_per_class)
    law = more_labels(cells, found[-1].recommended, found[-1].metric) if found else None
    (first,) = unless_it_fails(
        study,
        PICTURE_TITLE,
        lambda: [Section(PICTURE_TITLE, picture=picture_of_first_screen(study, cells, found, law))],
    )
    sections = collect_sections(study, cells, found, law)
    if study.chosen:
        metric = metric_for(cells, images.per_class)
        tests = len(images.test_labels)
        counted = images_that_count(metric, tests, tests_per_class)
        sections.insert(0, chosen_section(study.chosen, metric, tests, counted))
    return Content(
        title="What should I do with these images?",
        advice=recommendation(found),
        answers=collect_answers(found),
        picture=first.picture,
        points=_points(study, result, found, law),
        about=_about(study, result),
        table=_table(study, results),
        sections=sections if first.picture else [first, *sections],
        facts=_facts(study, cells, result),
        footer=_footer(study, found),
    )


def _points(study: Study, result: Mapping[str, Any], found: Sequence[Verdict], law: MoreLabels | None) -> list[str]:
    """Return the sentences beside the figure: the cost, what more labels give, the second choice, a license."""
    if not found:
        return []
    best = found[-1].recommended
    points = [f"{model_cost(best)} All of the study took {format_duration(result['seconds'])}."]
    points += [law.sentence] if law else []
    points += filter(None, [second_choice(found[-1])])
    license = study.licenses.get(best["init"], "")
    if is_non_commercial(license):
        points.append(f"The weights of {best['init']} are for non-commercial use only ({license}).")
    return points


def _table(study: Study, results: Path) -> Table:
    """Return the results of all contenders; what the study did not plan at a number of labels is "-"."""
    rows = [row for row in rows_from([results]) if row["values"]]
    pairs = dict.fromkeys((row["init"], row["protocol"]) for row in rows)
    inits = list(dict.fromkeys(init for init, _ in pairs))
    lines = sorted(pairs, key=lambda pair: (inits.index(pair[0]), PROTOCOLS.index(pair[1])))
    images = study.images
    tests, chance = len(images.test_labels), images.kind.guess(images.test_labels, len(images.classes))
    metric = "Macro AP, the mean of the classes' average precision," if images.kind.several else "Top-1"
    note = f"{metric} on {tests} test images, mean ± sd over (n) seeds. Guessing gives {chance:.0%}"
    largest = max(images.kind.count(images.test_labels, len(images.classes))) / tests
    always = "" if images.kind.several or largest < chance + 0.01 else f", always the largest class {largest:.0%}"
    note += f"{always}."
    table = grid_table(rows, lines, sorted({row["labels"] for row in rows}), note)
    return Table(table.columns, [[NOT_MEASURED if c == NOT_RUN else c for c in row] for row in table.rows], note)


def _about(study: Study, result: Mapping[str, Any]) -> str:
    images = study.images
    frozen = {study.preset.frozen_side(init) for init in study.encoders} - {images.size}
    sides = f"{images.size} pixels" + (f" ({max(frozen)} for frozen weights)" if frozen else "")
    return " ".join(
        [
            f"{len(images.pool)} training images, of which {images.labeled} have labels, "
            f"{len(images.classes)} classes, {len(images.test)} test images, seen at {sides}.",
            *images.notes,
            f"The study took {format_duration(result['seconds'])} on {device_name()} ({cores()} cores) and "
            f"{result['peak_memory_mb'] / 1000:.1f} GB of memory.",
        ]
    )


def _facts(study: Study, cells: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[str]:
    facts = []
    for init in filter(method_of, study.encoders):
        encoder = study.encoders[init]
        facts.append(
            f"{init}: pre-training saw {encoder.images_seen} images without labels, repetitions counted, in "
            f"{format_duration(encoder.seconds)}; weights sha256 {encoder.sha256[:12]}"
        )
    trained = [cell for cell in cells if cell["protocol"] in ON_LABELS]
    for labels in sorted({cell["labels"] for cell in trained}):
        steps = [f"{contender(cell)} {cell['steps']} steps" for cell in trained if cell["labels"] == labels]
        facts.append(f"{labels} labels: {', '.join(steps)}")
    facts += [f"not tried: {name} ({reason})" for name, reason in study.not_tried.items()]
    facts.append("every decision that depends on the clock: plan.jsonl, which lit-vision study --plan repeats")
    commit = (result["commit"] or "unknown")[:12] + ("+ (with changes)" if result["dirty"] else "")
    facts.append(f"commit {commit}, data fingerprint {result['data_fingerprint'][:12]}, recipe {result['recipe']}")
    return facts


def _footer(study: Study, found: Sequence[Verdict]) -> str:
    chosen_on = found[-1].chosen_on if found else "inside the labels"
    return (
        "Seed = labeled subset + initialization + order, the same for every init. Intervals are Student's t over the "
        "paired seeds; all seeds share one test split and one pre-training per init. One of the two that are compared "
        f"was chosen without the test split ({chosen_on}); the other is the best of the other kind on the test split, "
        f"to its advantage. A training from scratch gets {study.preset.scratch_factor} times the steps of a "
        "fine-tuning and the same augmentation. More time may change the order."
    )
