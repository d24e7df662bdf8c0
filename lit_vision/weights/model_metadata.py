"""What must travel with a model so that it can be used: task, class names, pixel statistics, size, license. Plain values only.

One card serves every task and every file format: `task` says which. Imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lit_vision.errors import UserError

METADATA_KEY = "lit_vision_card"  # under this name the card lies in a file's metadata, as JSON
RENAMED_KEYS = {"licence": "license"}  # in files of before the rooms were moved


def current_keys(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata of a file with the keys of today, {} for None; every reader of metadata goes through this."""
    return {RENAMED_KEYS.get(key, key): value for key, value in (values or {}).items()}


@dataclass
class ModelMetadata:
    """A model's card.

    Attributes:
        task: "classification", "features", "detection" or "segmentation".
        size: side of the square input, pixels.
        mean, std: of the pixels, per channel, in [0, 1].
        crop_pct: share of the resized short side that the evaluation view keeps.
        class_names: in the order of the outputs; empty for features.
        category_ids: of the classes in the COCO JSON that they were learnt from; empty where there is none, or an older card.
        outputs: names of what the model gives, in order.
        weights: sha256 of the weights' names, shapes and values: what results and exports name a model by.
        features: the same of the backbone alone: what an index of features names it by.
        license: of the weights, in words; "" is not stated.
        precision: "fp32", or what the export made of it.
        options: what a task needs besides (thresholds, anchors, ...), plain values.
    """

    task: str
    size: int
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
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None, where: str) -> ModelMetadata:
        """The card in a file's metadata.

        Args:
            text: what `to_json` gave, or None where there is nothing.
            where: the file, for the error.

        Raises:
            UserError: no card, or a damaged one.
        """
        if not text:
            raise UserError(f"{where}: holds no card (class names, mean, std, size); export it with lit-vision export")
        try:
            values = current_keys(json.loads(text))
            known = {f.name for f in fields(cls)}
            metadata = cls(**{key: value for key, value in values.items() if key in known})
            if not (len(metadata.mean) == len(metadata.std) == 3 and int(metadata.size) > 0 and metadata.outputs):
                raise ValueError("mean, std, size or outputs")
            if metadata.category_ids and len(metadata.category_ids) != len(metadata.class_names):
                raise ValueError(f"{len(metadata.category_ids)} category_ids for {len(metadata.class_names)} classes")
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: its card is damaged ({error}); export it again") from error
        return metadata


def metadata_from_datamodule(task: str, datamodule: Any) -> dict[str, Any] | None:
    """What a method keeps of its data for later use: {task, class_names, size, crop_pct}, and category_ids of COCO JSON; None where the data does not say.

    A method calls this when training starts and saves the result in its checkpoint under "card".
    """
    names, size = getattr(datamodule, "class_names", None), getattr(datamodule, "img_size", None)
    if not names or not size:
        return None
    from lit_vision.data.views.params import make_view_spec

    options: Mapping[str, Any] = getattr(datamodule, "eval_options", None) or {}
    crop = make_view_spec("eval", int(size), **options).crop_pct
    metadata = {"task": task, "class_names": [str(n) for n in names], "size": int(size), "crop_pct": float(crop)}
    if ids := getattr(datamodule, "category_ids", None):
        metadata["category_ids"] = [int(i) for i in ids]
    view = getattr(datamodule, "eval_view", "eval")
    return metadata if view == "eval" else {**metadata, "options": {"eval_view": str(view)}}
