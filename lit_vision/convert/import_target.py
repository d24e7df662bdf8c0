"""Which module another project's keys are for, built so that loading names every key that does not fit.

One key of a decoder makes it an MAE, one of a classifier a Classifier, whichever others are missing: what a damaged file was is not
guessed from the absence of a key, since the rest of it would then be dropped in silence.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_vision.errors import UsageError, UserError


def build(
    name: str,
    body: dict[str, Any],
    state: dict[str, Any],
    layout: str,
    config: Mapping[str, Any],
    args: argparse.Namespace,
    path: Path,
) -> tuple[Any, dict[str, Any], str]:
    """The module that the state is for, the state for it, and its layout.

    Raises:
        UserError: the decoder's heads are not told, or the classifier is none that a Classifier has. UsageError: --args has a strange key.
    """
    from lit_vision.backbones.backbone import Backbone
    from lit_vision.weights.key_maps import LIGHTLY_MAE

    if any(key.startswith("decoder.") for key in state) and not args.backbone_only:
        from lit_vision.methods.mae.mae import MAE

        found = _decoder_of(state, layout, config) | args.args
        if found["decoder_heads"] is None:
            raise UserError(f"{path}: no tensor shows the decoder's heads; give --args '{{\"decoder_heads\": N}}'")
        return _construct(MAE, name, body, found), state, layout
    with _as_usage_error("--backbone_args", body):
        backbone = Backbone(name, **body)
    untrained = layout == LIGHTLY_MAE  # its ViT carries a classifier that no loss reached
    start = None if args.backbone_only or untrained else _classifier_in(state, backbone)
    if start is not None:
        from lit_vision.methods.classifier import Classifier

        found = {"num_classes": _classes_of(state, start, path)}
        if start != "head":
            state = {re.sub(rf"^{re.escape(start)}\.", "head.", key): value for key, value in state.items()}
            layout = "timm (classifier)"
        return _construct(Classifier, name, body, found | args.args), state, layout
    if unknown := [key for key in args.args if key not in ("mean", "std")]:
        raise UsageError(f"--args: a backbone alone takes mean and std, not {unknown[0]}; leave it out")
    return backbone, state, layout


def _decoder_of(state: Mapping[str, Any], layout: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """MAE's arguments: the width that most of the decoder's tensors have, its blocks, and what a config.json says."""
    from lit_vision.weights.key_maps import LIGHTLY_MAE

    axes = {"embed.weight": 0, "embed.bias": 0, "mask_token": -1, "pos_embed": -1, "norm.weight": 0, "pred.weight": -1}
    shapes = {key: state[f"decoder.{key}"].shape for key in axes if f"decoder.{key}" in state}
    votes = Counter(shape[axes[key]] for key, shape in shapes.items() if len(shape))
    width = votes.most_common(1)[0][0] if votes else 512
    blocks = {match[1] for key in state if (match := re.match(r"decoder\.blocks\.(\d+)\.", key))}
    heads = config.get("decoder_num_attention_heads", 16 if width == 512 else None)
    found = {"decoder_width": width, "decoder_depth": max(1, len(blocks)), "decoder_heads": heads}
    found |= {key: config[key] for key in ("mask_ratio", "norm_pix_loss") if key in config}
    return found | ({"norm_pix_loss": False} if layout == LIGHTLY_MAE else {})


def _classifier_in(state: Mapping[str, Any], backbone: Any) -> str | None:
    """The module whose tensors are a classifier's, `head` or timm's name in this family; None if the state has none of them."""
    from lit_vision.weights.load import classifier_names

    names = ("head", *(name for name in classifier_names(backbone) if not name.endswith(".AuxLogits")))
    return next((name for name in names if any(key.startswith(f"{name}.") for key in state)), None)


def _classes_of(state: Mapping[str, Any], start: str, path: Path) -> int:
    """Outputs of the classifier, from its weight, or from what is there of it."""
    named = (f"{start}.weight", f"{start}.bias", *(key for key in state if key.startswith(f"{start}.")))
    shape = next((state[key].shape for key in named if key in state and state[key].ndim), (0,))
    if len(shape) > 2 or shape[0] < 2:
        what = f"{start.removeprefix('backbone.')} of {'x'.join(map(str, shape))}"
        raise UserError(f"{path}: its classifier ({what}) is no linear map to 2 classes or more; give --backbone_only")
    return shape[0]


def _construct(method: Any, name: str, body: dict[str, Any], given: dict[str, Any]) -> Any:
    known = inspect.signature(method.__init__).parameters
    if unknown := [key for key in given if key not in known]:
        raise UsageError(f"--args: {method.__name__} takes no {unknown[0]}; leave it out")
    with _as_usage_error("--args or --backbone_args", {**body, **given}):
        return method(backbone=name, backbone_args=body, **given)


@contextmanager
def _as_usage_error(option: str, given: Mapping[str, Any]) -> Iterator[None]:
    """A constructor's complaint about a value that the user typed."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{option}: {json.dumps(given)}: {reason}; change the value") from error
