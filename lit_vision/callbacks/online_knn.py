"""How good is the encoder so far? Weighted k-NN on its features, without touching the training."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_vision.callbacks.log_samples import log_table
from lit_vision.distributed import is_sharded
from lit_vision.errors import UserError
from lit_vision.evaluation.features import extract_features
from lit_vision.evaluation.knn import weighted_knn


class OnlineKNN(Callback):
    """Logs val/knn_top1, a fraction: each image of the validation split is voted for by the labelled training images.

    Reads `datamodule.eval_loader("train" | "val")`, uses the module's `backbone`, `mean` and `std`, and every process its share of the
    images. Without labels or a validation split it says so once and does nothing. The accuracy per class goes to RUN/samples/knn_per_class.csv.

    Args:
        every_n_epochs: epochs between two measurements, at least 1; the last epoch is always measured.
        k: neighbours that vote.
        temperature: of the votes, greater than 0.
        limit: at most so many training images are the bank (as eval_loader limits them); all if None.
    """

    def __init__(
        self, every_n_epochs: int = 1, k: int = 20, temperature: float = 0.1, limit: int | None = None
    ) -> None:
        if every_n_epochs < 1:
            raise UserError(f"OnlineKNN.every_n_epochs: {every_n_epochs} is not at least 1")
        self.every_n_epochs, self.k, self.temperature, self.limit = every_n_epochs, k, temperature, limit
        self.samples = 0  # validation images of the last measurement
        self._off: str | None = None

    # At the end of the epoch and before the checkpoint of that epoch is written: a resume neither repeats nor loses a measurement.
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if self._off or (epoch % self.every_n_epochs and epoch != trainer.max_epochs):
            return
        measured = self._measure(trainer, pl_module)
        if measured is None:
            if trainer.is_global_zero:
                print(f"OnlineKNN: nothing to do: {self._off}", flush=True)
            return
        hits, labels = measured
        top1, self.samples = float(hits.mean()), len(hits)
        # to the loggers at once, not after this hook as Lightning would: the row is there when the checkpoint is written
        row = {"val/knn_top1": top1, "epoch": trainer.current_epoch}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=max(0, trainer.fit_loop.epoch_loop._batches_that_stepped - 1))
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
        bank, queries = bank.select(bank.labels >= 0), queries.select(queries.labels >= 0)
        if len(bank) == 0 or len(queries) == 0:
            self._off = "the data has no labels"
            return None
        votes = weighted_knn(
            bank.features, bank.labels, queries.features, data.num_classes, k=self.k, temperature=self.temperature
        )
        return (votes.argmax(1) == queries.labels).float(), queries.labels
