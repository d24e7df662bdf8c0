"""Convert a method to timm's model of the same name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lit_vision.weights.model_metadata import ModelMetadata

TIMM_TOLERANCE = 1e-5  # largest difference to timm's model, relative to the largest logit or feature


def convert_to_timm(method: nn.Module, metadata: ModelMetadata) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Return timm's name of a model, the arguments of `timm.create_model`, and the state under timm's names.

    A head norm without gain and bias (MAE's linear probe) is folded into the linear head.

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
            f"--format timm: {name} has this project's small stem, which timm does not have; use safetensors"
        )
    if getattr(backbone, "adapters", None):
        raise UserError("--format timm: this model has prompts, which timm does not have; use safetensors or adapter")
    if "pruned" in config:
        raise UserError(f"--format timm: this {name} is pruned, which timm cannot build; use safetensors or onnx")
    config.pop("drop_path_rate")
    pool, size = config.pop("pool"), config.pop("img_size")
    arguments = {key: value for key, value in config.items() if value is not None and (key, value) != ("in_chans", 3)}
    arguments |= {"global_pool": pool} if pool else {}
    arguments |= {"img_size": size} if size and getattr(backbone.model, "patch_embed", None) is not None else {}
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.model.state_dict().items()}
    if metadata.task != "classification":
        return name, {"num_classes": 0, **arguments}, state
    classifier = (backbone.model.pretrained_cfg or {}).get("classifier")
    if not isinstance(classifier, str):
        raise UserError(f"--format timm: timm's {name} has no single classifier; use safetensors")
    weight, bias = method.head.weight.detach().cpu().double(), method.head.bias.detach().cpu().double()
    if isinstance(method.head_norm, nn.BatchNorm1d):
        scale = (method.head_norm.running_var.cpu().double() + method.head_norm.eps).rsqrt()
        bias = bias - weight @ (method.head_norm.running_mean.cpu().double() * scale)
        weight = weight * scale
    state[f"{classifier}.weight"] = weight.to(torch.float32).contiguous()
    state[f"{classifier}.bias"] = bias.to(torch.float32)
    return name, {"num_classes": len(bias), **arguments}, state


def check_timm(
    method: nn.Module,
    metadata: ModelMetadata,
    name: str,
    arguments: Mapping[str, Any],
    state: Mapping[str, Tensor],
) -> float:
    """Return the largest difference between a method's outputs and those of timm's model with the same weights.

    Args:
        method: from `models.load_method`.
        metadata: likewise.
        name, arguments, state: from `convert_to_timm`; the state is loaded strictly.

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
        raise UserError(f"--format timm: timm's {name} has other keys ({str(error)[:200]}); use safetensors") from error
    images = example_input(metadata, 2)
    with torch.inference_mode():
        ours, theirs = inference_network(method, metadata.task)(images)[0].float(), model.eval()(images).float()
    gap = float((ours - theirs).abs().max() / max(1.0, float(ours.abs().max())))
    if not gap <= TIMM_TOLERANCE:
        raise UserError(
            f"--format timm: not written: outputs of timm's {name} differ by {gap:.1e}, more than {TIMM_TOLERANCE:g}; "
            "use safetensors"
        )
    return gap


def timm_metadata(metadata: ModelMetadata, name: str, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a file under timm's names, which `lit-vision import` reads."""
    from lit_vision.weights.model_metadata import METADATA_KEY

    header = {
        "format": "pt",
        "architecture": name,
        "model_args": json.dumps(dict(arguments)),
        METADATA_KEY: metadata.to_json(),
    }
    plain = {"mean": metadata.mean, "std": metadata.std, "size": metadata.size, "class_names": metadata.class_names}
    return header | {key: json.dumps(value) for key, value in plain.items()} | {"license": metadata.license}


def write_timm(method: nn.Module, metadata: ModelMetadata, out: Path) -> str:
    """Write one safetensors file under timm's names, with mean, std, size, class names and license in its metadata.

    Returns:
        The difference to timm's model, and the call that loads the file.
    """
    from lit_vision.io.safetensors_file import save_tensors

    name, arguments, state = convert_to_timm(method, metadata)
    gap = check_timm(method, metadata, name, arguments, state)
    atomic_write(out, lambda file: save_tensors(state, file, timm_metadata(metadata, name, arguments)))
    more = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return (
        f"largest difference to timm's model: {gap:.1e}\n"
        f"timm.create_model({name!r}, checkpoint_path={str(out)!r}{more})"
    )
