"""Build networks with timm's weights or, where these cannot be had, with those of an installed package."""

from __future__ import annotations

import re
import sys
from typing import Any

from torch import nn

from lit_vision.backbones.backbone import Backbone
from lit_vision.backbones.create import WeightsUnavailableError, create_timm_model
from lit_vision.errors import UserError
from lit_vision.weights import public_packages
from lit_vision.weights.checkpoint_layouts import read_common
from lit_vision.weights.load import load_into
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
