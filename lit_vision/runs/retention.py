"""Keep step-<n>.ckpt within a disk budget."""

from __future__ import annotations

import shutil
from pathlib import Path

from lit_vision.errors import UserError
from lit_vision.io.checkpoint_digest import digest_path


class Retention:
    """Names and removal of step-<n>.ckpt.

    Args:
        keep_every_n_steps: optimizer steps between two such checkpoints; None keeps none.
        budget_gb: limit for all checkpoints of the folder together, in 10^9 bytes; None for no limit.

    Raises:
        UserError: the budget is not more than 0.
    """

    def __init__(self, keep_every_n_steps: int | None = None, budget_gb: float | None = None) -> None:
        if budget_gb is not None and budget_gb <= 0:
            raise UserError(f"budget_gb: {budget_gb} is not more than 0")
        self.every, self.budget = keep_every_n_steps, budget_gb
        self._reported = False

    def names(self, step: int) -> list[str]:
        """Return the further names of a checkpoint of this optimizer step."""
        return [f"step-{step:08d}.ckpt"] if self.every and step and step % self.every == 0 else []

    def tidy(self, folder: Path) -> None:
        """Remove the oldest step-<n>.ckpt until the budget holds; report once if the others alone exceed it."""
        if self.budget is None:
            return
        steps = sorted(folder.glob("step-*.ckpt"))
        while (used := _tree_size(folder)) > self.budget * 1e9 and steps:
            old = steps.pop(0)
            shutil.rmtree(old) if old.is_dir() else old.unlink()
            digest_path(old).unlink(missing_ok=True)
        if used > self.budget * 1e9 and not self._reported:
            self._reported = True
            print(
                f"budget_gb: last.ckpt, previous.ckpt and best.ckpt alone take {used / 1e9:.2f} GB, more than "
                f"{self.budget:g}; they are kept",
                flush=True,
            )


def _tree_size(folder: Path) -> int:
    """Return the bytes of the checkpoints; a file with several names counts once."""
    files = [p.stat() for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".tmp")]
    return sum({(s.st_dev, s.st_ino): s.st_size for s in files}.values())
