"""Accuracy of an exported model on a labeled folder, and calibration images for its quantization.

One class per task; `tasks.accuracy_check_for` chooses it. Images go through the task's evaluation view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lit_vision.data.batch import Batch
from lit_vision.data.splits import evenly_spaced
from lit_vision.errors import UserError
from lit_vision.predict.runtimes import Model
from lit_vision.weights.model_metadata import ModelMetadata


class AccuracyCheck(Protocol):
    """Accuracy of one task on one folder.

    The classes are called with the folder, the model's metadata and its evaluation view; a data module of annotated
    images has its own view.

    Attributes:
        metric: its name.
        split: name of the split that is measured.
        images: number of images in it.
    """

    metric: str
    split: str
    images: int

    def calibration(self, count: int) -> Iterator[np.ndarray]:
        """Yield `count` images, (1, S, S, 3) uint8, evenly spaced over the training split."""

    def measure(self, model: Model) -> float:
        """Return the metric, a fraction."""


class ClassificationCheck:
    """Top-1 accuracy on the test split, else validation, else training; calibrated on the training split."""

    metric = "top-1"

    def __init__(self, root: str, metadata: ModelMetadata, preprocess: Callable[[np.ndarray], np.ndarray]) -> None:
        from lit_vision.data.open_images import open_images

        self.folder, self.preprocess = open_images(root), preprocess
        self.folder.require_classes("measuring what int8 loses")
        if unknown := [name for name in self.folder.classes if name not in metadata.class_names]:
            raise UserError(
                f"--int8 {root}: the model has no class {unknown[0]}; give the folder that it was trained on"
            )
        splits = self.folder.splits
        self.split = next(name for name in ("test", "val", *splits) if name in splits)
        self.images = len(splits[self.split])

    def calibration(self, count: int) -> Iterator[np.ndarray]:
        """Yield `count` images, (1, S, S, 3) uint8, evenly spaced over the training split."""
        from lit_vision.predict.inputs import Inputs, batches

        train = self.folder.splits.get("train", self.folder.splits[self.split])
        chosen = Inputs([train.paths[i] for i in evenly_spaced(len(train), count).tolist()], str(self.folder.root))
        for batch in batches(chosen, self.preprocess, 1):
            if batch.pixels is not None:
                yield batch.pixels

    def measure(self, model: Model) -> float:
        """Return the fraction of images whose best class is right.

        Raises:
            UserError: an image cannot be read.
        """
        from lit_vision.predict.inputs import Inputs, batches

        split = self.folder.splits[self.split]
        output_of_class = [model.metadata.class_names.index(name) for name in self.folder.classes]
        truth = np.array([output_of_class[i] if i >= 0 else -1 for i in split.labels])
        right = 0
        for batch in batches(Inputs(split.paths, str(self.folder.root)), self.preprocess, 32):
            if batch.unreadable or batch.pixels is None:
                name, reason = batch.unreadable[0]
                raise UserError(f"{self.folder.root}/{name}: {reason}")
            best = model(batch.pixels)["logits"].argmax(1)
            right += int((best == truth[batch.start : batch.stop]).sum())
        return right / max(len(truth), 1)


class _AnnotatedCheck:
    """Shared part of the checks on annotated images."""

    def __init__(self, root: str, metadata: ModelMetadata, annotation_format: str) -> None:
        from lit_vision.data.annotations.datamodule import AnnotatedDataModule
        from lit_vision.data.annotations.formats import FORMATS

        if not Path(root).is_dir():
            raise UserError(f"--int8 {root}: no such folder; give the set that the model was trained on")
        self.metadata = metadata
        self.data = AnnotatedDataModule(
            root,
            format=annotation_format,
            img_size=metadata.size,
            class_names=list(metadata.class_names),
            num_workers=0,
            batch_size=8,
        )
        location = FORMATS[annotation_format].annotations
        splits = (name for name in ("test", "val", "train") if (Path(root) / location.format(split=name)).exists())
        self.split = next(splits, "test")
        self.images = len(self.data.table(self.split))

    def calibration(self, count: int) -> Iterator[np.ndarray]:
        """Yield `count` images, (1, S, S, 3) uint8, evenly spaced over the training split."""
        for batch in self.data.eval_loader("train", limit=count):
            yield from batch["images"].numpy()

    def batches(self, model: Model) -> Iterator[tuple[Batch, dict[str, np.ndarray]]]:
        """Yield the batches of the measured split with the model's outputs."""
        for batch in self.data.eval_loader(self.split):
            yield batch, model(batch["images"][:, 0].numpy())


class DetectionCheck(_AnnotatedCheck):
    """COCO's mean average precision on a set with boxes."""

    metric = "mAP"

    def __init__(self, root: str, metadata: ModelMetadata, preprocess: object = None) -> None:
        path_of_format = {"coco": "train/annotations.json", "yolo": "labels", "voc": "Annotations"}
        found = next((name for name, path in path_of_format.items() if (Path(root) / path).exists()), None)
        if found is None and Path(root).is_dir():
            raise UserError(f"--int8 {root}: has none of {', '.join(path_of_format.values())}; give a set with boxes")
        super().__init__(root, metadata, found or "coco")

    def measure(self, model: Model) -> float:
        """Return mAP@[.5:.95], a fraction."""
        from lit_vision.evaluation.detection import coco_metric, coco_values, update_boxes
        from lit_vision.predict.detection import DecodeBoxes

        metric, decode = coco_metric(), DecodeBoxes(model.metadata)
        for batch, outputs in self.batches(model):
            update_boxes(metric, decode(outputs), batch["targets"])
        return coco_values(metric)["map"]


class SegmentationCheck(_AnnotatedCheck):
    """Mean Dice over the classes without the background, on a set with semantic masks."""

    metric = "mean Dice"

    def __init__(self, root: str, metadata: ModelMetadata, preprocess: object = None) -> None:
        super().__init__(root, metadata, "masks")

    def measure(self, model: Model) -> float:
        """Return the mean Dice of the pixel counts of the complete split, a fraction."""
        import torch

        from lit_vision.evaluation.segmentation import pixel_counts, segmentation_values

        counts: Any = 0
        for batch, outputs in self.batches(model):
            best = torch.from_numpy(outputs["scores"]).argmax(1)
            counts = counts + pixel_counts(best, batch["mask"].long(), len(self.metadata.class_names))
        return segmentation_values(counts, self.metadata.options.get("background"))["dice"]
