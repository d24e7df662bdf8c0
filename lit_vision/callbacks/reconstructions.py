"""Log MAE inputs, masks and reconstructions."""

from __future__ import annotations

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_vision.callbacks.intervals import epoch_is_due
from lit_vision.callbacks.log_samples import log_picture
from lit_vision.data.batch import normalize
from lit_vision.errors import UserError
from lit_vision.evaluation.features import evaluation_mode
from lit_vision.methods.keyed_noise import PICTURES, keyed_noise
from lit_vision.methods.mae.network import MAENetwork, patch_statistics, patchify, unpatchify
from lit_vision.results.overlays import tile_images


@torch.no_grad()
def reconstruct(mae: MAENetwork, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures: the original, its visible patches (the others gray), and the prediction for the others.

    With norm_pix_loss the prediction has no brightness and contrast: those of the true patch are used.

    Args:
        mae: a MAE, as network or LightningModule.
        images: (B, C, H, W) float, normalised by its mean and std.
        noise: (B, L) as in `MAENetwork.forward`; None is the same mask for row i at every call.

    Returns:
        Three (B, H, W, C) uint8 tensors.
    """
    if noise is None:
        noise = keyed_noise(torch.arange(len(images), device=images.device)[:, None], mae.num_patches, 0, PICTURES)
    _, pred, mask = mae(images, noise)
    patches, mask = patchify(images, mae.patch_size), mask.unsqueeze(-1).bool()
    pred = pred.to(patches.dtype)
    if mae.norm_pix_loss:
        mean, scale = patch_statistics(patches)
        pred = pred * scale + mean
    gray = patchify(((0.5 - mae.mean) / mae.std)[:, None, None].expand_as(images), mae.patch_size)
    original, visible, predicted = (
        _to_uint8(unpatchify(panel, mae.patch_size, mae.grid) * mae.std[:, None, None] + mae.mean[:, None, None])
        for panel in (patches, gray.where(mask, patches), pred.where(mask, patches))
    )
    return original, visible, predicted


def _to_uint8(pixels: Tensor) -> Tensor:
    """Turn (B, C, H, W) in [0, 1] into (B, H, W, C) uint8."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class Reconstructions(Callback):
    """Write RUN/samples/reconstructions-e<epoch>.png: a column of original, visible patches and prediction per image.

    The same images and masks each time, taken evenly over the validation split, or over the training split where there
    is none.

    Args:
        every_n_epochs: epochs between two pictures, at least 1; the last epoch is always shown.
        images: number of images, at least 1.
    """

    def __init__(self, every_n_epochs: int = 1, images: int = 8) -> None:
        if every_n_epochs < 1 or images < 1:
            raise UserError("Reconstructions: every_n_epochs and images must be at least 1")
        self.every_n_epochs, self.images = every_n_epochs, images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, MAENetwork):
            raise UserError(f"trainer.callbacks: Reconstructions is for MAE, not {type(pl_module).__name__}; remove it")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not epoch_is_due(trainer, self.every_n_epochs):
            return
        epoch = trainer.current_epoch + 1
        log_picture(trainer, f"reconstructions-e{epoch:04d}", self._draw(trainer, pl_module), caption=f"epoch {epoch}")

    @torch.no_grad()
    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> np.ndarray:
        try:
            loader = trainer.datamodule.eval_loader("val", limit=self.images, unlabeled=True)
        except UserError:
            loader = trainer.datamodule.eval_loader("train", limit=self.images, unlabeled=True)
        pixels = torch.cat([batch["images"] for batch in loader])[: self.images, :1].to(pl_module.device)
        with evaluation_mode(pl_module), trainer.precision_plugin.forward_context():
            panels = reconstruct(pl_module, normalize(pixels, pl_module.mean, pl_module.std)[:, 0])
        return tile_images(torch.cat([panel.cpu() for panel in panels]).numpy(), columns=len(pixels))
