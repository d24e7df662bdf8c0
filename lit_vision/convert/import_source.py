"""Find the file of weights that a path names, and what its folder or metadata says of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError
from lit_vision.weights.model_metadata import METADATA_KEY
from lit_vision.weights.public_packages import find

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")  # in a folder of the Hub


def type_error(key: str, value: Any) -> str:
    """Return a description of the values that are valid, or "" if the value is valid.

    Without this check a constructor would fail with a traceback, or misread the value.
    """
    if key in ("mean", "std"):
        valid = isinstance(value, list) and len(value) == 3 and all(type(number) in (int, float) for number in value)
        valid = valid and all(map(math.isfinite, value)) and (key == "mean" or min(value) > 0)
        return "" if valid else "three numbers, one per channel; those of std above 0"
    if key in ("decoder_width", "decoder_depth", "decoder_heads", "decoder_num_attention_heads"):
        return "" if type(value) is int and value > 0 else "a whole number from 1"
    if key == "norm_pix_loss":
        return "" if isinstance(value, bool) else "true or false"
    if key == "mask_ratio":
        return "" if type(value) in (int, float) and 0 <= value < 1 else "a number from 0 to below 1"
    if key == "layer_norm_eps":
        return "" if type(value) in (int, float) and value > 0 else "a number above 0"
    kind = {"pretrained_cfg": dict, "model_args": dict, "label_names": list}.get(key)
    return "" if kind is None or isinstance(value, kind) else f"a {'list' if kind is list else 'mapping'}"


def check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Check the types of the values of a config.json that the import reads; null counts as absent.

    Raises:
        UserError: names the file and the key.
    """
    pixels = config.get("pretrained_cfg")
    for key, value in (*config.items(), *(pixels.items() if isinstance(pixels, dict) else ())):
        if value is not None and (wanted := type_error(key, value)):
            raise UserError(f"{file}: {key} is {json.dumps(value)}, not {wanted}; correct it, or take another copy")


def resolve_source(source: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Return the file of weights that a path names, and the config.json in its folder ({} without one).

    Where no path has this name, it may be one of `public_packages.py`; the names of ImageNet's classes come with it.

    Raises:
        UserError: no such path, no weights in the folder, a config.json that is damaged; or as `public_packages.find`.
    """
    path = Path(source)
    if not path.exists() and (packaged := find(source)):
        from lit_vision.predict.timm_models import imagenet_names

        return packaged, {"label_names": imagenet_names()}
    if path.is_dir():
        found = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
        if found is None:
            raise UserError(f"{path}: has none of {', '.join(WEIGHT_FILES)}; give the file itself")
        path = found
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path of the checkpoint")
    config_file = path.parent / "config.json"
    if not config_file.is_file():
        return path, {}
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config_file}: is not JSON ({error}); take another copy, or remove it") from error
    config = {key: value for key, value in config.items() if value is not None} if isinstance(config, dict) else {}
    check_config(config_file, config)
    return path, config


def config_of_timm_export(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of timm's config.json, from the metadata of a file of `lit-vision export --format timm`."""
    from lit_vision.data.views.image_size import height_and_width

    values = {key: json.loads(metadata[key]) for key in ("model_args", "mean", "std", "size", "class_names")}
    pixels = {
        "mean": values["mean"],
        "std": values["std"],
        "license": metadata["license"],
        "crop_pct": json.loads(metadata[METADATA_KEY])["crop_pct"],
        "input_size": [3, *height_and_width(values["size"])],
    }
    return {
        "architecture": metadata["architecture"],
        "model_args": values["model_args"],
        "pretrained_cfg": pixels,
        "label_names": values["class_names"],
    }


def license_of(layout: str, metadata: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """Return the license of another project's weights: the layout's, that of a config.json or of the file, or ""."""
    from lit_vision.weights.compatibility import FACEBOOK_MAE  # imports torch

    if layout.startswith(FACEBOOK_MAE):
        return "CC-BY-NC-4.0"
    return (config.get("pretrained_cfg") or {}).get("license") or metadata.get("license") or ""
