"""The data set behind the loaders: annotated images, decoded and augmented when their keys come.

n objects of an image, S side of the views.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from lit_vision.data.annotations.coco_masks import decode_masks
from lit_vision.data.annotations.masks import read_mask
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable
from lit_vision.data.annotations.views import AnnotatedViews
from lit_vision.data.datasets import ImageReader
from lit_vision.data.views.keyed_rng import Key


class AnnotatedImages(Dataset):
    """Images with their annotations: each is decoded when its key first comes, and augmented under every key.

    Args:
        table: what is annotated.
        files: where the pixels come from.
        views: how a sample is seen.
        with_masks: give instance masks.
        semantic: (first_value, ignore_values) if the annotations are semantic masks.
        evaluate: give what the evaluation needs, and crowd regions; else leave crowd regions out.
        memory: bytes of decoded images (and semantic masks) that each process keeps; what comes after is decoded every time.
    """

    def __init__(
        self,
        table: AnnotationTable,
        files: ImageReader,
        views: AnnotatedViews,
        with_masks: bool = False,
        semantic: tuple[int, list[int]] | None = None,
        evaluate: bool = False,
        memory: int = 0,
    ):
        self.table, self.files, self.views = table, files, views
        self.with_masks, self.semantic, self.evaluate = with_masks, semantic, evaluate
        self.memory, self._kept = memory, {}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """A batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        """The finished batch of these keys."""
        samples = [self._sample(key) for key in keys]
        batch = {
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
        """Pixels (H, W, 3) uint8, semantic mask (H, W) uint8 or None, and the index that they are of; checked against the annotations."""
        if key[1] in self._kept:
            return *self._kept[key[1]], key[1]
        image, taken = self.files.read(key[1], key[0])
        size, table = image.shape[:2], self.table
        claimed = tuple(table.sizes[taken].tolist())
        if claimed not in ((0, 0), size):
            raise AnnotationError(
                f"{table.root / table.paths[taken]}: is {size[1]} x {size[0]}, its annotations say {claimed[1]} x {claimed[0]}; "
                "correct them (an EXIF orientation turns an image)"
            )
        mask = None
        if self.semantic is not None:
            mask = read_mask(table.root / table.masks[taken], size, len(table.class_names), *self.semantic)
        bytes_ = image.nbytes + (0 if mask is None else mask.nbytes)
        if taken == key[1] and bytes_ <= self.memory:  # a broken image is read, and counted, in every epoch
            self.memory -= bytes_
            self._kept[taken] = image, mask
        return image, mask, taken

    def _sample(self, key: Key) -> tuple[np.ndarray, Any]:
        image, mask, taken = self._decoded(key)
        size, table = image.shape[:2], self.table
        if mask is not None:
            view = self.views(image, key, mask=mask)
            return view.image, np.ascontiguousarray(view.mask)
        rows = table.rows(taken)
        boxes, crowd = table.boxes[rows], table.crowd[rows]
        kept = np.arange(len(boxes)) if self.evaluate else np.flatnonzero(~crowd)
        masks = None
        if self.with_masks:
            segmentations = table.segmentations(taken)
            masks = decode_masks([segmentations[i] for i in kept], *size, where=str(table.root / table.paths[taken]))
        view = self.views(image, key, boxes[kept], masks)
        box_ids = kept[view.box_ids]
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
