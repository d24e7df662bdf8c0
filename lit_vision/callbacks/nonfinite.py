"""Stop on a non-finite loss or gradient before it reaches the weights of any process, and record the batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_vision.errors import UserError
from lit_vision.io import checkpoint_digest
from lit_vision.lightning_internals import is_accumulating, unwrap_optimizer

POLICIES = ("stop", "skip", "rollback")


class NonFiniteError(UserError):
    """The loss or a gradient became NaN or infinite."""


@dataclass
class _Step:
    """An optimizer step whose flag is not read yet."""

    number: int
    finite: Tensor  # scalar, bool
    losses: list[Tensor]
    norms: list[Tensor]  # of the gradients, in the order of `names`
    names: list[str]
    batches: list[Any]


class StopOnNonFinite(Callback):
    """Check the loss and the norms of the gradients before each optimizer step.

    If one is NaN or infinite on any process, no process takes the step. On a GPU the fused optimizers (adam, adamw) get
    a tensor as a flag and change nothing if it is set; the host reads the flag during the next step, so that no
    synchronization is added. Elsewhere the flag is read at once and the gradients are removed, so that the optimizer
    changes nothing.

    The batch (keys, labels and pixels), the losses, the names of the affected parameters and the recipe are written to
    RUN/nonfinite/step-<n>-rank<r>.pt. Then, by `policy`:

    - stop: the run ends with one line; the last checkpoint is from before that step.
    - skip: the run continues without that step.
    - rollback: weights and optimizer return to the newest undamaged checkpoint of this run, while the data and the
      schedule continue, so that the same samples do not come again.

    With fp16, gradients overflow by design, so that only the loss is checked.

    Args:
        policy: one of POLICIES.
        patience: with skip and rollback, stop the run after this number of bad steps in a row, or ten times as many in
            all.
        late: read the flag a step later; "auto": where the gradients are on a GPU.

    Raises:
        NonFiniteError: by `policy` and `patience`.
        UserError: an argument is out of range.
    """

    def __init__(self, policy: str = "stop", patience: int = 5, late: bool | str = "auto") -> None:
        if policy not in POLICIES:
            raise UserError(f"StopOnNonFinite.policy: {policy!r} is not one of {', '.join(POLICIES)}")
        if patience < 1:
            raise UserError(f"StopOnNonFinite.patience: {patience} is not at least 1")
        self.policy, self.patience, self.late = policy, patience, late
        self.bad_steps: list[int] = []
        self._batches: list[Any] = []
        self._losses: list[Tensor] = []
        self._pending: _Step | None = None

    # ---- before each step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batches.append(batch)  # one reference per batch of the step

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._read(trainer, pl_module)  # the flag of the step before
        named = [(name, p) for name, p in pl_module.named_parameters() if p.grad is not None]
        norms: list[Tensor] = []
        finite = torch.stack(self._losses).isfinite().all()
        if trainer.precision != "16-mixed" and named:
            norms = torch._foreach_norm([_local_shard(p.grad) for _, p in named])
            finite = finite & torch.stack(norms).isfinite().all().to(finite.device)
        if trainer.world_size > 1:  # on the device: a rank with finite gradients must skip the step too
            flag = finite.to(torch.int32)
            dist.all_reduce(flag, dist.ReduceOp.MIN)
            finite = flag.bool()
        step = _Step(trainer.global_step, finite, self._losses, norms, [name for name, _ in named], self._batches)
        self._pending, self._batches, self._losses = step, [], []
        late = finite.device.type == "cuda" if self.late == "auto" else self.late
        if late and all(group.get("fused") for group in optimizer.param_groups):
            unwrap_optimizer(optimizer).found_inf = (~finite).to(torch.float32)
        elif not bool(finite):
            for _, p in named:
                p.grad = None
            self._read(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not is_accumulating(trainer):
            self._batches, self._losses = [], []  # manual optimization, or a closure that the optimizer ran again

    # ---- every flag is read before a checkpoint and before the end

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._read(trainer, pl_module, saving=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"bad_steps": self.bad_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.bad_steps = state_dict["bad_steps"]

    # ---- after a step that was not finite

    def _read(self, trainer: Trainer, pl_module: LightningModule, saving: bool = False) -> None:
        step, self._pending = self._pending, None
        if step is None or bool(step.finite):
            return
        self.bad_steps.append(step.number)
        text = _report(step, trainer)
        last = self.bad_steps[-self.patience - 1 :]
        in_a_row = len(last) > self.patience and last == list(range(last[0], last[0] + len(last)))
        if self.policy == "stop" or in_a_row or len(self.bad_steps) > 10 * self.patience:
            many = f" ({len(self.bad_steps)} such steps in this run)" if self.policy != "stop" else ""
            raise NonFiniteError(
                f"{text}{many}. Lower base_lr, warm up for longer, clip gradients (trainer.gradient_clip_val) or use "
                "bf16 instead of fp16"
            )
        done = "the run continues without it"
        if self.policy == "rollback" and not saving:  # else the checkpoint to return to is the one being saved
            done = _roll_back(trainer, pl_module)
        if trainer.is_global_zero:
            print(f"{text}; {done}", flush=True)


def _local_shard(grad: Tensor) -> Tensor:
    """Return this rank's part of a sharded gradient; a plain gradient as it is."""
    return grad.to_local() if hasattr(grad, "to_local") else grad


