"""Training with several labels an image: the network of network.py as a LightningModule.

B images, K labels, C H W channels and pixels.
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MultilabelPrecisionRecallCurve

from lit_vision import optim
from lit_vision.backbones import adapters
from lit_vision.data.batch import Batch, normalize_batch
from lit_vision.errors import UserError
from lit_vision.methods import fine_tuning
from lit_vision.methods.hyper_parameters import keep_plain_hyper_parameters
from lit_vision.methods.multilabel.network import (
    MultiLabelClassifierNetwork,
    average_precision,
    best_thresholds,
    masked_bce,
)
from lit_vision.methods.pixels import check_channels
from lit_vision.weights.model_metadata import metadata_from_datamodule

_UNKNOWN = -1  # torchmetrics' ignore_index


class MultiLabelClassifier(MultiLabelClassifierNetwork, LightningModule):
    """Backbone and a sigmoid for each of K labels, of which any number applies to an image.

    The data gives labels (B, K) float: 1 applies, 0 does not, NaN unknown (data.label_columns or data.label_separator).
    The thresholds from which on a label is given maximize each label's F1 on the validation split; they travel with the
    model. Further arguments are those of `lit_vision.methods.Classifier`.

    Args:
        backbone: a timm model name.
        num_labels: K; must be the data's.
        backbone_args: further arguments of Backbone.
        backbone_checkpoint: a file whose encoder is loaded.
        tune: the parameters that train in addition to the head.
        layer_decay: factor on the learning rate per layer from the head down, in (0, 1].
        freeze_batch_norm: keep the statistics of the backbone's batch norms as they are loaded, whatever trains.
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
        lora_rank: r of tune=lora.
        lora_alpha: the update is scaled by lora_alpha / lora_rank.
        lora_targets: some of qkv, proj, mlp, or endings of layers' names.
        lora_layers: first and last block that is adapted, from 0; None is all.
        lora_dropout: on the update's input.
        prompt_length: tokens of tune=prompt-shallow, or per block of prompt-deep.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do.
    """

    def __init__(
        self,
        backbone: str,
        num_labels: int,
        backbone_args: dict[str, Any] | None = None,
        backbone_checkpoint: str | None = None,
        tune: str = "full",
        layer_decay: float = 1.0,
        freeze_batch_norm: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        optimizer: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.9,
        base_lr: float | None = 1e-3,
        lr: float | None = None,
        min_lr: float = 0.0,
        weight_decay: float = 0.05,
        warmup_epochs: float = 5,
        schedule: optim.Schedule = "cosine",
        decay_share: float = 0.2,
        lora_rank: int = 8,
        lora_alpha: float = 8.0,
        lora_targets: list[str] | None = None,
        lora_layers: list[int] | None = None,
        lora_dropout: float = 0.0,
        prompt_length: int = 50,
    ) -> None:
        super(MultiLabelClassifierNetwork, self).__init__()  # LightningModule's, before the network
        self.save_hyperparameters()
        keep_plain_hyper_parameters(self)
        self.build(self.hparams)
        self.losses = nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})
        self.curves = nn.ModuleDict(
            {s: MultilabelPrecisionRecallCurve(num_labels, ignore_index=_UNKNOWN) for s in ("val", "test")}
        )
        self.metadata: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Refuse data with other labels or channels, and a batch-norm converter that would break the model."""
        fine_tuning.check_batch_norm(self)
        check_channels(self)
        fine_tuning.match_classes(self, new_training=stage == "fit")
        labels = self.hparams.num_labels
        found = getattr(getattr(self.trainer, "datamodule", None), "num_classes", labels)
        if found != labels:
            raise UserError(f"model.num_labels: the head has {labels} labels, the data has {found}; set it to {found}")

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Refuse labels of another form, while the batch is still on the CPU."""
        labels, wanted = batch["label"], self.hparams.num_labels
        if labels.dim() != 2 or labels.shape[1] != wanted:
            raise UserError(
                f"data: a batch has labels of shape {tuple(labels.shape)}, this method needs (B, {wanted}): several "
                "labels an image; set data.label_columns or data.label_separator, or train a Classifier"
            )
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; logs train/loss."""
        loss = masked_bce(self(batch["images"][:, 0]), batch["label"])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _evaluate(self, batch: Batch, split: str) -> None:
        logits, labels = self(batch["images"][:, 0]).float(), batch["label"]
        self.losses[split].update(masked_bce(logits, labels), weight=len(labels))
        self.log(f"{split}/loss", self.losses[split], on_step=False, on_epoch=True)
        self.curves[split].update(logits.sigmoid(), labels.nan_to_num(_UNKNOWN).long())

    def _finish(self, split: str) -> None:
        """Log the mean over the labels with a positive image; keep the thresholds that validation chose."""
        precisions, recalls, thresholds = self.curves[split].compute()
        values = torch.stack([average_precision(p, r) for p, r in zip(precisions, recalls)])
        self.log(f"{split}/map", values.nanmean(), prog_bar=True, rank_zero_only=False)
        if split == "val" and self.metadata is not None and not self.trainer.sanity_checking:
            chosen = best_thresholds((precisions, recalls, thresholds))
            self.metadata = {**self.metadata, "options": {**self.metadata.get("options", {}), "thresholds": chosen}}
        self.curves[split].reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log val/loss, and at the end of the epoch val/map, the mean average precision, over all processes."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the same under test/."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Log val/map and choose the thresholds."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Log test/map."""
        self._finish("test")

    def on_fit_start(self) -> None:
        """Store names of the labels, image size and crop, which prediction needs."""
        self.metadata = metadata_from_datamodule("multilabel", self.trainer.datamodule) or self.metadata

    def on_train_start(self) -> None:
        """Print how many parameters train."""
        if self.trainer.is_global_zero and self.hparams.tune != "full":
            print(f"MultiLabelClassifier: {adapters.describe_trainable(self)}", flush=True)

    # hooks that all supervised methods share
    on_save_checkpoint = fine_tuning.make_checkpoint_self_contained
    on_load_checkpoint = fine_tuning.restore_metadata
    configure_optimizers = fine_tuning.configure_optimizer
