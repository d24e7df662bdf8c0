"""Classification: inference networks, results and result lines. B images, K classes, D width of the features."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from lit_vision.predict.inputs import InputBatch
from lit_vision.predict.predictions import Classification
from lit_vision.predict.writers import csv_line
from lit_vision.weights.model_metadata import ModelMetadata


class ClassifierInference(nn.Module):
    """Normalized images (B, 3, S, S) -> logits (B, K), features (B, D)."""

    outputs = ("logits", "features")

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head_norm, self.head = method.backbone, method.head_norm, method.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs (see the class)."""
        features = self.backbone(images)
        return self.head(self.head_norm(features)), features


class FeatureInference(nn.Module):
    """Normalized images (B, 3, S, S) -> features (B, D)."""

    outputs = ("features",)

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.backbone = method.backbone

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the outputs (see the class)."""
        return (self.backbone(images),)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (N, K), in float64 so that the results of all runtimes round alike."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    weights = np.exp(shifted)
    probabilities: np.ndarray = weights / weights.sum(1, keepdims=True)
    return probabilities


class ClassificationLines:
    """One result line per image: the best classes and their probabilities.

    Args:
        metadata: of the model.
        file_format: "csv" (path, label, score, label_2, score_2, ...) or "jsonl" ({"path", "predictions": [{"label",
            "score"}, ...]}).
        top_k: number of classes per image.
    """

    formats = ("csv", "jsonl")
    options: Mapping[str, Any] = {"top_k": 5, "explain": None}  # flags of the command that apply to it, with defaults
    streams: tuple[str, ...] = ()
    finish = None
    note = ""

    def __init__(self, metadata: ModelMetadata, file_format: str, top_k: int = 5, **_: Any) -> None:
        self.metadata, self.file_format = metadata, file_format
        self.top_k = min(top_k, len(metadata.class_names))

    def header(self) -> bytes:
        """Return the first bytes of the file."""
        if self.file_format != "csv":
            return b""
        suffixes = ["", *(f"_{i}" for i in range(2, self.top_k + 1))]
        return csv_line(["path", *(f"{column}{suffix}" for suffix in suffixes for column in ("label", "score"))])

    def predictions(self, batch: InputBatch, outputs: dict[str, np.ndarray]) -> list[Classification]:
        """Return the predictions of one batch, in its order."""
        results = []
        for name, row in zip(batch.names, softmax(outputs["logits"])):
            best = np.argsort(-row, kind="stable")[: self.top_k]
            classes = tuple(self.metadata.class_names[i] for i in best)
            results.append(Classification(name, classes, best, row[best]))
        return results

    def lines(self, batch: InputBatch, outputs: dict[str, np.ndarray]) -> bytes:
        """Return the lines of one batch, in its order."""
        lines = []
        for result in self.predictions(batch, outputs):
            pairs = [(label, round(p, 6)) for label, p in zip(result.classes, result.probabilities.tolist())]
            if self.file_format == "csv":
                lines.append(csv_line([result.path, *(x for label, p in pairs for x in (label, f"{p:.6f}"))]))
            else:
                predictions = [{"label": label, "score": p} for label, p in pairs]
                record = {"path": result.path, "predictions": predictions}
                lines.append(json.dumps(record).encode() + b"\n")
        return b"".join(lines)
