"""Segmenter training: the network of network.py as a LightningModule. B images, K classes, S side of the image."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_vision import optim
from lit_vision.data.annotations.masks import IGNORE
from lit_vision.data.batch import Batch, normalize_batch
from lit_vision.evaluation.segmentation import PixelCounts, segmentation_values
from lit_vision.methods import fine_tuning
from lit_vision.methods.hyper_parameters import keep_plain_hyper_parameters
from lit_vision.methods.segmentation.losses import segmentation_loss
from lit_vision.methods.segmentation.network import SegmenterNetwork


class Segmenter(SegmenterNetwork, LightningModule):
    """Semantic segmentation on any backbone with feature maps.

    Heads: linear (arXiv:2105.05633), fcn (arXiv:1411.4038), upernet (arXiv:1807.10221; with an auxiliary FCN head in
    training). Unlike mmsegmentation's UPerNet on ViT: the levels come from the last map (ViTDet's simple pyramid), not
    from four blocks.

    Metrics are computed at the size of the evaluation view (longer side scaled to img_size; padding does not count).

    Args:
        backbone: a timm model name.
        num_classes: K, with the background if there is one; must be the data's.
        img_size: side of the images, pixels; must be the data's.
        head: linear, fcn or upernet.
        strides: of the maps used, fine to coarse. None: the last map (linear, fcn), or 4 to 32 (upernet).
        width: D of fcn and upernet; 512 in the papers.
        dropout: before the scores.
        aux_weight: of upernet's auxiliary loss; 0 is none.
        loss: ce, dice or ce+dice.
        loss_stride: the training loss uses one pixel of each block of this side; 2 costs a quarter of 1.
        background: index of the background class, which val/dice does not include; None if there is none.
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
        head: str = "upernet",
        strides: list[int] | None = None,
        width: int = 256,
        dropout: float = 0.1,
        aux_weight: float = 0.4,
        loss: str = "ce",
        loss_stride: int = 1,
        background: int | None = 0,
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
        super(SegmenterNetwork, self).__init__()  # LightningModule's: the network needs the hyper-parameters first
        self.save_hyperparameters()
        keep_plain_hyper_parameters(self)
        self.build(self.hparams)
        self.counts = nn.ModuleDict({split: PixelCounts(num_classes) for split in ("val", "test")})
        self.mean_loss = nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})
        self.metadata: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Refuse data that does not fit the model, before any step."""
        fine_tuning.check_data(self, "mask", stage)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; logs train/loss."""
        loss = self.losses(batch["images"][:, 0], batch["mask"])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _evaluate(self, batch: Batch, split: str) -> None:
        scores, truth = self(batch["images"][:, 0]), batch["mask"].long()
        self.counts[split].update(scores.argmax(1), truth)
        weight = int((truth != IGNORE).sum())
        self.mean_loss[split].update(segmentation_loss(scores, truth, self.hparams.loss), weight=weight)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count pixels; val/dice, val/miou and other metrics are logged at the end of the split."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Do as `validation_step`, under test/."""
        self._evaluate(batch, "test")

    def _log_metrics(self, split: str) -> None:
        names = getattr(getattr(self.trainer, "datamodule", None), "class_names", None) if split == "test" else None
        values = segmentation_values(self.counts[split].compute().cpu(), self.hparams.background, names)
        values["loss"] = float(self.mean_loss[split].compute())
        self.counts[split].reset()
        self.mean_loss[split].reset()
        for name, value in values.items():
            self.log(f"{split}/{name}", value, prog_bar=name == "dice", sync_dist=self.trainer.world_size > 1)

    def on_validation_epoch_end(self) -> None:
        """Log val/dice (mean over classes without background), val/miou, val/pixel_accuracy, val/loss and others.

        All are fractions except the loss.
        """
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the same metrics under test/, and test/dice/<class>."""
        self._log_metrics("test")

    def on_fit_start(self) -> None:
        """Store class names, image size and options, which prediction needs."""
        self.metadata = (
            fine_tuning.metadata_for("segmentation", self.trainer.datamodule, {"background": self.hparams.background})
            or self.metadata
        )

    # hooks that all supervised methods share
    on_save_checkpoint = fine_tuning.make_checkpoint_self_contained
    on_load_checkpoint = fine_tuning.restore_metadata
    configure_optimizers = fine_tuning.configure_optimizer
