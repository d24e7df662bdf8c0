"""Several labels an image: inference network and result lines. B images, K labels, D width of the features."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from lit_vision.predict.inputs import InputBatch
from lit_vision.predict.predictions import MultiLabel
from lit_vision.predict.writers import csv_line
from lit_vision.weights.model_metadata import ModelMetadata


class MultiLabelInference(nn.Module):
    """Normalized images (B, 3, S, S) -> logits (B, K), features (B, D)."""

    outputs = ("logits", "features")

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = method.backbone, method.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs (see the class)."""
        features = self.backbone(images)
        return self.head(features), features


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (N, K), in float64 so that the results of all runtimes round alike."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64))))


def label_thresholds(metadata: ModelMetadata) -> np.ndarray:
    """Return (K,) scores from which on each label is given: chosen on the validation split, 0.5 without one."""
    return np.array(metadata.options.get("thresholds") or [0.5] * len(metadata.class_names))


class MultiLabelLines:
    """One result line per image: the labels whose score reaches their threshold, and the score of every label.

    Args:
        metadata: of the model.
        file_format: "csv" (path, labels joined by "|", a column a label with its score) or "jsonl" ({"path", "labels":
            [...], "scores": {label: score}}).
    """

    formats = ("csv", "jsonl")
    options: Mapping[str, Any] = {}  # flags of the command that apply to it, with defaults
    streams: tuple[str, ...] = ()
    finish = None
    note = ""

    def __init__(self, metadata: ModelMetadata, file_format: str, **_: Any) -> None:
        self.metadata, self.file_format, self.thresholds = metadata, file_format, label_thresholds(metadata)

    def header(self) -> bytes:
        """Return the first bytes of the file."""
        return csv_line(["path", "labels", *self.metadata.class_names]) if self.file_format == "csv" else b""

    def predictions(self, batch: InputBatch, outputs: dict[str, np.ndarray]) -> list[MultiLabel]:
        """Return the predictions of one batch, in its order."""
        names, results = tuple(self.metadata.class_names), []
        for path, row in zip(batch.names, sigmoid(outputs["logits"])):
            given = tuple(name for name, score, least in zip(names, row, self.thresholds) if score >= least)
            results.append(MultiLabel(path, given, names, row))
        return results

    def lines(self, batch: InputBatch, outputs: dict[str, np.ndarray]) -> bytes:
        """Return the lines of one batch, in its order."""
        lines = []
        for result in self.predictions(batch, outputs):
            if self.file_format == "csv":
                scores = (f"{score:.6f}" for score in result.scores)
                lines.append(csv_line([result.path, "|".join(result.labels), *scores]))
            else:
                rounded = {name: round(float(score), 6) for name, score in zip(result.classes, result.scores)}
                record = {"path": result.path, "labels": list(result.labels), "scores": rounded}
                lines.append(json.dumps(record).encode() + b"\n")
        return b"".join(lines)
