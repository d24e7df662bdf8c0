"""What a method's `configure_optimizers` needs: parameter groups, learning-rate schedule, optimiser, and one printed summary.

Words: `base_lr` is per 256 images, `lr` is what the optimiser gets; `global_batch_size` is per-device batch x devices x accumulation.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_vision.errors import UserError
from lit_vision.lars import LARS

OPTIMIZERS = ("adamw", "adam", "sgd", "lars", "lamb")

# Learned tokens and positions are no weights of a linear map, and fine-tuning (He et al. 2022, code) exempts them.
# Official MAE pre-training exempts only what is 1-D or named .bias, so it decays cls_token and mask_token: methods/mae.py asks for that rule.
NO_DECAY = ("cls_token", "mask_token", "pos_embed", "reg_token", "dist_token", "relative_position_bias_table")


@dataclass(frozen=True)
class Plan:
    """The length of a run in optimiser steps.

    Args:
        steps_per_epoch: optimiser steps (not micro-batches) of one epoch.
        epochs: epochs of the whole run.
        global_batch_size: images per optimiser step over all devices and accumulated micro-batches.
    """

    steps_per_epoch: int
    epochs: int
    global_batch_size: int

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs


def plan_of(module) -> Plan:
    """The plan of the run that `module` (a LightningModule) is attached to, from the datamodule's own sampler.

    Never reads `trainer.estimated_stepping_batches`: it builds the loaders early, and a restored loader state is lost (Lightning #20550).

    Raises:
        UserError: no datamodule that counts its batches, no `max_epochs`, or not one optimiser step per epoch.
    """
    trainer = module.trainer
    data = getattr(trainer, "datamodule", None)
    if not hasattr(data, "batches_per_epoch"):
        raise UserError(
            "data: the trainer has no datamodule with batches_per_epoch; pass datamodule=ImageFolderDataModule(...) to fit"
        )
    if trainer.max_epochs is None or trainer.max_epochs < 1:
        raise UserError(
            "trainer.max_epochs: not set, and the learning-rate schedule counts epochs; set it to 1 or more"
        )
    batches, limit = data.batches_per_epoch, trainer.limit_train_batches
    if isinstance(limit, int):
        batches = min(batches, limit)
    elif limit is not None:
        batches = int(batches * limit)
    steps = math.ceil(batches / trainer.accumulate_grad_batches)  # Lightning steps after the last batch in any case
    if steps < 1:
        raise UserError(
            f"data.batch_size: {data.global_batch_size} images a step are more than the training set holds; lower batch_size or accumulation"
        )
    return Plan(steps, trainer.max_epochs, data.global_batch_size)


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int, min_ratio: float = 0.0) -> float:
    """The factor on the peak learning rate at an optimiser step: linear from 0, then half a cosine down to `min_ratio`.

    Source: He et al. 2022, arXiv:2111.06377, Table 8 (set per step, not per epoch); Chen et al. 2020, arXiv:2002.05709, section 2.3.
    The first step of a run with warm-up therefore has learning rate 0, as in the official code.

    Args:
        step: optimiser steps done so far, 0 or more; past the end the factor stays at `min_ratio`.
        total_steps: steps of the whole run.
        warmup_steps: steps of the linear part; the factor is exactly 1 at step == warmup_steps.
        min_ratio: last learning rate over peak learning rate, 0 to 1.

    Returns:
        A factor, 0 to 1. If the warm-up is longer than the run, the run ends inside the linear part.
    """
    if step < warmup_steps:
        return step / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * done))


def is_no_decay(name: str, parameter: Tensor, names: Iterable[str] = NO_DECAY) -> bool:
    """True for biases and norm gains (at most one dimension) and for parameters whose last name part is in `names`."""
    return parameter.ndim <= 1 or name.rsplit(".", 1)[-1] in names


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    no_decay: Callable[[str, Tensor], bool] | Iterable[str] = NO_DECAY,
) -> list[dict[str, Any]]:
    """Two parameter groups, with and without weight decay. Frozen parameters are in neither; an empty group is left out.

    Args:
        named_parameters: of the module, or of several chained.
        weight_decay: of the decayed group; 0 or more.
        no_decay: names (last dotted part) that are exempt beside all 1-D parameters, or a predicate (name, parameter) that replaces this rule.

    Returns:
        A list of {"params", "name", "weight_decay", "lr_scale": 1.0} as `configure` takes it.

    Raises:
        UserError: nothing is trainable, or `weight_decay` touches no parameter.
    """
    return layer_decay_groups(named_parameters, [], weight_decay, 1.0, no_decay)


def layer_decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    layers: Sequence[Iterable[str]],
    weight_decay: float,
    layer_decay: float,
    no_decay: Callable[[str, Tensor], bool] | Iterable[str] = NO_DECAY,
) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate falls from the head to the patch embedding.

    Group i of n gets lr_scale = layer_decay^(n - 1 - i). A ViT with 12 blocks has n = 14: patch embedding 0, block i at i + 1,
    final norm and head at 13. Source: Bao et al. 2022, arXiv:2106.08254; He et al. 2022, Table 9 (0.65^13 = 0.003697 for ViT-B's patch embedding).

    Args:
        named_parameters: all parameters of the method, in a fixed order.
        layers: parameter names per layer, from the input to the output, with the names that `named_parameters` uses.
            Names in no layer (the head) belong to the last one.
        weight_decay: of the parameters that are decayed.
        layer_decay: in (0, 1]; 1 is no layer decay.
        no_decay: as in `decay_groups`.

    Returns:
        A list of {"params", "name", "weight_decay", "lr_scale"}, input to output, decayed before exempt.

    Raises:
        UserError: nothing is trainable; `weight_decay` or a `layer_decay` below 1 touches no parameter; a layer names an unknown parameter.
    """
    if not 0 < layer_decay <= 1:
        raise UserError(
            f"layer_decay: {layer_decay} is not in (0, 1]; give 1 for none, 0.65 to 0.9 to fine-tune a transformer"
        )
    if weight_decay < 0:
        raise UserError(f"weight_decay: {weight_decay} is negative; give 0 or more")
    exempt = no_decay if callable(no_decay) else lambda name, p, names=tuple(no_decay): is_no_decay(name, p, names)
    named = list(named_parameters)
    layers = layers if layer_decay < 1 else []  # nothing tells the layers apart
    last = max(0, len(layers) - 1)
    layer_of = {name: i for i, names in enumerate(layers) for name in names}
    if unknown := sorted(layer_of.keys() - {name for name, _ in named}):
        raise UserError(
            f"layer_decay: layers name parameters that the model has not: {', '.join(unknown[:3])}; this is the backbone's fault"
        )
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            key = (layer_of.get(name, last), weight_decay == 0 or exempt(name, parameter))
            found.setdefault(key, []).append(parameter)
    if not found:
        raise UserError("tune: no parameter is trainable; choose another value of tune")
    if weight_decay > 0 and all(plain for _, plain in found):
        raise UserError(
            f"weight_decay: {weight_decay} touches no parameter (all trainable ones are biases, norms or tokens); set it to 0"
        )
    if layer_decay < 1 and all(layer == last for layer, _ in found):
        raise UserError(f"layer_decay: {layer_decay} touches no parameter (only the last layer trains); set it to 1")
    groups = []
    for layer, plain in sorted(found):
        part = "no_decay" if plain else "decay"
        groups.append(
            {
                "params": found[layer, plain],
                "name": f"layer_{layer:02d}/{part}" if layer_decay < 1 else part,
                "weight_decay": 0.0 if plain else weight_decay,
                "lr_scale": layer_decay ** (last - layer),
            }
        )
    return groups


def scaled_lr(base_lr: float | None, lr: float | None, global_batch_size: int) -> float:
    """The peak learning rate: `lr` if it is given, else base_lr x global_batch_size / 256 (Goyal et al. 2017, arXiv:1706.02677).

    Raises:
        UserError: neither is given, or the result is not positive.
    """
    if lr is None and base_lr is None:
        raise UserError("base_lr: neither base_lr (per 256 images) nor lr (absolute) is set; set one of them")
    value = lr if lr is not None else base_lr * global_batch_size / 256
    if value <= 0:
        raise UserError(f"{'base_lr' if lr is None else 'lr'}: {value} is not positive; give a positive learning rate")
    return value


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
    """One of OPTIMIZERS over `groups`; each group's learning rate is lr x its lr_scale.

    Args:
        groups: from `decay_groups` or `layer_decay_groups`; not changed.
        name: adamw, adam (L2 decay), sgd, lars (ours), lamb (timm's, which also clips the global gradient norm at 1).
        lr: peak learning rate.
        betas: of adam, adamw and lamb.
        momentum: of sgd and lars.
        nesterov: of sgd.
        lr_in_momentum: of lars: the learning rate inside the momentum buffer (SimCLR) or, if False, outside (MAE's linear probe).
        fused: one kernel per step for adam and adamw where the parameters' device has one.

    Raises:
        UserError: unknown name, or lr_in_momentum=False for another optimiser than lars.
    """
    if not lr_in_momentum and name != "lars":
        raise UserError(f"lr_in_momentum: false is a form of lars and does nothing for {name}; set it to true")
    groups = [{**group, "lr": lr * group.get("lr_scale", 1.0)} for group in groups]
    parameters = [p for group in groups for p in group["params"]]
    fused = fused and all(
        type(p) is nn.Parameter and p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters
    )
    betas = tuple(betas)
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


def describe(optimizer: torch.optim.Optimizer, plan: Plan, lr: float, scaling: str, warmup_steps: int) -> str:
    """The lines that `configure` prints: the learning rate and where it comes from, the schedule, then each group's count, lr and decay."""
    lines = [
        f"{type(optimizer).__name__}: lr {lr:.4g} = {scaling}",
        f"schedule: {plan.total_steps} steps ({plan.epochs} epochs x {plan.steps_per_epoch}), warm-up {warmup_steps}, then cosine",
    ]
    if warmup_steps >= plan.total_steps:
        lines.append(
            f"note: the warm-up does not end within this run; the learning rate stops at {lr * plan.total_steps / warmup_steps:.4g}"
        )
    for group in optimizer.param_groups:
        count = sum(p.numel() for p in group["params"])
        lines.append(
            f"  {group.get('name', 'parameters'):20} {len(group['params']):4d} tensors {count:13,d} parameters"
            f"  lr {group['initial_lr']:.4g}  decay {group['weight_decay']:.4g}"
        )
    return "\n".join(lines)


def configure(
    module,
    groups: list[dict[str, Any]],
    *,
    optimizer: str,
    base_lr: float | None,
    lr: float | None,
    betas: tuple[float, float] = (0.9, 0.999),
    warmup_epochs: float = 0.0,
    min_lr: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    lr_in_momentum: bool = True,
) -> dict[str, Any]:
    """What a method's `configure_optimizers` returns: optimiser and per-step warm-up + cosine schedule. Prints the summary once (rank zero).

    Args:
        module: a LightningModule attached to a trainer with our datamodule.
        groups: from `decay_groups` or `layer_decay_groups`.
        optimizer: one of OPTIMIZERS.
        base_lr: learning rate per 256 images; world size and accumulation are counted.
        lr: absolute peak learning rate; wins over base_lr.
        betas: of adam, adamw, lamb.
        warmup_epochs: linear part, may be fractional.
        min_lr: absolute learning rate at the end, for a group with lr_scale 1; other groups end at min_lr x lr_scale.
        momentum: of sgd and lars.
        nesterov: of sgd.
        lr_in_momentum: of lars, see `build_optimizer`.

    Raises:
        UserError: as `plan_of`, `scaled_lr` and `build_optimizer`.
    """
    plan = plan_of(module)
    peak = scaled_lr(base_lr, lr, plan.global_batch_size)
    if not 0 <= min_lr <= peak:
        raise UserError(f"min_lr: {min_lr} is not between 0 and the peak learning rate {peak:.4g}; lower it")
    # A fused optimiser unscales gradients itself, and Lightning then refuses to clip them (fp16 only).
    fused = module.trainer.precision != "16-mixed"
    forms = {"momentum": momentum, "nesterov": nesterov, "lr_in_momentum": lr_in_momentum}
    built = build_optimizer(groups, optimizer, lr=peak, betas=betas, fused=fused, **forms)
    warmup_steps = round(warmup_epochs * plan.steps_per_epoch)

    def factor(step: int) -> float:
        return warmup_cosine(step, total_steps=plan.total_steps, warmup_steps=warmup_steps, min_ratio=min_lr / peak)

    scheduler = torch.optim.lr_scheduler.LambdaLR(built, factor)
    if module.trainer.is_global_zero:
        scaling = "given" if lr is not None else f"base_lr {base_lr:.4g} x {plan.global_batch_size} images a step / 256"
        print(describe(built, plan, peak, scaling, warmup_steps), flush=True)
    return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
