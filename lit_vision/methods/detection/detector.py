"""Object detection on any backbone: feature pyramid and an FCOS, RetinaNet, Faster R-CNN or Mask R-CNN head.

The heads are torchvision's, without its image transform: images have the size that the data module gives them, so a
128-pixel scene is not enlarged to 800. Anchors are multiples of the strides, whose default follows from the image size.

B images, K classes, A anchors, n objects of an image, S side of the image.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image

from lit_vision.backbones.pyramid import freeze_unused, make_pyramid
from lit_vision.data.batch import normalize_batch
from lit_vision.errors import UserError
from lit_vision.evaluation.detection import coco_metric, coco_values, update_boxes
from lit_vision.methods import fine_tuning
from lit_vision.methods.detection.decoding import AnchorDecoder, Detections
from lit_vision.methods.detection.heads import (
    DETECTION_HEADS,
    ONE_STAGE,
    build_head,
    default_strides,
    globally_normalized_losses,
)


class Detector(L.LightningModule):
    """Object detection and instance segmentation on any backbone with feature maps.

    FCOS (Tian et al. 2019, arXiv:1904.01355): focal loss, GIoU loss, centre-ness. RetinaNet (Lin et al. 2017,
    arXiv:1708.02002): focal loss and L1. Faster and Mask R-CNN (Ren et al. 2015, arXiv:1506.01497; He et al. 2017,
    arXiv:1703.06870): cross-entropy and smooth L1, and binary cross-entropy per mask. A ViT gets ViTDet's simple
    feature pyramid (arXiv:2203.16527), a CNN gets FPN.

    Several processes learn the same as one on the joined batch: the counts that losses are divided by are summed over
    all processes, and the regions that an R-CNN samples follow from the images' keys.

    Crowd regions do not train. Metrics: COCO's average precision in the pixels of the files; mask precision at the
    evaluation size.

    Args:
        backbone: a timm model name.
        num_classes: K, without background; must be the data's.
        img_size: side of the images, pixels; must be the data's.
        head: fcos, retinanet, faster_rcnn or mask_rcnn (needs data.with_masks).
        strides: of the pyramid's levels; None is 8 to 128 (FCOS, RetinaNet) or 4 to 64 (R-CNNs) without those too
            coarse for img_size: 8, 16, 32 or 4, 8, 16 at 128 pixels, all from 512 on (`heads.default_strides`).
            Checkpoints hold the strides in use.
        pyramid_width: channels of the levels, a multiple of 32.
        head_convs: convolutions before FCOS's outputs.
        head_width: of the R-CNNs' linear layers.
        rois: regions of each image that train the R-CNNs' second stage.
        score_threshold: detections below are dropped.
        nms_threshold: overlap above which the lower of two detections of one class is dropped; None is 0.6 for FCOS,
            0.5 otherwise.
        backbone_args: further arguments of Backbone.
        backbone_checkpoint: a file whose encoder is loaded; the report is printed.
        tune: the parameters of the backbone that train: full, linear (none), head+norm, bias, last-<k>; on ViTs also
            lora, prompt-shallow, prompt-deep.
        layer_decay: factor on the learning rate per layer from the head down, in (0, 1].
        mean: of the pixels, per channel, in [0, 1]; None is that of the loaded weights.
        std: of the pixels, per channel; None is that of the loaded weights.
        optimizer: adamw, adam, sgd, lars or lamb.
        betas: of adam, adamw and lamb.
        momentum: of sgd and lars.
        base_lr: learning rate per 256 images.
        lr: absolute learning rate; if given, base_lr is not used.
        min_lr: absolute learning rate at the end.
        weight_decay: of parameters with more than one dimension, except tokens and positions.
        warmup_epochs: linear warm-up, then a cosine to min_lr.
        lora_rank: r of tune=lora, whose update is scaled by 8 / r.
        lora_targets: some of qkv, proj, mlp, or endings of layers' names.
        prompt_length: tokens of tune=prompt-shallow, or per block of prompt-deep; the feature maps do not include them.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do. PartialMatchError (a UserError):
            the checkpoint does not fit.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        img_size: int,
        head: str = "fcos",
        strides: list[int] | None = None,
        pyramid_width: int = 256,
        head_convs: int = 4,
        head_width: int = 1024,
        rois: int = 512,
        score_threshold: float = 0.05,
        nms_threshold: float | None = None,
        backbone_args: dict[str, Any] | None = None,
        backbone_checkpoint: str | None = None,
        tune: str = "full",
        layer_decay: float = 1.0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        optimizer: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.9,
        base_lr: float | None = None,
        lr: float | None = 1e-4,
        min_lr: float = 0.0,
        weight_decay: float = 0.05,
        warmup_epochs: float = 1,
        lora_rank: int = 8,
        lora_targets: list[str] | None = None,
        prompt_length: int = 50,
    ) -> None:
        super().__init__()
        if head not in DETECTION_HEADS:
            raise UserError(f"model.head: {head!r} is not one of {', '.join(DETECTION_HEADS)}; choose one of these")
        if num_classes < 1:
            raise UserError(f"model.num_classes: {num_classes} is too few; give 1 or more")
        if pyramid_width < 32 or pyramid_width % 32:
            raise UserError(
                f"model.pyramid_width: {pyramid_width} is not a multiple of 32; the heads' group norm needs one"
            )
        self.save_hyperparameters()
        self.one_stage = head in ONE_STAGE
        strides = self.hparams.strides = list(strides or default_strides(head, img_size))
        self.backbone, weights_mean, weights_std = fine_tuning.build_backbone(self.hparams)
        self.pyramid = make_pyramid(self.backbone, img_size, pyramid_width, strides)
        freeze_unused(self.backbone, self.pyramid, img_size)
        self.head = build_head(
            head,
            num_classes,
            pyramid_width,
            strides,
            head_convs=head_convs,
            head_width=head_width,
            rois=rois,
            score=score_threshold,
            nms=nms_threshold if nms_threshold is not None else 0.6 if head == "fcos" else 0.5,
        )
        self.decoder = AnchorDecoder(self.head, strides)
        fine_tuning.channels_last(self.pyramid, self.backbone)
        self.register_buffer("mean", torch.tensor(mean or weights_mean))
        self.register_buffer("std", torch.tensor(std or weights_std))
        self.metrics = nn.ModuleDict({f"{split}_map": coco_metric(head == "mask_rcnn") for split in ("val", "test")})
        self.metadata: dict[str, Any] | None = None
        self.train()

    def train(self, mode: bool = True) -> Detector:
        """Set training mode, except for the frozen parts of the backbone; see `fine_tuning.keep_frozen_in_eval`."""
        super().train(mode)
        fine_tuning.keep_frozen_in_eval(self)
        return self

    # ------------------------------------------------------------------ inference

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the pyramid's levels [(B, pyramid_width, S / stride, S / stride)], fine to coarse.

        Args:
            images: (B, 3, S, S) float, normalised.
        """
        levels: list[Tensor] = self.pyramid(fine_tuning.feature_maps(self.backbone, images))
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
            raise UserError(f"model.head: {self.hparams.head} has no raw outputs; use fcos or retinanet")
        found = self.head.head(self.features(images))
        return {name: fine_tuning.at_least_float32(value) for name, value in found.items()}

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
        levels = OrderedDict((str(i), fine_tuning.at_least_float32(x)) for i, x in enumerate(self.features(images)))
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

    # ------------------------------------------------------------------ training and evaluation

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
        per_level = () if self.hparams.head == "retinanet" else (self.decoder.anchors_per_level(size),)
        losses: dict[str, Tensor] = self.head.compute_loss(targets, raw, anchors, *per_level)
        return losses

    def setup(self, stage: str) -> None:
        """Refuse data that does not fit the model, before any step."""
        fine_tuning.check_data(self, "targets")
        data = getattr(self.trainer, "datamodule", None)
        if self.hparams.head == "mask_rcnn" and data is not None and not getattr(data, "with_masks", True):
            raise UserError("data.with_masks: mask_rcnn needs masks; set it to true, or choose another model.head")

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the sum of the losses of one batch; logs train/loss and each part."""
        parts = self.losses(batch["images"][:, 0], batch["targets"], batch["key"])
        loss = sum(parts.values())
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name.removeprefix('loss_')}_loss": value for name, value in parts.items()})
        return loss

    def _evaluate(self, batch: dict[str, Any], split: str) -> None:
        update_boxes(self.metrics[f"{split}_map"], self(batch["images"][:, 0]), batch["targets"])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect detections; val/map, val/map50 and other metrics are logged at the end of the split."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Do as `validation_step`, under test/."""
        self._evaluate(batch, "test")

    def _log_metrics(self, split: str) -> None:
        metric = self.metrics[f"{split}_map"]
        values = coco_values(metric)
        metric.reset()
        if "map" not in values and not self.trainer.sanity_checking:
            raise UserError(
                f"data.{split}_split: this split has no annotated object, so no precision; choose another split"
            )
        for name, value in values.items():
            self.log(f"{split}/{name}", value, prog_bar=name == "map", sync_dist=self.trainer.world_size > 1)

    def on_validation_epoch_end(self) -> None:
        """Log val/map (mean over overlaps .50 to .95), val/map50, val/map75, ...; fractions."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the same metrics under test/."""
        self._log_metrics("test")

    # ------------------------------------------------------------------ metadata, checkpoints, optimizer

    def on_fit_start(self) -> None:
        """Store class names, image size and options, which prediction needs."""
        self.metadata = (
            fine_tuning.metadata_for("detection", self.trainer.datamodule, {"head": self.hparams.head}) or self.metadata
        )

    # hooks that all supervised methods share
    on_save_checkpoint = fine_tuning.make_checkpoint_self_contained
    on_load_checkpoint = fine_tuning.restore_metadata
    configure_optimizers = fine_tuning.configure_optimizer
