"""Optimizer, parameter groups and schedule of a run, with one printed summary.

`base_lr` is per 256 images, `lr` is the value in the optimizer; `global_batch_size` is per-device batch x devices x
accumulation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from lit_vision.errors import UserError
from lit_vision.optim.groups import NO_DECAY, decay_groups, is_no_decay, layer_decay_groups
from lit_vision.optim.lars import LARS
from lit_vision.optim.schedule import (
    StableDecayLR,
    TrainingLength,
    scaled_lr,
    training_length,
    warmup_cosine,
    warmup_stable_decay,
)

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

OPTIMIZERS = ("adamw", "adam", "sgd", "lars", "lamb")
Schedule = Literal["cosine", "warmup-stable-decay"]
__all__ = [
    "LARS",
    "NO_DECAY",
    "OPTIMIZERS",
    "Schedule",
    "StableDecayLR",
    "TrainingLength",
    "build_optimizer",
    "decay_groups",
    "format_summary",
    "is_no_decay",
    "layer_decay_groups",
    "optimizer_and_schedule",
    "optimizer_from_hparams",
    "scaled_lr",
    "training_length",
    "warmup_cosine",
    "warmup_stable_decay",
]


def build_optimizer(
    groups: list[dict[str, Any]],
    name: str,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.9,
    nesterov: bool = False,
    lr_in_momentum: bool = True,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """Build the optimizer `name` over `groups`; each group's learning rate is lr x its lr_scale.

    Args:
        groups: from `decay_groups` or `layer_decay_groups`; not changed.
        name: one of OPTIMIZERS: adamw, adam (L2 decay), sgd, lars (ours), lamb (timm's, which also clips the global
            gradient norm at 1).
        lr: peak learning rate.
        betas: of adam, adamw and lamb.
        momentum: of sgd and lars.
        nesterov: of sgd.
        lr_in_momentum: of lars: True has the learning rate inside the momentum buffer (SimCLR), False outside (MAE's
            linear probe).
        fused: one kernel per step for adam and adamw where the parameters' device has one.

    Raises:
        UserError: unknown name, or lr_in_momentum=False for another optimizer than lars.
    """
    if not lr_in_momentum and name != "lars":
        raise UserError(f"lr_in_momentum: false has an effect with lars only, not with {name}; set it to true")
    groups = [{**group, "lr": lr * group.get("lr_scale", 1.0)} for group in groups]
    parameters = [p for group in groups for p in group["params"]]
    fused = fused and all(
        type(p) is nn.Parameter and p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters
    )
    betas = (betas[0], betas[1])  # a recipe gives a list
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr, betas=betas, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
    if name == "lars":
        return LARS(groups, lr=lr, momentum=momentum, lr_in_momentum=lr_in_momentum)
    if name == "lamb":
        from timm.optim import Lamb  # timm takes seconds to import

        return Lamb(groups, lr=lr, betas=betas)
    raise UserError(f"optimizer: {name!r} is not one of {', '.join(OPTIMIZERS)}; choose one of these")


def format_summary(
    optimizer: torch.optim.Optimizer,
    length: TrainingLength,
    lr: float,
    scaling: str,
    warmup_steps: int,
    decay_start: int | None = None,
) -> str:
    """Return the lines that `optimizer_and_schedule` prints.

    They hold the learning rate and its origin (`scaling`), the schedule (a cosine if `decay_start` is None), then each
    group's count, lr and decay.
    """
    rest, epochs = "cosine", f"{length.epochs} epochs"
    if length.planned_steps is not None:
        epochs = f"{length.planned_steps / length.steps_per_epoch:.4g} epochs"
    if decay_start is not None:
        rest = f"constant, 1 - sqrt decay in the last {length.total_steps - decay_start} steps"
    lines = [
        f"{type(optimizer).__name__}: lr {lr:.4g} = {scaling}",
        f"schedule: {length.total_steps} steps ({epochs} x {length.steps_per_epoch}), "
        f"warm-up {warmup_steps}, then {rest}",
    ]
    end, part = (length.total_steps, "run") if decay_start is None else (decay_start + 1, "run's part before the decay")
    if warmup_steps >= end:
        highest = lr * (end if decay_start is None else decay_start) / warmup_steps
        lines.append(f"note: the warm-up does not end within this {part}; the learning rate stops at {highest:.4g}")
    for group in optimizer.param_groups:
        count = sum(p.numel() for p in group["params"])
        lines.append(
            f"  {group.get('name', 'parameters'):20} {len(group['params']):4d} tensors {count:13,d} parameters"
            f"  lr {group['initial_lr']:.4g}  decay {group['weight_decay']:.4g}"
        )
    return "\n".join(lines)


def optimizer_and_schedule(
    module: LightningModule,
    groups: list[dict[str, Any]],
    *,
    optimizer: str,
    base_lr: float | None = None,
    lr: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    warmup_epochs: float = 0.0,
    min_lr: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    lr_in_momentum: bool = True,
    schedule: Schedule = "cosine",
    decay_share: float = 0.2,
) -> dict[str, Any]:
    """Build optimizer and per-step schedule with a linear warm-up, as Lightning's `configure_optimizers` returns them.

    Prints the summary once (rank zero).

    Args:
        module: a LightningModule attached to a trainer with our datamodule.
        groups: from `decay_groups` or `layer_decay_groups`.
        optimizer: one of OPTIMIZERS.
        base_lr: learning rate per 256 images; world size and accumulation are counted.
        lr: absolute peak learning rate; if given, base_lr is not used.
        betas: of adam, adamw, lamb.
        warmup_epochs: linear part, may be fractional.
        min_lr: absolute learning rate at the end, for a group with lr_scale 1; other groups end at min_lr x lr_scale.
        momentum: of sgd and lars.
        nesterov: of sgd.
        lr_in_momentum: of lars, see `build_optimizer`.
        schedule: after the warm-up: cosine, or constant and then the decay of `warmup_stable_decay`.
        decay_share: of all steps, those of that decay, between 0 and 1.

    Raises:
        UserError: an unknown schedule, or as `training_length`, `scaled_lr` and `build_optimizer`.
    """
    length = training_length(module)
    peak = scaled_lr(base_lr, lr, length.global_batch_size)
    if not 0 <= min_lr <= peak:
        raise UserError(f"min_lr: {min_lr} is not between 0 and the peak learning rate {peak:.4g}; lower it")
    # A fused optimizer unscales gradients itself, and Lightning then refuses to clip them (under mixed precision only).
    precision, clips = module.trainer.precision, getattr(module.trainer, "gradient_clip_val", None)
    fused = precision != "16-mixed" and not (precision == "bf16-mixed" and clips)
    built = build_optimizer(
        groups,
        optimizer,
        lr=peak,
        betas=betas,
        momentum=momentum,
        nesterov=nesterov,
        lr_in_momentum=lr_in_momentum,
        fused=fused,
    )
    warmup_steps = round(warmup_epochs * length.steps_per_epoch)

    total, min_ratio, decay_start = length.total_steps, min_lr / peak, None
    scheduler: torch.optim.lr_scheduler.LambdaLR
    if schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            built, lambda step: warmup_cosine(step, total_steps=total, warmup_steps=warmup_steps, min_ratio=min_ratio)
        )
    elif schedule == "warmup-stable-decay":
        scheduler = StableDecayLR(built, total, warmup_steps, decay_share, min_ratio)
        decay_start = scheduler.decay_start
    else:
        raise UserError(f"schedule: {schedule!r} is not one of {', '.join(get_args(Schedule))}; choose one of these")
    if module.trainer.is_global_zero:
        scaling = (
            "given" if lr is not None else f"base_lr {base_lr:.4g} x {length.global_batch_size} images a step / 256"
        )
        print(format_summary(built, length, peak, scaling, warmup_steps, decay_start), flush=True)
    return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def optimizer_from_hparams(module: LightningModule, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Call `optimizer_and_schedule` with those of its arguments that are hyper-parameters of the module.

    Args:
        module: its `hparams` hold optimizer, base_lr or lr, and any of betas, warmup_epochs, min_lr, momentum,
            nesterov, lr_in_momentum, schedule and decay_share.
        groups: from `decay_groups` or `layer_decay_groups`.

    Raises:
        UserError: as `optimizer_and_schedule`.
    """
    names = ["optimizer", "base_lr", "lr", "betas", "warmup_epochs", "min_lr", "momentum", "nesterov"]
    names += ["lr_in_momentum", "schedule", "decay_share"]
    return optimizer_and_schedule(
        module, groups, **{name: module.hparams[name] for name in names if name in module.hparams}
    )
