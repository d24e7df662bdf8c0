"""Detection without Lightning: backbone, feature pyramid and an FCOS, RetinaNet, Faster R-CNN or Mask R-CNN head.

The heads are torchvision's, without its image transform: images have the size that the data module gives them, so a
128-pixel scene is not enlarged to 800. Anchors are multiples of the strides, whose default follows from the image size.
detector.py beside this file trains the network.

B images, K classes, A anchors, n objects of an image, S side of the image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image

from lit_vision.backbones.pyramid import freeze_unused, make_pyramid
from lit_vision.errors import UserError
from lit_vision.evaluation.detection import MAX_DETECTIONS
from lit_vision.methods import tuning_modes
from lit_vision.methods.detection.decoding import AnchorDecoder, Detections
from lit_vision.methods.detection.heads import (
    DETECTION_HEADS,
    ONE_STAGE,
    build_head,
    default_strides,
    globally_normalized_losses,
)
from lit_vision.methods.pixels import channel_values

PARTS = frozenset({"backbone", "pyramid", "head"})  # the modules in a checkpoint of this method
MONITOR = ("val/map", True)  # the metric that chooses best.ckpt; True: larger is better
TRAIN_VIEW = "train"  # of AnnotatedDataModule: crop or scale, flip
# values of the hyper-parameters below that a checkpoint does not have, because it is older or only for use
DEFAULTS: Mapping[str, Any] = {
    **tuning_modes.TUNING_DEFAULTS,
    "head": "fcos",
    "strides": None,
    "pyramid_width": 256,
    "head_convs": 4,
    "head_width": 1024,
    "rois": 512,
    "score_threshold": 0.05,
    "nms_threshold": None,
    "max_detections": MAX_DETECTIONS,
}


class DetectorNetwork(nn.Module):
    """Backbone, feature pyramid and detection head.

    Args:
        h: hyper-parameters of `lit_vision.methods.detection.detector.Detector`, as its checkpoints hold them.

    Attributes:
        one_stage: True for FCOS and RetinaNet.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do. PartialMatchError (a UserError):
            the checkpoint does not fit.
    """

    method_name, parts, train_view, monitor = "Detector", PARTS, TRAIN_VIEW, MONITOR

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams: Any = {**h, **DEFAULTS, **h}  # in the order of h; a LightningModule has its own
        self.build(self.hparams)

    def build(self, h: dict[str, Any]) -> None:
        """Make and initialise the parts; sets `h["strides"]` to the strides in use."""
        head, pyramid_width, nms = h["head"], h["pyramid_width"], h["nms_threshold"]
        img_size = tuning_modes.square_side(h["img_size"])
        if head not in DETECTION_HEADS:
            raise UserError(f"model.head: {head!r} is not one of {', '.join(DETECTION_HEADS)}; choose one of these")
        if h["num_classes"] < 1:
            raise UserError(f"model.num_classes: {h['num_classes']} is too few; give 1 or more")
        if pyramid_width < 32 or pyramid_width % 32:
            raise UserError(
                f"model.pyramid_width: {pyramid_width} is not a multiple of 32; the heads' group norm needs one"
            )
        if h["max_detections"] < 1:
            raise UserError(f"model.max_detections: {h['max_detections']} is too few; give 1 or more")
        self.one_stage = head in ONE_STAGE
        strides = h["strides"] = list(h["strides"] or default_strides(head, img_size))
        self.backbone, mean, std = tuning_modes.build_backbone(h)
        self.pyramid = make_pyramid(self.backbone, img_size, pyramid_width, strides)
        freeze_unused(self.backbone, self.pyramid, img_size)
        self.head = build_head(
            head,
            h["num_classes"],
            pyramid_width,
            strides,
            head_convs=h["head_convs"],
            head_width=h["head_width"],
            rois=h["rois"],
            score=h["score_threshold"],
            nms=nms if nms is not None else 0.6 if head == "fcos" else 0.5,
            max_detections=h["max_detections"],
        )
        self.decoder = AnchorDecoder(self.head, strides)
        tuning_modes.channels_last(self.pyramid, self.backbone)
        channels = self.backbone.config["in_chans"]
        self.register_buffer("mean", torch.tensor(channel_values("mean", h["mean"], mean, channels)))
        self.register_buffer("std", torch.tensor(channel_values("std", h["std"], std, channels)))
        self.train()  # frozen parts must be in evaluation mode from the start

    def train(self, mode: bool = True) -> DetectorNetwork:
        """Set training mode, except for the frozen parts of the backbone; see `tuning_modes.keep_frozen_in_eval`."""
        super().train(mode)
        tuning_modes.keep_frozen_in_eval(self)
        return self

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the pyramid's levels [(B, pyramid_width, S / stride, S / stride)], fine to coarse.

        Args:
            images: (B, 3, S, S) float, normalised.
        """
        levels: list[Tensor] = self.pyramid(tuning_modes.feature_maps(self.backbone, images))
        return levels

    def raw(self, images: Tensor) -> dict[str, Tensor]:
        """Return a one-stage head's outputs for each anchor, before any threshold, in the order of exported models.

        Args:
            images: (B, 3, S, S) float, normalised.

        Returns:
            `cls_logits` (B, A, K), `bbox_regression` (B, A, 4) and, for FCOS, `bbox_ctrness` (B, A, 1), at least
            float32, levels one after another.

        Raises:
            UserError: a two-stage head, whose second stage depends on the first one's selection.
        """
        if not self.one_stage:
            raise UserError(f"model.head: {self.hparams['head']} has no raw outputs; use fcos or retinanet")
        found = self.head.head(self.features(images))
        return {name: tuning_modes.at_least_float32(value) for name, value in found.items()}

    def decode(self, raw: dict[str, Tensor], size: tuple[int, int]) -> Detections:
        """Turn raw outputs, of torch or of an exported model, into detections; see `AnchorDecoder`."""
        return self.decoder(raw, size)

    def forward(self, images: Tensor) -> Detections:
        """Return the detections in normalised images (B, 3, S, S); in evaluation mode.

        Returns:
            B dictionaries, best first: `boxes` (n, 4) x1, y1, x2, y2 in pixels, `scores` (n,) 0 to 1, `labels` (n,) 0
            to K - 1; Mask R-CNN also `masks` (n, S, S) bool.
        """
        size = tuple(images.shape[-2:])
        if self.one_stage:
            return self.decode(self.raw(images), size)
        found = self.detect_with_mask_probs(images)
        for image in found:
            if "mask_probs" in image:
                masks = paste_masks_in_image(image.pop("mask_probs")[:, None], image["boxes"], size)
                image["masks"] = masks[:, 0] > 0.5
        return found

    def detect_with_mask_probs(self, images: Tensor) -> Detections:
        """Return a two-stage head's detections with the mask head's probabilities, which can be drawn at any size.

        Returns:
            B dictionaries, best first: `boxes`, `scores`, `labels`; Mask R-CNN also `mask_probs` (n, 28, 28), 0 to 1, a
            grid over each box.
        """
        found, _ = self._two_stage(images, None)
        for image in found:
            image["labels"] = image["labels"] - 1  # in torchvision 0 is the background
            if "masks" in image:
                image["mask_probs"] = image.pop("masks")[:, 0]
        return found

    def _two_stage(
        self, images: Tensor, targets: list[dict[str, Tensor]] | None, keys: Tensor | None = None
    ) -> tuple[Detections, dict[str, Tensor]]:
        size = tuple(images.shape[-2:])
        levels = OrderedDict((str(i), tuning_modes.at_least_float32(x)) for i, x in enumerate(self.features(images)))
        image_list = ImageList(images, [size] * len(images))
        anchor_sampler, region_sampler = self.head.rpn.fg_bg_sampler, self.head.roi_heads.fg_bg_sampler
        anchor_sampler.keys = region_sampler.keys = keys
        # in bfloat16 torchvision would round the proposals themselves, at 512 pixels by up to two
        with torch.autocast(images.device.type, enabled=False):
            proposals, first = self.head.rpn(image_list, levels, targets)
            found, second = self.head.roi_heads(levels, proposals, image_list.image_sizes, targets)
        losses = {**first, **second}
        if not losses:
            return found, losses
        counts = dict.fromkeys(first, anchor_sampler.num_sampled) | dict.fromkeys(second, region_sampler.num_sampled)
        return found, globally_normalized_losses(losses, counts | {"loss_mask": region_sampler.num_positives})

    def losses(self, images: Tensor, targets: list[dict[str, Tensor]], keys: Tensor | None = None) -> dict[str, Tensor]:
        """Return the head's losses, whose sum is minimised; in training mode.

        On each process they are the losses of the joined batch of all processes.

        Args:
            images: (B, 3, S, S) float, normalised.
            targets: B dictionaries: `boxes` (n, 4), `labels` (n,), for Mask R-CNN `masks` (n, S, S); n may be 0.
            keys: (B, 3) of the images, which determine the regions that train an R-CNN; None samples them with torch's
                global generator.

        Returns:
            Scalars: classification, bbox_regression, bbox_ctrness (FCOS); classification, bbox_regression (RetinaNet);
            loss_objectness, loss_rpn_box_reg, loss_classifier, loss_box_reg, loss_mask (R-CNNs).
        """
        if not self.one_stage:
            shifted = [{**t, "labels": t["labels"] + 1} for t in targets]
            return self._two_stage(images, shifted, keys)[1]
        raw = self.raw(images)
        size = tuple(images.shape[-2:])
        anchors = [self.decoder.anchors(size, images)] * len(images)
        per_level = () if self.hparams["head"] == "retinanet" else (self.decoder.anchors_per_level(size),)
        losses: dict[str, Tensor] = self.head.compute_loss(targets, raw, anchors, *per_level)
        return losses
