"""SimCLR training: the network of network.py as a LightningModule. Chen et al. 2020, arXiv:2002.05709."""

from typing import Any, Literal

from lightning.pytorch import LightningModule
from torch import Tensor

from lit_vision import distributed, optim
from lit_vision.data.batch import Batch, normalize_batch
from lit_vision.errors import UserError
from lit_vision.lightning_internals import log_at_optimizer_step
from lit_vision.methods.hyper_parameters import keep_plain_hyper_parameters
from lit_vision.methods.pixels import check_channels, store_image_format
from lit_vision.methods.simclr.network import SimCLRNetwork


class SimCLR(SimCLRNetwork, LightningModule):
    """Pre-train a backbone by contrasting two views of each image.

    Needs a train view with V = 2 (`train_view: simclr`). Both views pass the backbone in one batch of 2B images, so
    batch norm sees both. The paper's recipe: LARS, base_lr 0.3, weight_decay 1e-6, 10 warm-up epochs, batch norm over
    all processes (`trainer.sync_batchnorm: true` in a recipe, `lit_vision.distributed.global_batch_norm` in Python),
    batch 4096.

    Args:
        backbone: a timm model name.
        backbone_args: further arguments of Backbone.
        projection_width: D of the vectors that the loss compares.
        projection_layers: 1 to 3 (2 in the paper, 3 in SimCLR v2).
        projection_batch_norm: batch norm in the head, as in SimCLR v2 and the official code.
        temperature: t of the loss; the paper: 0.1 on ImageNet, 0.5 on CIFAR.
        negatives: "global", those of all processes; "local", those of the same process only (fewer with every process;
            not the paper).
        mean: of the pixels, per channel, in [0, 1]. The official code does not normalise: 0.
        std: of the pixels, per channel. 1.
        optimizer: adamw, adam, sgd, lars or lamb.
        betas: of adam, adamw and lamb.
        momentum: of sgd and lars.
        base_lr: learning rate per 256 images.
        lr: absolute learning rate; if given, base_lr is not used.
        weight_decay: of parameters with more than one dimension. The paper and the official TF2 code: 1e-6 (TF1's
            default: 1e-4).
        warmup_epochs: linear warm-up, then `schedule`.
        schedule: cosine (to 0), or warmup-stable-decay: constant, then a decay that may begin at any step.
        decay_share: of all steps, the decay of warmup-stable-decay, between 0 and 1.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        backbone_args: dict[str, Any] | None = None,
        projection_width: int = 128,
        projection_layers: int = 2,
        projection_batch_norm: bool = False,
        temperature: float = 0.1,
        negatives: Literal["global", "local"] = "global",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        optimizer: str = "lars",
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.9,
        base_lr: float | None = 0.3,
        lr: float | None = None,
        weight_decay: float = 1e-6,
        warmup_epochs: float = 10,
        schedule: optim.Schedule = "cosine",
        decay_share: float = 0.2,
    ) -> None:
        super(SimCLRNetwork, self).__init__()  # LightningModule's: the network needs the hyper-parameters first
        self.save_hyperparameters()
        keep_plain_hyper_parameters(self)
        self.build(self.hparams)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; logs train/loss: of all processes, with local negatives of this one."""
        loss = self.loss(batch["images"])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log val/loss if the evaluation view has two views; online k-NN measures the features otherwise."""
        if batch["images"].shape[1] == 2:
            self.log("val/loss", self.loss(batch["images"]), batch_size=len(batch["images"]), sync_dist=True)

    def setup(self, stage: str) -> None:
        """Refuse settings that would train another model than asked for; skip a validation without two views."""
        distributed.batch_norm_scope(self)
        check_channels(self)
        if self.negatives == "global" and self.trainer.world_size != distributed.world_size():
            raise UserError(
                f"trainer.strategy: {self.trainer.world_size} processes that do not exchange tensors would each see "
                "local negatives only; use ddp, or set model.negatives=local"
            )
        if stage == "fit" and getattr(getattr(self.trainer, "datamodule", None), "eval_view", "simclr") != "simclr":
            self.trainer.limit_val_batches = 0

    def on_train_start(self) -> None:
        """Print the number of negatives per anchor and the scope of batch norm; refuse a batch without negatives."""
        # micro-batches do not see each other: accumulation adds no negatives
        images = optim.training_length(self).global_batch_size // self.trainer.accumulate_grad_batches
        world, scope = self.trainer.world_size, self.negatives
        negatives = 2 * (images if scope == "global" else images // world) - 2
        if negatives < 1:
            raise UserError(
                "data.batch_size: one image a step leaves no negatives; set it to 2 or more (the paper: 4096 in all)"
            )
        if self.trainer.is_global_zero:
            print(
                f"SimCLR: each anchor sees {negatives} negatives, {scope} ({images} images over {world} process(es))",
                flush=True,
            )
            if distributed.batch_norm_scope(self) == "per process":
                print(
                    "SimCLR: batch norm sees one process's images only; "
                    "trainer.sync_batchnorm makes it global as in the paper",
                    flush=True,
                )
        if self.global_step == 0:
            log_at_optimizer_step(self.trainer, {"train/negatives": negatives})

    on_save_checkpoint = store_image_format

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and per-step schedule; see `lit_vision.optim.optimizer_and_schedule`."""
        groups = optim.decay_groups(self.named_parameters(), self.hparams.weight_decay)
        return optim.optimizer_from_hparams(self, groups)
