"""Classifier training: the network of network.py as a LightningModule; full, partial or linear fine-tuning.

B images, K classes, C H W channels and pixels.
"""

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_vision import distributed, optim
from lit_vision.backbones import adapters
from lit_vision.data.batch import Batch, normalize_batch
from lit_vision.data.views.keyed_rng import derive_seed, temporary_seed
from lit_vision.errors import UserError
from lit_vision.evaluation.mean_recall import MeanClassRecall
from lit_vision.io.sealed import read_key_file
from lit_vision.methods import fine_tuning
from lit_vision.methods.classifier.network import ClassifierNetwork, classification_loss, soft_targets
from lit_vision.methods.hyper_parameters import keep_plain_hyper_parameters
from lit_vision.methods.pixels import check_channels
from lit_vision.methods.watermark import STRENGTH, watermark_layer, watermark_loss, watermark_secret
from lit_vision.weights.model_metadata import metadata_from_datamodule


class Classifier(ClassifierNetwork, LightningModule):
    """Backbone and linear head, trained on labels.

    MAE's fine-tuning (its repository, ViT-B): backbone_args {pool: avg, drop_path_rate: 0.1}, layer_decay 0.65, base_lr
    5e-4, mixup 0.8, cutmix 1.0, label_smoothing 0.1, weight_decay 0.05, betas (0.9, 0.999), min_lr 1e-6. Its linear
    probe: tune linear, head_norm true, optimizer lars, lr_in_momentum false, base_lr 0.1, weight_decay 0, warmup_epochs
    10. SimCLR's linear evaluation: tune linear, optimizer sgd, nesterov true, base_lr 0.1, weight_decay 0,
    warmup_epochs 0.

    Frozen parts stay in evaluation mode (batch-norm statistics fixed, drop path off); see `train`.

    Args:
        backbone: a timm model name.
        num_classes: K, 2 or more; must be the data's.
        backbone_args: further arguments of Backbone.
        backbone_checkpoint: a file whose encoder is loaded (any layout of `lit_vision.weights.load`); the report is
            printed.
        tune: the parameters that train in addition to the head: full, linear (none), head+norm, bias, last-<k>
            (blocks), lora, prompt-shallow, prompt-deep (see `lit_vision.backbones.adapters`; `lit-vision export RUN
            --format adapter` writes the added parameters without the backbone).
        layer_decay: factor on the learning rate per layer from the head down, in (0, 1].
        mixup: alpha of mixup (arXiv:1710.09412); 0 is off.
        cutmix: alpha of cutmix (arXiv:1905.04899); 0 is off. With both, each batch has one of them, with equal
            probability.
        label_smoothing: e, in [0, 1); applied once, in the targets, in training only.
        loss: ce or bce.
        class_weights: K weights of the classes in the training loss, greater than 0, for classes of unequal size
            (`evaluation.clinical.class_weights`); metrics are not weighted.
        head_norm: an affine-free batch norm before the linear map, as in MAE's linear probe.
        head_init_std: of the truncated normal of the head's weight; None is 0.01 for tune=linear, lora and prompts, and
            2e-5 otherwise (MAE's values for its probe and its fine-tuning).
        freeze_batch_norm: keep the statistics of the backbone's batch norms as they are loaded, whatever trains: for
            few labels, whose batches are too small and too few for new ones.
        mean: of the pixels, per channel, in [0, 1]; None is that of the loaded weights.
        std: of the pixels, per channel; None is that of the loaded weights.
        optimizer: adamw, adam, sgd, lars or lamb.
        betas: of adam, adamw and lamb.
        momentum: of sgd and lars.
        nesterov: of sgd.
        lr_in_momentum: of lars: the learning rate inside the momentum buffer (SimCLR's form) or, if false, outside
            (MAE's linear probe); they differ while the learning rate changes, as here it does at every step.
        base_lr: learning rate per 256 images.
        lr: absolute learning rate; if given, base_lr is not used.
        min_lr: absolute learning rate at the end.
        weight_decay: of parameters with more than one dimension, except tokens and positions.
        warmup_epochs: linear warm-up, then `schedule`.
        schedule: cosine (to min_lr), or warmup-stable-decay: constant, then a decay that may begin at any step.
        decay_share: of all steps, the decay of warmup-stable-decay, between 0 and 1.
        lora_rank: r of tune=lora; each adapted layer gets r x (in + out) parameters.
        lora_alpha: the update is scaled by lora_alpha / lora_rank.
        lora_targets: some of qkv, proj, mlp, or endings of layers' names.
        lora_layers: first and last block that is adapted, from 0; None is all.
        lora_dropout: on the update's input.
        prompt_length: tokens of tune=prompt-shallow, or per block of prompt-deep.
        watermark: key file (`lit-vision protect keygen`) whose mark is embedded in the weights of a convolution while
            training (methods/watermark.py); `lit-vision protect check` reads it. Checkpoints do not name the file.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do. PartialMatchError (a UserError):
            the checkpoint does not fit.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        backbone_args: dict[str, Any] | None = None,
        backbone_checkpoint: str | None = None,
        tune: str = "full",
        layer_decay: float = 1.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
        loss: str = "ce",
        class_weights: list[float] | None = None,
        head_norm: bool = False,
        head_init_std: float | None = None,
        freeze_batch_norm: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        optimizer: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.9,
        nesterov: bool = False,
        lr_in_momentum: bool = True,
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
        watermark: str | None = None,
    ) -> None:
        super(ClassifierNetwork, self).__init__()  # LightningModule's: the network needs the hyper-parameters first
        if mixup < 0 or cutmix < 0:
            raise UserError(f"mixup, cutmix: {mixup}, {cutmix} must not be negative; 0 is off")
        self.save_hyperparameters(ignore=["watermark"])
        keep_plain_hyper_parameters(self)
        self.build(self.hparams)
        names = ("loss", "top1", "top5") if num_classes >= 5 else ("loss", "top1")
        self.metrics = nn.ModuleDict({f"{split}_{name}": MeanMetric() for split in ("val", "test") for name in names})
        self.metrics["test_mean_per_class"] = MeanClassRecall(num_classes)
        self.metadata: dict[str, Any] | None = None
        self.mix = None
        self.mark_layer: str | None = None
        if watermark is not None:
            self._prepare_watermark(watermark)
        if mixup > 0 or cutmix > 0:
            from timm.data import Mixup

            self.mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)

    def _prepare_watermark(self, key_file: str) -> None:
        """Choose the convolution that holds the mark, and keep what the loss needs of the key beside it."""
        secret = read_key_file(key_file).secret
        self.mark_layer, weight = watermark_layer(self.backbone)
        if not weight.requires_grad:
            raise UserError(
                f"watermark: {self.mark_layer} does not train with tune {self.hparams.tune}; set tune to full"
            )
        matrix, bits = watermark_secret(secret, weight[0].numel())
        self.register_buffer("mark_matrix", matrix, persistent=False)
        self.register_buffer("mark_bits", bits, persistent=False)

    def setup(self, stage: str) -> None:
        """Refuse data with other classes or channels, and a batch-norm converter that would break the model."""
        fine_tuning.check_batch_norm(self)
        check_channels(self)
        fine_tuning.match_classes(self, new_training=stage == "fit")
        fine_tuning.check_number_of_classes(self)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Refuse labels outside [0, K), while the batch is still on the CPU."""
        if batch["label"].dim() != 1:
            raise UserError("data: an image has several labels, a Classifier takes one; train a MultiLabelClassifier")
        fine_tuning.check_labels(batch["label"], self.hparams.num_classes, "image")
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def training_targets(self, images: Tensor, labels: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images (B, C, H, W) and smoothed targets (B, K); the keys (B, 3) alone determine the mix."""
        if self.mix is None:
            return images, soft_targets(labels, self.hparams.num_classes, self.hparams.label_smoothing)
        if len(images) % 2:
            raise UserError(
                f"data.batch_size: mixup and cutmix pair the images of a batch and {len(images)} is odd; make it even"
            )
        with temporary_seed(derive_seed(*keys.flatten().tolist())):
            # a copy, since timm mixes in place and callbacks see the batch too
            mixed: tuple[Tensor, Tensor] = self.mix(images.clone(), labels)
        return mixed

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch, with that of the watermark; logs train/loss without it."""
        images, targets = self.training_targets(single_view(batch), batch["label"], batch["key"])
        loss = self.loss(images, targets)
        self.log("train/loss", loss, prog_bar=True)
        return loss + self.watermark_part()

    def watermark_part(self) -> Tensor | float:
        """Return the term of the loss that embeds the mark, logged as train/watermark_loss; 0.0 without a mark."""
        if self.mark_layer is None:
            return 0.0
        weight = self.backbone.get_submodule(self.mark_layer).weight
        mark_loss = watermark_loss(weight, self.mark_matrix, self.mark_bits)
        self.log("train/watermark_loss", mark_loss)
        return STRENGTH * mark_loss

    def _evaluate(self, batch: Batch, split: str) -> None:
        labels = batch["label"]
        logits = self(single_view(batch))
        hard = soft_targets(labels, self.hparams.num_classes)
        loss = classification_loss(logits, hard, self.hparams.loss)
        fine_tuning.log_classification(self, split, loss, logits, labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log val/loss (unsmoothed), val/top1 and, with 5 classes or more, val/top5 (fractions), over all processes."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the same under test/, and test/mean_per_class, the mean recall of the classes that occur."""
        self._evaluate(batch, "test")

    def on_fit_start(self) -> None:
        """Store class names, image size and crop, which prediction needs."""
        self.metadata = metadata_from_datamodule("classification", self.trainer.datamodule) or self.metadata

    def on_train_start(self) -> None:
        """Print how many parameters train, and a note if batch norm sees one process's images only."""
        if self.mark_layer is not None and hasattr(self.backbone.get_submodule(self.mark_layer).weight, "full_tensor"):
            raise UserError("model.watermark: is not for weights that FSDP shards; train with trainer.strategy ddp")
        if self.trainer.is_global_zero and self.hparams.tune != "full":
            print(f"Classifier: {adapters.describe_trainable(self)}", flush=True)
        if (
            self.trainer.is_global_zero
            and self.hparams.tune in ("full", "head+norm")
            and distributed.batch_norm_scope(self) == "per process"
        ):
            print(
                "Classifier: batch norm sees one process's images only; trainer.sync_batchnorm makes it global",
                flush=True,
            )

    # hooks that all supervised methods share
    on_save_checkpoint = fine_tuning.make_checkpoint_self_contained
    on_load_checkpoint = fine_tuning.restore_metadata
    configure_optimizers = fine_tuning.configure_optimizer


def single_view(batch: Batch) -> Tensor:
    """Return the images (B, C, H, W) of a batch of one view each.

    Raises:
        UserError: there are more views.
    """
    views = batch["images"].shape[1]
    if views != 1:
        raise UserError(f"data.train_view: a classifier needs one view of each image, got {views}; set it to train")
    return batch["images"][:, 0]
