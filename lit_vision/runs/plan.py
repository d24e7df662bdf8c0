"""Plan of a run before it starts: steps, images, multiply-adds, and the bytes of each device under DDP and FSDP2."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer

from lit_vision.data.sampler import TrainBatches
from lit_vision.errors import UsageError, UserError
from lit_vision.optim import training_length
from lit_vision.runs.fsdp import blocks_of, recompute_activations
from lit_vision.runs.step_sizes import PRECISIONS, StepSizes, measure_training_step, number_of, total

_PRECISION_NAMES = {32: "32-true", 16: "16-mixed", 64: "64-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Machines:
    """Machines, devices of each, and images of the training split."""

    nodes: int
    devices_per_node: int
    images: int

    @property
    def processes(self) -> int:
        """Processes of the run, one a device."""
        return self.nodes * self.devices_per_node


def build_object(settings: Mapping[str, Any]) -> Any:
    """Build the object that a recipe describes by class_path and init_args."""
    module, _, name = settings["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**(settings.get("init_args") or {}))


def training_images(data: Any) -> int:
    """Return the images that training draws from, which are looked for on the disk.

    Raises:
        UserError: the data set cannot be read.
    """
    data.setup("fit")
    return int(data.num_train)


def plan_run(config: Mapping[str, Any], machines: Machines, data: Any, weight_copies: int = 0) -> dict[str, Any]:
    """Return the plan of a run.

    Args:
        config: of the run, complete, as RUN/config.yaml has it.
        machines: that it runs on, and the images of its training split.
        data: its data module.
        weight_copies: of the weights, which callbacks (EMA) keep on each device and in a checkpoint.

    Returns:
        Plain values for JSON. `bytes` has a mapping for ddp and one for fsdp2, bytes of one device (of the largest
        part); fsdp2 is None where the model cannot be split, and `notes` says why.

    Raises:
        UserError: the recipe cannot run so, or its method or data cannot be planned.
    """
    if not hasattr(data, "example_batch"):
        raise UserError(
            f"data.class_path: {type(data).__name__} has no example_batch(), whose shapes plan needs; see "
            "ImageFolderDataModule.example_batch"
        )
    trainer, precision = config["trainer"], _precision_of(config["trainer"])
    stand_in = _stand_in_trainer(trainer, machines, data, precision)
    made: list[LightningModule] = []

    def make() -> LightningModule:
        module: LightningModule = build_object({**config["model"], "init_args": _without_weights(config["model"])})
        module.trainer = cast(Trainer, stand_in)
        if _recomputes(trainer.get("strategy")):
            recompute_activations(module)
        made[:] = [module]
        return module

    arguments = config["model"].get("init_args") or {}
    if arguments.get("teacher"):
        raise UserError(
            "model.teacher: plan opens no second model; plan the student alone, with class_path "
            "lit_vision.methods.Classifier and without the teacher's arguments"
        )
    labels = arguments.get("num_labels") or arguments.get("num_classes") or 1
    sizes = measure_training_step(make, data.example_batch(labels), data.batch_size, precision)
    module = made[0]
    length = training_length(module)
    most = trainer.get("max_steps") or -1
    steps = min(length.total_steps, most) if most > 0 else length.total_steps
    images = steps * length.global_batch_size
    why_whole = _why_not_split(module, weight_copies)
    notes = [f"fsdp2: {why_whole}"] if why_whole else []
    if len(sizes.measured_at) > 1:
        few = " and ".join(map(str, sizes.measured_at))
        notes.append(f"activations and multiply-adds are those of batches of {few}, extended in a straight line")
    per_image = sizes.multiply_adds / data.batch_size
    return {
        "method": type(module).__name__,
        "nodes": machines.nodes,
        "devices_per_node": machines.devices_per_node,
        "batch_size": data.batch_size,
        "accumulate_grad_batches": stand_in.accumulate_grad_batches,
        "global_batch_size": length.global_batch_size,
        "precision": precision,
        "epochs": length.epochs,
        "steps_per_epoch": length.steps_per_epoch,
        "steps": steps,
        "training_images": machines.images,
        "images": images,
        "multiply_adds": {"image": round(per_image), "run": round(per_image * images)},
        "parameters": number_of(sizes.parameters),
        "trained_parameters": sizes.trained,
        "optimizer": sizes.optimizer_name,
        "bytes": {
            "ddp": _bytes_of_device(sizes, 1, machines.processes, weight_copies),
            "fsdp2": None if why_whole else _bytes_of_device(sizes, machines.processes, machines.processes, 0),
        },
        "checkpoint_bytes": (1 + weight_copies) * sizes.weights + total(sizes.optimizer) + sizes.optimizer_rest,
        "notes": notes,
    }


def _stand_in_trainer(trainer: Mapping[str, Any], machines: Machines, data: Any, precision: str) -> SimpleNamespace:
    """Return what methods, `optim` and `training_length` read of a Trainer, for a run on these machines."""
    accumulate = int(trainer.get("accumulate_grad_batches") or 1)
    copies = getattr(data, "copies", 1)
    batches = TrainBatches(machines.images, data.batch_size, 0, machines.processes, accumulate, 0, copies)
    return SimpleNamespace(
        datamodule=SimpleNamespace(
            batches_per_epoch=len(batches),
            global_batch_size=data.batch_size * machines.processes * accumulate,
        ),
        callbacks=[],
        max_epochs=trainer.get("max_epochs"),
        limit_train_batches=trainer.get("limit_train_batches"),
        overfit_batches=trainer.get("overfit_batches") or 0,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=trainer.get("gradient_clip_val"),
        precision=precision,
        is_global_zero=False,  # it prints nothing
        world_size=machines.processes,
        global_rank=0,
        global_step=0,
        current_epoch=0,
    )


def _bytes_of_device(sizes: StepSizes, parts: int, processes: int, weight_copies: int) -> dict[str, int]:
    """Return the bytes of one device, whose weights are split into `parts` parts."""
    gradients = total(sizes.gradients, parts)
    found = {
        "parameters": total(sizes.parameters, parts),
        "buffers": sizes.buffers,
        "gradients": gradients,
        # DDP exchanges gradients from buckets of their own
        "buckets": gradients if parts == 1 and processes > 1 else 0,
        "optimizer": total(sizes.optimizer, parts) + sizes.optimizer_rest,
        "averages": weight_copies * sizes.weights,
        "activations": round(sizes.activations),
    }
    return {**found, "all": sum(found.values())}


def _why_not_split(module: LightningModule, weight_copies: int) -> str:
    """Return the reason why FSDP2Strategy does not take this run; "" if it does."""
    if not blocks_of(module) or not hasattr(module, "backbone"):
        return "splits transformer blocks, and this model has none"
    if any(parameter.dim() == 0 for parameter in module.parameters()):
        return "splits no parameter that is a single number, and this model has one"
    return "does not go with EMA" if weight_copies else ""


def _precision_of(trainer: Mapping[str, Any]) -> str:
    given = trainer.get("precision")
    given = int(given) if isinstance(given, str) and given.isdigit() else given
    precision = str(_PRECISION_NAMES.get(given, given) if given is not None else "32-true")
    if precision not in PRECISIONS:
        raise UsageError(f"trainer.precision: {given}; plan knows {', '.join(PRECISIONS)}")
    return precision


def _without_weights(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a method without the files of weights, which a plan does not need, and uncompiled."""
    arguments = dict(model.get("init_args") or {})
    for name, value in (("backbone_checkpoint", None), ("compile", False)):
        if arguments.get(name):
            arguments[name] = value
    if (arguments.get("backbone_args") or {}).get("pretrained"):
        arguments["backbone_args"] = {**arguments["backbone_args"], "pretrained": False}
    return arguments


def _recomputes(strategy: Any) -> bool:
    arguments = strategy.get("init_args") if isinstance(strategy, Mapping) else None
    return bool((arguments or {}).get("activation_checkpointing"))
