"""Save and load adapters (LoRA or prompts): small files, each bound to the weights that it was trained on."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_vision.backbones.adapters import adapter_config, adapter_state_dict, add_lora, add_prompts, base_weights_sha256
from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write
from lit_vision.io.safetensors_file import save_tensors
from lit_vision.weights.checkpoint_layouts import read_file


@dataclass(frozen=True)
class Adapter:
    """Contents of an adapter file, except for the tensors that `load_adapter` has put into the backbone.

    Attributes:
        name: under which the adapter is on the backbone.
        rest: the file's other tensors (head.weight, mean, ...).
        settings: kind, rank, targets, ...
        notes: the plain values that were given to `save_adapter`.
    """

    name: str
    rest: dict[str, Tensor]
    settings: dict[str, Any]
    notes: dict[str, Any]


def save_adapter(path: str | os.PathLike[str], method: nn.Module, name: str = "default", **notes: Any) -> Path:
    """Write one adapter and the method's tensors outside the backbone (head, mean, std).

    Args:
        path: ends in .safetensors; its folder is created.
        method: has `backbone`, with an adapter of this name.
        name: of the adapter.
        notes: plain values to store in the file (class names, hyper-parameters, ...).

    Returns:
        The path.

    Raises:
        UserError: another suffix, or no such adapter.
    """
    path, backbone = Path(path), method.backbone
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: an adapter is a safetensors file; end the name in .safetensors")
    if name not in adapter_config(backbone):
        raise UserError(
            f"adapter {name!r}: this model has {', '.join(adapter_config(backbone)) or 'none'}; nothing to save"
        )
    state = {k: v for k, v in method.state_dict().items() if not k.startswith("backbone.")}
    state.update({f"backbone.{k}": v for k, v in adapter_state_dict(backbone, name).items()})
    state = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    description = {
        "settings": adapter_config(backbone)[name],
        "backbone": backbone.config,
        "base": base_weights_sha256(backbone),
        "notes": notes,
    }
    header = {"format": "pt", "lit_vision": "Adapter", "adapter": json.dumps(description)}
    atomic_write(path, lambda file: save_tensors(state, file, header))
    return path


def read_adapter(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description (settings, backbone, base, notes) of a file of `save_adapter`.

    Raises:
        UserError: no such file, or no adapter.
    """
    state, metadata = read_file(path)
    if metadata.get("lit_vision") != "Adapter":
        raise UserError(f"{path}: is not an adapter; give a file of `lit-vision export RUN --format adapter`")
    return state, json.loads(metadata["adapter"])


def load_adapter(backbone: Backbone, path: str | os.PathLike[str], name: str = "default") -> Adapter:
    """Add the adapter in a file to a backbone, next to those that it has, and make it the active one.

    Args:
        backbone: holds the weights that the adapter was trained on.
        path: a file of `save_adapter`.
        name: under which it is added; a name that is taken is refused.

    Raises:
        UserError: no adapter, or one that was trained on other weights.
    """
    state, description = read_adapter(path)
    if description["base"] != base_weights_sha256(backbone):
        raise UserError(
            f"{path}: was trained on other weights of {description['backbone']['name']} than these; "
            "load the backbone that it was trained on"
        )
    settings = dict(description["settings"])
    arguments = {key: value for key, value in settings.items() if key != "kind"}
    (add_lora if settings["kind"] == "lora" else add_prompts)(backbone, name=name, **arguments)
    targets = adapter_state_dict(backbone, name)
    rest = {}
    for key, value in state.items():
        if not key.startswith("backbone."):
            rest[key] = value
            continue
        key = key.removeprefix("backbone.")
        if key not in targets or targets[key].shape != value.shape:
            raise UserError(f"{path}: {key} does not fit this backbone; the file is damaged or of another version")
        targets[key].copy_(value)
    return Adapter(name, rest, settings, description["notes"])
