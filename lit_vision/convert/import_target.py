"""Build the module that another project's keys are for, so that loading names every key that does not fit.

Any key of a decoder makes it an MAE, any key of a classifier a Classifier, even if other keys are missing: a damaged
file must be refused, and if missing keys decided, the rest of its decoder or classifier would be dropped silently.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.errors import UsageError, UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lit_vision.backbones.backbone import Backbone


def build(
    name: str,
    backbone_args: dict[str, Any],
    state: dict[str, Tensor],
    layout: str,
    config: Mapping[str, Any],
    path: Path,
    *,
    method_args: Mapping[str, Any],
    backbone_only: bool = False,
) -> tuple[nn.Module, dict[str, Tensor], str]:
    """Build the module that the state is for.

    Args:
        name: timm's name of the backbone.
        backbone_args: further arguments of Backbone.
        state: tensors in the common form (weights/checkpoint_layouts.py).
        layout: of the file.
        config: of a config.json; {} without one.
        path: the file, for messages.
        method_args: arguments of MAE or Classifier that no tensor shows (--args).
        backbone_only: leave decoder and classifier out.

    Returns:
        The module, the state for it, and its layout.

    Raises:
        UserError: the number of the decoder's heads is unknown, or the classifier is not one that Classifier has.
        UsageError: --args or --backbone_args has an unknown key or a value that the constructor refuses.
    """
    from lit_vision.backbones.backbone import Backbone
    from lit_vision.weights.checkpoint_layouts import restore_module
    from lit_vision.weights.compatibility import LIGHTLY_MAE

    if any(key.startswith("decoder.") for key in state) and not backbone_only:
        arguments = {**_decoder_args(state, layout, config), **method_args}
        if arguments["decoder_heads"] is None:
            raise UserError(
                f"{path}: the number of the decoder's heads is unknown; give --args '{{\"decoder_heads\": N}}'"
            )
        return _construct("MAE", name, backbone_args, arguments), state, layout
    with _as_usage_error("--backbone_args", backbone_args):
        backbone = Backbone(name, **backbone_args)
    if layout == "timm":
        state = restore_module(state, backbone.model)
    untrained = layout == LIGHTLY_MAE  # the classifier of its ViT was never trained
    classifier = None if backbone_only or untrained else _find_classifier(state, backbone)
    if classifier is not None:
        arguments = {"num_classes": _count_classes(state, classifier, path)}
        if classifier != "head":
            state = {re.sub(rf"^{re.escape(classifier)}\.", "head.", key): value for key, value in state.items()}
            layout = "timm (classifier)"
        return _construct("Classifier", name, backbone_args, {**arguments, **method_args}), state, layout
    if unknown := [key for key in method_args if key not in ("mean", "std")]:
        raise UsageError(f"--args: a backbone alone takes mean and std, not {unknown[0]}; leave it out")
    return backbone, state, layout


def _decoder_args(state: Mapping[str, Tensor], layout: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return MAE's arguments: the width of most of the decoder's tensors, its number of blocks, and those of config."""
    from lit_vision.weights.compatibility import LIGHTLY_MAE

    axes = {"embed.weight": 0, "embed.bias": 0, "mask_token": -1, "pos_embed": -1, "norm.weight": 0, "pred.weight": -1}
    shapes = {key: state[f"decoder.{key}"].shape for key in axes if f"decoder.{key}" in state}
    widths = Counter(shape[axes[key]] for key, shape in shapes.items() if len(shape))
    width = widths.most_common(1)[0][0] if widths else 512
    blocks = {match[1] for key in state if (match := re.match(r"decoder\.blocks\.(\d+)\.", key))}
    heads = config.get("decoder_num_attention_heads", 16 if width == 512 else None)
    arguments = {"decoder_width": width, "decoder_depth": max(1, len(blocks)), "decoder_heads": heads}
    arguments |= {key: config[key] for key in ("mask_ratio", "norm_pix_loss") if key in config}
    return arguments | ({"norm_pix_loss": False} if layout == LIGHTLY_MAE else {})


def _find_classifier(state: Mapping[str, Tensor], backbone: Backbone) -> str | None:
    """Return the name of the classifier's module, `head` or timm's name in this family; None if there is none."""
    from lit_vision.weights.load import classifier_names

    names = ("head", *(name for name in classifier_names(backbone) if not name.endswith(".AuxLogits")))
    return next((name for name in names if any(key.startswith(f"{name}.") for key in state)), None)


def _count_classes(state: Mapping[str, Tensor], classifier: str, path: Path) -> int:
    """Return the number of outputs of the classifier, from its weight or, if that is missing, its other tensors."""
    prefix = f"{classifier}."
    keys = (f"{prefix}weight", f"{prefix}bias", *(key for key in state if key.startswith(prefix)))
    shape = next((state[key].shape for key in keys if key in state and state[key].ndim), (0,))
    if len(shape) > 2 or shape[0] < 2:
        found = f"{classifier.removeprefix('backbone.')} of {'x'.join(map(str, shape))}"
        raise UserError(
            f"{path}: its classifier ({found}) is not a linear map to 2 classes or more; give --backbone_only"
        )
    count: int = shape[0]
    return count


def _construct(method: str, name: str, backbone_args: dict[str, Any], arguments: dict[str, Any]) -> nn.Module:
    """Return the network of a method; its `hparams` are what the network needs, without the training's."""
    from lit_vision.methods import network_class

    network = network_class(method)
    known = {"num_classes", *import_module(network.__module__).DEFAULTS}
    if unknown := [key for key in arguments if key not in known]:
        raise UsageError(f"--args: {method} takes no {unknown[0]}; leave it out")
    with _as_usage_error("--args or --backbone_args", {**backbone_args, **arguments}):
        return network({"backbone": name, "backbone_args": backbone_args, **arguments})


@contextmanager
def _as_usage_error(flag: str, value: Mapping[str, Any]) -> Iterator[None]:
    """Turn a constructor's error about arguments that the user gave into a UsageError that names the flag."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{flag}: {json.dumps(value)}: {reason}; change the value") from error
