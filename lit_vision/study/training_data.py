"""Batches of some images of a study to train on."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lit_vision.data.datasets import InMemoryDataset
from lit_vision.data.loader import identity_collate
from lit_vision.data.sampler import TrainBatches
from lit_vision.data.views.batch_views import make_batch_views
from lit_vision.study.images import StudyImages
from lit_vision.study.pixel_cache import SelectedPixels


class StudyData(LightningDataModule):
    """Data module of some rows of a study's pool; the order and the pixels are pure functions of `seed`.

    Args:
        images: the study's images.
        rows: (n,) pool rows to train on.
        view: name of the training view.
        options: of the view.
        batch_size: at most; a smaller set is cut into equal batches.
        seed: of order and pixels.
        size: side of the views, pixels; None: the study's.
    """

    planned_steps: int | None = None  # of the training, where it ends inside an epoch; see `optim.training_length`

    def __init__(
        self,
        images: StudyImages,
        rows: np.ndarray,
        view: str,
        options: dict[str, Any],
        batch_size: int,
        seed: int,
        size: int | None = None,
    ):
        super().__init__()
        self.images, self.rows, self.seed = images, np.asarray(rows), seed
        self.batch_size = len(rows) // -(-len(rows) // batch_size)
        self.batches = TrainBatches(len(rows), self.batch_size, 0, 1, 1, seed)
        self.views = make_batch_views(view, size or images.size, seed, **options)
        self.num_classes, self.class_names = len(images.classes), images.classes

    @property
    def batches_per_epoch(self) -> int:
        """Batches, hence steps, of one epoch."""
        return len(self.batches)

    @property
    def global_batch_size(self) -> int:
        """Images of one step, as methods ask for it."""
        return self.batch_size

    def train_dataloader(self) -> DataLoader:
        """Return batches in the order of the epoch; views are rendered in batches in this process."""
        pixels = self.images.pool if self.images.large is None else self.images.large
        rows = InMemoryDataset(SelectedPixels(pixels, self.rows), self.images.labels[self.rows], self.views)
        return DataLoader(rows, batch_sampler=self.batches, collate_fn=identity_collate, num_workers=0)
