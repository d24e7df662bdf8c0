"""Prune a model: remove whole channels, attention heads and MLP units, so that it is smaller and faster everywhere.

torch-pruning finds which layers must lose a channel together (Fang et al. 2023, arXiv:2301.12900, DepGraph) and rates
the channels by their weights. The numbers of those that are kept go into the file's metadata, and
backbones/pruned.py rebuilds the network from them: the file holds no pickle and is opened without torch-pruning.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import Attention, Mlp
from timm.models import EfficientNet, MobileNetV3, ResNet, VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lit_vision.backbones.pruned import Kept, keep_channels, layer_size, parse_ranges, ranges_text
from lit_vision.convert.export import export
from lit_vision.data.views.image_size import size_text
from lit_vision.errors import UsageError, UserError
from lit_vision.predict.models import build_metadata, load_method, resolve_model_file
from lit_vision.predict.tasks import example_input
from lit_vision.predict.writers import check_output_path

if TYPE_CHECKING:
    from lit_vision.weights.model_metadata import ModelMetadata

TASKS = ("classification", "multilabel", "features")
FAMILIES = "ResNets, EfficientNets and MobileNets (2 and 3), and ViTs (heads and MLP widths)"
MULTIPLE = 8  # channels are kept in multiples of this where a layer has twice as many: runtimes compute blocks of 8
REPLAY_TOLERANCE = 1e-6  # largest difference to torch-pruning's own network, relative to the largest output


@dataclass(frozen=True)
class Pruned:
    """A pruned model.

    Attributes:
        path: the file.
        parameters: before and after.
        multiply_adds: of one image, before and after.
        size: of that image, pixels: side, or [height, width].
        difference: to the outputs of the network that torch-pruning itself makes, relative to the largest.
    """

    path: Path
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    size: int | list[int]
    difference: float

    def __str__(self) -> str:
        lines = []
        for name, (before, after) in (("parameters", self.parameters), ("multiply-adds", self.multiply_adds)):
            lines.append(f"{name}: {before / 1e6:.4g} M before, {after / 1e6:.4g} M after ({after / before:.0%})")
        lines[-1] += f" at {size_text(self.size)} pixels"
        lines.append(f"largest difference to torch-pruning's network: {self.difference:.1e}")
        lines.append(f"{self.path}: written; to train it further: fit --model.backbone_checkpoint FILE (a new head)")
        return "\n".join(lines)


def prune_model(model: str | Path, keep: float, out: str | Path, overwrite: bool = False) -> Pruned:
    """Run `lit-vision prune`: write a model with a share of its channels as .safetensors; it is not trained further.

    Of each group of layers that lose channels together the same share stays: the channels (heads, MLP units) whose
    weights have the largest squared L2 norm, averaged over the layers of the group (torch-pruning's
    GroupMagnitudeImportance, p=2). Where a layer has 16 channels or more, the number kept is the nearest multiple of 8.
    The width of a ViT's tokens, the classes and the image's channels stay.

    Args:
        model: a run's folder, a .ckpt or a .safetensors of a classifier or of features; it may be pruned already.
        keep: share of the channels of every layer that stays, between 0 and 1. Multiply-adds and parameters fall
            about with its square in a CNN, and with itself in a ViT.
        out: the file.
        overwrite: replace it if it exists.

    Raises:
        UserError: no such model, one that cannot be pruned, or torch-pruning is not installed. UsageError (a
            UserError): a value is wrong.
    """
    if not 0 < keep < 1:
        raise UsageError(f"--keep {keep:g}: is a share of the channels; give a number between 0 and 1, such as 0.5")
    if not str(out).lower().endswith(".safetensors"):
        raise UsageError(f"--out {out}: pruned models are written as safetensors; end the name in .safetensors")
    source = resolve_model_file(model)
    if source.suffix.lower() not in (".ckpt", ".pt", ".pth", ".safetensors"):
        raise UserError(f"{source}: only torch's weights can be pruned; give a run, its .ckpt or a .safetensors")
    path = check_output_path(out, overwrite)
    method, metadata = load_method(source)
    _check_model(method, metadata, source)
    _torch_pruning()
    images = example_input(metadata, 1, seed=1)
    try:
        pruned, by_torch_pruning = prune_network(method, keep, images)
    except UsageError:
        raise
    except (UserError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:150] or type(error).__name__  # the library follows only known operations
        raise UserError(f"{source}: cannot be pruned ({reason}); pruning works for plain {FAMILIES}") from error
    difference = largest_difference(pruned, by_torch_pruning, images)
    if not difference <= REPLAY_TOLERANCE:
        raise UserError(
            f"{source}: not written: the pruned network differs from torch-pruning's by {difference:.1e}, more than "
            f"{REPLAY_TOLERANCE:g}; use another backbone"
        )
    kept_metadata = build_metadata(pruned, metadata.task, vars(metadata))
    export(pruned, kept_metadata, "safetensors", path)
    counts = [sum(p.numel() for p in network.parameters()) for network in (method, pruned)]
    costs = [multiply_adds(network, images) for network in (method, pruned)]
    return Pruned(path, (counts[0], counts[1]), (costs[0], costs[1]), metadata.size, difference)


def _check_model(method: nn.Module, metadata: ModelMetadata, source: Path) -> None:
    """Refuse a model that cannot be pruned.

    Raises:
        UserError: another task than TASKS, or another backbone than FAMILIES.
    """
    name = method.backbone.config["name"]
    if metadata.task not in TASKS:
        raise UserError(f"{source}: is for {metadata.task}; pruning works for {', '.join(TASKS)}")
    if getattr(method.backbone, "adapters", None):
        raise UserError(f"{source}: has prompts, which cannot be pruned; give a model trained in another way")
    model = method.backbone.model
    if isinstance(model, VisionTransformer):
        plain = all(type(block.attn) is Attention and type(block.mlp) is Mlp for block in model.blocks)
    else:
        plain = isinstance(model, ResNet | EfficientNet | MobileNetV3) and all(
            layer_size(module, "out") for module in model.modules() if _has_tensors(module)
        )
    if not plain:
        raise UserError(f"{source}: {name} cannot be pruned; pruning works for plain {FAMILIES}")


def _has_tensors(module: nn.Module) -> bool:
    """True for a module with parameters or buffers of its own."""
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))


def prune_network(method: nn.Module, keep: float, images: torch.Tensor) -> tuple[nn.Module, nn.Module]:
    """Return the network rebuilt from the kept channels, and torch-pruning's own; `method` stays as it is.

    Args:
        method: a classifier's network, or features alone (`predict.models.FeatureModel`).
        keep: share of the channels that stays.
        images: (1, C, H, W), to follow the layers with.

    Raises:
        UserError: torch-pruning is not installed, or a layer that it would prune is of a kind that cannot be rebuilt.
        UsageError (a UserError): every channel would stay.
    """
    by_torch_pruning, rebuilt = copy.deepcopy(method), copy.deepcopy(method)
    numbers = _prune_with_library(by_torch_pruning, keep, images)
    kept: Kept = {}
    outside: Kept = {}  # the head's inputs: they follow from the width of the features
    for (name, axis), values in numbers.items():
        inside = name.startswith("backbone.model.")
        layers = kept if inside else outside
        layers.setdefault(name.removeprefix("backbone.model."), {})[axis] = ranges_text(values)
    if not kept:
        raise UsageError(f"--keep {keep:g}: rounds to all channels of every layer; give a smaller share")
    backbone = rebuilt.backbone
    earlier = backbone.config.get("pruned")
    shape = (images.shape[1], *images.shape[2:])
    keep_channels(backbone.model, kept, shape)
    if outside:
        keep_channels(rebuilt, outside, None)
    backbone.width = backbone.model.num_features
    backbone.config["pruned"] = kept if earlier is None else combine(earlier, kept)
    if isinstance(getattr(rebuilt, "hparams", None), dict):
        args = rebuilt.hparams.get("backbone_args") or {}
        rebuilt.hparams["backbone_args"] = {**args, "pruned": backbone.config["pruned"]}
    return rebuilt, by_torch_pruning


def _prune_with_library(method: nn.Module, keep: float, images: torch.Tensor) -> dict[tuple[str, str], list[int]]:
    """Prune a network with torch-pruning, in place; return what is kept by layer and axis (backbones/pruned.py)."""
    tp = _torch_pruning()
    network = method if hasattr(method, "head") else method.backbone
    network.requires_grad_(True)  # the library follows gradients from layer to layer
    prefix = "" if network is method else "backbone."
    names = {module: f"{prefix}{name}" for name, module in network.named_modules()}
    vit = isinstance(method.backbone.model, VisionTransformer)
    attentions = {module.qkv: module for module in network.modules() if isinstance(module, Attention)}
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    ignored = [method.head] if network is method else []
    kept: dict[tuple[str, str], list[int]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a ViT's tokens and positions, whose width stays
        graph = tp.DependencyGraph().build_dependency(network, images)
    groups = graph.get_all_groups(ignored_layers=ignored, root_module_types=[nn.Conv2d, nn.Linear])
    for group in [found for found in groups if not vit or _is_inside_block(names[found[0].dep.target.module])]:
        root, function = group[0].dep.target.module, group[0].dep.handler
        scores = importance(group)
        if root in attentions:
            attention = attentions[root]
            heads, width = attention.num_heads, attention.head_dim
            chosen = _best(scores.reshape(3, heads, width).sum((0, 2)), keep)
            kept[names[attention], "heads"] = chosen
            rows = torch.arange(len(scores)).reshape(3, heads, width)
            removed = rows[:, sorted(set(range(heads)) - set(chosen))].flatten().tolist()
            attention.num_heads, attention.attn_dim = len(chosen), len(chosen) * width
        else:
            removed = sorted(set(range(len(scores))) - set(_best(scores, keep)))
        if not removed:
            continue
        whole = graph.get_pruning_group(root, function, removed)
        for dependency, indices in whole if root not in attentions else ():
            layer = dependency.target.module
            if layer in names:
                axis = "out" if graph.is_out_channel_pruning_fn(dependency.handler) else "in"
                _remove(kept, (names[layer], axis), layer, indices)
        whole.prune()
    return kept


def _is_inside_block(name: str) -> bool:
    """True for the layers of a ViT whose outputs are pruned: the heads' rows and the units of the MLP."""
    return name.endswith((".attn.qkv", ".mlp.fc1"))


