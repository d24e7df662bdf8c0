"""Exponential moving average of the weights: measured, saved and used in place of the training weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from timm.utils import ModelEmaV3
from torch import Tensor

from lit_vision.errors import UserError

KEY = "training_weights"  # in a checkpoint: the weights that training continues with


class EMA(Callback):
    """Exponential moving average of parameters and buffers after each optimizer step (timm's ModelEmaV3).

    Validation, k-NN and pictures measure the average, and a checkpoint's `state_dict` holds it, so that test, predict,
    export and `backbone_checkpoint` use it; the checkpoint holds the training weights too (KEY), and a resumed run has
    the same bits. After `fit` the module holds the average. List it before other callbacks, so that they see the
    average.

    After step t: average <- d x average + (1 - d) x weights, d = decay (0 at the first step, as in timm's training
    script). With warmup d is at most 1 - (1 + t)^(-2/3), so that the first weights of a short run do not dominate.
    DeiT has decay 0.99996 (arXiv:2012.12877), MAE's training from scratch 0.9999 (arXiv:2111.06377, Table 11).

    Args:
        decay: in (0, 1).
        warmup: let the decay grow with the steps.

    Raises:
        UserError: a decay out of range, sharded weights, weights in half precision, or a checkpoint that was written
            without EMA.
    """

    def __init__(self, decay: float = 0.9999, warmup: bool = False) -> None:
        if not 0 < decay < 1:
            raise UserError(f"trainer.callbacks: EMA's decay {decay} is not between 0 and 1; 0.9999 is usual")
        self.decay, self.warmup = decay, warmup
        self.average: ModelEmaV3 | None = None
        self._restored: dict[str, Tensor] | None = None  # the average of a checkpoint, until `on_fit_start`
        self._training: dict[str, Tensor] | None = None  # the training weights, while the module holds the average
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise UserError for a strategy or precision with which the average would not be exact."""
        if type(trainer.strategy).__name__ in ("ModelParallelStrategy", "FSDPStrategy", "DeepSpeedStrategy"):
            raise UserError(
                "trainer.callbacks: EMA needs unsharded weights, and this strategy shards them; use ddp, or remove EMA"
            )
        if str(trainer.precision) in ("bf16-true", "16-true"):
            raise UserError(
                f"trainer.precision: {trainer.precision} cannot hold the small steps of an average; use bf16-mixed, "
                "or remove EMA"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.average = ModelEmaV3(pl_module, decay=self.decay, use_warmup=self.warmup)
        if self._restored is not None:
            _copy(self.average.module, self._restored)
            self._restored = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step != self._step:  # not inside an accumulation window
            self._step = trainer.global_step
            self._averaged().update(pl_module, step=self._step)

    # ---- exchange of training weights and average

    def _averaged(self) -> ModelEmaV3:
        assert self.average is not None  # set by on_fit_start
        return self.average

    def _show(self, pl_module: LightningModule) -> None:
        if self._training is None:
            self._training = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
            _copy(pl_module, self._averaged().module.state_dict())

    def _hide(self, pl_module: LightningModule) -> None:
        if self._training is not None:
            _copy(pl_module, self._training)
            self._training = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._show(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._hide(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hide(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(pl_module)

    # ---- checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self._training if self._training is not None else checkpoint["state_dict"]
        checkpoint["state_dict"] = self._averaged().module.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        if KEY not in checkpoint:
            raise UserError(
                "--resume: this checkpoint was written without EMA; remove it from the callbacks, or start a new run"
            )
        self._restored = checkpoint["state_dict"]
        pl_module.load_state_dict(checkpoint[KEY])


@torch.no_grad()
def _copy(module: torch.nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values into a module's tensors in place, because optimizers and DDP refer to the tensors."""
    for name, value in module.state_dict().items():
        value.copy_(values[name])
