"""Log degraded, restored and clean images of a restoration."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import interpolate

from lit_vision.callbacks.intervals import epoch_is_due
from lit_vision.callbacks.log_samples import log_picture
from lit_vision.data.batch import Batch
from lit_vision.errors import UserError
from lit_vision.evaluation.features import evaluation_mode
from lit_vision.methods.keyed_noise import VALIDATION
from lit_vision.methods.restoration.restorer import Restorer
from lit_vision.results.overlays import tile_images


@torch.no_grad()
def restored_panels(module: Restorer, inputs: Tensor, holes: Tensor | None, clean: Tensor) -> list[Tensor]:
    """Return pictures: the degraded images at the size of the clean ones, the restored ones, the clean ones.

    Args:
        module: in evaluation mode.
        inputs, holes, clean: of `Restorer.degraded`.

    Returns:
        Three (B, H, W, 3) uint8 tensors.
    """
    shown = interpolate(module.to_pixels(inputs), clean.shape[-2:], mode="nearest")
    panels = [shown, module.to_pixels(module(inputs, holes)), clean]
    return [
        (panel.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).cpu()
        for panel in panels
    ]


class RestoredPictures(Callback):
    """Write RUN/samples/restored-e<epoch>.png: a column of degraded, restored and clean pixels per image.

    The same images and degradations each time, the first of the validation split.

    Args:
        every_n_epochs: epochs between two pictures, at least 1; the last epoch is always shown.
        images: number of images, at least 1.
    """

    def __init__(self, every_n_epochs: int = 1, images: int = 8) -> None:
        if every_n_epochs < 1 or images < 1:
            raise UserError("RestoredPictures: every_n_epochs and images must be at least 1")
        self.every_n_epochs, self.images = every_n_epochs, images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, Restorer):
            name = type(pl_module).__name__
            raise UserError(f"trainer.callbacks: RestoredPictures is for Restorer, not {name}; remove it")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not epoch_is_due(trainer, self.every_n_epochs):
            return
        epoch, picture = trainer.current_epoch + 1, self._draw(trainer, pl_module)
        if picture is not None:
            log_picture(trainer, f"restored-e{epoch:04d}", picture, caption=f"epoch {epoch}")

    @torch.no_grad()
    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> np.ndarray | None:
        assert isinstance(pl_module, Restorer)
        loader = trainer.datamodule.val_dataloader()
        batch = next(iter(loader), None)
        if batch is None:
            return None
        fields = ("images", "degraded", "label", "key")
        first = {name: batch[name][: self.images].to(pl_module.device) for name in fields if name in batch}
        batch = pl_module.on_after_batch_transfer(cast(Batch, first), 0)
        with evaluation_mode(pl_module), trainer.precision_plugin.forward_context():
            inputs, holes, clean = pl_module.degraded(batch, VALIDATION)
            panels = restored_panels(pl_module, inputs, holes, clean)
        return tile_images(torch.cat(panels).numpy(), columns=len(clean))
