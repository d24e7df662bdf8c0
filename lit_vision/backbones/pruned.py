"""Rebuild a pruned timm model from the numbers of the channels and attention heads that were kept, layer by layer.

`lit-vision prune` (convert/prune.py) chooses them; a file holds them as plain text under `backbone_args.pruned`:
    {"layer1.0.conv1": {"out": "0-3,6"}, "layer1.0.conv2": {"in": "0-3,6"}, "blocks.0.attn": {"heads": "0,2"}}
"out" and "in" are output and input channels of a convolution, linear map or batch norm ("out" alone for batch norms
and depthwise convolutions), "heads" are heads of an attention. Numbers count the layers of the model before pruning.
Nothing here needs torch-pruning, and nothing in a file is trusted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from timm.layers import Attention
from torch import Tensor, nn

from lit_vision.errors import UserError

Kept = dict[str, dict[str, str]]  # name of a layer: axis: numbers as `ranges_text` writes them

_RANGES = re.compile(r"[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*")  # \d has other scripts' digits too


def ranges_text(numbers: Sequence[int]) -> str:
    """Return sorted numbers as text, runs of two or more as `first-last`: "0-3,6"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def parse_ranges(text: object, size: int, what: str) -> list[int]:
    """Return the numbers that `ranges_text` wrote.

    Args:
        text: of a file, so it may be anything.
        size: the numbers are below it.
        what: layer and axis, for the error.

    Raises:
        UserError: another text, no number, or numbers that do not rise or are not below `size`.
    """
    if not isinstance(text, str) or not _RANGES.fullmatch(text):
        raise damaged(f'{what} is {str(text)[:40]!r}, not numbers such as "0-3,6"')
    numbers: list[int] = []
    for run in text.split(","):
        first, _, last = run.partition("-")
        low, high = int(first), int(last or first)
        if not (numbers[-1] if numbers else -1) < low <= high < size:
            raise damaged(f"{what} has {run}, where numbers must rise and be below {size}")
        numbers.extend(range(low, high + 1))
    return numbers


def damaged(reason: str) -> UserError:
    """Return the error of channels that do not fit the model."""
    return UserError(f"backbone_args.pruned: {reason}; give the backbone that was pruned, or take another copy of it")


def layer_size(layer: nn.Module, axis: str) -> int:
    """Return the number of channels or heads of a layer along "out", "in" or "heads"; 0 if it has none."""
    sizes: dict[str, int] = {}
    if isinstance(layer, Attention):
        sizes = {"heads": layer.num_heads}
    elif isinstance(layer, nn.Linear):
        sizes = {"out": layer.out_features, "in": layer.in_features}
    elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
        sizes = {"out": layer.out_channels, "in": layer.in_channels}
    elif isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels:
        sizes = {"out": layer.out_channels}
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        sizes = {"out": layer.num_features}
    return sizes.get(axis, 0)


def keep_channels(model: nn.Module, kept: object, shape: tuple[int, int, int] | None) -> None:
    """Remove all other channels and heads of the layers that are named, in place.

    Args:
        model: a timm model as it is before pruning, or a module around one; its weights stay with their channels.
        kept: of type Kept, from a file.
        shape: (C, H, W) of an image, to check that the layers fit together again, and to count the features; None
            checks and counts nothing.

    Raises:
        UserError: no such layer or axis, numbers that do not fit it, or layers that do not fit together.
    """
    if not isinstance(kept, Mapping) or not kept:
        raise damaged(f"is {str(kept)[:40]!r}, not a mapping of layers to channels")
    layers = dict(model.named_modules())
    chosen: list[tuple[nn.Module, str, list[int]]] = []
    for name, axes in kept.items():
        layer = layers.get(name)
        if layer is None:
            raise damaged(f"the model has no layer {str(name)[:80]!r}")
        if not isinstance(axes, Mapping):
            raise damaged(f"{name} is {str(axes)[:40]!r}, not a mapping of out, in or heads to numbers")
        for axis, text in axes.items():
            size = layer_size(layer, axis)
            if not size:
                raise damaged(f"{name}, a {type(layer).__name__}, has no {str(axis)[:20]!r} to prune")
            chosen.append((layer, axis, parse_ranges(text, size, f"{name}.{axis}")))
    for layer, axis, numbers in chosen:
        if isinstance(layer, Attention):
            _keep_heads(layer, numbers)
        else:
            _keep(layer, axis, torch.tensor(numbers))
    if shape is not None:
        model.num_features = model.head_hidden_size = _count_features(model, shape)


def places_before_pruning(weight: Tensor, axes: Mapping[str, str], shape: torch.Size) -> Tensor:
    """Return a pruned layer's weight with its channels where they were before, and zeros where others were.

    Args:
        weight: (C_out, C_in, ...).
        axes: of the layer in Kept, checked by `keep_channels`.
        shape: of the weight before pruning.
    """
    outer, inner = (
        torch.tensor(parse_ranges(axes[axis], size, axis)) if axis in axes else torch.arange(size)
        for axis, size in zip(("out", "in"), shape)
    )
    full = weight.new_zeros(shape)
    full[outer[:, None], inner] = weight
    return full


def _keep(layer: nn.Module, axis: str, numbers: Tensor) -> None:
    """Keep the output or input channels of a layer that has no others to change with them."""
    count = len(numbers)
    if axis == "in":
        _select(layer, "weight", 1, numbers)
        setattr(layer, "in_features" if isinstance(layer, nn.Linear) else "in_channels", count)
        return
    for name in ("weight", "bias", "running_mean", "running_var"):
        _select(layer, name, 0, numbers)
    if isinstance(layer, nn.Linear):
        layer.out_features = count
    elif not isinstance(layer, nn.Conv2d):
        layer.num_features = count
    else:
        if layer.groups > 1:  # depthwise
            layer.groups = layer.in_channels = count
        layer.out_channels = count


def _keep_heads(attention: Attention, heads: list[int]) -> None:
    """Keep some heads: their rows of q, k and v, and the columns of the projection that read them."""
    if attention.gate is not None or not isinstance(attention.norm, nn.Identity):
        raise damaged("an attention with a gate or a norm over its heads cannot be pruned")
    width = attention.head_dim
    rows = torch.arange(3 * attention.num_heads * width).reshape(3, attention.num_heads, width)
    _keep(attention.qkv, "out", rows[:, heads].flatten())
    _keep(attention.proj, "in", rows[0, heads].flatten())
    attention.num_heads, attention.attn_dim = len(heads), len(heads) * width


def _select(layer: nn.Module, name: str, axis: int, numbers: Tensor) -> None:
    """Keep some entries of a parameter or buffer along an axis, if the layer has it."""
    value = getattr(layer, name, None)
    if value is None:
        return
    chosen = value.detach().index_select(axis, numbers.to(value.device))
    setattr(layer, name, nn.Parameter(chosen, value.requires_grad) if isinstance(value, nn.Parameter) else chosen)


def _count_features(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the length of the features, found by a pass over tensors without memory.

    Raises:
        UserError: layers do not fit together.
    """
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            images = torch.empty(1, *shape, device="meta")
            features: Tensor = torch.func.functional_call(model, shapes, (images,))
    except (RuntimeError, ValueError, IndexError) as error:
        raise damaged(f"the layers do not fit together ({' '.join(str(error).split())[:120]})") from error
    finally:
        model.train(training)
    return int(features.shape[1])
