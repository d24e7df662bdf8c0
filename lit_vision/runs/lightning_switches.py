"""Lightning's own switches: one table of what works here, what something else does, and what is refused.

"works": the values have Lightning's meaning, and a resumed run has the same bits. "replaced": the run does it in
another way, which the note names. "refused": one line before the first step, which ends with the note.
experiments/README.md shows the tables; tests/runs/test_lightning_switches.py compares them with it and with the
installed Lightning, so that a new argument or callback of a later version is noticed there.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from lit_vision.errors import UsageError
from lit_vision.optim.schedule import CALLBACKS_THAT_CHANGE_THE_SCHEDULE

WORKS, REPLACED, REFUSED = "works", "replaced", "refused"


@dataclass(frozen=True)
class Switch:
    """One row of a table.

    Args:
        here: WORKS, REPLACED or REFUSED.
        note: what it does here; of a refused row, what to do instead.
        refuses: True for the values that are refused; None: all but Lightning's default if `here` is REFUSED, else
            none.
        instead: what to do instead of a value that is refused; the note if empty.
    """

    here: str
    note: str = ""
    refuses: Callable[[Any], bool] | None = None
    instead: str = ""

    def refused(self, value: Any) -> bool:
        """Return True if this value is refused, given that it is not the default."""
        return self.refuses(value) if self.refuses else self.here == REFUSED

    def error(self, key: str, value: Any) -> UsageError:
        """Return the error about a value that is refused."""
        return UsageError(f"{key}: {value} cannot be used here; {self.instead or self.note}")


def _below_one(value: Any) -> bool:
    return isinstance(value, int) and value < 1


# every argument of Lightning's Trainer
TRAINER = {
    "accelerator": Switch(
        WORKS, "cpu, gpu, auto; mps is not tested", lambda value: value in ("tpu", "xla"), "choose cpu, gpu or auto"
    ),
    "strategy": Switch(WORKS, "see the strategies below"),
    "devices": Switch(
        WORKS,
        "same bits on one and two processes for the same global batch",
        lambda value: str(value).isdigit() and int(value) > 1024,
        "give the number of devices of one machine",
    ),
    "num_nodes": Switch(WORKS),
    "precision": Switch(
        WORKS,
        "32-true, bf16-mixed, 16-mixed (on a CPU Lightning takes bf16-mixed); bf16-true, 16-true and 64-true run, "
        "but no recipe was measured with them",
        lambda value: str(value).startswith("transformer-engine"),
        "choose 32-true, bf16-mixed or 16-mixed",
    ),
    "logger": Switch(WORKS, "metrics.csv is always written, TensorBoard unless loggers are given; false: none"),
    "callbacks": Switch(WORKS, "see the callbacks below; the run adds its own"),
    "fast_dev_run": Switch(WORKS, "N batches, and nothing is kept"),
    "max_epochs": Switch(WORKS, "needed: the learning-rate schedule ends with it"),
    "min_epochs": Switch(WORKS),
    "max_steps": Switch(WORKS, "ends the run early, with last.ckpt; the schedule still ends with max_epochs"),
    "min_steps": Switch(WORKS),
    "max_time": Switch(WORKS, "ends the run early, with last.ckpt; the schedule still ends with max_epochs"),
    "limit_train_batches": Switch(WORKS, "the schedule counts it"),
    "limit_val_batches": Switch(WORKS, "0: no validation, so best.ckpt has nothing to be chosen by"),
    "limit_test_batches": Switch(WORKS),
    "limit_predict_batches": Switch(REFUSED, "training does not predict; use lit-vision predict"),
    "overfit_batches": Switch(WORKS, "each epoch has the images of the first, in the same batches, augmented anew"),
    "val_check_interval": Switch(
        WORKS,
        "batches, or a fraction of an epoch",
        lambda value: value is not None and not isinstance(value, int | float),
        "a time between validations cannot be resumed to the same bits: give a number",
    ),
    "check_val_every_n_epoch": Switch(
        WORKS, "null: val_check_interval counts on over epochs", _below_one, "give 1 or more"
    ),
    "num_sanity_val_steps": Switch(WORKS),
    "log_every_n_steps": Switch(WORKS, "10 unless given"),
    "enable_checkpointing": Switch(WORKS, "false: no checkpoint and no results.json"),
    "enable_progress_bar": Switch(WORKS),
    "enable_model_summary": Switch(WORKS),
    "accumulate_grad_batches": Switch(WORKS, "counted in the global batch", _below_one, "give 1 or more"),
    "gradient_clip_val": Switch(
        WORKS, "", lambda value: isinstance(value, int | float) and not value >= 0, "give 0 or more"
    ),
    "gradient_clip_algorithm": Switch(WORKS, "norm, value"),
    "deterministic": Switch(WORKS),
    "benchmark": Switch(WORKS, "true: faster convolutions on a GPU, no equal bits"),
    "inference_mode": Switch(WORKS),
    "use_distributed_sampler": Switch(
        REFUSED, "must be false; the data module's sampler distributes the samples", lambda value: bool(value)
    ),
    "profiler": Switch(
        WORKS,
        "simple, advanced, pytorch; timings.csv has the times of data and step without it",
        lambda value: value == "xla",
        "choose simple, advanced or pytorch",
    ),
    "detect_anomaly": Switch(WORKS, "a NaN of the backward pass ends the run with its operation; slow"),
    "barebones": Switch(
        REFUSED,
        "it forbids checkpoints and logging; for speed alone set enable_checkpointing, logger and "
        "enable_progress_bar to false",
    ),
    "plugins": Switch(WORKS, "of precision, cluster environment and layer sync; see the plugins below"),
    "sync_batchnorm": Switch(REPLACED, "lit_vision.distributed.global_batch_norm, also on a CPU"),
    "reload_dataloaders_every_n_epochs": Switch(WORKS, "changes nothing: the order is a function of seed and epoch"),
    "default_root_dir": Switch(REFUSED, "the run's folder is --run_dir or --name; give one of these"),
    "enable_autolog_hparams": Switch(WORKS),
    "model_registry": Switch(REFUSED, "uploads go through --wandb_weights true or lit-vision export --format hub"),
}

# every callback of lightning.pytorch.callbacks; a subclass counts as the nearest of these
CALLBACKS = {
    **{name: Switch(REFUSED, note) for name, note in CALLBACKS_THAT_CHANGE_THE_SCHEDULE.items()},
    "Callback": Switch(WORKS, "your own; what it must remember for a resume goes into its state_dict"),
    "Checkpoint": Switch(WORKS, "a base class"),
    "DeviceStatsMonitor": Switch(WORKS),
    "EarlyStopping": Switch(WORKS, "the metric is looked for in the first validation, before the first step"),
    "LambdaCallback": Switch(WORKS),
    "LearningRateMonitor": Switch(WORKS),
    "ModelCheckpoint": Switch(
        WORKS,
        "further files beside last.ckpt and best.ckpt of LastCheckpoint; resume from last.ckpt; save_last is refused",
        lambda callback: bool(_argument(callback, "save_last")),
        "its save_last would overwrite the last.ckpt that a resume needs: leave save_last out",
    ),
    "ModelSummary": Switch(WORKS),
    "RichModelSummary": Switch(WORKS),
    "ProgressBar": Switch(WORKS, "replaces the run's own"),
    "RichProgressBar": Switch(WORKS, "replaces the run's own"),
    "TQDMProgressBar": Switch(WORKS, "replaces the run's own"),
    "BasePredictionWriter": Switch(REFUSED, "training does not predict; use lit-vision predict --out FILE"),
    "ModelPruning": Switch(REFUSED, "its masks are not in a checkpoint that can be resumed; train without it"),
    "OnExceptionCheckpoint": Switch(REFUSED, "LastCheckpoint writes last.ckpt where a resume is exact; leave it out"),
    "SpikeDetection": Switch(REFUSED, "use lit_vision.callbacks.anomalies.LossSpike"),
    "ThroughputMonitor": Switch(REFUSED, "timings.csv of each run has images a second; leave it out"),
    "Timer": Switch(REFUSED, "use trainer.max_time"),
    "WeightAveraging": Switch(REFUSED, "use lit_vision.callbacks.ema.EMA, which is measured, saved and resumed"),
    "EMAWeightAveraging": Switch(REFUSED, "use lit_vision.callbacks.ema.EMA, which is measured, saved and resumed"),
}

# names and classes of Lightning's strategies, by how they begin
STRATEGIES = {
    "auto": Switch(WORKS, "one device: none; several: ddp"),
    "single_device": Switch(WORKS),
    "SingleDeviceStrategy": Switch(WORKS),
    "ddp": Switch(WORKS, "3 or more processes: same bits with ddp_find_unused_parameters_true"),
    "ddp_find_unused_parameters": Switch(WORKS),
    "DDPStrategy": Switch(WORKS),
    "FSDP2Strategy": Switch(WORKS, "class_path lit_vision.runs.fsdp.FSDP2Strategy: shards a ViT, with checkpoints"),
    "ddp_spawn": Switch(REFUSED, "use ddp"),
    "ddp_fork": Switch(REFUSED, "use ddp"),
    "ddp_notebook": Switch(REFUSED, "use ddp from a script, or one device in a notebook"),
    "fsdp": Switch(REFUSED, "use lit_vision.runs.fsdp.FSDP2Strategy"),
    "FSDPStrategy": Switch(REFUSED, "use lit_vision.runs.fsdp.FSDP2Strategy"),
    "ModelParallelStrategy": Switch(REFUSED, "use lit_vision.runs.fsdp.FSDP2Strategy"),
    "deepspeed": Switch(REFUSED, "use lit_vision.runs.fsdp.FSDP2Strategy"),
    "DeepSpeedStrategy": Switch(REFUSED, "use lit_vision.runs.fsdp.FSDP2Strategy"),
    "xla": Switch(REFUSED, "TPUs are not supported"),
    "single_xla": Switch(REFUSED, "TPUs are not supported"),
    "single_tpu": Switch(REFUSED, "TPUs are not supported"),
    "XLAStrategy": Switch(REFUSED, "TPUs are not supported"),
    "SingleDeviceXLAStrategy": Switch(REFUSED, "TPUs are not supported"),
}

# kinds of Lightning's plugins
PLUGINS = {
    "Precision": Switch(WORKS, "instead of trainer.precision"),
    "ClusterEnvironment": Switch(WORKS),
    "LayerSync": Switch(WORKS),
    "CheckpointIO": Switch(REFUSED, "checkpoints are written by AtomicCheckpointIO, whole or not at all; leave it out"),
}


def check_settings(trainer: Mapping[str, Any]) -> None:
    """Refuse settings of a Trainer that do not work here, before anything is built.

    Args:
        trainer: the arguments of Lightning's Trainer; objects, or as a recipe has them (class_path and init_args).

    Raises:
        UsageError: names the key and what to do.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(Trainer).parameters.items()}
    for name, switch in TRAINER.items():
        value = trainer.get(name, defaults[name])
        if value == defaults[name] and name != "use_distributed_sampler":
            continue
        if switch.refused(value):
            raise switch.error(f"trainer.{name}", value)
    for callback in _as_list(trainer.get("callbacks")):
        _check("trainer.callbacks", callback, CALLBACKS)
    for plugin in _as_list(trainer.get("plugins")):
        _check("trainer.plugins", plugin, PLUGINS)
    strategy = trainer.get("strategy")
    if isinstance(strategy, str):
        known = [name for name in STRATEGIES if strategy.startswith(name)]
        switch = STRATEGIES[max(known, key=len)] if known else Switch(WORKS)  # Lightning refuses an unknown name
        if switch.refused(strategy):
            raise switch.error("trainer.strategy", strategy)
    elif strategy is not None:
        _check("trainer.strategy", strategy, STRATEGIES)


