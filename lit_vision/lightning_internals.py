"""The only file that reads private state of Lightning: underscored names and the layout of checkpoint["loops"].

Lightning has no public way to these facts. Each function names what it returns in plain words and what it relies on;
tests/test_lightning_internals.py checks every private name against the installed version, so that an upgrade breaks
there first. Written against Lightning 2.6.6.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # seconds to import
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.plugins import LayerSync
    from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

# ---- hyper-parameters


def replace_hyper_parameters(module: LightningModule, values: Mapping[str, Any]) -> None:
    """Replace what `save_hyperparameters()` has just stored: `hparams`, and those that are logged.

    Relies on `HyperparametersMixin._hparams_initial`, the copy that loggers get.
    """
    module.hparams.update(values)
    module._hparams_initial = copy.deepcopy(module.hparams)


# ---- where training stands


def is_accumulating(trainer: Trainer) -> bool:
    """True if no optimizer step follows the current batch, whose gradients are only added to those of the next ones.

    Relies on `_FitLoop._should_accumulate`.
    """
    return bool(trainer.fit_loop._should_accumulate())


def validation_follows_batch(trainer: Trainer) -> bool:
    """True if validation runs directly after the current training batch.

    Relies on `_TrainingEpochLoop._should_check_val_fx` and `_FitLoop._data_fetcher`.
    """
    return bool(trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher))


def finished_steps(trainer: Trainer) -> int:
    """Return the optimizer steps that Lightning's loggers count as finished.

    Inside `on_train_batch_end` the current step is not counted yet, so that this is the number of its row. Unlike
    `trainer.global_step` it counts one step a batch however many optimizers there are.
    Relies on `_TrainingEpochLoop._batches_that_stepped`.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def last_logged_step(trainer: Trainer) -> int:
    """Return the number that Lightning gives the row of the last optimizer step, from 0; 0 before the first."""
    progress = trainer.fit_loop.epoch_loop.batch_progress.total
    in_batch = progress.completed < progress.ready  # Lightning counts the batch as completed after its hooks
    return max(0, finished_steps(trainer) - (0 if in_batch else 1))


# ---- logging


def log_at_optimizer_step(
    trainer: Trainer, values: Mapping[str, float], loggers: Iterable[Logger] | None = None
) -> None:
    """Write one row of metrics at once, under the number of the last optimizer step.

    Lightning writes what `LightningModule.log` collects after all hooks, and so after a checkpoint that a hook saves: a
    run that is killed in between would lack the row. This is the one way to write a row of metrics.csv earlier.

    Args:
        trainer: the run; the row gets `trainer.current_epoch` as its epoch unless `values` has one.
        values: metric names and numbers.
        loggers: who writes it; all of the trainer's if None.
    """
    row = {"epoch": trainer.current_epoch, **values}
    step = last_logged_step(trainer)
    for logger in trainer.loggers if loggers is None else loggers:
        logger.log_metrics(row, step=step)


def pending_metrics(trainer: Trainer) -> dict[str, float]:
    """Return the metrics that Lightning logs after the hooks of this optimizer step; {} if it logs none.

    Relies on `Trainer._logger_connector`.
    """
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return {}
    return {name: float(value) for name, value in connector.metrics["log"].items()}


# ---- set-up


def replace_signal_handlers(trainer: Trainer, register: Callable[[], None]) -> None:
    """Have `trainer` call `register` where it would install its own signal handlers, at the start of `fit`.

    Relies on `Trainer._signal_connector`.
    """
    trainer._signal_connector.register_signal_handlers = register


def batch_norm_plugin(strategy: Strategy) -> LayerSync | None:
    """Return the plugin that makes batch norm global; None without one or on a strategy for one process.

    Relies on `ParallelStrategy._layer_sync`.
    """
    return getattr(strategy, "_layer_sync", None)


def ddp_finds_unused_parameters(strategy: Strategy) -> bool:
    """Return True if DDP looks, at each backward pass, for the parameters that the loss does not reach.

    Relies on `DDPStrategy._ddp_kwargs`.
    """
    return bool(getattr(strategy, "_ddp_kwargs", {}).get("find_unused_parameters"))


