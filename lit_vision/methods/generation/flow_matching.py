"""Flow matching: the network of flow_matching_network.py as a LightningModule. Lipman et al. 2023, arXiv:2210.02747."""

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from lit_vision import optim
from lit_vision.data.batch import Batch, normalize_batch
from lit_vision.methods.generation.flow_matching_network import FlowMatchingNetwork
from lit_vision.methods.generation.training import check_data_fits, one_view, store_class_names
from lit_vision.methods.hyper_parameters import keep_plain_hyper_parameters
from lit_vision.methods.keyed_noise import TRAIN, VALIDATION


class FlowMatching(FlowMatchingNetwork, LightningModule):
    """Learn to make images from noise by regression of the velocity along straight paths.

    With x0 standard normal noise, x1 an image and t uniform in [0, 1], the network sees (1 - t) x0 + t x1 and learns
    x1 - x0 by mean squared error. Images are made by following the learned velocity from noise (`sample`). Use it with
    the callback `lit_vision.callbacks.ema.EMA` and `warmup: true`: the average makes better images than the last
    weights, and without the warm-up it holds the first ones for long (diffusers issue 1772).

    Unlike the paper: paths end exactly at the image (its sigma_min is 0), as in Liu et al. 2023, arXiv:2209.03003.

    Args:
        img_size: side of the square images, pixels.
        channels: of the images, 1 or 3; `data.channels` must be the same.
        num_classes: K, to make images of a given class; 0 learns without classes.
        class_dropout: share of the samples whose class is hidden in training, so that any class can be asked for.
        width: channels of the U-Net's first level, a multiple of 8.
        multipliers: of `width`, one a level; the side is halved from level to level.
        blocks: residual blocks a level, each way.
        patch_size: pixels that the first level sees as one place; 2 is four times less compute than 1.
        attention: attention at the lowest level.
        seed: of noise, times and hidden classes; with a sample's key it determines them, on any number of processes.
        mean, std: of the pixels, per channel, for values in [0, 1]; None is 0.5, so that images lie in [-1, 1].
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
        UserError: a value that cannot work; the message names it.
    """

    def __init__(
        self,
        img_size: int = 32,
        channels: int = 3,
        num_classes: int = 0,
        class_dropout: float = 0.1,
        width: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        patch_size: int = 1,
        attention: bool = True,
        seed: int = 0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        optimizer: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.9,
        base_lr: float | None = None,
        lr: float | None = 2e-4,
        min_lr: float = 0.0,
        weight_decay: float = 0.0,
        warmup_epochs: float = 1,
        schedule: optim.Schedule = "cosine",
        decay_share: float = 0.2,
    ) -> None:
        super(FlowMatchingNetwork, self).__init__()  # LightningModule's: the network needs the hyper-parameters first
        self.save_hyperparameters()
        keep_plain_hyper_parameters(self)
        self.build(self.hparams)

    setup, on_save_checkpoint = check_data_fits, store_class_names

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; logs train/loss (of this process: a mean over all would wait at each step)."""
        loss = self.loss(*one_view(batch, TRAIN))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log val/loss, with the same noise and time for a sample in every epoch."""
        loss = self.loss(*one_view(batch, VALIDATION))
        self.log("val/loss", loss, batch_size=len(batch["images"]), sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and per-step schedule; see `lit_vision.optim.optimizer_and_schedule`."""
        groups = optim.decay_groups(self.named_parameters(), self.hparams.weight_decay)
        return optim.optimizer_from_hparams(self, groups)
