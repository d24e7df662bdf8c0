"""Classification: the network that runs, and the lines that its results become. B images, K classes, D width of the features."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from torch import Tensor, nn

from lit_vision.predict.inputs import Batch
from lit_vision.predict.writers import csv_line
from lit_vision.weights.model_metadata import ModelMetadata


class ClassifierNetwork(nn.Module):
    """Normalised images (B, 3, S, S) -> logits (B, K), features (B, D)."""

    outputs = ("logits", "features")

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head_norm, self.head = method.backbone, method.head_norm, method.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        features = self.backbone(images)
        return self.head(self.head_norm(features)), features


class FeatureNetwork(nn.Module):
    """Normalised images (B, 3, S, S) -> features (B, D)."""

    outputs = ("features",)

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.backbone = method.backbone

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (self.backbone(images),)


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, K) to probabilities, in float64 so that every runtime rounds alike."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    weights = np.exp(shifted)
    return weights / weights.sum(1, keepdims=True)


class Classification:
    """One line per image: the best classes and their probabilities.

    Args:
        metadata: of the model.
        form: "csv" (path, label, score, label_2, score_2, ...) or "jsonl" ({"path", "predictions": [{"label", "score"}, ...]}).
        top: how many classes.
    """

    forms = ("csv", "jsonl")
    option_names = ("top", "explain")  # of the command
    streams: tuple[str, ...] = ()
    finish = None

    def __init__(self, metadata: ModelMetadata, form: str, top: int = 5, **_: Any) -> None:
        self.metadata, self.form, self.top = metadata, form, min(top, len(metadata.class_names))

    def header(self) -> bytes:
        """What the file begins with."""
        if self.form != "csv":
            return b""
        numbers = ["", *(f"_{i}" for i in range(2, self.top + 1))]
        return csv_line(["path", *(f"{word}{number}" for number in numbers for word in ("label", "score"))])

    def lines(self, batch: Batch, outputs: dict[str, np.ndarray]) -> bytes:
        """The lines of one batch, in its order."""
        found = []
        for name, row in zip(batch.names, softmax(outputs["logits"])):
            best = np.argsort(-row, kind="stable")[: self.top]
            pairs = [(self.metadata.class_names[i], round(float(row[i]), 6)) for i in best]
            if self.form == "csv":
                found.append(csv_line([name, *(x for label, score in pairs for x in (label, f"{score:.6f}"))]))
            else:
                record = {"path": name, "predictions": [{"label": label, "score": score} for label, score in pairs]}
                found.append(json.dumps(record).encode() + b"\n")
        return b"".join(found)