def shard_data_only(strategy: ModelParallelStrategy) -> None:
    """Set the device mesh, which `setup_environment` makes, to all processes for data and one for tensors.

    The constructor takes these sizes too, but they are known only when the processes have started.
    Relies on `ModelParallelStrategy._data_parallel_size` and `_tensor_parallel_size`.
    """
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes
    strategy._tensor_parallel_size = 1


def setup_model_parallel(strategy: ModelParallelStrategy, trainer: Trainer, shard: Callable[[], None]) -> None:
    """Do what `ModelParallelStrategy.setup` does, with `shard` in place of a `configure_model` in every method.

    A copy of that method in Lightning 2.6.6 but for its checks, its call of `configure_model` and meta devices.
    Relies on `lightning.fabric.utilities.optimizer._optimizers_to_device`.

    Args:
        strategy: its `model` is converted and, for `fit`, its optimizers are made.
        trainer: the run.
        shard: called when the model is on the device.
    """
    from lightning.fabric.utilities.optimizer import _optimizers_to_device
    from lightning.pytorch.trainer.states import TrainerFn

    strategy.accelerator.setup(trainer)
    strategy.model_to_device()
    shard()
    strategy.model = strategy.precision_plugin.convert_module(strategy.model)
    strategy.barrier()
    fitting = trainer.state.fn == TrainerFn.FITTING
    if fitting:
        strategy.setup_optimizers(trainer)
    strategy.setup_precision_plugin()
    if fitting:
        _optimizers_to_device(strategy.optimizers, strategy.root_device)


def unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer inside Lightning's wrapper, or the optimizer itself."""
    return getattr(optimizer, "optimizer", optimizer)


def leave_uncounted(optimizer: LightningOptimizer) -> None:
    """Leave an optimizer's steps in the current batch out of `trainer.global_step`, which adds those of all optimizers.

    For manual optimization with several optimizers: steps are then batches, as everywhere else.
    Relies on `LightningOptimizer._on_before_step` and `_on_after_step`, which Lightning sets again in every batch.
    """
    optimizer._on_before_step = optimizer._on_after_step = lambda: None


# ---- checkpoint["loops"], Lightning's counters

_ZERO = {"ready": 0, "started": 0, "processed": 0, "completed": 0}


def complete_loop_counters(checkpoint: dict[str, Any], validation_follows: bool, epoch_over: bool) -> None:
    """Change the loop counters of a checkpoint to those after the current batch, or epoch.

    Lightning counts a batch and an epoch as completed after the hooks in which a checkpoint is saved; with its own
    counters a resume would repeat the batch.

    Args:
        checkpoint: changed in place.
        validation_follows: the checkpoint is written after a batch and before its validation; a resume runs all of the
            validation.
        epoch_over: the checkpoint is written at the end of an epoch.
    """
    loop = checkpoint["loops"]["fit_loop"]
    batch, val = loop["epoch_loop.batch_progress"], loop["epoch_loop.val_loop.batch_progress"]
    if batch["total"]["completed"] < batch["total"]["ready"]:  # saved in on_train_batch_end
        for counters in (batch["total"], batch["current"]):
            counters["completed"] = counters["ready"]
        if not validation_follows:
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    if validation_follows:
        val.update(total={**_ZERO, "ready": 1, "started": 1}, current=dict(_ZERO), is_last_batch=False)
    if not epoch_over and not batch["is_last_batch"]:  # also where training ends inside the epoch (max_steps)
        for counters in loop["epoch_progress"].values():
            counters["processed"] = counters["completed"]
    if epoch_over:
        for counters in loop["epoch_progress"].values():
            counters["completed"] = counters["processed"]
        batch.update(current=dict(_ZERO), is_last_batch=False)
        val.update(total=dict(_ZERO), current=dict(_ZERO), is_last_batch=False)


def next_position(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """Return the epoch and the batch that come next, both from 0."""
    loop = checkpoint["loops"]["fit_loop"]
    return loop["epoch_progress"]["total"]["completed"], loop["epoch_loop.batch_progress"]["current"]["completed"]


def training_batch_counters(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return the counters of training batches, "total" and "current" (of this epoch), to be changed in place."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return {name: progress[name] for name in ("total", "current")}
