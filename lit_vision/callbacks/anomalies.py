"""Detect loss spikes and representation collapse."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_vision.callbacks.intervals import epoch_is_due
from lit_vision.distributed import is_sharded
from lit_vision.errors import UserError
from lit_vision.evaluation.collapse import effective_rank, embedding_std
from lit_vision.evaluation.features import extract_features
from lit_vision.lightning_internals import is_accumulating, log_at_optimizer_step


class LossSpikeError(UserError):
    """The training loss has jumped far above its moving mean."""


class CollapseError(UserError):
    """The encoder gives nearly the same features for all images."""


def _check_action(name: str, action: str) -> None:
    if action not in ("warn", "stop"):
        raise UserError(f"{name}.action: {action!r}; give warn or stop")


class LossSpike(Callback):
    """Report a step whose loss is more than `sigmas` standard deviations above its moving mean.

    Mean and variance stay on the device, and are read every `trainer.log_every_n_steps` steps, when the loss is fetched
    anyway: no synchronization is added. A step above the threshold does not enter the mean. Each process watches its
        own loss.

    Args:
        sigmas: threshold in standard deviations, more than 0.
        memory: steps that the moving mean covers, at least 2; no step is reported before so many steps were seen.
        action: "warn" prints a line, "stop" raises LossSpikeError.
    """

    def __init__(self, sigmas: float = 8.0, memory: int = 100, action: str = "warn") -> None:
        _check_action("LossSpike", action)
        if sigmas <= 0 or memory < 2:
            raise UserError("LossSpike: sigmas must be more than 0, memory at least 2")
        self.sigmas, self.memory, self.action = sigmas, memory, action
        self.spikes: list[int] = []
        self._state: Tensor | None = (
            None  # mean, variance, steps seen, worst z since the last check, its step, its loss
        )
        self._loaded: list[float] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is None or is_accumulating(trainer):
            return
        loss = loss.detach().double() * trainer.accumulate_grad_batches  # Lightning hands it over divided
        if self._state is None:
            start = self._loaded or [0.0, 0.0, 0.0, -math.inf, -1.0, 0.0]
            self._state = torch.tensor(start, dtype=torch.float64, device=loss.device)
        self._state = _update_statistics(self._state, loss, trainer.global_step - 1, self.sigmas, self.memory)
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if self._state is None:
            return
        mean, variance, _, worst, step, loss = self._state.tolist()
        if worst <= self.sigmas:
            return
        self._state[3] = -math.inf
        self.spikes.append(int(step))
        text = (
            f"LossSpike: at step {int(step)} the loss is {loss:.4g}, {worst:.0f} standard deviations over its mean "
            f"of {mean:.4g} (deviation {variance**0.5:.2g})"
        )
        if self.action == "stop":
            raise LossSpikeError(
                f"{text}; lower base_lr, warm up for longer or clip gradients, and go on with --resume auto"
            )
        if trainer.is_global_zero:
            print(text, flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"state": None if self._state is None else self._state.tolist(), "spikes": self.spikes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded, self.spikes = state_dict["state"], state_dict["spikes"]


def _update_statistics(state: Tensor, loss: Tensor, step: int, sigmas: float, memory: int) -> Tensor:
    """Return the moving statistics after one more loss, on its device; see `LossSpike._state` for the six numbers."""
    mean, variance, seen, worst, at, value = state
    share = torch.clamp(1 / (seen + 1), min=1 / memory)
    z = (loss - mean) / torch.sqrt(variance + 1e-12)
    over = (seen >= memory) & (z > sigmas)
    calm = ~over & loss.isfinite()
    moved = mean + share * (loss - mean)
    spread = (1 - share) * (variance + share * (loss - mean).square())
    worse = over & (z > worst)
    return torch.stack(
        (
            torch.where(calm, moved, mean),
            torch.where(calm, spread, variance),
            seen + calm,
            torch.where(worse, z, worst),
            torch.where(worse, torch.full_like(at, step), at),
            torch.where(worse, loss, value),
        )
    )


class Collapse(Callback):
    """Log val/embedding_std and val/effective_rank of the encoder's features by epoch, and report low values.

    Args:
        every_n_epochs: epochs between two measurements, at least 1; the last epoch is always measured.
        limit: training images to measure, evenly over the split, under the evaluation view; at least 2.
        min_std: a smaller embedding_std is a collapse; 1 is a full spread (see `evaluation.collapse`).
        min_rank: a smaller effective_rank is a collapse.
        action: "warn" prints a line, "stop" raises CollapseError.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        limit: int = 512,
        min_std: float = 0.05,
        min_rank: float = 2.0,
        action: str = "warn",
    ) -> None:
        _check_action("Collapse", action)
        if every_n_epochs < 1 or limit < 2:
            raise UserError("Collapse: every_n_epochs must be at least 1, limit at least 2")
        self.every_n_epochs, self.limit, self.min_std, self.min_rank = every_n_epochs, limit, min_std, min_rank
        self.action = action

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not epoch_is_due(trainer, self.every_n_epochs):
            return
        if is_sharded(pl_module):
            raise UserError("Collapse: the model is sharded, and processes have unequally many batches; leave it out")
        loader = trainer.datamodule.eval_loader("train", limit=self.limit, unlabeled=True)
        with trainer.precision_plugin.forward_context():
            features = extract_features(
                pl_module.backbone, loader, pl_module.mean, pl_module.std, pl_module.device, progress=False
            ).features
        measured = {"val/embedding_std": embedding_std(features), "val/effective_rank": effective_rank(features)}
        log_at_optimizer_step(trainer, measured)  # now: the checkpoint of this epoch counts the row
        for name, value in measured.items():
            pl_module.log(name, value, logger=False, on_epoch=True, sync_dist=trainer.world_size > 1)
        std, rank = measured.values()
        if std >= self.min_std and rank >= self.min_rank:
            return
        text = (
            f"Collapse: after epoch {trainer.current_epoch + 1} the features of {len(features)} images spread by "
            f"{std:.3g} (of 1) over {rank:.1f} dimensions (of {features.shape[1]})"
        )
        if self.action == "stop":
            raise CollapseError(f"{text}; lower base_lr, raise the temperature or use a larger batch")
        if trainer.is_global_zero:
            print(text, flush=True)
