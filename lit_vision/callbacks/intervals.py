"""Decide when a callback that works every n epochs is due."""

from __future__ import annotations

from lightning.pytorch import Trainer


def epoch_is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """True if the current epoch is the last one, or its number, counted from 1, is a multiple of `every_n_epochs`."""
    epoch = trainer.current_epoch + 1
    return bool(epoch % every_n_epochs == 0 or epoch == trainer.max_epochs)
