"""A model in any runtime, measured on a folder with the truth: what quantisation is calibrated on and judged by.

One class per kind of truth; `accuracy_check_for` chooses by the model's task. Images are seen under the task's evaluation view.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.splits import evenly_spaced
from lit_vision.errors import UserError
from lit_vision.weights.model_metadata import ModelMetadata


def accuracy_check_for(root: str, metadata: ModelMetadata) -> Any:
    """A judge: `metric` (its name), `split`, `images` (how many it measures), `calibration(n)`, `measure(model)`.

    Args:
        root: a folder with classes (classification), or of annotated images (detection: COCO, YOLO or VOC; segmentation: PNG masks).
        metadata: of the model.

    Raises:
        UserError: another task, a folder without the truth, or classes that the model does not know.
    """
    kinds = {"classification": ClassificationCheck, "detection": DetectionCheck, "segmentation": SegmentationCheck}
    if metadata.task not in kinds:
        raise UserError(
            f"--int8: needs a task that can be measured, this model gives {metadata.task}; export it without"
        )
    return kinds[metadata.task](root, metadata)


class ClassificationCheck:
    """Top-1 on a folder with classes. Calibrated on its training split, measured on its test split, else validation, else training."""

    metric = "top-1"

    def __init__(self, root: str, metadata: ModelMetadata) -> None:
        from lit_vision.data.open_images import open_images

        self.folder, self.metadata = open_images(root), metadata
        self.folder.require_classes("measuring what int8 loses")
        if strange := [name for name in self.folder.classes if name not in metadata.class_names]:
            raise UserError(
                f"--int8 {root}: class {strange[0]} is none of the model's; give the folder it was trained on"
            )
        splits = self.folder.splits
        self.split = next(name for name in ("test", "val", *splits) if name in splits)
        self.images = len(splits[self.split])

    def calibration(self, count: int) -> Iterator[np.ndarray]:
        """(1, S, S, 3) uint8, evenly spaced over the split."""
        from lit_vision.predict.inputs import Inputs, batches
        from lit_vision.predict.tasks import preprocess_for

        train = self.folder.splits.get("train", self.folder.splits[self.split])
        chosen = Inputs([train.paths[i] for i in evenly_spaced(len(train), count).tolist()], str(self.folder.root))
        for batch in batches(chosen, preprocess_for(self.metadata), 1):
            if batch.pixels is not None:
                yield batch.pixels

    def measure(self, model: Any) -> float:
        """Share of the images whose class comes out first. UserError: an image cannot be read."""
        from lit_vision.predict.inputs import Inputs, batches
        from lit_vision.predict.tasks import preprocess_for

        part = self.folder.splits[self.split]
        number = [model.metadata.class_names.index(name) for name in self.folder.classes]
        truth = np.array([number[i] if i >= 0 else -1 for i in part.labels])
        right = 0
        for batch in batches(Inputs(part.paths, str(self.folder.root)), preprocess_for(model.metadata), 32):
            if batch.bad:
                raise UserError(f"{self.folder.root}/{batch.bad[0][0]}: {batch.bad[0][1]}")
            right += int((model(batch.pixels)["logits"].argmax(1) == truth[batch.first : batch.after]).sum())
        return right / max(len(truth), 1)


class _AnnotatedCheck:
    """What the judges of annotated images share."""

    def __init__(self, root: str, metadata: ModelMetadata, form: str) -> None:
        from lit_vision.data.annotations.datamodule import DEFAULT_LOCATIONS, AnnotatedDataModule

        if not Path(root).is_dir():
            raise UserError(f"--int8 {root}: no such folder; give the set that the model was trained on")
        self.metadata = metadata
        self.data = AnnotatedDataModule(
            root,
            format=form,
            img_size=metadata.size,
            class_names=list(metadata.class_names),
            num_workers=0,
            batch_size=8,
        )
        there = [
            s for s in ("test", "val", "train") if (Path(root) / DEFAULT_LOCATIONS[form][1].format(split=s)).exists()
        ]
        self.split = there[0] if there else "test"
        self.images = len(self.data.table(self.split))

    def calibration(self, count: int) -> Iterator[np.ndarray]:
        """(1, S, S, 3) uint8, evenly spaced over the training split."""
        for batch in self.data.eval_loader("train", limit=count):
            yield from batch["images"].numpy()

    def batches(self, model: Any) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
        """Batches of the measured split, and what the model says of them."""
        for batch in self.data.eval_loader(self.split):
            yield batch, model(batch["images"][:, 0].numpy())


class DetectionCheck(_AnnotatedCheck):
    """COCO's mean average precision on a set with boxes."""

    metric = "mAP"

    def __init__(self, root: str, metadata: ModelMetadata) -> None:
        marks = {"coco": "train/annotations.json", "yolo": "labels", "voc": "Annotations"}
        form = next((name for name, mark in marks.items() if (Path(root) / mark).exists()), None)
        if form is None and Path(root).is_dir():
            raise UserError(f"--int8 {root}: holds none of {', '.join(marks.values())}; give a set with boxes")
        super().__init__(root, metadata, form or "coco")

    def measure(self, model: Any) -> float:
        """mAP@[.5:.95], a fraction."""
        from lit_vision.evaluation.detection import coco_metric, coco_values, update_boxes
        from lit_vision.predict.detection import DecodeBoxes

        metric, boxes = coco_metric(), DecodeBoxes(model.metadata)
        for batch, outputs in self.batches(model):
            update_boxes(metric, boxes(outputs), batch["targets"])
        return coco_values(metric)["map"]


class SegmentationCheck(_AnnotatedCheck):
    """Mean Dice over the classes, background apart, on a set with semantic masks."""

    metric = "mean Dice"

    def __init__(self, root: str, metadata: ModelMetadata) -> None:
        super().__init__(root, metadata, "masks")

    def measure(self, model: Any) -> float:
        """Dice, sums over the set first, a fraction."""
        import torch

        from lit_vision.evaluation.segmentation import pixel_counts, segmentation_values

        counts: Any = 0
        for batch, outputs in self.batches(model):
            best = torch.from_numpy(outputs["scores"]).argmax(1)
            counts = counts + pixel_counts(best, batch["mask"].long(), len(self.metadata.class_names))
        return segmentation_values(counts, self.metadata.options.get("background"))["dice"]
