"""Bytes and multiply-adds of one training step of a method, measured without its data and mostly without its memory.

The step is taken on torch's fake tensors, which have shapes and no content: a ViT-H at batch 4096 needs no more memory
than a toy. Where a method's shapes depend on content (a detector's proposals) it is taken on real tensors, on a CPU and
in two small batches, and what grows with the batch is extended in a straight line.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from lit_vision.data.batch import Batch
from lit_vision.errors import UserError
from lit_vision.runs.multiply_adds import MultiplyAddCounter

log = logging.getLogger(__name__)

FEW_IMAGES = (1, 2)  # batches of real steps
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
PRECISIONS = ("32-true", *_AUTOCAST, *_DTYPES)


@dataclass(frozen=True)
class TensorSize:
    """Shape and bytes of a tensor."""

    shape: tuple[int, ...]
    bytes: int

    def of_part(self, processes: int) -> int:
        """Return the bytes of one process's part as FSDP2 splits it: ceil(rows / processes) rows, padded."""
        if not self.bytes or not self.shape:
            return self.bytes
        return self.bytes // self.shape[0] * -(-self.shape[0] // processes)


@dataclass(frozen=True)
class StepSizes:
    """Sizes of one process's model and training step, nothing of it split.

    Attributes:
        parameters: all of them, shared ones once.
        gradients: of the parameters that the loss reaches.
        optimizer: the optimizer's state that has its parameter's shape.
        optimizer_rest: bytes of its other state, such as counts of steps.
        trained: number of weights that train.
        buffers: bytes.
        weights: bytes of the state dict.
        activations: bytes of what forward keeps for backward.
        multiply_adds: of the step, forward and backward.
        measured_at: images of the steps that were taken.
        optimizer_name: class of the optimizer.
    """

    parameters: tuple[TensorSize, ...]
    gradients: tuple[TensorSize, ...]
    optimizer: tuple[TensorSize, ...]
    optimizer_rest: int
    trained: int
    buffers: int
    weights: int
    activations: float
    multiply_adds: float
    measured_at: tuple[int, ...]
    optimizer_name: str


def measure_training_step(
    make: Callable[[], LightningModule], example: Batch, batch_size: int, precision: str, *, fake: bool = True
) -> StepSizes:
    """Return the sizes of a training step.

    Args:
        make: returns the method on its trainer, which `configure_optimizers` reads; its weights are not used.
        example: a batch of one sample, not yet normalized.
        batch_size: of the step.
        precision: one of PRECISIONS.
        fake: take the step on fake tensors if the method can.

    Raises:
        UserError: the method trains by several optimizers, or cannot take a step on made-up images.
    """
    if fake:
        try:
            with torch.device("meta"):
                module = make()
            with FakeTensorMode(), _ReadsAreOne():
                _replace_tensors(module)
                return _take_step(module, _without_content(example, batch_size), batch_size, precision)
        except (RuntimeError, AssertionError):  # the kinds that a fake tensor raises have no other base
            pass
    module = make()
    log.warning("%s: two steps on real tensors; large images take minutes", type(module).__name__)
    few, more = (_real_step(module, _repeated(example, count), count, precision) for count in FEW_IMAGES)
    steps = (batch_size - FEW_IMAGES[1]) / (FEW_IMAGES[1] - FEW_IMAGES[0])
    return replace(
        more,
        activations=more.activations + steps * (more.activations - few.activations),
        multiply_adds=more.multiply_adds + steps * (more.multiply_adds - few.multiply_adds),
        measured_at=FEW_IMAGES,
    )


def _real_step(module: LightningModule, batch: Batch, count: int, precision: str) -> StepSizes:
    try:
        return _take_step(module, batch, count, precision)
    except (RuntimeError, AssertionError, ValueError, TypeError, KeyError, AttributeError) as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"model: {type(module).__name__} cannot take a step on made-up images ({text}); train a few steps with "
            "--trainer.limit_train_batches instead"
        ) from error


