"""Raw outputs of a one-stage head to detections: one piece of code for training, prediction and every exported form.

B images, A anchors, K classes, n detections of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from lit_vision.methods.detection.heads import ONE_STAGE, build_head

Detections = list[dict[str, Tensor]]
LEAST_WIDTH = 32  # of a head that is built for its anchors and its decoding alone


class AnchorDecoder:
    """Anchors and decoding of FCOS or RetinaNet.

    Args:
        head: of `build_head`.
        strides: of the levels, fine to coarse.
    """

    def __init__(self, head: nn.Module, strides: Sequence[int]) -> None:
        self.head, self.strides = head, list(strides)

    @classmethod
    def of(cls, name: str, num_classes: int, strides: Sequence[int], score: float, nms: float) -> AnchorDecoder:
        """The decoder of an exported model: what `decoder_options` gives.

        Args:
            name: fcos or retinanet.
            num_classes: K.
            strides: of the levels, fine to coarse.
            score: detections below are dropped.
            nms: overlap above which the lower of two detections of one class is dropped.
        """
        head = build_head(
            name,
            num_classes,
            LEAST_WIDTH,
            list(strides),
            head_convs=1,
            head_width=LEAST_WIDTH,
            rois=1,
            score=score,
            nms=nms,
        )
        return cls(head.eval(), strides)

    def levels(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(rows, columns) of each level for an image of this (height, width)."""
        return [(-(-size[0] // s), -(-size[1] // s)) for s in self.strides]

    def counts(self, size: tuple[int, int]) -> list[int]:
        """Anchors of each level."""
        per_cell = self.head.anchor_generator.num_anchors_per_location()
        return [h * w * n for (h, w), n in zip(self.levels(size), per_cell)]

    def anchors(self, size: tuple[int, int], like: Tensor) -> Tensor:
        """(A, 4) x1, y1, x2, y2 for an image of this (height, width), on the device of `like`."""
        maps = [like.new_empty((1, 1, *level), dtype=torch.float32) for level in self.levels(size)]
        return self.head.anchor_generator(ImageList(like.new_empty((1, 1, *size)), [size]), maps)[0]

    def __call__(self, raw: dict[str, Tensor], size: tuple[int, int]) -> Detections:
        """Threshold, best 1000 a level, boxes, NMS per class, best 100.

        Args:
            raw: `cls_logits` (B, A, K), `bbox_regression` (B, A, 4) and, for FCOS, `bbox_ctrness` (B, A, 1).
            size: (height, width) of the images, pixels.

        Returns:
            B dictionaries, best first: `boxes` (n, 4) x1, y1, x2, y2 in pixels, `scores` (n,) 0 to 1, `labels` (n,) 0 to K - 1.
        """
        first, counts = raw["cls_logits"], self.counts(size)
        anchors = list(self.anchors(size, first).split(counts))
        parts = {name: list(value.split(counts, dim=1)) for name, value in raw.items()}
        return self.head.postprocess_detections(parts, [anchors] * len(first), [size] * len(first))

    def everything(self, raw: dict[str, Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Box (B, A, 4) in pixels and scores (B, A, K) of every anchor, before any choice: what two runtimes are compared by."""
        anchors = self.anchors(size, raw["cls_logits"])
        scores = raw["cls_logits"].sigmoid()
        if "bbox_ctrness" in raw:  # FCOS
            scores = (scores * raw["bbox_ctrness"].sigmoid()).sqrt()
            boxes = [self.head.box_coder.decode(values, anchors) for values in raw["bbox_regression"]]
        else:
            boxes = [self.head.box_coder.decode_single(values, anchors) for values in raw["bbox_regression"]]
        return torch.stack(boxes), scores


def decoder_options(method: Any) -> dict[str, Any]:
    """What a detector's card keeps for `AnchorDecoder.of`, plain values; the head's name alone for a two-stage head."""
    found = {"head": method.hparams.head}
    if method.hparams.head in ONE_STAGE:
        found["strides"] = list(method.pyramid.strides)
        found["score"], found["nms"] = float(method.head.score_thresh), float(method.head.nms_thresh)
    return found
