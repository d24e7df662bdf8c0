"""Build networks with timm's weights or, where these cannot be had, with those of an installed package."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lit_vision.backbones.backbone import Backbone
from lit_vision.backbones.create import WeightsUnavailableError, create_timm_model
from lit_vision.errors import UserError
from lit_vision.weights import public_packages
from lit_vision.weights.checkpoint_layouts import read_common
from lit_vision.weights.load import load_common, load_into
from lit_vision.weights.protected_files import refuse_unsigned


def create_backbone(name: str, **arguments: Any) -> tuple[Backbone, dict[str, str]]:
    """Return Backbone(name, **arguments) and, if its weights are a package's, their origin (else {}).

    The origin is printed. Packaged weights are for three channels: with other `in_chans` only timm's are taken.

    Raises:
        UserError: as Backbone; weights that cannot be fetched and stand in no installed package; or a damaged package.
    """
    if arguments.get("pretrained"):
        refuse_unsigned(name)
    try:
        return Backbone(name, **arguments), {}
    except WeightsUnavailableError as error:
        if arguments.get("in_chans", 3) != 3:
            raise
        path = public_packages.find_instead(name, error)
    backbone = Backbone(name, **{**arguments, "pretrained": False})
    report, origin = load_into(backbone, path), public_packages.origin(name)
    backbone.weights_from = report.origin = public_packages.origin_text(origin)
    print(report, flush=True)
    return backbone, origin


def backbone_with_weights(
    name: str, arguments: Mapping[str, Any], checkpoint: str | os.PathLike[str] | None
) -> tuple[Backbone, list[float], list[float]]:
    """Return a backbone with the weights that training starts from, and the mean and std that these expect.

    Args:
        name: of the backbone.
        arguments: further ones of Backbone. Without `pruned` among them, a pruned file's is taken.
        checkpoint: a file, or a name of public_packages.py, whose report is printed; None: as `create_backbone`.

    Raises:
        UserError: as `create_backbone`. PartialMatchError (a UserError): the checkpoint does not fit.
    """
    if checkpoint is None:
        backbone, _ = create_backbone(name, **arguments)
        return backbone, list(backbone.data_config["mean"]), list(backbone.data_config["std"])
    if not Path(checkpoint).exists() and os.fspath(checkpoint) in public_packages.PACKAGES:
        backbone, _ = create_backbone(name, **arguments)
        report = load_into(backbone, checkpoint)
    else:
        state, layout, metadata = read_common(checkpoint)
        pruned = stored_pruning(metadata)
        backbone, _ = create_backbone(name, **{**({"pruned": pruned} if pruned else {}), **arguments})
        report = load_common(backbone, state, layout, metadata, checkpoint)
    print(report, flush=True)
    return backbone, list(report.mean or backbone.data_config["mean"]), list(report.std or backbone.data_config["std"])


def stored_pruning(metadata: Mapping[str, str]) -> Any:
    """Return what a file's metadata hold under `backbone_args.pruned` (backbones/pruned.py), unchecked, or None."""
    for key in ("hyper_parameters", "backbone"):
        try:
            found = json.loads(metadata.get(key, "{}"))
        except ValueError:  # the metadata of a safetensors file may hold any text under this key
            continue
        found = found.get("backbone_args") if key == "hyper_parameters" and isinstance(found, dict) else found
        if isinstance(found, dict) and found.get("pruned"):
            return found["pruned"]
    return None


def create_pretrained_classifier(name: str) -> tuple[nn.Module, dict[str, str]]:
    """Return timm's model with its classifier and, if its weights are a package's, their origin (else {}).

    The origin is printed to stderr.

    Raises:
        UserError: as `create_timm_model`; weights that cannot be fetched and stand in no installed package; or a
            damaged package.
    """
    refuse_unsigned(name)
    try:
        return create_timm_model(name, True, None, {}), {}
    except WeightsUnavailableError as error:
        unavailable = UserError(
            f"{name}: timm's weights are not on this machine and cannot be fetched (no network?); connect once, or "
            "copy the folder ~/.cache/huggingface of a machine that has them"
        )
        unavailable.__cause__ = error
        path = public_packages.find_instead(name, unavailable)
    model = create_timm_model(name, False, None, {})
    classifier = model.pretrained_cfg["classifier"]
    state = {key: value for key, value in read_common(path)[0].items() if key not in ("mean", "std")}
    model.load_state_dict(
        {re.sub(r"^backbone\.", "", re.sub(r"^head\.", f"{classifier}.", key)): value for key, value in state.items()}
    )
    origin = public_packages.origin(name)
    print(f"{name}: weights of {public_packages.origin_text(origin)}", file=sys.stderr, flush=True)
    return model, origin
