"""Mean per class: the mean of the classes' recalls, over batches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanClassRecall(Metric):
    """Mean over the classes that occur of the share that was predicted right, as scikit-learn's balanced_accuracy_score.

    Processes add their counts up: a mean of their means would weigh a class by where its images lie.

    Args:
        num_classes: K.
    """

    full_state_update = False

    def __init__(self, num_classes: int, **settings: Any):
        super().__init__(**settings)
        self.add_state("hits", default=torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("seen", default=torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, right: Tensor, labels: Tensor) -> None:
        """Add a batch: (B,) bool, whether the prediction was right, and (B,) int64 true classes in [0, K)."""
        self.seen.index_add_(0, labels, torch.ones_like(labels))
        self.hits.index_add_(0, labels, right.to(labels.dtype))

    def compute(self) -> Tensor:
        """A fraction; NaN where no class occurs."""
        occurs = self.seen > 0
        return (self.hits[occurs].double() / self.seen[occurs]).mean().float()
