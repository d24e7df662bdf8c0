"""Semantic segmentation without Lightning: backbone, feature levels and a linear, FCN or UPerNet head.

segmenter.py beside this file trains the network. B images, K classes, S side of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_vision.backbones.pyramid import freeze_unused, make_feature_levels
from lit_vision.errors import UserError
from lit_vision.methods import tuning_modes
from lit_vision.methods.pixels import channel_values
from lit_vision.methods.segmentation.heads import SEGMENTATION_HEADS, FCNHead, upsample
from lit_vision.methods.segmentation.losses import (
    SEGMENTATION_LOSSES,
    pixel_cross_entropy,
    segmentation_loss,
    subsample_targets,
)

PARTS = frozenset({"backbone", "pyramid", "head", "auxiliary"})  # the modules in a checkpoint of this method
MONITOR = ("val/dice", True)  # the metric that chooses best.ckpt; True: larger is better
TRAIN_VIEW = "train"  # of AnnotatedDataModule: crop or scale, flip
# values of the hyper-parameters below that a checkpoint does not have, because it is older or only for use
DEFAULTS: Mapping[str, Any] = {
    **tuning_modes.TUNING_DEFAULTS,
    "head": "upernet",
    "strides": None,
    "width": 256,
    "dropout": 0.1,
    "aux_weight": 0.4,
    "loss": "ce",
    "loss_stride": 1,
    "background": 0,
}


class SegmenterNetwork(nn.Module):
    """Backbone, feature levels, segmentation head and, with UPerNet, an auxiliary FCN head for training.

    Args:
        h: hyper-parameters of `lit_vision.methods.segmentation.segmenter.Segmenter`, as its checkpoints hold them.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do. PartialMatchError (a UserError):
            the checkpoint does not fit.
    """

    method_name, parts, train_view, monitor = "Segmenter", PARTS, TRAIN_VIEW, MONITOR

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams: Any = {**h, **DEFAULTS, **h}  # in the order of h; a LightningModule has its own
        self.build(self.hparams)

    def build(self, h: Mapping[str, Any]) -> None:
        """Make and initialise the parts."""
        head, num_classes, strides = h["head"], h["num_classes"], h["strides"]
        img_size = tuning_modes.square_side(h["img_size"])
        width, dropout, aux_weight, background = h["width"], h["dropout"], h["aux_weight"], h["background"]
        loss, loss_stride = h["loss"], h["loss_stride"]
        if head not in SEGMENTATION_HEADS:
            raise UserError(f"model.head: {head!r} is not one of {', '.join(SEGMENTATION_HEADS)}; choose one of these")
        if loss not in SEGMENTATION_LOSSES:
            raise UserError(f"model.loss: {loss!r} is not one of {', '.join(SEGMENTATION_LOSSES)}; choose one of these")
        if num_classes < 2 or (background is not None and not 0 <= background < num_classes):
            raise UserError(
                f"model.num_classes, model.background: {num_classes}, {background}; "
                "give 2 classes or more, and the background's index below that (or null)"
            )
        if not 0 <= dropout < 1 or aux_weight < 0:
            raise UserError(
                f"model.dropout, model.aux_weight: {dropout}, {aux_weight}; "
                "dropout must be in [0, 1), aux_weight 0 or more"
            )
        if not 1 <= loss_stride <= 8:
            raise UserError(f"model.loss_stride: {loss_stride}; give 1 (every pixel) to 8")
        self.backbone, mean, std = tuning_modes.build_backbone(h)
        strides = [4, 8, 16, 32] if strides is None and head == "upernet" else strides
        self.pyramid, channels = make_feature_levels(self.backbone, img_size, width, strides)
        freeze_unused(self.backbone, self.pyramid, img_size)
        self.head = SEGMENTATION_HEADS[head](channels, width, num_classes, dropout)
        self.auxiliary = None
        if head == "upernet" and aux_weight and len(channels) > 1:
            self.auxiliary = FCNHead(channels[:-1], width, num_classes, dropout, convs=1)  # on the last level but one
        parts: tuple[nn.Module, ...] = (self.pyramid, self.head, self.auxiliary or nn.Identity())
        for part in parts:
            tuning_modes.channels_last(part, self.backbone)
        channels = self.backbone.config["in_chans"]
        self.register_buffer("mean", torch.tensor(channel_values("mean", h["mean"], mean, channels)))
        self.register_buffer("std", torch.tensor(channel_values("std", h["std"], std, channels)))
        self.train()  # frozen parts must be in evaluation mode from the start

    def train(self, mode: bool = True) -> SegmenterNetwork:
        """Set training mode, except for the frozen parts of the backbone; see `tuning_modes.keep_frozen_in_eval`."""
        super().train(mode)
        tuning_modes.keep_frozen_in_eval(self)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (B, K, S, S), at least float32; a pixel's class is the argmax over K.

        Args:
            images: (B, 3, S, S) float, normalised.
        """
        return upsample(self._scores(images)[0], images.shape[-2:])

    def _scores(self, images: Tensor) -> list[Tensor]:
        """Return the head's scores on its grid and, in training, the auxiliary head's; at least float32, contiguous."""
        levels = self.pyramid(tuning_modes.feature_maps(self.backbone, images))
        found = [self.head(levels)]
        if self.training and self.auxiliary is not None:
            found.append(self.auxiliary(levels[:-1]))
        return [tuning_modes.at_least_float32(scores).contiguous() for scores in found]

    def losses(self, images: Tensor, truth: Tensor) -> Tensor:
        """Return the loss that is minimised; on each process it is the loss of the joined batch of all processes.

        Args:
            images: (B, 3, S, S) float, normalised.
            truth: (B, S, S) class numbers, 255 where a pixel does not count.
        """
        truth = subsample_targets(truth.long(), self.hparams["loss_stride"])
        scores, *auxiliary = (upsample(scores, truth.shape[-2:]) for scores in self._scores(images))
        loss = segmentation_loss(scores, truth, self.hparams["loss"], across_processes=True)
        for extra in auxiliary:
            loss = loss + self.hparams["aux_weight"] * pixel_cross_entropy(extra, truth, across_processes=True)
        return loss
