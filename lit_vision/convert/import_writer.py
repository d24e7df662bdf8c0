"""The file that an import writes: tensors, what rebuilds the module, its pixels' statistics, classes, licence and source."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError
from lit_vision.weights.model_metadata import METADATA_KEY


def class_names(file: str | None, config: Mapping[str, Any], method: Any) -> list[str]:
    count = method.hparams["num_classes"] if type(method).__name__ == "Classifier" else 0
    names = list(config.get("label_names") or [])
    if file is not None:
        try:
            names = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
        except OSError as error:
            raise UserError(f"--class_names {file}: {error.strerror}; give a text file") from error
        if len(names) != count:
            raise UserError(f"--class_names {file}: has {len(names)} names, the weights have {count} classes")
    return names if len(names) == count else [str(i) for i in range(count)]


def eval_crop_pct(layout: str, config: Mapping[str, Any]) -> float | None:
    """Share of the resized image that evaluation keeps: what timm's config.json says, 256 to 224 elsewhere, None for timm's default."""
    told = (config.get("pretrained_cfg") or {}).get("crop_pct")
    return float(told) if told else None if layout.startswith("timm") else 0.875


def statistics(
    method: Any, report: Any, config: Mapping[str, Any], args: argparse.Namespace
) -> tuple[dict[str, list[float]], str]:
    """mean and std, and where they are from: what the user says, else the layout, else timm's config.json, else timm's defaults for the name."""
    from lit_vision.backbones.backbone import Backbone

    backbone = method if isinstance(method, Backbone) else method.backbone
    guess = f"timm's default for {backbone.config['name']}, a GUESS: "
    guess += 'other weights of this shape want other pixels, such as ImageNet\'s (--args \'{"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}\')'
    places = {
        "--args": args.args,
        f"of the layout, {report.source}": {"mean": report.mean, "std": report.std},
        "of config.json": config.get("pretrained_cfg") or {},
        guess: backbone.data_config,
    }
    found, whose = {}, {}
    for name in ("mean", "std"):
        whose[name], found[name] = next((place, told[name]) for place, told in places.items() if told.get(name))
    for name, value in found.items() if backbone is not method else ():
        getattr(method, name).copy_(getattr(method, name).new_tensor(value))
    pixels = {name: [round(float(v), 6) for v in value] for name, value in found.items()}
    return pixels, " and ".join(dict.fromkeys(whose.values()))


def write_imported(
    out: Path,
    method: Any,
    pixels: Mapping[str, list[float]],
    notes: Mapping[str, str],
    classes: Sequence[str],
    crop_pct: float | None = None,
) -> None:
    """One safetensors file with what rebuilds the module, its mean and std, and where it is from."""
    from safetensors.torch import save_file

    from lit_vision.backbones.backbone import Backbone
    from lit_vision.predict.models import state_dict_sha256
    from lit_vision.weights.load import save_backbone
    from lit_vision.weights.model_metadata import ModelMetadata

    if isinstance(method, Backbone):
        save_backbone(out, method, pixels["mean"], pixels["std"], **notes)
        return
    kind, config = type(method).__name__, method.backbone.data_config
    about = {"format": "pt", "lit_vision": kind, "backbone": json.dumps(method.backbone.config), **notes}
    about["hyper_parameters"] = json.dumps(dict(method.hparams))
    state = {key: value.detach().contiguous() for key, value in method.state_dict().items()}
    if kind == "Classifier":
        about[METADATA_KEY] = ModelMetadata(
            task="classification",
            size=int(config["input_size"][-1]),
            mean=pixels["mean"],
            std=pixels["std"],
            crop_pct=crop_pct or float(config["crop_pct"]),
            class_names=list(classes),
            outputs=["logits", "features"],
            weights=state_dict_sha256(method.state_dict()),
            features=state_dict_sha256({k: v for k, v in method.state_dict().items() if k.startswith("backbone.")}),
            licence=notes["licence"],
        ).to_json()
    beside = out.with_name(out.name + ".tmp")  # a kill leaves the old file whole
    save_file(state, beside, metadata=about)
    os.replace(beside, out)
