"""Figures of a study's report; lit_vision.results.plots draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_vision.callbacks.reconstructions import reconstruct
from lit_vision.data.batch import normalize
from lit_vision.data.splits import evenly_spaced
from lit_vision.data.views.views import resize
from lit_vision.evaluation.label_errors import LabelRanking
from lit_vision.evaluation.metrics import mean_sd
from lit_vision.results import plots
from lit_vision.results.plots import Series, series_from_cells
from lit_vision.study.images import StudyImages
from lit_vision.study.metrics_of_cells import ACCURACY, Metric, values_on_test
from lit_vision.study.more_labels import MoreLabels

MISTAKES, EXAMPLES = 10, 8


def accuracy(
    path: Path,
    cells: Sequence[Mapping[str, Any]],
    shown: Sequence[tuple[str, str]],
    metric: Metric = ACCURACY,
    law: MoreLabels | None = None,
) -> Path:
    """Plot test results against labels with error bars, and the law that was fitted to one contender.

    Args:
        path: the PNG.
        cells: of results.json.
        shown: (init, protocol) of the contenders to draw, in the order of the legend.
        metric: of `metric_for`.
        law: of `lit_vision.study.more_labels.more_labels`; it is drawn to where its interval still says something.
    """
    drawn: list[dict[str, Any]] = []
    for pair in shown:
        for cell in cells:
            if (cell["init"], cell["protocol"]) == pair and cell["values"]:
                mean, sd = mean_sd(values_on_test(cell, metric))
                drawn.append(dict(cell) | {"mean": mean, "std": sd})
    series = series_from_cells(drawn)
    if law is not None:
        x = np.geomspace(law.law.counts.min(), law.labels + law.more, 60)
        error = law.law.predict(x)
        curve = plots.Curve(x.tolist(), 1 - error.median, 1 - error.high, 1 - error.low)
        name = f"{law.cell['init']}, {law.cell['protocol']}"
        series = [replace(one, curve=curve) if one.name == name else one for one in series]
    title = "Mean ± sd over seeds" + ("; dotted: law, 95 % band" if law else "")
    return plots.accuracy_against_labels(path, series, title=title, y=f"test {metric.name}, %")


def curves(path: Path, losses: Mapping[str, Sequence[float]]) -> Path:
    """Plot the loss of each pre-training over the share of its steps.

    Losses differ in unit, so each is divided by the mean of its first hundredth.
    """
    series = []
    for name, values in losses.items():
        first = float(np.mean(values[: max(1, len(values) // 100)]))
        x = (np.arange(1, len(values) + 1) / len(values) * 100).tolist()
        series.append(Series(name, x, [value / first for value in values]))
    return plots.training_curves(
        path, series, title="Loss, divided by its first value", y="loss / first loss", x="% of steps"
    )


def confusion(path: Path, matrix: np.ndarray, classes: Sequence[str], title: str) -> Path:
    """Plot a confusion matrix, rows in percent."""
    return plots.confusion_heat_map(path, matrix, classes, title)


def mistakes(path: Path, images: StudyImages, answer: np.ndarray, rows: Sequence[int], title: str) -> Path:
    """Draw test images with their true class and the wrong answer."""
    captions = [
        f"{images.classes[images.test_labels[i]]}\nseen as {images.classes[answer[i].argmax()]} ({answer[i].max():.0%})"
        for i in rows
    ]
    return plots.image_grid(path, [as_rgb(images.test[i]) for i in rows], captions, columns=5, title=title)


def label_errors(path: Path, images: StudyImages, found: LabelRanking) -> Path:
    """Draw labeled images with their label and the class that a model finds likelier; rows are those of the pool."""
    captions = [
        f"labeled {images.classes[given]}\nlooks like {images.classes[likely]} ({confidence:.0%})"
        for given, likely, confidence in zip(found.given, found.likely, found.confidence)
    ]
    return plots.image_grid(path, [as_rgb(images.pool[int(i)]) for i in found.rows], captions, columns=5)


@torch.inference_mode()
def reconstructions(path: Path, module: Any, images: StudyImages) -> Path:
    """Draw original, visible patches and reconstruction of evenly spaced test images."""
    rows = evenly_spaced(len(images.test), EXAMPLES)
    pixels = torch.from_numpy(np.stack([as_rgb(images.test[i]) for i in rows]))[:, None]
    module.eval()
    panels = reconstruct(module, normalize(pixels, module.mean, module.std)[:, 0])
    shown = [np.asarray(panel[i]) for panel in panels for i in range(len(rows))]
    if images.pool.shape[-1] == 1:  # each of three channels is reconstructed: their mean is the gray image
        shown = [panel.mean(axis=-1).round().astype(np.uint8) for panel in shown]
    return plots.image_grid(path, shown, None, columns=len(rows))


def as_rgb(image: np.ndarray, side: int | None = None) -> np.ndarray:
    """Return a gray or RGB image as (S, S, 3) uint8, resized to `side` pixels if that is given."""
    image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    return image if side in (None, image.shape[0]) else resize(image, side, side)
