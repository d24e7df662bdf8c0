"""The pictures of a study's report; each is drawn by lit_vision.evaluation.plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_vision.data.batch import normalise
from lit_vision.evaluation import plots
from lit_vision.evaluation.plots import Series
from lit_vision.study.images import Images

MISTAKES, EXAMPLES = 10, 8


def accuracy(path: Path, series: Sequence[Series]) -> Path:
    """Accuracy against labels with error bars."""
    return plots.accuracy_against_labels(path, series, title="Accuracy against labels (mean ± sd over seeds)")


def curves(path: Path, losses: Mapping[str, Sequence[float]]) -> Path:
    """Loss of each pre-training, each over the share of its steps; the losses have different units, so each is divided by its first."""
    series = []
    for name, values in losses.items():
        first = float(np.mean(values[: max(1, len(values) // 100)]))
        x = (np.arange(1, len(values) + 1) / len(values) * 100).tolist()
        series.append(Series(name, x, [value / first for value in values]))
    return plots.training_curves(path, series, title="Pre-training", y="loss / first loss", x="% of steps")


def confusion(path: Path, matrix: np.ndarray, classes: Sequence[str], title: str) -> Path:
    """Confusion matrix, rows in percent."""
    return plots.confusion_heat_map(path, matrix, classes, title)


def mistakes(path: Path, images: Images, answer: np.ndarray, rows: Sequence[int], title: str) -> Path:
    """Test images with what they were taken for."""
    captions = [
        f"{images.classes[images.test_labels[i]]}\nseen as {images.classes[answer[i].argmax()]} ({answer[i].max():.0%})"
        for i in rows
    ]
    return plots.image_grid(path, [_rgb(images.test[i]) for i in rows], captions, columns=5, title=title)


@torch.inference_mode()
def reconstructions(path: Path, module: Any, images: Images) -> Path:
    """Picture, masked picture and reconstruction of test images spread over the classes."""
    rows = np.linspace(0, len(images.test) - 1, EXAMPLES).round().astype(int)
    pixels = torch.from_numpy(np.stack([_rgb(images.test[i]) for i in rows]))[:, None]
    module.eval()
    panels = module.reconstruct(normalise(pixels, module.mean, module.std)[:, 0])
    shown = [panel[i] for panel in panels for i in range(len(rows))]
    return plots.image_grid(
        path,
        [np.asarray(p) for p in shown],
        None,
        columns=len(rows),
        title="Picture, what the encoder sees, reconstruction",
    )


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