def _remove(kept: dict[tuple[str, str], list[int]], key: tuple[str, str], layer: nn.Module, indices: list[int]) -> None:
    """Take the channels that a layer is about to lose out of those it keeps; indices count what it has now.

    Raises:
        UserError: the layer is of a kind that cannot be rebuilt.
    """
    if key[1] == "in" and layer_size(layer, "in") == 0:  # batch norms and depthwise convolutions: one axis
        key = (key[0], "out")
    if layer_size(layer, key[1]) == 0:
        raise UserError(f"{key[0]}, a {type(layer).__name__}, cannot be pruned; pruning works for plain {FAMILIES}")
    now = kept.get(key) or list(range(layer_size(layer, key[1])))
    gone = set(indices)
    kept[key] = [number for position, number in enumerate(now) if position not in gone]


def _best(scores: torch.Tensor, keep: float) -> list[int]:
    """Return the numbers of the channels that stay, sorted; of equal ones the first."""
    count = kept_count(len(scores), keep)
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


def kept_count(channels: int, keep: float) -> int:
    """Return how many of a layer's channels stay: one at least, from 16 channels on a multiple of 8."""
    step = MULTIPLE if channels >= 2 * MULTIPLE else 1
    return min(channels, step * max(1, round(keep * channels / step)))


