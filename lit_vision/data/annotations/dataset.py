"""Data set of annotated images, decoded and augmented by key.

n objects of an image, S side of the views.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from lit_vision.data.annotations.coco_masks import decode_masks
from lit_vision.data.annotations.masks import IGNORE, MaskValues
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable
from lit_vision.data.annotations.usable import size_message
from lit_vision.data.annotations.views import AnnotatedViews
from lit_vision.data.batch import Batch
from lit_vision.data.datasets import ImageReader
from lit_vision.data.views.keyed_rng import Key


class AnnotatedImages(Dataset):
    """Images with their annotations: decoded at the first key, augmented for every key.

    Args:
        table: the annotations.
        files: reader of the images.
        views: augmentation of a sample.
        with_masks: return instance masks.
        semantic: meaning of the pixel values if the annotations are semantic masks.
        evaluate: return the additional entries for evaluation, and crowd regions; else crowd regions are left out.
        memory: bytes of decoded images and semantic masks that each process keeps; further ones are decoded each time.
    """

    def __init__(
        self,
        table: AnnotationTable,
        files: ImageReader,
        views: AnnotatedViews,
        with_masks: bool = False,
        semantic: MaskValues | None = None,
        evaluate: bool = False,
        memory: int = 0,
    ):
        self.table, self.files, self.views = table, files, views
        self.with_masks, self.semantic, self.evaluate = with_masks, semantic, evaluate
        self.memory = memory
        self._cache: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: Key) -> Batch:
        """Return the batch of one key."""
        return self.__getitems__([key])

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Return the batch of some keys."""
        samples = [self._sample(key) for key in keys]
        batch: Batch = {
            "images": torch.from_numpy(np.stack([image for image, _ in samples])[:, None]),
            "label": torch.full((len(keys),), -1),
            "key": torch.tensor(keys, dtype=torch.int64),
        }
        if self.semantic is not None:
            batch["mask"] = torch.from_numpy(np.stack([mask for _, mask in samples]))
        else:
            batch["targets"] = [target for _, target in samples]
        return batch

    def _decoded(self, key: Key) -> tuple[np.ndarray, np.ndarray | None, int]:
        """Return pixels (H, W, 3) uint8, semantic mask (H, W) uint8 or None, and the index of the image they come from.

        The index differs from the key's where a broken image was replaced.

        Raises:
            AnnotationError: the image is of another size than annotated.
        """
        if key[1] in self._cache:
            return *self._cache[key[1]], key[1]
        image, used = self.files.read(key[1], key[0])
        size, table = image.shape[:2], self.table
        claimed = tuple(table.sizes[used].tolist())
        if claimed not in ((0, 0), size):
            raise AnnotationError(size_message(table, used, size))
        mask = None
        if self.semantic is not None and table.masks is not None:
            numbers = table.mask_classes
            classes = len(table.class_names if numbers is None else numbers)
            mask = self.semantic.read(table.root / table.masks[used], size, classes)
            if numbers is not None:
                mask = np.append(numbers, np.full(IGNORE + 1 - classes, IGNORE, np.uint8))[mask]
        size_in_bytes = image.nbytes + (0 if mask is None else mask.nbytes)
        if used == key[1] and size_in_bytes <= self.memory:  # a broken image is read, and counted, in every epoch
            self.memory -= size_in_bytes
            self._cache[used] = image, mask
        return image, mask, used

    def _sample(self, key: Key) -> tuple[np.ndarray, Any]:
        image, mask, used = self._decoded(key)
        size, table = image.shape[:2], self.table
        if mask is not None:
            view = self.views(image, key, mask=mask)
            return view.image, np.ascontiguousarray(view.mask)
        rows = table.rows(used)
        boxes, crowd = table.boxes[rows], table.crowd[rows]
        chosen = np.arange(len(boxes)) if self.evaluate else np.flatnonzero(~crowd)
        masks = None
        if self.with_masks:
            segmentations = table.segmentations(used)
            where = str(table.root / table.paths[used])
            masks = decode_masks([segmentations[i] for i in chosen], size[0], size[1], where)
        view = self.views(image, key, boxes[chosen], masks)
        box_ids = chosen[view.box_ids]
        target = {
            "boxes": torch.from_numpy(view.boxes),
            "labels": torch.from_numpy(table.labels[rows][box_ids]),
            "iscrowd": torch.from_numpy(crowd[box_ids]),
        }
        if masks is not None:
            target["masks"] = torch.from_numpy(view.masks)
        if self.evaluate:
            target["scale"] = torch.from_numpy(view.scale)
            target["size"] = torch.tensor(size)
            target["original"] = torch.from_numpy(boxes[box_ids])
            target["area"] = torch.from_numpy(table.area[rows][box_ids])
        return view.image, target
