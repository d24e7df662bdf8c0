"""A method's weights as timm's own model of that name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write

TIMM_TOLERANCE = 1e-5  # largest difference to timm's model, relative to the largest logit or feature


def timm_form(method: Any, metadata: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A method as timm's model: its name, the arguments of `timm.create_model`, and the state under timm's names.

    A head norm without gain and bias (MAE's probe) is folded into the linear head.

    Raises:
        UserError: timm has no such model (the small stem, prompts), or its classifier is more than one linear map.
    """
    import torch
    from torch import nn

    backbone = method.backbone
    config = dict(backbone.config)
    name = config.pop("name")
    if config.pop("stem") == "small":
        raise UserError(
            f"--format timm: {name} has this project's small stem, which timm cannot build; use safetensors"
        )
    if getattr(backbone, "adapters", None):
        raise UserError("--format timm: this model has prompts, which timm cannot hold; use safetensors or adapter")
    config.pop("drop_path_rate")
    pool, size = config.pop("pool"), config.pop("img_size")
    arguments = {key: value for key, value in config.items() if value is not None and (key, value) != ("in_chans", 3)}
    arguments |= {"global_pool": pool} if pool else {}
    arguments |= {"img_size": size} if size and getattr(backbone.model, "patch_embed", None) is not None else {}
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.model.state_dict().items()}
    if metadata.task != "classification":
        return name, {"num_classes": 0, **arguments}, state
    start = (backbone.model.pretrained_cfg or {}).get("classifier")
    if not isinstance(start, str):
        raise UserError(f"--format timm: timm's {name} has no single classifier; use safetensors")
    weight, bias = method.head.weight.detach().cpu().double(), method.head.bias.detach().cpu().double()
    if isinstance(method.head_norm, nn.BatchNorm1d):
        scale = (method.head_norm.running_var.cpu().double() + method.head_norm.eps).rsqrt()
        bias = bias - weight @ (method.head_norm.running_mean.cpu().double() * scale)
        weight = weight * scale
    state |= {f"{start}.weight": weight.to(torch.float32).contiguous(), f"{start}.bias": bias.to(torch.float32)}
    return name, {"num_classes": len(bias), **arguments}, state


def check_timm(method: Any, metadata: Any, name: str, arguments: Mapping[str, Any], state: Mapping[str, Any]) -> float:
    """The largest difference between a method's outputs and those of timm's own model with these weights, loaded strictly.

    Raises:
        UserError: a key does not fit, or the difference is above TIMM_TOLERANCE.
    """
    import timm
    import torch

    from lit_vision.predict.tasks import example_input, inference_network

    model = timm.create_model(name, **arguments)
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise UserError(
            f"--format timm: timm's {name} takes other keys ({str(error)[:200]}); use safetensors"
        ) from error
    images = example_input(metadata, 2)
    with torch.inference_mode():
        ours, theirs = inference_network(method, metadata.task)(images)[0].float(), model.eval()(images).float()
    gap = float((ours - theirs).abs().max() / max(1.0, float(ours.abs().max())))
    if not gap <= TIMM_TOLERANCE:
        raise UserError(f"--format timm: timm's {name} differs by {gap:.1e}, more than {TIMM_TOLERANCE:g}; not written")
    return gap


def timm_notes(metadata: Any, name: str, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of a file under timm's names: what a reader, or `lit-vision import`, needs."""
    from lit_vision.weights.model_metadata import METADATA_KEY

    notes = {
        "format": "pt",
        "architecture": name,
        "model_args": json.dumps(dict(arguments)),
        METADATA_KEY: metadata.to_json(),
    }
    plain = {"mean": metadata.mean, "std": metadata.std, "size": metadata.size, "class_names": metadata.class_names}
    return notes | {key: json.dumps(value) for key, value in plain.items()} | {"license": metadata.license}


def write_timm(method: Any, metadata: Any, out: Path) -> str:
    """One safetensors file under timm's names, with mean, std, size, class names and license in its metadata.

    Returns:
        The difference to timm's model, and the call that loads the file.
    """
    from safetensors.torch import save_file

    name, arguments, state = timm_form(method, metadata)
    gap = check_timm(method, metadata, name, arguments, state)
    atomic_write(out, lambda beside: save_file(state, beside, metadata=timm_notes(metadata, name, arguments)))
    words = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"largest difference to timm's model: {gap:.1e}\ntimm.create_model({name!r}, checkpoint_path={out.name!r}{words})"
