"""Sections of a study's report below its table: more labels, labels that look wrong, mistakes, the model, licenses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.splits import evenly_spaced
from lit_vision.evaluation.label_errors import find_label_errors
from lit_vision.evaluation.metrics import confusion_matrix, format_percent, mean_sd
from lit_vision.evaluation.multilabel import average_precisions
from lit_vision.io.atomic import atomic_write
from lit_vision.results.tables import Table, to_csv
from lit_vision.study import figures
from lit_vision.study.best_model import EXPLAINED_IMAGES, load_best, side_of, write_explanations, write_model
from lit_vision.study.cells import CellKey
from lit_vision.study.frozen import CHECKED_LABELS
from lit_vision.study.more_labels import MoreLabels
from lit_vision.study.pixel_cache import Rows
from lit_vision.study.presets import ON_LABELS, method_of
from lit_vision.study.report_content import Section
from lit_vision.study.runner import Study
from lit_vision.study.verdict import PROBED, Verdict, choose_frozen
from lit_vision.weights.licenses import with_note

MODEL, LABEL_ERRORS = "model.safetensors", "label_errors.csv"
SHOWN_LABELS = 10
NOT_MEASURED = "-"  # of a class without test images
METRICS = {"values": "accuracy", "balanced_values": "balanced accuracy", "macro_f1_values": "macro F1"}

Cells = Sequence[Mapping[str, Any]]


def collect_sections(study: Study, cells: Cells, found: Sequence[Verdict], law: MoreLabels | None) -> list[Section]:
    """Write label_errors.csv, model.safetensors and figures, and return the sections that show them."""
    sections: list[Section] = []
    last = found[-1] if found else None
    for name in (MODEL, LABEL_ERRORS):
        (study.folder / name).unlink(missing_ok=True)

    def add(title: str, make: Callable[[], Section | None]) -> None:
        sections.extend(unless_it_fails(study, title, lambda: [section] if (section := make()) else []))

    add("Other metrics", lambda: _other_metrics(cells))
    add("More labels", lambda: _more_labels(law) if law else None)
    add("Labels that look wrong", lambda: _label_errors(study, cells, last))
    if last:
        key = _cell_key(last.recommended)
        if study.images.kind.several:
            add("Each class", lambda: _each_class(study, key))
        else:
            add("Mistakes", lambda: _mistakes(study, key))
            add("Confusion", lambda: _confusion(study, key))
        add("The model", lambda: _model(study, cells, last))
    pretrained = [init for init in study.encoders if method_of(init)]
    if pretrained:
        add("Pre-training", lambda: _pretraining(study, pretrained))
    if (path := study.folder / "samples" / "reconstructions.png").exists():
        text = "Test images; three quarters of each are hidden. Rows: original, visible patches, reconstruction."
        sections.append(Section("MAE reconstructions", text, path))
    sections.append(Section("Weights and licenses", table=_licenses(study)))
    return sections


def unless_it_fails(study: Study, title: str, make: Callable[[], list[Section]]) -> list[Section]:
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


def _other_metrics(cells: Cells) -> Section | None:
    """Return accuracy, balanced accuracy and macro F1 at the most labels; None if the cells have only the first."""
    most = max((cell["labels"] for cell in cells), default=0)
    shown = [cell for cell in cells if cell["labels"] == most and cell["values"]]
    keys = [key for key in METRICS if all(cell.get(key) for cell in shown)]
    if len(keys) < 2:
        return None
    rows = [[cell["init"], cell["protocol"], *(format_percent(*mean_sd(cell[key])) for key in keys)] for cell in shown]
    note = "Balanced accuracy is the mean over the classes of the share that is found; macro F1 the mean of their F1."
    return Section(
        f"Other metrics, {most} labels", table=Table(["init", "protocol", *(METRICS[key] for key in keys)], rows, note)
    )


def _more_labels(law: MoreLabels) -> Section:
    rows = []
    for labels in (law.labels, law.labels + law.more, law.labels + 3 * law.more):
        error = law.law.predict(labels)
        low, high = (f"{100 * (1 - end):.1f}" for end in (error.high, error.low))
        rows.append([str(labels), f"{100 * (1 - error.median):.1f} %", f"{low} to {high} %"])
    note = (
        "The law: error = a + b x labels^-c. The interval has the spread of the seeds and of the laws that fit, and "
        "takes for granted that further images are like these."
    )
    return Section("More labels", law.sentence, table=Table(["labels", "expected", "95 % interval"], rows, note))


def _label_errors(study: Study, cells: Cells, verdict: Verdict | None) -> Section | None:
    """Write label_errors.csv and show the first; None if no class has a second image to learn from."""
    images = study.images
    if images.kind.several:
        return Section("Labels that look wrong", "They are not looked for where an image has several labels.")
    known = np.arange(images.labeled)
    if max(images.per_class) < 2:  # the only image of a class is not judged, the others are
        return None
    name, features = _features(study, cells, verdict)
    rows = known if len(known) <= CHECKED_LABELS else images.subset(CHECKED_LABELS, 0)
    groups = images.groups_of(rows)
    ranking = find_label_errors(features[rows], images.labels[rows], len(images.classes), groups=groups)
    doubtful = ranking.first_suspects()
    checked = f"{len(rows)} of the {len(known)}" if len(rows) < len(known) else f"The {len(rows)}"
    text = f"{checked} labels were compared with a linear probe on {name} that had not seen the image. "
    if not len(doubtful):
        return Section("Labels that look wrong", f"{text}It contradicts none of them clearly.")
    doubtful = replace(doubtful, rows=rows[doubtful.rows])
    table = Table(
        ["path", "label", "likely label", "confidence"],
        [
            [images.paths[row], images.classes[given], images.classes[likely], f"{confidence:.3f}"]
            for row, given, likely, confidence in zip(
                doubtful.rows, doubtful.given, doubtful.likely, doubtful.confidence
            )
        ],
    )
    content = to_csv(table).encode("utf-8", "surrogateescape")
    atomic_write(study.folder / LABEL_ERRORS, lambda file: file.write_bytes(content))
    picture = figures.label_errors(
        study.folder / "samples" / "label_errors.png", images, doubtful.first_suspects(SHOWN_LABELS)
    )
    first = f"; the first {SHOWN_LABELS} are shown" if len(doubtful) > SHOWN_LABELS else ""
    return Section(
        "Labels that look wrong",
        f"{text}It clearly contradicts {len(doubtful)}, listed in {LABEL_ERRORS}, the most doubtful first{first}. "
        "Look before you change a label: hard images are among them.",
        picture,
    )


def _features(study: Study, cells: Cells, verdict: Verdict | None) -> tuple[str, Rows]:
    """Return the features of the labeled pool that the study finds best, and their init."""
    names = []
    if verdict:
        frozen = choose_frozen(
            [cell for cell in cells if cell["labels"] == verdict.labels and cell["values"]], verdict.metric
        )
        names = [cell["init"] for cell in (frozen, verdict.recommended, verdict.best) if cell]
    for init in [*names, *study.encoders]:
        if init in study.encoders:
            return f"frozen features of {init}", study.encoders[init].pool
    return "pixels", study.images.flat_pixels()[0]


def _mistakes(study: Study, key: CellKey) -> Section | None:
    answer = study.store.probabilities(key)
    rows = most_certain_mistakes(answer, study.images.test_labels, figures.MISTAKES).tolist()
    if not rows:
        return None
    picture = figures.mistakes(study.folder / "samples" / "mistakes.png", study.images, answer, rows, "")
    return Section("Mistakes", f"{_title(key)}: the most certain ones on test images.", picture)


def _confusion(study: Study, key: CellKey) -> Section:
    images, answer = study.images, study.store.probabilities(key)
    matrix = confusion_matrix(answer.argmax(1), images.test_labels, len(images.classes))
    path = study.folder / "samples" / "confusion.png"
    picture = figures.confusion(path, matrix, images.classes, "Confusion, % of each true class")
    return Section("Confusion", _title(key), picture)


def _each_class(study: Study, key: CellKey) -> Section:
    """Return the average precision of each class, of which macro AP is the mean."""
    images = study.images
    values = average_precisions(study.store.probabilities(key), images.test_labels)
    counts = images.kind.count(images.test_labels, len(images.classes))
    rows = [
        [name, str(count), f"{100 * value:.1f} %" if count else NOT_MEASURED]
        for name, count, value in zip(images.classes, counts, values)
    ]
    return Section("Each class", _title(key), table=Table(["class", "test images", "average precision"], rows))


def _title(key: CellKey) -> str:
    return f"{key.init}, {key.protocol}, {key.labels} labels, seed {key.seed}"


def most_certain_mistakes(answer: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """Return the rows of at most `most` mistakes with the highest probabilities, in descending order."""
    wrong = np.flatnonzero(answer.argmax(1) != labels)
    return wrong[np.argsort(-answer[wrong].max(1), kind="stable")][:most]


def model_keys(cells: Cells, verdict: Verdict) -> list[CellKey]:
    """Return the cells whose model may be stored, best first: k-NN and pixels have no network, so others follow."""
    keys: list[CellKey] = []
    for named in filter(None, (verdict.recommended, verdict.best, verdict.other, verdict.second)):
        probes = [
            c for c in cells if (c["init"], c["protocol"], c["labels"]) == (named["init"], PROBED, named["labels"])
        ]
        keys += [_cell_key(cell) for cell in (named, *probes) if cell["protocol"] in (PROBED, *ON_LABELS)]
    return list(dict.fromkeys(keys))


def _model(study: Study, cells: Cells, verdict: Verdict) -> Section | None:
    """Write the recommended model (or the next best that is a network) and explanations of its answers."""
    for key in model_keys(cells, verdict):
        if (module := load_best(study, key)) is not None:
            break
    else:
        return None
    write_model(study.folder / MODEL, study, key, module)
    picture = write_explanations(
        study.folder / "samples" / "reasons.png",
        module,
        study.images,
        evenly_spaced(len(study.images.test), EXPLAINED_IMAGES).tolist(),
        side_of(study.preset, key),
    )
    text = (
        f"{MODEL} is in the folder of this report; use it with: lit-vision predict --model {MODEL} IMAGES --out "
        f"answers.csv. It is {_title(key)}: test images, and the regions that each answer rests on."
    )
    return Section("The model", text, picture)


def _pretraining(study: Study, inits: Sequence[str]) -> Section:
    notes = {init: study.encoders[init].weights.with_suffix(".json") for init in inits}
    losses = {init: json.loads(note.read_text())["losses"] for init, note in notes.items()}
    return Section("Pre-training", picture=figures.curves(study.folder / "samples" / "pretraining.png", losses))


def _licenses(study: Study) -> Table:
    rows = []
    for init in study.encoders:
        license, network = study.licenses.get(init), study.preset.network(init)
        origin = "trained here" if method_of(init) else "given"
        if init in study.origins:
            origin += f" ({study.origins[init]})"
        yours = "yours: of these images only" if method_of(init) else "not stated"
        rows.append([init, f"{network.backbone}, {origin}", with_note(license) if license else yours])
    rows.append(["scratch-*", "trained here", "yours"])
    return Table(["init", "weights", "license"], rows, "The code is Apache-2.0.")


def picture_of_first_screen(study: Study, cells: Cells, found: Sequence[Verdict], law: MoreLabels | None) -> Path:
    """Draw the contenders that the verdicts name, at most five, and the law of the error."""
    named = [
        cell
        for verdict in reversed(found)
        for cell in (verdict.recommended, verdict.best, verdict.other, verdict.second, law.cell if law else None)
        if cell
    ]
    shown = list(dict.fromkeys((cell["init"], cell["protocol"]) for cell in named))[:5]
    shown = shown or list(dict.fromkeys((cell["init"], cell["protocol"]) for cell in cells))[:5]
    metric = found[-1].metric if found else study.images.kind.metric
    return figures.accuracy(study.folder / "samples" / "accuracy.png", cells, shown, metric, law)
