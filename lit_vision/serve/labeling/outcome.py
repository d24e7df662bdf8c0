"""Write the outcome of a labeling: the table of labels, a model, and the command that goes on from there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lit_vision.convert.export import write_safetensors
from lit_vision.data.label_table import TableColumns, read_label_table
from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write
from lit_vision.io.text import join_names, printable
from lit_vision.methods.classifier.network import ClassifierNetwork
from lit_vision.methods.multilabel.network import MultiLabelClassifierNetwork
from lit_vision.predict.models import build_metadata
from lit_vision.serve.labeling.exports import labeled, without_row, write_table
from lit_vision.serve.labeling.features import FeatureReader
from lit_vision.serve.labeling.learner import Learner
from lit_vision.serve.labeling.probe import ProbeModel, fit_probe_model
from lit_vision.serve.labeling.session import Labeling
from lit_vision.study.frozen_encoder import FrozenEncoder
from lit_vision.weights.licenses import with_note

MODEL = "model.safetensors"


@dataclass(frozen=True)
class Outcome:
    """Files of a labeling, sentences about them, and the next command to type."""

    files: list[Path]
    lines: list[str]
    next: str


def write_outcome(labeling: Labeling, learner: Learner) -> Outcome:
    """Write labels.csv and, if there is one, the model.

    The model learns from all labels, those that measure accuracy too; the accuracy that is said is that of the model
    without them, on them.

    Raises:
        UserError: the disk is full.
    """
    table = write_table(labeling)
    count = len(labeled(labeling))
    files, lines = [table], [f"{table}: {count} labels"]
    if left := without_row(labeling):
        lines[0] += (
            f", without {len(left)} of files whose names a table cannot hold ({join_names(map(printable, left))}); "
            "rename these files: their answers are found again by content"
        )
    fault = _fault(labeling, table) if count > len(left) else ""
    lines += [fault] if fault else []
    features, encoder = learner.features, learner.features.encoder
    model = fit_to_all(labeling, features)
    if model is not None and encoder is not None:
        path = labeling.store.folder / MODEL
        write_probe_model(path, encoder, model, features)
        files.append(path)
        said = f"{path}: learned from {model.images} labels, {len(model.classes)} classes ({encoder.name}, frozen)"
        shown = learner.accuracy().shown()
        if shown is not None:
            said += (
                f"; without the {shown['images']} labels of the random sample it has {shown['accuracy']:.1%} of them "
                f"right (95 %: {shown['low']:.1%} to {shown['high']:.1%})"
            )
        lines.append(said)
    goes_on = count > len(left) and not fault
    return Outcome(files, lines, next_command(labeling, table) if goes_on else "")


def _fault(labeling: Labeling, table: Path) -> str:
    """Return why the commands that train would refuse the table: names of classes may look like lists or numbers."""
    columns = TableColumns(labels=tuple(labeling.store.classes)) if labeling.store.multiple else None
    try:
        read_label_table(table, columns)
    except UserError as error:
        return str(error)
    return ""


def next_command(labeling: Labeling, table: Path) -> str:
    """Return the command that trains on the labels."""
    root, file = shlex.quote(str(labeling.images.root)), shlex.quote(str(table))
    command = f"lit-vision study {root} --label_file {file}"
    if labeling.store.multiple:  # no name has a comma; one may begin with -
        command += f" --label_columns={shlex.quote(','.join(labeling.store.classes))}"
    return command


def fit_to_all(labeling: Labeling, features: FeatureReader) -> ProbeModel | None:
    """Return a model of all labels; None without features, or while the labels show no two classes."""
    answers = labeling.answers()
    known = [
        (number, answer.labels)
        for number, answer in sorted(answers.items())
        if answer.kind == "label" and features.of(number) is not None
    ]
    if not known or features.rows is None:
        return None
    rows = features.rows[[number for number, _ in known]]
    return fit_probe_model(rows, [labels for _, labels in known], labeling.store.multiple)


def write_probe_model(path: Path, encoder: FrozenEncoder, model: ProbeModel, features: FeatureReader) -> None:
    """Write encoder and head as one file that predict, serve and export read.

    Raises:
        UserError: the disk is full.
    """
    hyper = {
        "backbone": encoder.backbone.config["name"],
        "backbone_args": {k: v for k, v in encoder.backbone.config.items() if k != "name" and v is not None},
        "tune": "linear",
        "mean": [float(v) for v in encoder.mean],
        "std": [float(v) for v in encoder.std],
    }
    network: nn.Module
    if model.multiple:
        task, network = "multilabel", MultiLabelClassifierNetwork({**hyper, "num_labels": len(model.classes)})
    else:
        task, network = "classification", ClassifierNetwork({**hyper, "num_classes": len(model.classes)})
    network.backbone.load_state_dict(encoder.backbone.state_dict())
    head = network.head
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(np.ascontiguousarray(model.weight)))
        head.bias.copy_(torch.from_numpy(np.ascontiguousarray(model.bias)))
    value_range = features.pixel_format.value_range
    stored = {
        "size": encoder.size,
        "class_names": list(model.classes),
        "crop_pct": encoder.crop_pct,
        "license": with_note(encoder.license),
        "value_range": None if value_range is None else list(value_range),
    }
    metadata = build_metadata(network.eval(), task, stored)
    atomic_write(path, lambda file: write_safetensors(network, metadata, file))
