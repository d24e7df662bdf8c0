"""Accuracy of an exported model on a labeled folder, and calibration images for its quantization.

One class per task; `tasks.accuracy_check_for` chooses it. Images go through the task's evaluation view. Splits,
formats and the like are those of `settings`, with which the run was trained; classes are matched by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lit_vision.data.batch import Batch
from lit_vision.data.class_names import match_class_names
from lit_vision.data.splits import evenly_spaced
from lit_vision.errors import UserError
from lit_vision.predict.runtimes import Model
from lit_vision.weights.model_metadata import ModelMetadata


class AccuracyCheck(Protocol):
    """Accuracy of one task on one folder.

    The classes are called with the folder, the model's metadata, its evaluation view (a data module of annotated images
    has its own), the run's data settings, and True to compare classes by number.

    Attributes:
        metric: its name.
        split: name of the split that is measured.
        images: number of images in it.
        note: lines about the data (what was taken and left out) and its differences to the model's classes, or "".
    """

    metric: str
    split: str
    images: int
    note: str

    def calibration(self, count: int) -> Iterator[np.ndarray]:
        """Yield `count` images, (1, S, S, 3) uint8, evenly spaced over the training split."""

    def measure(self, model: Model) -> float:
        """Return the metric, a fraction."""


class ClassificationCheck:
    """Top-1 accuracy on the test split, else validation, else training; calibrated on the training split."""

    metric = "top-1"

    def __init__(
        self,
        root: str,
        metadata: ModelMetadata,
        preprocess: Callable[[np.ndarray], np.ndarray],
        settings: Mapping[str, Any],
        by_number: bool,
    ) -> None:
        from lit_vision.data.open_as_trained import open_as_trained

        self.folder, self.train, measured = open_as_trained(root, settings)
        self.preprocess, self.pixel_format = preprocess, metadata.pixel_format
        self.folder.require_classes("measuring what int8 loses")
        names, where = metadata.class_names, f"--int8 {root}"
        self.output_of_class, differences = match_class_names(names, self.folder.classes, where, by_number)
        self.note = "\n".join([*self.folder.lines(), *([differences] if differences else [])])
        splits = self.folder.splits
        self.split = next(iter((*measured, *splits)), "test")
        self.folder.require_labels(self.split, "measuring what int8 loses")
        self.images = len(splits[self.split])

    def calibration(self, count: int) -> Iterator[np.ndarray]:
        """Yield `count` images, (1, S, S, 3) uint8, evenly spaced over the training split."""
        from lit_vision.predict.inputs import Inputs, batches

        train = self.folder.splits.get(self.train, self.folder.splits[self.split])
        chosen = Inputs.of(self.folder, [train.paths[i] for i in evenly_spaced(len(train), count).tolist()])
        for batch in batches(chosen, self.preprocess, 1, pixel_format=self.pixel_format):
            if batch.pixels is not None:
                yield batch.pixels

    def measure(self, model: Model) -> float:
        """Return the fraction of images whose best class is right.

        Raises:
            UserError: an image cannot be read.
        """
        from lit_vision.predict.inputs import Inputs, batches

        split = self.folder.splits[self.split]
        truth = np.where(split.labels < 0, -1, self.output_of_class[split.labels])
        right = 0
        inputs = Inputs.of(self.folder, split.paths)
        for batch in batches(inputs, self.preprocess, 32, pixel_format=self.pixel_format):
            if batch.unreadable or batch.pixels is None:
                name, reason = batch.unreadable[0]
                raise UserError(f"{self.folder.root}/{name}: {reason}")
            best = model(batch.pixels)["logits"].argmax(1)
            right += int((best == truth[batch.start : batch.stop]).sum())
        return right / max(len(truth), 1)


class _AnnotatedCheck:
    """Shared part of the checks on annotated images.

    Args:
        usual: formats of the task; the first that the folder holds is taken if `settings` name none.
    """

    def __init__(
        self, root: str, metadata: ModelMetadata, settings: Mapping[str, Any], by_number: bool, usual: Sequence[str]
    ) -> None:
        from lit_vision.data.annotations.datamodule import AnnotatedDataModule
        from lit_vision.data.annotations.locations import recognize

        if not Path(root).is_dir():
            raise UserError(f"--int8 {root}: no such folder; give the set that the model was trained on")
        self.metadata = metadata
        known = set(inspect.signature(AnnotatedDataModule).parameters) - {"root", "labels"}
        given = {key: value for key, value in settings.items() if key in known}
        if settings.get("format") not in usual:
            found = next((name for name in recognize(Path(root)) if name in usual), None)
            if found is None:
                raise UserError(
                    f"--int8 {root}: has no annotations of the format {' or '.join(usual)}; give an annotated set"
                )
            # VOC's files do not list the classes; YOLO's and masks have numbers, whose names may be missing
            unnamed = not any(Path(root).glob("*.y*ml")) and not (Path(root) / "classes.txt").is_file()
            names = metadata.class_names if found == "voc" or (found != "coco" and unnamed) else None
            given = {"format": found, "class_names": names}
        self.data = AnnotatedDataModule(root, **{**given, "img_size": metadata.size, "num_workers": 0, "batch_size": 8})
        self.data.use_range_of(metadata.value_range)
        self.note = self.data.number_classes_as(metadata.class_names, by_number)
        self.split = next((role for role in ("test", "val") if self.data.has_split(role)), "train")
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

    def __init__(
        self, root: str, metadata: ModelMetadata, preprocess: object, settings: Mapping[str, Any], by_number: bool
    ) -> None:
        super().__init__(root, metadata, settings, by_number, ("coco", "yolo", "voc"))

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

    def __init__(
        self, root: str, metadata: ModelMetadata, preprocess: object, settings: Mapping[str, Any], by_number: bool
    ) -> None:
        super().__init__(root, metadata, settings, by_number, ("masks",))

    def measure(self, model: Model) -> float:
        """Return the mean Dice of the pixel counts of the complete split, a fraction."""
        import torch

        from lit_vision.evaluation.segmentation import pixel_counts, segmentation_values

        counts: Any = 0
        for batch, outputs in self.batches(model):
            best = torch.from_numpy(outputs["scores"]).argmax(1)
            counts = counts + pixel_counts(best, batch["mask"].long(), len(self.metadata.class_names))
        return segmentation_values(counts, self.metadata.options.get("background"))["dice"]