def _take_step(module: LightningModule, batch: Batch, count: int, precision: str) -> StepSizes:
    """Take one training step, as the Trainer does it, and measure it."""
    if not module.automatic_optimization:
        raise UserError(f"model: {type(module).__name__} trains by several optimizers in turn, which plan cannot count")
    if precision in _DTYPES:
        module.to(_DTYPES[precision])
    module.train()
    quiet: Any = module
    quiet.log = quiet.log_dict = lambda *args, **kwargs: None  # there is no loop that collects them
    optimizer = _optimizer_of(module)
    kept = _KeptStorages([*module.parameters(), *module.buffers()])
    autocast = torch.autocast("cpu", _AUTOCAST[precision]) if precision in _AUTOCAST else contextlib.nullcontext()
    with MultiplyAddCounter() as counter:
        batch = module.on_after_batch_transfer(batch, 0)
        with autocast, saved_tensors_hooks(kept.add, lambda tensor: tensor):
            result = module.training_step(batch, 0)
        loss = cast(Tensor, result["loss"] if isinstance(result, Mapping) else result)
        activations = kept.bytes()
        loss.backward()
    optimizer.step()
    parameters = list(module.parameters())
    of_weights, rest = [], 0
    for parameter, state in optimizer.state.items():
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
                of_weights.append(_size(value))
            elif isinstance(value, Tensor):
                rest += _size(value).bytes
    return StepSizes(
        parameters=tuple(map(_size, parameters)),
        gradients=tuple(_size(p.grad) for p in parameters if p.grad is not None),
        optimizer=tuple(of_weights),
        optimizer_rest=rest,
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        buffers=sum(_size(buffer).bytes for buffer in module.buffers()),
        weights=_unique_bytes(module.state_dict().values()),
        activations=activations,
        multiply_adds=counter.multiply_adds,
        measured_at=(count,),
        optimizer_name=type(optimizer).__name__,
    )


def _optimizer_of(module: LightningModule) -> torch.optim.Optimizer:
    configured: Any = module.configure_optimizers()
    optimizer = configured.get("optimizer") if isinstance(configured, Mapping) else configured
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"model: {type(module).__name__} has no single optimizer, which plan needs")
    return optimizer


def _size(tensor: Tensor) -> TensorSize:
    return TensorSize(tuple(tensor.shape), tensor.numel() * tensor.element_size())


def _unique_bytes(values: Any) -> int:
    """Return the bytes of the storages of some tensors, shared ones once, as torch.save writes them."""
    storages = {StorageWeakRef(t.untyped_storage()): t.untyped_storage().nbytes() for t in values}
    return sum(storages.values())


class _KeptStorages:
    """Storages that autograd keeps for the backward pass, without those of the model.

    Args:
        model: tensors whose storages do not count.
    """

    def __init__(self, model: list[Tensor]) -> None:
        self._model = {StorageWeakRef(tensor.untyped_storage()) for tensor in model}
        self._kept: dict[StorageWeakRef, int] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """Note a tensor that autograd saves, and return it."""
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in self._model:
            self._kept[storage] = tensor.untyped_storage().nbytes()
        return tensor

    def bytes(self) -> int:
        """Return the bytes of those that are still alive."""
        return sum(size for storage, size in self._kept.items() if not storage.expired())


class _ReadsAreOne(TorchDispatchMode):
    """Let code that reads a number from a fake tensor, which has none, get 1 (False of a bool): a seed, a condition."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return False if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        return func(*args, **(kwargs or {}))


def _replace_tensors(module: nn.Module) -> None:
    """Replace parameters and buffers by new ones of the same shape on the CPU; shared ones stay shared."""
    new: dict[int, Any] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, old in cast("dict[str, Tensor | None]", held).items():
                if old is None:
                    continue
                if id(old) not in new:
                    tensor = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device="cpu")
                    is_parameter = isinstance(old, nn.Parameter)
                    new[id(old)] = nn.Parameter(tensor, requires_grad=old.requires_grad) if is_parameter else tensor
                held[name] = new[id(old)]


def _repeated(example: Batch, count: int) -> Batch:
    """Return a batch of `count` copies of a batch of one."""
    fields = cast("dict[str, Any]", example).items()
    copies = {name: torch.cat([v] * count) if isinstance(v, Tensor) else list(v) * count for name, v in fields}
    return cast(Batch, copies)


def _without_content(example: Batch, count: int) -> Batch:
    """Return a batch of `count` samples whose tensors are new, from a batch of one."""

    def new(value: Tensor) -> Tensor:
        return torch.empty(value.shape, dtype=value.dtype)

    found: dict[str, Any] = {}
    for name, value in cast("dict[str, Any]", example).items():
        if isinstance(value, Tensor):
            found[name] = torch.empty((count, *value.shape[1:]), dtype=value.dtype)
        else:  # targets: a dict of tensors for each image
            found[name] = [{key: new(entry) for key, entry in target.items()} for target in value] * count
    return cast(Batch, found)


def total(sizes: tuple[TensorSize, ...], processes: int = 1) -> int:
    """Return the bytes of tensors on one device, split over the processes as FSDP2 does."""
    return sum(size.of_part(processes) for size in sizes)


def number_of(sizes: tuple[TensorSize, ...]) -> int:
    """Return the number of elements of some tensors."""
    return sum(math.prod(size.shape) for size in sizes)
