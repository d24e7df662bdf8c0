"""Write the file of an import: tensors, hyper-parameters, mean and std, class names, license and source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write
from lit_vision.weights.model_metadata import METADATA_KEY

if TYPE_CHECKING:
    from torch import nn

    from lit_vision.weights.load import LoadReport


def class_names(file: str | None, config: Mapping[str, Any], method: nn.Module) -> list[str]:
    """Return the names of a Classifier's classes: from a text file, else from config.json, else their numbers.

    Raises:
        UserError: the file cannot be read, or its number of names is not the number of classes.
    """
    count = method.hparams["num_classes"] if getattr(method, "method_name", "") == "Classifier" else 0
    names = list(config.get("label_names") or [])
    if file is not None:
        try:
            names = [line.strip() for line in Path(file).read_text(encoding="utf-8").split("\n") if line.strip()]
        except OSError as error:
            raise UserError(f"--class_names {file}: {error.strerror}; give a text file") from error
        if len(names) != count:
            raise UserError(
                f"--class_names {file}: has {len(names)} names, the weights have {count} classes; give one name a line"
            )
    return names if len(names) == count else [str(i) for i in range(count)]


def eval_crop_pct(layout: str, config: Mapping[str, Any]) -> float | None:
    """Return the fraction of the resized image that evaluation crops.

    That of timm's config.json if it has one, None (timm's default for the name) for other weights of timm and for
    EfficientNet-Lite, 1 for CLIP, else 0.875 (224 of 256).
    """
    from lit_vision.weights.compatibility import CLIP, EFFICIENTNET_LITE

    crop_pct = (config.get("pretrained_cfg") or {}).get("crop_pct")
    if crop_pct:
        return float(crop_pct)
    return None if layout.startswith(("timm", EFFICIENTNET_LITE)) else 1.0 if layout == CLIP else 0.875


def statistics(
    method: nn.Module, report: LoadReport, config: Mapping[str, Any], method_args: Mapping[str, Any]
) -> tuple[dict[str, list[float]], str]:
    """Return mean and std, and where they are from; set the buffers of a method to them.

    The first of these that has a value is used: --args, the layout, timm's config.json, timm's defaults for the name.
    """
    from lit_vision.backbones.backbone import Backbone

    backbone = method if isinstance(method, Backbone) else method.backbone
    guess = (
        f"timm's default for {backbone.config['name']}, a GUESS: other weights of this shape may need other values, "
        """such as ImageNet's (--args '{"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}')"""
    )
    sources: dict[str, Mapping[str, Any]] = {
        "--args": method_args,
        f"of the layout, {report.source}": {"mean": report.mean, "std": report.std},
        "of config.json": config.get("pretrained_cfg") or {},
        guess: backbone.data_config,
    }
    found, origin = {}, {}
    for name in ("mean", "std"):
        origin[name], found[name] = next((text, source[name]) for text, source in sources.items() if source.get(name))
    for name, value in found.items() if backbone is not method else ():
        getattr(method, name).copy_(getattr(method, name).new_tensor(value))
    pixels = {name: [round(float(v), 6) for v in value] for name, value in found.items()}
    return pixels, " and ".join(dict.fromkeys(origin.values()))


def write_imported(
    out: Path,
    method: nn.Module,
    pixels: Mapping[str, list[float]],
    origin: Mapping[str, str],
    classes: Sequence[str],
    crop_pct: float | None = None,
) -> None:
    """Write one safetensors file from which the module can be rebuilt.

    Args:
        out: the file.
        method: a Backbone, MAE or Classifier.
        pixels: {"mean": [...], "std": [...]}.
        origin: strings for the file's metadata: license, source, source_layout, source_sha256.
        classes: names of a Classifier's classes.
        crop_pct: from `eval_crop_pct`.
    """
    from lit_vision.backbones.backbone import Backbone
    from lit_vision.data.views.image_size import plain_size
    from lit_vision.io.hashing import state_dict_sha256
    from lit_vision.io.safetensors_file import save_tensors
    from lit_vision.weights.load import save_backbone
    from lit_vision.weights.model_metadata import ModelMetadata

    if isinstance(method, Backbone):
        more: dict[str, Any] = dict(origin)
        save_backbone(out, method, pixels["mean"], pixels["std"], **more)
        return
    kind, config = method.method_name, method.backbone.data_config
    header = {"format": "pt", "lit_vision": kind, "backbone": json.dumps(method.backbone.config), **origin}
    header["hyper_parameters"] = json.dumps(dict(method.hparams))
    state = {key: value.detach().contiguous() for key, value in method.state_dict().items()}
    if kind == "Classifier":
        header[METADATA_KEY] = ModelMetadata(
            task="classification",
            size=plain_size(config["input_size"][-2:]),
            mean=pixels["mean"],
            std=pixels["std"],
            crop_pct=crop_pct or float(config["crop_pct"]),
            class_names=list(classes),
            outputs=["logits", "features"],
            weights=state_dict_sha256(method.state_dict()),
            features=state_dict_sha256({k: v for k, v in method.state_dict().items() if k.startswith("backbone.")}),
            license=origin["license"],
        ).to_json()
    atomic_write(out, lambda file: save_tensors(state, file, header))
