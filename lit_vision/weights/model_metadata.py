"""Metadata stored with a model: task, classes, normalization, input size, license. Plain values only.

One class serves every task and every file format. Imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lit_vision.data.views.image_size import plain_size
from lit_vision.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule

    from lit_vision.data.views.pixel_values import PixelFormat

# key of ModelMetadata's JSON in a file's metadata; an older name, which existing files have
METADATA_KEY = "lit_vision_card"
SHARED_SPACE = "images and texts"  # options["space"] of a model whose features can be compared with texts
CAPTION_SCORES = "caption_scores"  # option of a model of captions: its scores and those of the baseline
RENAMED_KEYS = {"licence": "license"}  # old key: new key; files written before the rename still load


def current_keys(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a file's metadata with old keys renamed, {} for None; every reader of metadata goes through this."""
    return {RENAMED_KEYS.get(key, key): value for key, value in (values or {}).items()}


@dataclass
class ModelMetadata:
    """Metadata of a model: what is needed to run it and to read its outputs.

    Attributes:
        task: "classification", "multilabel", "features", "detection", "segmentation", "video",
            "restoration" or "captioning".
        size: of the input, pixels: side of a square, else [height, width].
        mean, std: of the pixels, per channel, in [0, 1].
        crop_pct: fraction of the resized image's short side that the evaluation view keeps.
        class_names: in the order of the outputs; empty for features.
        category_ids: of the classes in the COCO JSON of the training data; empty without COCO JSON, and in older files.
        outputs: names of the outputs, in order.
        weights: sha256 of the weights' names, shapes and values, by which results and exports name a model.
        features: the same of the weights that the features depend on (the backbone's, or all if texts can be compared
            with them), by which an index of features names the model.
        license: of the weights, free text; "" if not stated.
        precision: "fp32", "fp16" or "int8".
        value_range: values of images deeper than 8 bits that become 0 and 255; None if the training images had none, or
            in an older file.
        options: further plain values of the task (thresholds, anchors, ...); `space`, see SHARED_SPACE.
    """

    task: str
    size: int | list[int]
    mean: list[float]
    std: list[float]
    crop_pct: float = 1.0
    class_names: list[str] = field(default_factory=list)
    category_ids: list[int] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    weights: str = ""
    features: str = ""
    license: str = ""
    precision: str = "fp32"
    value_range: list[float] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Side of the square input, pixels; of detectors and segmenters, which have no other."""
        if isinstance(self.size, int):
            return self.size
        raise UserError(f"size: {self.size}; a model for {self.task} needs square images")

    @property
    def pixel_format(self) -> PixelFormat:
        """Conversion of images deeper than 8 bits, and of color images for a model of one channel."""
        from lit_vision.data.views.pixel_values import PixelFormat, check_range

        return PixelFormat(check_range(self.value_range, "value_range"), len(self.mean) == 1)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None, path: str) -> ModelMetadata:
        """Parse the metadata of a file.

        Args:
            text: from `to_json`, or None if the file has no metadata.
            path: the file, for the error.

        Raises:
            UserError: no metadata, or damaged metadata.
        """
        if not text:
            raise UserError(
                f"{path}: has no metadata (class names, mean, std, size); write the file with lit-vision export"
            )
        try:
            values = current_keys(json.loads(text))
            known = {f.name for f in fields(cls)}
            metadata = cls(**{key: value for key, value in values.items() if key in known})
            metadata.size = plain_size(metadata.size)
            if not (len(metadata.mean) == len(metadata.std) > 0 and metadata.outputs):
                raise ValueError("mean, std or outputs")
            metadata.pixel_format  # noqa: B018  # checks the range
            if metadata.category_ids and len(metadata.category_ids) != len(metadata.class_names):
                raise ValueError(f"{len(metadata.category_ids)} category_ids for {len(metadata.class_names)} classes")
        except (ValueError, TypeError, AttributeError, UserError) as error:
            raise UserError(f"{path}: its metadata is damaged ({error}); export it again") from error
        return metadata


def metadata_from_datamodule(
    task: str, datamodule: LightningDataModule, needs_classes: bool = True
) -> dict[str, Any] | None:
    """Return what later use of a model needs to know of its data; None if the data has no class names or image size.

    A method calls this when training starts and stores the result in its checkpoint under "card". With `needs_classes`
    False the names may be missing.

    Returns:
        {task, class_names, size, crop_pct}, with category_ids for COCO JSON, value_range for images deeper than 8 bits,
        and options for an evaluation view that is not the standard one.
    """
    names, size = getattr(datamodule, "class_names", None) or [], getattr(datamodule, "img_size", None)
    if not size or (needs_classes and not names):
        return None
    from lit_vision.data.views.params import make_view_spec

    options: Mapping[str, Any] = getattr(datamodule, "eval_options", None) or {}
    crop = make_view_spec("eval", size, **options).crop_pct
    metadata: dict[str, Any] = {"task": task, "class_names": [str(n) for n in names]}
    metadata |= {"size": plain_size(size), "crop_pct": float(crop)}
    if ids := getattr(datamodule, "category_ids", None):
        metadata["category_ids"] = [int(i) for i in ids]
    if value_range := getattr(datamodule, "value_range", None):
        metadata["value_range"] = [float(v) for v in value_range]
    view = getattr(datamodule, "eval_view", "eval")
    return metadata if view == "eval" else {**metadata, "options": {"eval_view": str(view)}}
