"""LeJEPA training: the network of network.py as a LightningModule. Balestriero and LeCun 2025, arXiv:2511.08544."""

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from lit_vision import distributed, optim
from lit_vision.data.batch import Batch, normalize_batch
from lit_vision.methods.hyper_parameters import keep_plain_hyper_parameters
from lit_vision.methods.lejepa.network import LeJEPANetwork
from lit_vision.methods.pixels import check_channels, store_image_format

VALIDATION_STEP = -1  # directions of the validation: the same at each epoch, and of no step of the training


class LeJEPA(LeJEPANetwork, LightningModule):
    """Pre-train a backbone by predicting views from each other in latent space, with projections kept Gaussian.

    Needs a train view with two or more views (`train_view: lejepa`). The loss is
        (1 - w) x (squared distance of all views to the mean of the global ones)
            + w x (distance from an isotropic normal),
    the authors' form; others write prediction + w x SIGReg. The paper: two global views and six local ones of 96 pixels
    at 224, AdamW, 5e-4, weight decay 0.05 for ViTs (5e-4 for ResNets), a short warm-up, then a cosine; w is 0.02 to
    0.05.

    Args:
        backbone: a timm model name; local views of another size need `dynamic_img_size: true` in a ViT's backbone_args.
        backbone_args: further arguments of Backbone.
        projection_width: K of the vectors that the loss compares.
        projection_hidden: width of the projector's two hidden layers.
        sigreg_weight: w, between 0 and 1.
        num_directions: random directions per step.
        num_knots: points of the integral on [0, 3].
        seed: of the directions; with the optimizer's step it determines them, on any number of processes.
        mean: of the pixels, per channel, in [0, 1]; None is ImageNet's.
        std: of the pixels, per channel; None is ImageNet's.
        optimizer: adamw, adam, sgd, lars or lamb.
        betas: of adam, adamw and lamb.
        momentum: of sgd and lars.
        base_lr: learning rate per 256 images; used if lr is None.
        lr: absolute learning rate.
        min_lr: absolute learning rate at the end.
        weight_decay: of parameters with more than one dimension.
        warmup_epochs: linear warm-up, then `schedule`.
        schedule: cosine (to min_lr), or warmup-stable-decay: constant, then a decay that may begin at any step.
        decay_share: of all steps, the decay of warmup-stable-decay, between 0 and 1.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do.
    """

    def __init__(
        self,
        backbone: str = "vit_small_patch16_224",
        backbone_args: dict[str, Any] | None = None,
        projection_width: int = 128,
        projection_hidden: int = 2048,
        sigreg_weight: float = 0.05,
        num_directions: int = 1024,
        num_knots: int = 17,
        seed: int = 0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        optimizer: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.9,
        base_lr: float | None = None,
        lr: float | None = 5e-4,
        min_lr: float = 0.0,
        weight_decay: float = 0.05,
        warmup_epochs: float = 1,
        schedule: optim.Schedule = "cosine",
        decay_share: float = 0.2,
    ) -> None:
        super(LeJEPANetwork, self).__init__()  # LightningModule's: the network needs the hyper-parameters first
        self.save_hyperparameters()
        keep_plain_hyper_parameters(self)
        self.build(self.hparams)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def setup(self, stage: str) -> None:
        """Refuse Lightning's own batch norm converter; skip a validation with one view."""
        distributed.batch_norm_scope(self)
        check_channels(self)
        if stage == "fit" and getattr(getattr(self.trainer, "datamodule", None), "eval_view", "lejepa") == "eval":
            self.trainer.limit_val_batches = 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; logs train/loss and its parts (prediction: of this process)."""
        loss, prediction, regularity = self.loss(batch["images"], batch.get("local_images"), self.global_step)
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({"train/prediction": prediction, "train/sigreg": regularity})
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log val/loss if the evaluation view has two views; online k-NN measures the features otherwise."""
        if batch["images"].shape[1] > 1:
            loss = self.loss(batch["images"], None, VALIDATION_STEP)[0]
            self.log("val/loss", loss, batch_size=len(batch["images"]), sync_dist=True)

    on_save_checkpoint = store_image_format

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and per-step schedule; see `lit_vision.optim.optimizer_and_schedule`."""
        groups = optim.decay_groups(self.named_parameters(), self.hparams.weight_decay)
        return optim.optimizer_from_hparams(self, groups)
