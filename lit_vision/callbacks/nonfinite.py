"""A loss or gradient that is not finite ends the run before the weights are touched, and says which samples did it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_vision.errors import UserError


class NonFinite(UserError):
    """The loss or a gradient became NaN or infinite."""


class StopOnNonFinite(Callback):
    """Looks at the loss and the gradients' norm just before each optimiser step.

    If either is NaN or infinite on any process, the step does not happen on any; the batch (its keys, labels and pixels), the loss
    and the names of the parameters concerned go to RUN/nonfinite/step-<n>.pt, and the run stops with one line. last.ckpt is then
    still the last good one. One host synchronisation a step; with fp16 gradients overflow by design and only the loss is looked at.
    """

    def __init__(self) -> None:
        self._batches: list[Any] = []
        self._losses: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batches.append(batch)  # one reference per micro-batch of the step

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        finite = torch.stack(self._losses).isfinite().all()
        if trainer.precision != "16-mixed" and gradients:
            norms = torch.stack(torch._foreach_norm(gradients))
            finite = finite & norms.isfinite().all().to(finite.device)
        if not trainer.strategy.reduce_boolean_decision(bool(finite), all=True):
            raise NonFinite(self._report(trainer, pl_module))
        self._batches, self._losses = [], []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.fit_loop._should_accumulate():
            self._batches, self._losses = [], []  # manual optimisation, or a closure that the optimiser ran again

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> str:
        step = trainer.global_step
        losses = [float(loss) for loss in self._losses]
        broken = [n for n, p in pl_module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        folder = Path(trainer.default_root_dir) / "nonfinite"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{step:08d}-rank{trainer.global_rank}.pt"
        batches = [
            {k: v.cpu() for k, v in b.items() if isinstance(v, Tensor)} for b in self._batches if isinstance(b, dict)
        ]
        torch.save(
            {"step": step, "epoch": trainer.current_epoch, "losses": losses, "parameters": broken, "batches": batches},
            path,
        )
        keys = torch.cat([b["key"] for b in batches if "key" in b] or [torch.empty(0, 3, dtype=torch.int64)])
        what = (
            f"the loss is {losses}"
            if not torch.tensor(losses).isfinite().all()
            else f"gradients of {len(broken)} parameters"
        )
        return (
            f"{path}: at step {step} {what} not finite, so the step was not taken; {len(keys)} sample keys and their batch are in "
            "this file. Lower base_lr, warm up for longer, clip gradients (trainer.gradient_clip_val) or leave fp16 for bf16"
        )
