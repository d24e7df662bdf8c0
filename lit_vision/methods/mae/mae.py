"""MAE training: the network of network.py as a LightningModule. He et al. 2022, arXiv:2111.06377."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_vision import optim
from lit_vision.data.batch import Batch, normalize_batch
from lit_vision.methods.hyper_parameters import keep_plain_hyper_parameters
from lit_vision.methods.keyed_noise import TRAIN, VALIDATION, keyed_noise
from lit_vision.methods.mae.network import MAENetwork
from lit_vision.methods.pixels import check_channels, store_image_format


class MAE(MAENetwork, LightningModule):
    """Pre-train a plain ViT by predicting masked patches.

    The paper's recipe: mask 0.75, batch 4096, AdamW (0.9, 0.95), 800 to 1600 epochs, 40 of warm-up.

    Args:
        backbone: timm name of a plain ViT (a cls token, no registers).
        backbone_args: further arguments of Backbone; img_size and patch_size set the grid.
        decoder_width: d.
        decoder_depth: blocks of the decoder.
        decoder_heads: its attention heads.
        mask_ratio: fraction of patches that is hidden, in (0, 1); see `patches_kept`.
        truncate_keep: compute the number of visible patches as the official code does, by truncation.
        norm_pix_loss: predict pixels normalised per patch, as the released encoders.
        compile: torch.compile the training step (CPU: needs a C++ compiler; one to three minutes at the first step).
        checkpointing: activation checkpointing: a third more compute; only blocks' inputs are stored for backward.
        seed: of the masks; with a sample's key it determines the sample's mask, on any number of processes.
        mean, std: of the pixels, per channel, for values in [0, 1]; None is ImageNet's.
        optimizer: adamw, adam, sgd, lars or lamb.
        betas: of adam, adamw and lamb.
        momentum: of sgd and lars.
        base_lr: learning rate per 256 images.
        lr: absolute learning rate; if given, base_lr is not used.
        min_lr: absolute learning rate at the end.
        weight_decay: of parameters with more than one dimension. As in the official pre-training (not as in
            fine-tuning), cls_token and mask_token are decayed too; positions are fixed and in no group.
        warmup_epochs: linear warm-up, then `schedule`.
        schedule: cosine (to min_lr), or warmup-stable-decay: constant, then a decay that may begin at any step.
        decay_share: of all steps, the decay of warmup-stable-decay, between 0 and 1.

    Raises:
        UserError: a backbone that is no plain ViT, or a value that cannot work.
    """

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224",
        backbone_args: dict[str, Any] | None = None,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mask_ratio: float = 0.75,
        truncate_keep: bool = False,
        norm_pix_loss: bool = True,
        compile: bool = False,
        checkpointing: bool = False,
        seed: int = 0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        optimizer: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.9,
        base_lr: float | None = 1.5e-4,
        lr: float | None = None,
        min_lr: float = 0.0,
        weight_decay: float = 0.05,
        warmup_epochs: float = 40,
        schedule: optim.Schedule = "cosine",
        decay_share: float = 0.2,
    ) -> None:
        super(MAENetwork, self).__init__()  # LightningModule's: the network needs the hyper-parameters first
        self.save_hyperparameters()
        keep_plain_hyper_parameters(self)
        self.build(self.hparams)
        self._compiled: Callable[[Tensor, Tensor], Tensor] | None = None

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def batch_loss(self, batch: Batch, stream: int) -> Tensor:
        """Return the loss of a batch with masks from its keys; each of its V views has another mask."""
        images, keys = batch["images"], batch["key"]  # (B, V, C, H, W), (B, 3)
        views = torch.arange(images.shape[1], device=keys.device).repeat(len(keys))[:, None]
        keys = torch.cat([keys.repeat_interleave(images.shape[1], dim=0), views], dim=1)  # (B*V, 4)
        images = images.flatten(0, 1)
        self.choose_attention(images)
        return self._step()(images, keyed_noise(keys, self.num_patches, self.hparams.seed, stream))

    def _step(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return `loss`, compiled at first use if `compile` is set; no module, so that state keys do not change."""
        if not self.hparams.compile:
            return self.loss
        if self._compiled is None:
            self._compiled = torch.compile(self.loss)
        return self._compiled

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled code out of copies and worker processes."""
        return {**super().__getstate__(), "_compiled": None}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; logs train/loss (of this process: a mean over all would wait at each step)."""
        loss = self.batch_loss(batch, TRAIN)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log val/loss, with the same mask for a sample in every epoch."""
        self.log("val/loss", self.batch_loss(batch, VALIDATION), batch_size=len(batch["images"]), sync_dist=True)

    setup, on_save_checkpoint = check_channels, store_image_format

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and per-step schedule; see `lit_vision.optim.optimizer_and_schedule`."""
        decay = self.hparams.weight_decay
        groups = optim.decay_groups(self.named_parameters(), decay, no_decay=lambda name, p: p.ndim <= 1)
        return optim.optimizer_from_hparams(self, groups)
