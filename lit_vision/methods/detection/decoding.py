"""Decode one-stage head outputs into detections, in training, prediction and for every export format.

B images, A anchors, K classes, n detections of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from lit_vision.evaluation.detection import MAX_DETECTIONS
from lit_vision.methods.detection.heads import ONE_STAGE, build_head

Detections = list[dict[str, Tensor]]
MIN_HEAD_WIDTH = 32  # of a head that is built for its anchors and its decoding alone


class AnchorDecoder:
    """Anchors and decoding of FCOS or RetinaNet.

    Args:
        head: from `build_head`.
        strides: of the levels, fine to coarse.
    """

    def __init__(self, head: nn.Module, strides: Sequence[int]) -> None:
        self.head, self.strides = head, list(strides)

    @classmethod
    def from_options(
        cls,
        name: str,
        num_classes: int,
        strides: Sequence[int],
        score: float,
        nms: float,
        max_detections: int = MAX_DETECTIONS,
    ) -> AnchorDecoder:
        """Build the decoder of an exported model from its `decoder_options`.

        Args:
            name: fcos or retinanet.
            num_classes: K.
            strides: of the levels, fine to coarse.
            score: detections below are dropped.
            nms: overlap above which the lower of two detections of one class is dropped.
            max_detections: most detections of an image; the best are kept.
        """
        head = build_head(
            name,
            num_classes,
            MIN_HEAD_WIDTH,
            list(strides),
            head_convs=1,
            head_width=MIN_HEAD_WIDTH,
            rois=1,
            score=score,
            nms=nms,
            max_detections=max_detections,
        )
        return cls(head.eval(), strides)

    def level_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return (rows, columns) of each level for an image of this (height, width)."""
        return [(-(-size[0] // s), -(-size[1] // s)) for s in self.strides]

    def anchors_per_level(self, size: tuple[int, int]) -> list[int]:
        """Return the number of anchors of each level for an image of this (height, width)."""
        per_cell = self.head.anchor_generator.num_anchors_per_location()
        return [h * w * n for (h, w), n in zip(self.level_sizes(size), per_cell)]

    def anchors(self, size: tuple[int, int], like: Tensor) -> Tensor:
        """Return the anchors (A, 4) x1, y1, x2, y2 for an image of this (height, width), on the device of `like`."""
        maps = [like.new_empty((1, 1, *level), dtype=torch.float32) for level in self.level_sizes(size)]
        anchors: Tensor = self.head.anchor_generator(ImageList(like.new_empty((1, 1, *size)), [size]), maps)[0]
        return anchors

    def __call__(self, raw: dict[str, Tensor], size: tuple[int, int]) -> Detections:
        """Decode raw outputs: score threshold, best 1000 of each level, boxes, NMS per class, best `max_detections`.

        Args:
            raw: `cls_logits` (B, A, K), `bbox_regression` (B, A, 4) and, for FCOS, `bbox_ctrness` (B, A, 1).
            size: (height, width) of the images, pixels.

        Returns:
            B dictionaries, best first: `boxes` (n, 4) x1, y1, x2, y2 in pixels, `scores` (n,) 0 to 1, `labels` (n,) 0
            to K - 1.
        """
        first, counts = raw["cls_logits"], self.anchors_per_level(size)
        anchors = list(self.anchors(size, first).split(counts))
        parts = {name: list(value.split(counts, dim=1)) for name, value in raw.items()}
        detections: Detections = self.head.postprocess_detections(parts, [anchors] * len(first), [size] * len(first))
        return detections

    def decode_all(self, raw: dict[str, Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return boxes (B, A, 4) in pixels and scores (B, A, K) of all anchors, unfiltered, to compare two runtimes."""
        anchors = self.anchors(size, raw["cls_logits"])
        scores = raw["cls_logits"].sigmoid()
        if "bbox_ctrness" in raw:  # FCOS
            scores = (scores * raw["bbox_ctrness"].sigmoid()).sqrt()
            boxes = [self.head.box_coder.decode(values, anchors) for values in raw["bbox_regression"]]
        else:
            boxes = [self.head.box_coder.decode_single(values, anchors) for values in raw["bbox_regression"]]
        return torch.stack(boxes), scores


def decoder_options(method: nn.Module) -> dict[str, Any]:
    """Return the options of a detector's metadata: arguments of `AnchorDecoder.from_options`, as plain values.

    A two-stage head has its name and the most detections alone.
    """
    found: dict[str, Any] = {"head": method.hparams["head"], "max_detections": method.hparams["max_detections"]}
    if method.hparams["head"] in ONE_STAGE:
        found["strides"] = list(method.pyramid.strides)
        found["score"], found["nms"] = float(method.head.score_thresh), float(method.head.nms_thresh)
    return found
