"""Detector training: the network of network.py as a LightningModule. B images, K classes, S side of the image."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_vision import optim
from lit_vision.data.batch import Batch, normalize_batch
from lit_vision.errors import UserError
from lit_vision.evaluation.detection import MAX_DETECTIONS, coco_metric, coco_values, update_boxes
from lit_vision.methods import fine_tuning
from lit_vision.methods.detection.network import DetectorNetwork
from lit_vision.methods.hyper_parameters import keep_plain_hyper_parameters


class Detector(DetectorNetwork, LightningModule):
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
        max_detections: most detections of an image; the best are kept. Metrics count the best 100, as COCO's do.
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
        warmup_epochs: linear warm-up, then `schedule`.
        schedule: cosine (to min_lr), or warmup-stable-decay: constant, then a decay that may begin at any step.
        decay_share: of all steps, the decay of warmup-stable-decay, between 0 and 1.
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
        max_detections: int = MAX_DETECTIONS,
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
        schedule: optim.Schedule = "cosine",
        decay_share: float = 0.2,
        lora_rank: int = 8,
        lora_targets: list[str] | None = None,
        prompt_length: int = 50,
    ) -> None:
        super(DetectorNetwork, self).__init__()  # LightningModule's: the network needs the hyper-parameters first
        self.save_hyperparameters()
        keep_plain_hyper_parameters(self)
        self.build(self.hparams)
        self.metrics = nn.ModuleDict({f"{split}_map": coco_metric(head == "mask_rcnn") for split in ("val", "test")})
        self.metadata: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Refuse data that does not fit the model, before any step."""
        fine_tuning.check_data(self, "targets", stage)
        data = getattr(self.trainer, "datamodule", None)
        if self.hparams.head == "mask_rcnn" and data is not None and not getattr(data, "with_masks", True):
            raise UserError("data.with_masks: mask_rcnn needs masks; set it to true, or choose another model.head")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the losses of one batch; logs train/loss and each part."""
        parts = self.losses(batch["images"][:, 0], batch["targets"], batch["key"])
        loss = sum(parts.values())
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name.removeprefix('loss_')}_loss": value for name, value in parts.items()})
        return loss

    def _evaluate(self, batch: Batch, split: str) -> None:
        update_boxes(self.metrics[f"{split}_map"], self(batch["images"][:, 0]), batch["targets"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect detections; val/map, val/map50 and other metrics are logged at the end of the split."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
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
