"""Keep a method's hyper-parameters as plain values, so that its checkpoints can be loaded again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_vision.io.plain_values import plain_value
from lit_vision.lightning_internals import replace_hyper_parameters

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


def keep_plain_hyper_parameters(module: LightningModule) -> None:
    """Turn what `save_hyperparameters()` has just stored, and what loggers get, into plain values.

    Raises:
        UserError: names the hyper-parameter that is no plain value (io/plain_values.py).
    """
    replace_hyper_parameters(module, {name: plain_value(value, name) for name, value in module.hparams.items()})
