"""Mean class recall over batches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanClassRecall(Metric):
    """Mean recall of the classes that occur, as scikit-learn's balanced_accuracy_score.

    Unlike torchmetrics.MulticlassAccuracy(average="macro"), which counts a class that is predicted but never occurs as
    0.
    Processes add their counts: a mean of their means would weight a class by the distribution of its images over them.

    Args:
        num_classes: K.
    """

    full_state_update = False

    def __init__(self, num_classes: int, **settings: Any):
        super().__init__(**settings)
        self.add_state("hits", default=torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("seen", default=torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, right: Tensor, labels: Tensor) -> None:
        """Add a batch: (B,) bool, True for a correct prediction, and (B,) int64 true classes, 0 to K - 1."""
        self.seen.index_add_(0, labels, torch.ones_like(labels))
        self.hits.index_add_(0, labels, right.to(labels.dtype))

    def compute(self) -> Tensor:
        """Return the mean recall, 0 to 1; NaN if no class occurs."""
        occurs = self.seen > 0
        return (self.hits[occurs].double() / self.seen[occurs]).mean().float()
