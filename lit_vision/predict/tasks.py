"""What each task makes of a model: the network that runs, the pixels it wants, and the lines its results become.

One class per task, found by `card.task`. All runtimes go through the same class, so their results differ by rounding only.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_vision.card import Card
from lit_vision.data.views import resize_and_crop
from lit_vision.errors import UsageError
from lit_vision.predict.inputs import Batch


class ClassifierNetwork(nn.Module):
    """Normalised images (B, 3, S, S) -> logits (B, K), features (B, D)."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head_norm, self.head = method.backbone, method.head_norm, method.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        features = self.backbone(images)
        return self.head(self.head_norm(features)), features


class FeatureNetwork(nn.Module):
    """Normalised images (B, 3, S, S) -> features (B, D)."""

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
        card: of the model.
        form: "csv" (path, label, score, label_2, score_2, ...) or "jsonl" ({"path", "predictions": [{"label", "score"}, ...]}).
        top: how many classes.
    """

    method = "Classifier"
    network = ClassifierNetwork
    outputs = ("logits", "features")
    forms = ("csv", "jsonl")

    def __init__(self, card: Card, form: str, top: int = 5) -> None:
        self.card, self.form, self.top = card, form, min(top, len(card.class_names))

    def header(self) -> bytes:
        """What the file begins with."""
        if self.form != "csv":
            return b""
        names = [
            "path",
            *(f"{w}{n}" for n in ["", *(f"_{i}" for i in range(2, self.top + 1))] for w in ("label", "score")),
        ]
        return _csv(names)

    def lines(self, batch: Batch, outputs: dict[str, np.ndarray]) -> bytes:
        """The lines of one batch, in its order."""
        found = []
        for name, row in zip(batch.names, softmax(outputs["logits"])):
            best = np.argsort(-row, kind="stable")[: self.top]
            pairs = [(self.card.class_names[i], round(float(row[i]), 6)) for i in best]
            if self.form == "csv":
                found.append(_csv([name, *(x for label, score in pairs for x in (label, f"{score:.6f}"))]))
            else:
                record = {"path": name, "predictions": [{"label": label, "score": score} for label, score in pairs]}
                found.append(json.dumps(record).encode() + b"\n")
        return b"".join(found)


TASKS: dict[str, Any] = {"classification": Classification}
NETWORKS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "classification": (ClassifierNetwork, Classification.outputs),
    "features": (FeatureNetwork, ("features",)),
}


def form_of(out: str, forms: Sequence[str]) -> str:
    """The form that a file's ending asks for.

    Raises:
        UsageError: another ending.
    """
    form = out.rpartition(".")[2].lower() if "." in out else ""
    if form not in forms:
        raise UsageError(f"--out {out}: end its name in {' or '.join('.' + f for f in forms)}")
    return form


def prepare_for(card: Card) -> Callable[[np.ndarray], np.ndarray]:
    """The evaluation view of this model: (H, W, 3) uint8 -> (S, S, 3) uint8. It can be called in threads."""
    size, crop_pct = card.size, card.crop_pct
    return lambda image: resize_and_crop(image, size, crop_pct)


def network_of(method: nn.Module, task: str) -> nn.Module:
    """The network that runs and is exported, in evaluation mode."""
    network = NETWORKS[task][0](method).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def example(card: Card, n: int, seed: int = 0) -> Tensor:
    """(n, 3, S, S) float: noise with the spread of normalised pixels, the same for the same arguments."""
    pixels = torch.rand(n, 3, card.size, card.size, generator=torch.Generator().manual_seed(seed))
    return (pixels - torch.tensor(card.mean)[:, None, None]) / torch.tensor(card.std)[:, None, None]


def _csv(row: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue().encode("utf-8", "surrogateescape")  # a file's name need not be text
