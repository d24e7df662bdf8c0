"""Log images that a generator makes while it is trained."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_vision.callbacks.intervals import epoch_is_due
from lit_vision.callbacks.log_samples import log_picture
from lit_vision.errors import UserError
from lit_vision.evaluation.features import evaluation_mode
from lit_vision.methods.generation.flow_matching_network import FlowMatchingNetwork
from lit_vision.methods.generation.gan_network import GANNetwork
from lit_vision.methods.generation.sampling import class_of_index, sample_pixels
from lit_vision.results.overlays import tile_images


class GeneratedImages(Callback):
    """Write RUN/samples/generated-e<epoch>.png: a grid of images from the same noise and classes each time.

    With EMA listed before it, they are those of the average.

    Args:
        every_n_epochs: epochs between two pictures, at least 1; the last epoch is always shown.
        images: number of images, at least 1.
        columns: images in a row, at least 1; with classes, the number of classes shows one in each column.
        seed: of the noise.
    """

    def __init__(self, every_n_epochs: int = 1, images: int = 40, columns: int = 10, seed: int = 0) -> None:
        if every_n_epochs < 1 or images < 1 or columns < 1:
            raise UserError("GeneratedImages: every_n_epochs, images and columns must be at least 1")
        self.every_n_epochs, self.images, self.columns, self.seed = every_n_epochs, images, columns, seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, FlowMatchingNetwork | GANNetwork):
            raise UserError(
                f"trainer.callbacks: GeneratedImages is for FlowMatching and GAN, not {type(pl_module).__name__}; "
                "remove it"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not epoch_is_due(trainer, self.every_n_epochs):
            return
        index = torch.arange(self.images)
        with evaluation_mode(pl_module), trainer.precision_plugin.forward_context():
            pixels = sample_pixels(pl_module, index, class_of_index(pl_module, index), self.seed)
        epoch = trainer.current_epoch + 1
        log_picture(trainer, f"generated-e{epoch:04d}", tile_images(pixels, self.columns), caption=f"epoch {epoch}")