def check_callbacks(callbacks: Iterable[Any]) -> None:
    """Refuse callbacks of a Trainer that was built in Python; Trainer itself makes a Timer of max_time.

    Raises:
        UsageError: names the callback and what to do.
    """
    for callback in callbacks:
        if not isinstance(callback, Timer):
            _check("trainer.callbacks", callback, CALLBACKS)


def _check(key: str, value: Any, table: Mapping[str, Switch]) -> None:
    """Raise UsageError if the nearest base class of `value` that the table has is refused."""
    kind = _class_of(value)
    switch = next((table[base.__name__] for base in kind.__mro__ if base.__name__ in table), Switch(WORKS))
    if switch.refused(value):
        raise switch.error(key, kind.__name__)


def _class_of(value: Any) -> type:
    """Return the class of an object, or of the one that a recipe describes with class_path."""
    path = value.get("class_path") if hasattr(value, "get") else None
    if path is None:
        return type(value)
    module, _, name = path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _argument(value: Any, name: str) -> Any:
    """Return an argument of an object that a recipe describes, or the attribute of that name of an object."""
    if hasattr(value, "get"):
        return (value.get("init_args") or {}).get(name)
    return getattr(value, name, None)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def switches_as_markdown() -> str:
    """Return the tables of experiments/README.md."""
    tables = {"argument of the Trainer": TRAINER, "callback": CALLBACKS, "strategy": STRATEGIES, "plugin": PLUGINS}
    blocks = []
    for title, table in tables.items():
        rows = [f"| `{name}` | {switch.here} | {switch.note} |" for name, switch in table.items()]
        blocks.append("\n".join([f"| {title} | here | note |", "|---|---|---|", *rows]))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    print(switches_as_markdown())
