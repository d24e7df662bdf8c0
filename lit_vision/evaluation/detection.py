"""COCO's average precision for boxes and instance masks, and conversion of detections to pixels of their file.

torchmetrics with faster-coco-eval computes it, with the exact thresholds of COCO's evaluation: torchmetrics' defaults
are float32 (0.7 becomes 0.699999988), which changes a precision if a recall or an overlap equals a threshold.
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
MAX_DETECTIONS = 100  # per image, as in COCO's evaluation

# name in torchmetrics: name here
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
    """Return a torchmetrics.MeanAveragePrecision with COCO's settings; it gathers over processes.

    `update(predictions, targets)` takes a dictionary per image. Prediction: boxes (n, 4) x1, y1, x2, y2, scores (n,),
    labels (n,), with `masks` also masks (n, H, W) bool. Target: boxes, labels, iscrowd and area (n,), masks. 0 as area
    means that of the box (or mask).

    Source: cocoapi's cocoeval.py; mean over classes with ground truth and ten overlaps of 101-point interpolated
    precision.

    Args:
        masks: measure instance masks as well as boxes.
        per_class: compute the value of each class.

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
    """Return the values of a metric as fractions, without the undefined ones (no ground truth of that kind).

    Args:
        metric: from `coco_metric`.
        class_names: adds `map/<name>` of each class with ground truth (metrics with per_class).

    Returns:
        map (mean over overlaps .50 to .95), map50, map75, map_small, map_medium, map_large (areas below 32^2, below
        96^2, above), recall100; for masks the same with the prefix mask_.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*No (detections|ground truth).*")
        found = metric.compute()
    both = "bbox_map" in found
    values = {}
    for kind, prefix in (("bbox_", ""), ("segm_", "mask_")) if both else (("", ""),):
        for torchmetrics_name, name in _NAMES.items():
            if (value := float(found[kind + torchmetrics_name])) >= 0:
                values[prefix + name] = value
        per_class = found.get(f"{kind}map_per_class")
        if class_names and per_class is not None and per_class.ndim:
            for label, value in zip(found["classes"].tolist(), per_class.tolist()):
                if value >= 0:
                    values[f"{prefix}map/{class_names[label]}"] = value
    return values


def to_original_size(boxes: Tensor, scale: Tensor, size: Tensor) -> Tensor:
    """Convert boxes of a view to boxes of the file that it was scaled from.

    Args:
        boxes: (n, 4) x1, y1, x2, y2 in pixels of the view.
        scale: (2,) pixels of the view per pixel of the file, in x and y.
        size: (2,) height and width of the file, pixels.

    Returns:
        (n, 4), clipped to the image.
    """
    found = boxes / scale.repeat(2)
    height, width = size.tolist()
    return torch.stack([found[:, 0::2].clamp(0, width), found[:, 1::2].clamp(0, height)], -1).flatten(1)


def update_boxes(metric: Any, found: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
    """Update a metric of `coco_metric` with a batch, in pixels of the files (masks at the size of the view).

    Args:
        metric: with masks only if the detections have them.
        found: for each image `boxes` (n, 4) in pixels of the view, `scores`, `labels`, and optionally `masks`.
        targets: of an evaluation batch of AnnotatedDataModule.
    """
    predictions, truths = [], []
    for detections, target in zip(found, targets):
        boxes = to_original_size(detections["boxes"].float(), target["scale"], target["size"])
        prediction = {"boxes": boxes, "scores": detections["scores"].float(), "labels": detections["labels"]}
        truth = {"boxes": target["original"], **{key: target[key] for key in ("labels", "iscrowd", "area")}}
        if "masks" in detections:
            prediction["masks"], truth["masks"] = detections["masks"], target["masks"].bool()
        predictions.append(prediction)
        truths.append(truth)
    metric.update(predictions, truths)
