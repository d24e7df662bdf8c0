"""Detect objects: any backbone's maps, a feature pyramid, and torchvision's FCOS, RetinaNet, Faster R-CNN or Mask R-CNN head.

Nothing of torchvision's image transform is used: images come in the size that the data module gives them, so a 128-pixel scene is not
blown up to 800. Anchors are multiples of the strides, whose default follows from the size of the images.

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
from lit_vision.data.batch import normalize
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
    """A detector on any backbone with feature maps.

    FCOS (Tian et al. 2019, arXiv:1904.01355): focal loss, GIoU loss, centre-ness. RetinaNet (Lin et al. 2017, arXiv:1708.02002): focal loss
    and L1. Faster and Mask R-CNN (Ren et al. 2015, arXiv:1506.01497; He et al. 2017, arXiv:1703.06870): cross-entropy and smooth L1, and
    binary cross-entropy per mask. A ViT gets ViTDet's simple feature pyramid (arXiv:2203.16527), a CNN gets FPN.

    Two processes learn what one learns from the joined batch: what a loss divides by is counted over all processes, and the regions that
    an R-CNN draws follow from the images' keys.

    Crowd regions do not train. Measures: COCO's average precision in the files' own pixels; mask precision at the evaluation size.

    Args:
        backbone: a timm model name.
        num_classes: K, without background; must be the data's.
        img_size: side of the images, pixels; must be the data's.
        head: fcos, retinanet, faster_rcnn or mask_rcnn (needs data.with_masks).
        strides: of the pyramid's levels; None is 8 to 128 (FCOS, RetinaNet) or 4 to 64 (R-CNNs) without those too coarse for img_size:
            8, 16, 32 or 4, 8, 16 at 128 pixels, all from 512 on (`heads.default_strides`). Checkpoints keep what was taken.
        pyramid_width: channels of the levels, a multiple of 32.
        head_convs: convolutions before FCOS's outputs.
        head_width: of the R-CNNs' linear layers.
        rois: regions of each image that train the R-CNNs' second stage.
        score_threshold: detections below are dropped.
        nms_threshold: overlap above which the lower of two detections of one class is dropped; None is 0.6 for FCOS, 0.5 otherwise.
        backbone_args: further arguments of Backbone.
        backbone_checkpoint: a file whose encoder is loaded; the report is printed.
        tune: what trains of the backbone: full, linear (nothing), head+norm, bias, last-<k>; on ViTs also lora, prompt-shallow, prompt-deep.
        layer_decay: factor on the learning rate per layer from the head down, in (0, 1].
        mean, std: of the pixels, per channel, in [0, 1]; None are those of the loaded weights.
        optimizer: adamw, adam, sgd, lars or lamb.
        betas: of adam, adamw and lamb; momentum: of sgd and lars.
        base_lr: learning rate per 256 images; lr: absolute, wins over base_lr; min_lr: absolute, at the end.
        weight_decay: of parameters with more than one dimension that are no token or position.
        warmup_epochs: linear warm-up, then a cosine to min_lr.
        lora_rank: r of tune=lora, whose update is scaled by 8 / r; lora_targets: some of qkv, proj, mlp, or endings of layers' names.
        prompt_length: tokens of tune=prompt-shallow, or per block of prompt-deep; the maps leave them out.

    Raises:
        UserError: a value that cannot work, named with its mend. PartialMatchError (a UserError): the checkpoint does not fit.
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
            raise UserError(f"model.num_classes: {num_classes} leaves nothing to find; give 1 or more")
        if pyramid_width < 32 or pyramid_width % 32:
            raise UserError(
                f"model.pyramid_width: {pyramid_width} is no multiple of 32; the heads' group norm needs one"
            )
        self.save_hyperparameters()
        self.one_stage = head in ONE_STAGE
        strides = self.hparams.strides = list(strides or default_strides(head, img_size))
        self.backbone, own_mean, own_std = fine_tuning.build_backbone(self.hparams)
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
        self.register_buffer("mean", torch.tensor(mean or own_mean))
        self.register_buffer("std", torch.tensor(std or own_std))
        self.metrics = nn.ModuleDict({f"{split}_map": coco_metric(head == "mask_rcnn") for split in ("val", "test")})
        self.metadata: dict[str, Any] | None = None
        self.train()

    def train(self, mode: bool = True) -> Detector:
        """Training mode for what trains, evaluation mode for what is frozen."""
        super().train(mode)
        if mode and self.hparams.tune != "full":
            fine_tuning.keep_frozen_in_eval(self.backbone)
        return self

    # ------------------------------------------------------------------ from images to detections

    def features(self, images: Tensor) -> list[Tensor]:
        """The pyramid's levels [(B, pyramid_width, S / stride, S / stride)], fine to coarse, of normalised images (B, 3, S, S)."""
        return self.pyramid(fine_tuning.feature_maps(self.backbone, images))

    def raw(self, images: Tensor) -> dict[str, Tensor]:
        """What a one-stage head says of each anchor, before any threshold: this is what is exported, in this order.

        Args:
            images: (B, 3, S, S) float, normalised.

        Returns:
            `cls_logits` (B, A, K), `bbox_regression` (B, A, 4) and, for FCOS, `bbox_ctrness` (B, A, 1), at least float32, levels one after another.

        Raises:
            UserError: a two-stage head: its second stage depends on the first one's choice.
        """
        if not self.one_stage:
            raise UserError(f"model.head: {self.hparams.head} has no raw outputs; fcos and retinanet have")
        found = self.head.head(self.features(images))
        return {name: fine_tuning.at_least_float32(value) for name, value in found.items()}

    def decode(self, raw: dict[str, Tensor], size: tuple[int, int]) -> Detections:
        """Raw outputs, of torch or of an exported model, to detections; see `AnchorDecoder`."""
        return self.decoder(raw, size)

    def forward(self, images: Tensor) -> Detections:
        """Detections in normalised images (B, 3, S, S); in evaluation mode.

        Returns:
            B dictionaries, best first: `boxes` (n, 4) x1, y1, x2, y2 in pixels, `scores` (n,) 0 to 1, `labels` (n,) 0 to K - 1; Mask R-CNN
            also `masks` (n, S, S) bool.
        """
        size = tuple(images.shape[-2:])
        if self.one_stage:
            return self.decode(self.raw(images), size)
        found = self.regions(images)
        for one in found:
            if "mask_probs" in one:
                one["masks"] = paste_masks_in_image(one.pop("mask_probs")[:, None], one["boxes"], size)[:, 0] > 0.5
        return found

    def regions(self, images: Tensor) -> Detections:
        """As `forward` of a two-stage head, but Mask R-CNN's masks as its head gives them, so that they can be drawn at any size.

        Returns:
            B dictionaries, best first: `boxes`, `scores`, `labels`; Mask R-CNN also `mask_probs` (n, 28, 28), 0 to 1, a grid over each box.
        """
        found, _ = self._two_stage(images, None)
        for one in found:
            one["labels"] = one["labels"] - 1  # 0 is the background there
            if "masks" in one:
                one["mask_probs"] = one.pop("masks")[:, 0]
        return found

    def _two_stage(
        self, images: Tensor, targets: list[dict[str, Tensor]] | None, keys: Tensor | None = None
    ) -> tuple[Detections, dict[str, Tensor]]:
        size = tuple(images.shape[-2:])
        levels = OrderedDict((str(i), fine_tuning.at_least_float32(x)) for i, x in enumerate(self.features(images)))
        listed = ImageList(images, [size] * len(images))
        anchors, regions = self.head.rpn.fg_bg_sampler, self.head.roi_heads.fg_bg_sampler
        anchors.keys = regions.keys = keys
        # in bfloat16 torchvision would round the proposals themselves, at 512 pixels by up to two
        with torch.autocast(images.device.type, enabled=False):
            proposals, first = self.head.rpn(listed, levels, targets)
            found, second = self.head.roi_heads(levels, proposals, listed.image_sizes, targets)
        losses = {**first, **second}
        if not losses:
            return found, losses
        counts = dict.fromkeys(first, anchors.taken) | dict.fromkeys(second, regions.taken)
        return found, globally_normalized_losses(losses, counts | {"loss_mask": regions.positives})

    # ------------------------------------------------------------------ learning

    def losses(self, images: Tensor, targets: list[dict[str, Tensor]], keys: Tensor | None = None) -> dict[str, Tensor]:
        """The head's losses, whose sum is minimised: those of the joined batch of all processes, on each of them; in training mode.

        Args:
            images: (B, 3, S, S) float, normalised.
            targets: B dictionaries: `boxes` (n, 4), `labels` (n,), for Mask R-CNN `masks` (n, S, S); n may be 0.
            keys: (B, 3) of the images, from which an R-CNN draws the regions that train; None draws from torch's global generator.

        Returns:
            Scalars: classification, bbox_regression, bbox_ctrness (FCOS); classification, bbox_regression (RetinaNet); loss_objectness,
            loss_rpn_box_reg, loss_classifier, loss_box_reg, loss_mask (R-CNNs).
        """
        if not self.one_stage:
            shifted = [{**t, "labels": t["labels"] + 1} for t in targets]
            return self._two_stage(images, shifted, keys)[1]
        raw = self.raw(images)
        size = tuple(images.shape[-2:])
        anchors = [self.decoder.anchors(size, images)] * len(images)
        if self.hparams.head == "retinanet":
            return self.head.compute_loss(targets, raw, anchors)
        return self.head.compute_loss(targets, raw, anchors, self.decoder.counts(size))

    def setup(self, stage: str) -> None:
        """Refuse data that cannot serve, before any step."""
        fine_tuning.check_data(self, "targets")
        data = getattr(self.trainer, "datamodule", None)
        if self.hparams.head == "mask_rcnn" and data is not None and not getattr(data, "with_masks", True):
            raise UserError("data.with_masks: mask_rcnn learns masks; set it to true, or choose another model.head")

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Pixels to normalised floats, (B, V, C, H, W), on the device."""
        return {**batch, "images": normalize(batch["images"], self.mean, self.std).to(self.mean.dtype)}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Sum of the losses of one batch; logs train/loss and each part."""
        parts = self.losses(batch["images"][:, 0], batch["targets"], batch["key"])
        loss = sum(parts.values())
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name.removeprefix('loss_')}_loss": value for name, value in parts.items()})
        return loss

    def _evaluate(self, batch: dict[str, Any], split: str) -> None:
        update_boxes(self.metrics[f"{split}_map"], self(batch["images"][:, 0]), batch["targets"])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Gathers detections; val/map, val/map50 and others are logged at the end of the split."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As `validation_step`, under test/."""
        self._evaluate(batch, "test")

    def _finish(self, split: str) -> None:
        metric = self.metrics[f"{split}_map"]
        values = coco_values(metric)
        metric.reset()
        if "map" not in values and not self.trainer.sanity_checking:
            raise UserError(
                f"data.{split}_split: no object is annotated there, so there is no precision; give another split"
            )
        for name, value in values.items():
            self.log(f"{split}/{name}", value, prog_bar=name == "map", sync_dist=self.trainer.world_size > 1)

    def on_validation_epoch_end(self) -> None:
        """Logs val/map (mean over overlaps .50 to .95), val/map50, val/map75, ...; fractions."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """As for validation, under test/."""
        self._finish("test")

    # ------------------------------------------------------------------ the rest of a run

    def on_fit_start(self) -> None:
        """Keep what using the model takes."""
        self.metadata = (
            fine_tuning.metadata_for("detection", self.trainer.datamodule, {"head": self.hparams.head}) or self.metadata
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is complete in itself."""
        fine_tuning.make_checkpoint_self_contained(checkpoint, self.metadata)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The other half of `on_save_checkpoint`."""
        self.metadata = checkpoint.get("card", self.metadata)

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimiser and per-step schedule; see `lit_vision.optim.optimizer_and_schedule`."""
        return fine_tuning.configure_optimizer(self)