def combine(earlier: Kept, later: Kept) -> Kept:
    """Return what two prunings in a row keep, in numbers of the layers before both."""
    both = {name: dict(axes) for name, axes in earlier.items()}
    for name, axes in later.items():
        for axis, text in axes.items():
            before = both.setdefault(name, {}).get(axis)
            if before is not None:
                numbers = parse_ranges(before, 10**9, f"{name}.{axis}")
                text = ranges_text([numbers[i] for i in parse_ranges(text, len(numbers), f"{name}.{axis}")])
            both[name][axis] = text
    return both


def _outputs(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = (network if hasattr(network, "head") else network.backbone)(images)
    return result


def largest_difference(network: nn.Module, other: nn.Module, images: torch.Tensor) -> float:
    """Return the largest difference of two networks' outputs, relative to the largest of the second (at least 1)."""
    found, wanted = _outputs(network, images), _outputs(other, images)
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1))


def multiply_adds(network: nn.Module, images: torch.Tensor) -> int:
    """Return the multiply-adds of one image: images is (1, C, H, W)."""
    with FlopCounterMode(display=False) as counter:
        _outputs(network, images)
    return int(counter.get_total_flops()) // 2


def _torch_pruning() -> Any:
    """Import torch-pruning.

    Raises:
        UserError: it is not installed, or broken.
    """
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise UserError(
            f"prune: torch-pruning cannot be imported ({error}); pip install 'lit-vision[prune]'"
        ) from error
