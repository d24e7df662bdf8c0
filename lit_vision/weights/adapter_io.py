"""An adapter in a file of its own: a few per cent of the whole model, bound to the weights that it was trained on."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from lit_vision.backbones.adapters import adapter_config, adapter_state_dict, add_lora, add_prompts, base_weights_sha256
from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UserError
from lit_vision.weights.checkpoint_layouts import read_file


@dataclass(frozen=True)
class Adapter:
    """What `load_adapter` found beside the backbone's part.

    name: under which it is on the backbone.   rest: the file's other tensors (head.weight, mean, ...).
    settings: kind, rank, targets, ...   notes: what was given to `save_adapter`.
    """

    name: str
    rest: dict[str, Tensor]
    settings: dict[str, Any]
    notes: dict[str, Any]


def save_adapter(path: str | os.PathLike, method: nn.Module, name: str = "default", **notes: Any) -> Path:
    """Writes one adapter and all that the method holds outside its backbone (head, pixel statistics): a few per cent of the whole.

    Args:
        path: ends in .safetensors; its folder is made.
        method: has `backbone`, with an adapter of this name.
        name: which adapter.
        notes: plain values to keep in the file (class names, hyper-parameters, ...).

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
    about = {
        "settings": adapter_config(backbone)[name],
        "backbone": backbone.config,
        "base": base_weights_sha256(backbone),
        "notes": notes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")  # a kill leaves the old file whole
    save_file(state, beside, metadata={"format": "pt", "lit_vision": "Adapter", "adapter": json.dumps(about)})
    os.replace(beside, path)
    return path


def read_adapter(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description (settings, backbone, base, notes) of a file of `save_adapter`.

    Raises:
        UserError: no such file, or no adapter.
    """
    state, metadata = read_file(path)
    if metadata.get("lit_vision") != "Adapter":
        raise UserError(f"{path}: is no adapter; give a file of `lit-vision export RUN --format adapter`")
    return state, json.loads(metadata["adapter"])


def load_adapter(backbone: Backbone, path: str | os.PathLike, name: str = "default") -> Adapter:
    """Adds the adapter in a file to a backbone, beside those that are there, and makes it the active one.

    Args:
        backbone: holds the very weights that the adapter was trained on.
        path: a file of `save_adapter`.
        name: under which it is added; a name that is taken is refused.

    Raises:
        UserError: no adapter, or one that was trained on other weights.
    """
    state, about = read_adapter(path)
    if about["base"] != base_weights_sha256(backbone):
        raise UserError(
            f"{path}: was trained on other weights of {about['backbone']['name']} than these; load the backbone it began from"
        )
    settings = dict(about["settings"])
    arguments = {key: value for key, value in settings.items() if key != "kind"}
    (add_lora if settings["kind"] == "lora" else add_prompts)(backbone, name=name, **arguments)
    own = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    targets = adapter_state_dict(backbone, name)
    for key, value in own.items():
        if key not in targets or targets[key].shape != value.shape:
            raise UserError(f"{path}: {key} does not fit this backbone; the file is damaged or of another version")
        targets[key].copy_(value)
    rest = {key: value for key, value in state.items() if not key.startswith("backbone.")}
    return Adapter(name, rest, settings, about["notes"])
