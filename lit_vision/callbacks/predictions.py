"""Log predictions of a detector or segmenter next to ground truth."""

from __future__ import annotations

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_vision.callbacks.intervals import epoch_is_due
from lit_vision.callbacks.log_samples import log_picture
from lit_vision.data.batch import normalize
from lit_vision.errors import UserError
from lit_vision.evaluation.features import evaluation_mode
from lit_vision.results.overlays import draw_boxes, draw_mask, tile_images


class Predictions(Callback):
    """Write RUN/samples/predictions-e<epoch>.png: a column per image, with the ground truth above the prediction.

    The same images each time, evenly over the validation split.

    Args:
        every_n_epochs: epochs between two pictures, at least 1; the last epoch is always shown.
        images: number of images, at least 1.
        score: smallest score of a box that is drawn, 0 to 1.
    """

    def __init__(self, every_n_epochs: int = 1, images: int = 6, score: float = 0.4) -> None:
        if every_n_epochs < 1 or images < 1 or not 0 <= score <= 1:
            raise UserError("Predictions: every_n_epochs and images must be at least 1, score between 0 and 1")
        self.every_n_epochs, self.images, self.score = every_n_epochs, images, score

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(trainer.datamodule, "table"):
            raise UserError("trainer.callbacks: Predictions needs an AnnotatedDataModule; remove it")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not epoch_is_due(trainer, self.every_n_epochs):
            return
        epoch = trainer.current_epoch + 1
        log_picture(trainer, f"predictions-e{epoch:04d}", self._draw(trainer, pl_module), caption=f"epoch {epoch}")

    @torch.no_grad()
    def _draw(self, trainer: Trainer, module: LightningModule) -> np.ndarray:
        truth, predicted = [], []
        with evaluation_mode(module):
            for batch in trainer.datamodule.eval_loader("val", limit=self.images):
                pixels = batch["images"].to(module.device)
                with trainer.precision_plugin.forward_context():
                    outputs = module(normalize(pixels, module.mean, module.std)[:, 0])
                for i, image in enumerate(batch["images"][:, 0].numpy()):
                    if "mask" in batch:
                        background = module.hparams.background
                        truth.append(draw_mask(image, batch["mask"][i], background))
                        predicted.append(draw_mask(image, outputs[i].argmax(0).cpu(), background))
                    else:
                        target, one = batch["targets"][i], {k: v.cpu() for k, v in outputs[i].items()}
                        sure = one["scores"] >= self.score
                        truth.append(draw_boxes(image, target["boxes"], target["labels"]))
                        predicted.append(draw_boxes(image, one["boxes"][sure], one["labels"][sure]))
        truth, predicted = truth[: self.images], predicted[: self.images]
        return tile_images(np.stack(truth + predicted), columns=len(truth))