def _report(step: _Step, trainer: Trainer) -> str:
    """Write the batch and the losses of a bad step, on each rank; return a line about it."""
    losses = [float(loss) for loss in step.losses]
    broken = [name for name, norm in zip(step.names, step.norms) if not norm.isfinite()]
    run = Path(trainer.default_root_dir)
    path = run / "nonfinite" / f"step-{step.number:08d}-rank{trainer.global_rank}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    batches = [{k: v.cpu() for k, v in b.items() if isinstance(v, Tensor)} for b in step.batches if isinstance(b, dict)]
    recipe = (run / "config.yaml").read_text() if (run / "config.yaml").is_file() else ""
    content = {"step": step.number, "epoch": trainer.current_epoch, "losses": losses, "parameters": broken}
    torch.save({**content, "batches": batches, "recipe": recipe}, path)
    keys = torch.cat([b["key"] for b in batches if "key" in b] or [torch.empty(0, 3, dtype=torch.int64)])
    what = (
        f"the loss is {losses}"
        if not torch.tensor(losses).isfinite().all()
        else f"gradients of {len(broken)} parameters"
    )
    if not broken and torch.tensor(losses).isfinite().all():
        what = "a loss or gradient of another process is"
    return (
        f"{path}: at step {step.number} {what} not finite, so the step was not taken; {len(keys)} sample keys, "
        "their batch and the recipe are in this file"
    )


def _roll_back(trainer: Trainer, pl_module: LightningModule) -> str:
    """Load weights and optimizer of the newest undamaged checkpoint; return a text that names it."""
    from lit_vision.callbacks.checkpoint import LastCheckpoint

    saver = next((c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)
    found = checkpoint_digest.newest_valid(saver.path.parent)[0] if saver and trainer.is_global_zero else None
    path = trainer.strategy.broadcast(found)
    if path is None:
        return "there is no checkpoint to return to yet, so the run continues without it"
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    checkpoint = trainer.strategy.load_checkpoint(path)
    if trainer.strategy.lightning_restore_optimizer:  # a sharded strategy has loaded everything itself
        pl_module.load_state_dict(checkpoint["state_dict"])
        for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"]):
            optimizer.load_state_dict(state)
    for optimizer, group_rates in zip(trainer.optimizers, rates):
        for group, rate in zip(optimizer.param_groups, group_rates):
            group["lr"] = rate
    # the current gradients belong to the replaced weights
    trainer.strategy.model.zero_grad()
    return (
        f"returned to the weights of step {checkpoint['global_step']} ({path.name}); continuing with the next samples"
    )
