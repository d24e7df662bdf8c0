"""Log MAE inputs, masks and reconstructions."""

from __future__ import annotations

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_vision.callbacks.intervals import epoch_is_due
from lit_vision.callbacks.log_samples import log_picture, tile_images
from lit_vision.data.batch import normalize
from lit_vision.errors import UserError
from lit_vision.evaluation.features import evaluation_mode


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
        if not hasattr(pl_module, "reconstruct"):
            raise UserError(
                f"trainer.callbacks: Reconstructions needs a model with a method reconstruct, not "
                f"{type(pl_module).__name__}; remove it"
            )

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
            panels = pl_module.reconstruct(normalize(pixels, pl_module.mean, pl_module.std)[:, 0])
        return tile_images(torch.cat([panel.cpu() for panel in panels]).numpy(), columns=len(pixels))
