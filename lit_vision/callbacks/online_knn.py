"""Evaluate the encoder by weighted k-NN during training."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_vision.callbacks.intervals import epoch_is_due
from lit_vision.callbacks.log_samples import log_table
from lit_vision.distributed import is_sharded
from lit_vision.errors import UserError
from lit_vision.evaluation.features import extract_features
from lit_vision.evaluation.knn import weighted_knn
from lit_vision.lightning_internals import log_at_optimizer_step


class OnlineKNN(Callback):
    """Log val/knn_top1, the fraction of validation images that the labeled training images classify correctly by k-NN.

    Reads `datamodule.eval_loader("train" | "val")` and uses the module's `backbone`, `mean` and `std`; each process
    computes the features of its share of the images. Without labels or a validation split it prints one line and does
    nothing. The accuracy per class goes to RUN/samples/knn_per_class.csv.

    Args:
        every_n_epochs: epochs between two measurements, at least 1; the last epoch is always measured.
        k: neighbors that vote.
        temperature: of the votes, greater than 0.
        limit: number of training images to compare with, at most (as eval_loader limits them); all if None.
    """

    def __init__(
        self, every_n_epochs: int = 1, k: int = 20, temperature: float = 0.1, limit: int | None = None
    ) -> None:
        if every_n_epochs < 1:
            raise UserError(f"OnlineKNN.every_n_epochs: {every_n_epochs} is not at least 1")
        self.every_n_epochs, self.k, self.temperature, self.limit = every_n_epochs, k, temperature, limit
        self.samples = 0  # validation images of the last measurement
        self._off: str | None = None  # the reason why nothing can be measured

    # At the end of the epoch and before the checkpoint of that epoch is written: a resume neither repeats nor loses a
    # measurement.
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._off or not epoch_is_due(trainer, self.every_n_epochs):
            return
        measured = self._measure(trainer, pl_module)
        if measured is None:
            if trainer.is_global_zero:
                print(f"OnlineKNN: not measured: {self._off}", flush=True)
            return
        hits, labels = measured
        top1, self.samples = float(hits.mean()), len(hits)
        log_at_optimizer_step(trainer, {"val/knn_top1": top1})  # now: the checkpoint of this epoch counts the row
        pl_module.log("val/knn_top1", top1, logger=False, on_epoch=True, sync_dist=trainer.world_size > 1)
        names = getattr(trainer.datamodule, "class_names", None) or [str(i) for i in range(int(labels.max()) + 1)]
        rows = [
            [str(name), int((labels == i).sum()), float(hits[labels == i].mean())]
            for i, name in enumerate(names)
            if (labels == i).any()
        ]
        log_table(trainer, "knn_per_class", ["class", "images", "top1"], rows)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> tuple[torch.Tensor, torch.Tensor] | None:
        data = trainer.datamodule
        if is_sharded(pl_module):
            self._off = (
                "the model is sharded, and processes have unequally many batches; measure a checkpoint afterwards"
            )
            return None
        if not getattr(data, "num_classes", 0):
            self._off = "the data has no labels"
            return None
        try:
            loaders = data.eval_loader("train", limit=self.limit), data.eval_loader("val")
        except UserError as error:
            self._off = str(error)
            return None
        with trainer.precision_plugin.forward_context():
            bank, queries = (
                extract_features(
                    pl_module.backbone, loader, pl_module.mean, pl_module.std, pl_module.device, progress=False
                )
                for loader in loaders
            )
        if bank.labels.ndim == 2:
            self._off = "k-NN needs one label an image"
            return None
        bank, queries = bank.select(bank.labels >= 0), queries.select(queries.labels >= 0)
        if len(bank) == 0 or len(queries) == 0:
            self._off = "the data has no labels"
            return None
        votes = weighted_knn(
            bank.features, bank.labels, queries.features, data.num_classes, k=self.k, temperature=self.temperature
        )
        return (votes.argmax(1) == queries.labels).float(), queries.labels
