"""Figures of a study's report; lit_vision.results.plots draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_vision.callbacks.reconstructions import reconstruct
from lit_vision.data.batch import normalize
from lit_vision.data.splits import evenly_spaced
from lit_vision.data.views.views import resize
from lit_vision.results import plots
from lit_vision.results.plots import Series, series_from_cells
from lit_vision.study.images import StudyImages

MISTAKES, EXAMPLES, QUERIES, NEIGHBORS, POINTS = 10, 8, 5, 7, 1000


def accuracy(path: Path, cells: Sequence[dict[str, Any]]) -> Path:
    """Plot accuracy against labels with error bars; k-NN is only in the table."""
    series = series_from_cells([cell for cell in cells if cell["protocol"] != "knn"])
    return plots.accuracy_against_labels(path, series, title="Mean ± sd over seeds")


def cost(path: Path, cells: Sequence[dict[str, Any]], labels: int) -> Path:
    """Plot accuracy at `labels` labels against the seconds that one such model takes, pre-training included."""
    series = []
    for cell in cells:
        if cell["labels"] == labels and cell["protocol"] != "knn" and cell["values"]:
            seconds = max(0.1, cell["pretrain_seconds"] + cell["seconds"] / len(cell["values"]))
            name, baseline = f"{cell['init']}, {cell['protocol']}", cell["init"].startswith(("pixels", "scratch"))
            series.append(Series(name, [seconds], [cell["mean"]], [cell["std"] or 0.0], baseline))
    return plots.accuracy_against_labels(path, series, title=f"At {labels} labels", x="seconds of training")


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


def embedding(path: Path, features: np.ndarray, images: StudyImages, init: str) -> Path:
    """Plot t-SNE of at most 1000 test images (van der Maaten and Hinton 2008), colored by class."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = evenly_spaced(len(features), POINTS)
    x = features[rows] - features[rows].mean(0)
    x = PCA(min(30, *x.shape), random_state=0).fit_transform(x)
    perplexity = min(30.0, max(1.0, (len(x) - 1) / 3))
    points = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=500).fit_transform(x)
    return plots.embedding_scatter(path, points, images.test_labels[rows], images.classes, title=init)


def neighbors(path: Path, encoder: Any, images: StudyImages, init: str) -> Path:
    """Draw test images, each with the labeled training images of the highest cosine similarity."""
    rows = evenly_spaced(len(images.test), QUERIES)
    similarity = _unit(encoder.test[rows]) @ _unit(encoder.pool).T
    near = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBORS]
    shown, captions = [], []
    for row, found in zip(rows, near):
        shown += [as_rgb(images.test[row]), *(as_rgb(images.pool[i]) for i in found)]
        captions += [f"? {images.classes[images.test_labels[row]]}", *(images.classes[images.labels[i]] for i in found)]
    return plots.image_grid(path, shown, captions, columns=1 + near.shape[1])


def _unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def as_rgb(image: np.ndarray, side: int | None = None) -> np.ndarray:
    """Return a gray or RGB image as (S, S, 3) uint8, resized to `side` pixels if that is given."""
    image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    return image if side in (None, image.shape[0]) else resize(image, side, side)
