"""Semantic segmentation metrics from one confusion matrix over the data set: IoU, Dice, pixel accuracy.

Intersections and areas are summed over all images first and divided then (as mmsegmentation does), so an image without
a class neither raises nor lowers the value of that class. K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_vision.data.annotations.masks import IGNORE


def pixel_counts(predictions: Tensor, truth: Tensor, num_classes: int, ignore: int = IGNORE) -> Tensor:
    """Return (K, K) int64 counts of pixels: row = true class, column = predicted class.

    Args:
        predictions: class numbers 0 to K - 1, any shape.
        truth: class numbers or `ignore`, same shape; ignored pixels are left out.
        num_classes: K.
        ignore: the value of ignored pixels.

    Raises:
        ValueError: shapes differ, or a class outside 0 to K - 1.
    """
    if predictions.shape != truth.shape:
        raise ValueError(f"predictions {tuple(predictions.shape)} and truth {tuple(truth.shape)} differ in shape")
    counted = truth != ignore
    true, guessed = truth[counted].long(), predictions[counted].long()
    if len(true) and max(int(true.max()), int(guessed.max())) >= num_classes:
        raise ValueError(f"a class is outside 0 to {num_classes - 1}")
    return torch.bincount(true * num_classes + guessed, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou_per_class(counts: Tensor) -> Tensor:
    """Return (K,) |P and G| / |P or G|; NaN for a class that is neither predicted nor true anywhere."""
    hits = counts.diag().double()
    return hits / (counts.sum(0) + counts.sum(1) - counts.diag())


def dice_per_class(counts: Tensor) -> Tensor:
    """Return (K,) 2 |P and G| / (|P| + |G|) = 2 IoU / (1 + IoU); NaN as for IoU."""
    return 2 * counts.diag().double() / (counts.sum(0) + counts.sum(1))


def segmentation_values(
    counts: Tensor, background: int | None = None, class_names: list[str] | None = None
) -> dict[str, float]:
    """Return all metrics as fractions, without the undefined ones.

    Args:
        counts: (K, K) from `pixel_counts`, summed over the data set.
        background: the class that is not an object: it counts in `miou` (as usual) but not in `dice`; None if there is
            none.
        class_names: adds `dice/<name>` of each class.

    Returns:
        dice: mean over the classes that occur, without the background; dice_background; miou: mean over all classes
            that occur;
        miou_objects: without the background; pixel_accuracy: fraction of correct pixels; class_accuracy: mean over the
            true
        classes of that fraction.
    """
    iou, dice = iou_per_class(counts), dice_per_class(counts)
    objects = torch.ones(len(counts), dtype=torch.bool)
    if background is not None:
        objects[background] = False
    recall = counts.diag().double() / counts.sum(1)
    found = {
        "dice": dice[objects].nanmean(),
        "miou": iou.nanmean(),
        "miou_objects": iou[objects].nanmean(),
        "pixel_accuracy": counts.diag().sum().double() / counts.sum(),
        "class_accuracy": recall.nanmean(),
    }
    if background is not None:
        found["dice_background"] = dice[background]
    for name, value in zip(class_names or (), dice):
        found[f"dice/{name}"] = value
    return {name: float(value) for name, value in found.items() if not torch.isnan(value)}


class PixelCounts(Metric):
    """Sums `pixel_counts` over batches and processes; `compute` returns (K, K) int64.

    Args:
        num_classes: K.
        ignore: see `pixel_counts`.
    """

    full_state_update = False

    def __init__(self, num_classes: int, ignore: int = IGNORE, **settings: Any):
        super().__init__(**settings)
        self.num_classes, self.ignore = num_classes, ignore
        zero = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("counts", default=zero, dist_reduce_fx="sum")

    def update(self, predictions: Tensor, truth: Tensor) -> None:
        """Add a batch of class numbers, any shape."""
        self.counts += pixel_counts(predictions, truth, self.num_classes, self.ignore)

    def compute(self) -> Tensor:
        """Return the counts so far."""
        return self.counts
