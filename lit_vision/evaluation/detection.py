"""COCO's average precision, for boxes and instance masks, and detections brought back to the pixels of their file.

The measure is torchmetrics' with faster-coco-eval, told the exact thresholds of COCO's own evaluation: torchmetrics' defaults are float32
(0.7 becomes 0.699999988), which moves a precision when a recall or an overlap falls on a threshold.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_vision.errors import UserError

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101).tolist()
MAX_DETECTIONS = 100  # per image: COCO counts no more

# what torchmetrics calls it: what we call it
_NAMES = {
    "map": "map",
    "map_50": "map50",
    "map_75": "map75",
    "map_small": "map_small",
    "map_medium": "map_medium",
    "map_large": "map_large",
    "mar_100": "recall100",
}


def coco_metric(masks: bool = False, per_class: bool = False) -> Any:
    """A torchmetrics.MeanAveragePrecision that gives COCO's numbers; it joins processes by itself.

    `update(predictions, targets)` takes a dictionary per image. Prediction: boxes (n, 4) x1, y1, x2, y2, scores (n,), labels (n,), with
    `masks` also masks (n, H, W) bool. Target: boxes, labels, iscrowd and area (n,), masks. 0 as area means that of the box (or mask).

    Source: cocoapi's cocoeval.py; mean over classes with ground truth and ten overlaps of 101-point interpolated precision.

    Args:
        masks: measure instance masks beside boxes.
        per_class: keep the value of each class.

    Raises:
        UserError: faster-coco-eval is not installed.
    """
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError:
        raise UserError("mAP: needs faster-coco-eval; pip install 'lit-vision[detection]'") from None
    from torchmetrics.detection import MeanAveragePrecision

    return MeanAveragePrecision(
        iou_type=("bbox", "segm") if masks else "bbox",
        iou_thresholds=IOU_THRESHOLDS,
        rec_thresholds=RECALL_THRESHOLDS,
        class_metrics=per_class,
        backend="faster_coco_eval",
    )


def coco_values(metric: Any, class_names: list[str] | None = None) -> dict[str, float]:
    """What the metric has gathered, as fractions; what is undefined (no ground truth of that kind) is left out.

    Args:
        metric: from `coco_metric`.
        class_names: gives `map/<name>` of each class with ground truth too (per_class metrics).

    Returns:
        map (mean over overlaps .50 to .95), map50, map75, map_small, map_medium, map_large (below 32^2, below 96^2, above), recall100; for
        masks the same with mask_ in front.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*No (detections|ground truth).*")
        found = metric.compute()
    both = "bbox_map" in found
    values = {}
    for kind, ours in (("bbox_", ""), ("segm_", "mask_")) if both else (("", ""),):
        for theirs, name in _NAMES.items():
            if (value := float(found[kind + theirs])) >= 0:
                values[ours + name] = value
        per_class = found.get(f"{kind}map_per_class")
        if class_names and per_class is not None and per_class.ndim:
            for label, value in zip(found["classes"].tolist(), per_class.tolist()):
                if value >= 0:
                    values[f"{ours}map/{class_names[label]}"] = value
    return values


def to_original_size(boxes: Tensor, scale: Tensor, size: Tensor) -> Tensor:
    """Boxes of a view as boxes of the file that it was scaled from.

    Args:
        boxes: (n, 4) x1, y1, x2, y2 in pixels of the view.
        scale: (2,) pixels of the view per pixel of the file, in x and y.
        size: (2,) height and width of the file, pixels.

    Returns:
        (n, 4), cut at the file's edges.
    """
    found = boxes / scale.repeat(2)
    height, width = size.tolist()
    return torch.stack([found[:, 0::2].clamp(0, width), found[:, 1::2].clamp(0, height)], -1).flatten(1)


def update_boxes(metric: Any, found: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
    """Give a batch to a metric of `coco_metric`, in the files' own pixels (masks at the size of the view).

    Args:
        metric: with masks only if the detections have them.
        found: per image, `boxes` (n, 4) in pixels of the view, `scores`, `labels`, and `masks` or not.
        targets: of an evaluation batch of AnnotatedDataModule.
    """
    predictions, truths = [], []
    for one, target in zip(found, targets):
        boxes = to_original_size(one["boxes"].float(), target["scale"], target["size"])
        prediction = {"boxes": boxes, "scores": one["scores"].float(), "labels": one["labels"]}
        truth = {"boxes": target["original"], **{key: target[key] for key in ("labels", "iscrowd", "area")}}
        if "masks" in one:
            prediction["masks"], truth["masks"] = one["masks"], target["masks"].bool()
        predictions.append(prediction)
        truths.append(truth)
    metric.update(predictions, truths)
