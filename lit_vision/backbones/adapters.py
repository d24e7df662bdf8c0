"""LoRA (through peft) and visual prompts: few trained parameters on a frozen backbone, each set under a name.

Letters: B images, L tokens, D width, r rank, p prompt tokens.

The frozen weights' values never change, except by `merge`. An adapter is added, activated, saved and loaded by its
name. Adapter files are read and written by weights/adapter_io.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UserError
from lit_vision.io.hashing import state_dict_sha256

# names of the targets in timm's ViTs (query, key and value are one layer there: `qkv` adapts the three)
TARGETS = {"qkv": ("attn.qkv",), "proj": ("attn.proj",), "mlp": ("mlp.fc1", "mlp.fc2")}
_PEFT_MISSING = "peft is not installed; pip install 'lit-vision[peft]'"


def add_lora(
    backbone: Backbone,
    *,
    rank: int = 8,
    alpha: float = 8.0,
    targets: Sequence[str] = ("qkv",),
    layers: Sequence[int] | None = None,
    dropout: float = 0.0,
    name: str = "default",
) -> list[str]:
    """Add low-rank updates to linear layers: y = W x + (alpha / r) B A x.

    A is uniform (Kaiming), B is 0: at first the output does not change. Everything else in the backbone is frozen.
    Source: Hu et al. 2021, arXiv:2106.09685, section 4; the layers are peft's.

    Args:
        backbone: a ViT, for the named targets.
        rank: r; each layer gets r x (in + out) parameters.
        alpha: numerator of the scale.
        targets: some of qkv, proj and mlp; or endings of names of linear or convolution layers ("layer4.0.conv2").
        layers: first and last block, from 0, both included; None is all of them.
        dropout: on the update's input, in training.
        name: of this adapter, without dots.

    Returns:
        Names of the adapted layers inside `backbone.model`.

    Raises:
        UserError: no layer matches, a value out of range, a name that is taken, or peft is missing.
    """
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise UserError(
            f"lora_rank, lora_alpha, lora_dropout: {rank}, {alpha}, {dropout}; "
            "rank must be 1 or more, alpha above 0, dropout in [0, 1)"
        )
    _check_name(backbone, name)
    found = _layers_named(backbone, targets, layers)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"tune: lora: {_PEFT_MISSING}") from error
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=found)
    inject_adapter_in_model(config, backbone.model, adapter_name=name)
    vars(backbone.model).pop("peft_config", None)  # left there by peft, which warns when it finds one
    settings = {"kind": "lora", "rank": rank, "alpha": alpha, "targets": list(targets), "dropout": dropout}
    adapter_config(backbone)[name] = {**settings, "layers": None if layers is None else list(layers)}
    use_adapter(backbone, name)
    return found


class Prompts(nn.Module):
    """Trained tokens after the prefix (cls) tokens of a ViT, before the first block (shallow) or every block (deep).

    Hooks on the blocks insert the prompts and remove them after the last block, so features, tokens and maps keep their
    shapes, and a mean over patches does not include them. Source: Jia et al. 2022, arXiv:2203.12119 (VPT), section 3.2,
    where the classifier reads the cls token.

    Args:
        model: timm's VisionTransformer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.sets = nn.ParameterDict()
        self.active: str | None = None
        self.prefix: int = model.num_prefix_tokens
        for i, block in enumerate(model.blocks):
            block.register_forward_pre_hook(functools.partial(self._insert, i))
        model.blocks[-1].register_forward_hook(self._remove)

    def add(self, name: str, length: int, deep: bool, model: nn.Module) -> None:
        """Add a set of prompts, uniform in (-v, v) with v = sqrt(6 / (3 p_h p_w + D))."""
        height, width = model.patch_embed.patch_size
        bound = math.sqrt(6 / (3 * height * width + model.embed_dim))
        device = model.patch_embed.proj.weight.device
        values = torch.empty(len(model.blocks) if deep else 1, length, model.embed_dim, device=device)
        self.sets[name] = nn.Parameter(values.uniform_(-bound, bound))

    def _insert(self, i: int, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.active is None:
            return None
        prompts = self.sets[self.active]  # (1 or depth, p, D)
        if i >= len(prompts):
            return None
        x, *rest = inputs  # (B, L, D)
        after = self.prefix + (prompts.shape[1] if i else 0)  # the prompts of the block before are replaced
        # x.shape[0], not len(x), which torch.export would freeze
        x = torch.cat([x[:, : self.prefix], prompts[i].to(x.dtype).expand(x.shape[0], -1, -1), x[:, after:]], dim=1)
        return (x, *rest)

    def _remove(self, block: nn.Module, inputs: tuple[Any, ...], x: Tensor) -> Tensor | None:
        if self.active is None:
            return None
        return torch.cat([x[:, : self.prefix], x[:, self.prefix + self.sets[self.active].shape[1] :]], dim=1)


def add_prompts(backbone: Backbone, *, length: int = 50, deep: bool = False, name: str = "default") -> Prompts:
    """Add p trained tokens to a ViT and freeze the rest: p x D parameters, or depth x p x D if deep; see `Prompts`.

    Args:
        backbone: a ViT.
        length: p.
        deep: fresh prompts before every block instead of the first one only.
        name: of this adapter, without dots.

    Raises:
        UserError: not a ViT, a length below 1, or a name that is taken.
    """
    if length < 1:
        raise UserError(f"prompt_length: {length}; give at least 1 token")
    if not (hasattr(backbone.model, "blocks") and hasattr(backbone.model, "num_prefix_tokens")):
        raise UserError(
            f"tune: prompts need a ViT and {backbone.config['name']} is none; use a ViT, or tune last-<k> or head+norm"
        )
    _check_name(backbone, name)
    if getattr(backbone, "prompts", None) is None:
        for parameter in backbone.parameters():
            parameter.requires_grad_(False)
        backbone.prompts = Prompts(backbone.model)
    prompts: Prompts = backbone.prompts
    prompts.add(name, length, deep, backbone.model)
    adapter_config(backbone)[name] = {"kind": "prompts", "length": length, "deep": deep}
    use_adapter(backbone, name)
    return prompts


def use_adapter(backbone: Backbone, name: str | None) -> None:
    """Make one adapter the active one, and the only one that trains; None deactivates all of them.

    Raises:
        UserError: there is no adapter of that name.
    """
    known = adapter_config(backbone)
    if name is not None and name not in known:
        raise UserError(f"adapter {name!r}: this backbone has {', '.join(known) or 'none'}; load or add it first")
    kind = known[name]["kind"] if name else None
    for layer in _lora_layers(backbone):
        active = kind == "lora" and name in layer.lora_A
        layer.enable_adapters(active)
        if active:
            layer.set_adapter(name)
    if (prompts := getattr(backbone, "prompts", None)) is not None:
        prompts.active = name if kind == "prompts" else None
        for key, value in prompts.sets.items():
            value.requires_grad_(key == prompts.active)


def merge(backbone: Backbone, name: str | None = None) -> int:
    """Merge a LoRA adapter into the weights, W + (alpha / r) B A, and remove peft's layers; prompts stay.

    Args:
        backbone: changed in place; its keys are timm's again, and other LoRA adapters are dropped.
        name: of the adapter; None is the active one.

    Returns:
        Number of merged layers; 0 without LoRA.

    Raises:
        UserError: no such adapter, or a merged weight is not finite.
    """
    if not _lora_layers(backbone):
        return 0
    if name is not None:
        use_adapter(backbone, name)
    names = {key: module for key, module in backbone.model.named_modules() if _is_lora(module)}
    for key, layer in names.items():
        if not layer.disable_adapters:
            try:
                layer.merge(safe_merge=True)
            except ValueError as error:
                raise UserError(
                    f"adapter: merging {key} gives values that are not finite; check its training"
                ) from error
        parent, _, last = key.rpartition(".")
        setattr(backbone.model.get_submodule(parent), last, layer.get_base_layer())
    backbone.adapters = {key: value for key, value in adapter_config(backbone).items() if value["kind"] != "lora"}
    return len(names)


def trainable_parameters(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of trained and of all parameters of a module."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


def describe_trainable(module: nn.Module) -> str:
    """Return one line with the number of trained parameters."""
    trained, total = trainable_parameters(module)
    return f"parameters: {trained:,} of {total:,} are trained ({trained / max(total, 1):.2%})"


def base_weights_sha256(backbone: Backbone) -> str:
    """Return the sha256 (hex) of the frozen weights' names, shapes and values, the same with and without adapters."""
    state = {k.replace(".base_layer.", "."): v for k, v in backbone.model.state_dict().items() if "lora_" not in k}
    return state_dict_sha256(state, scalars_as_text=True)


def adapter_state_dict(backbone: Backbone, name: str) -> dict[str, Tensor]:
    """Return the adapter's tensors, under keys without the adapter's name."""
    if adapter_config(backbone)[name]["kind"] == "prompts":
        return {"prompts": backbone.prompts.sets[name].data}
    state = {}
    for key, value in backbone.model.state_dict().items():
        parts = key.split(".")
        if any(part.startswith("lora_") for part in parts) and name in parts:
            state["model." + ".".join(part for part in parts if part != name)] = value
    return state


def adapter_config(backbone: Backbone) -> dict[str, dict[str, Any]]:
    """Return {name: arguments that it was added with} of the adapters on a backbone."""
    if not hasattr(backbone, "adapters"):
        backbone.adapters = {}
    adapters: dict[str, dict[str, Any]] = backbone.adapters
    return adapters


def _check_name(backbone: Backbone, name: str) -> None:
    if not name or "." in name:
        raise UserError(f"adapter {name!r}: a name must not be empty or contain dots; rename it")
    if name in adapter_config(backbone):
        raise UserError(f"adapter {name!r}: this backbone has one of that name already; give another name")


def _is_lora(module: nn.Module) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "get_base_layer")


def _lora_layers(backbone: Backbone) -> list[Any]:
    return [module for module in backbone.modules() if _is_lora(module)]


def _layers_named(backbone: Backbone, targets: Iterable[str], layers: Sequence[int] | None) -> list[str]:
    """Return the names of the layers that match the targets, in the order of the model."""
    if isinstance(targets, str) or not targets:
        raise UserError(f"lora_targets: {targets!r} is not a list; give some of {', '.join(TARGETS)}, such as [qkv]")
    blocks: tuple[str, ...] | None = None
    if layers is not None:
        depth = len(getattr(backbone.model, "blocks", ()))
        if len(layers) != 2 or not 0 <= layers[0] <= layers[1] < depth:
            raise UserError(f"lora_layers: {list(layers)}; give the first and the last block, of 0 to {depth - 1}")
        blocks = tuple(f"blocks.{i}." for i in range(layers[0], layers[1] + 1))
    plain = {  # peft puts base_layer, lora_A and lora_B into the layers it adapts
        key: module
        for key, module in backbone.model.named_modules()
        if (isinstance(module, nn.Linear | nn.Conv2d) or _is_lora(module))
        and ".lora_" not in key
        and "base_layer" not in key
    }
    found: list[str] = []
    for target in targets:
        endings = TARGETS.get(target, (target,))
        matched = [key for key in plain if any(key == end or key.endswith(f".{end}") for end in endings)]
        matched = [key for key in matched if blocks is None or key.startswith(blocks)]
        if not matched:
            raise UserError(
                f"lora_targets: {target!r} matches no layer of {backbone.config['name']}; "
                f"give some of {', '.join(TARGETS)} (ViTs), or endings of its layers' names"
            )
        found += matched
    return [key for key in plain if key in set(found)]
