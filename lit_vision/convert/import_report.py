"""Describe what an import took from a file, and what it had to assume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from lit_vision.weights.load import LoadReport


def state_line(metadata: Mapping[str, str]) -> list[str]:
    """Return the line that names the state that was taken, and the others in the file; none for a bare state dict."""
    left = metadata.get("other_states", "")
    name = metadata.get("outer", "")
    return [f"state: {name}" + (f" (also in the file: {left}; --state chooses)" if left else "")] if name else []


def notes(method: nn.Module, report: LoadReport, name: str, known: Mapping[str, Any], *, named: bool) -> list[str]:
    """Return lines about what was resized, and about what no tensor shows and was assumed.

    Args:
        method: the module that was loaded.
        report: of loading.
        name: timm's name of the backbone.
        known: values of config.json and --args; {} without any.
        named: the user gave the name.
    """
    from lit_vision.data.views.image_size import size_text
    from lit_vision.weights.compatibility import CLIP, LIGHTLY_MAE

    lines = []
    backbone: Any = getattr(method, "backbone", method)
    if report.resized:
        side = size_text(backbone.config["img_size"] or 224)
        lines.append(f"resized: {', '.join(report.resized)} to the grid of {side} pixels (bicubic)")
    ours = getattr(getattr(backbone.model, "norm", None), "eps", 1e-6)
    if (eps := float((known.get("vision_config") or known).get("layer_norm_eps", ours))) != ours:
        lines.append(f"note: config.json has layer_norm_eps {eps:g}; here it is {ours:g}, as timm has it for {name}")
    made_mae = getattr(method, "method_name", "") == "MAE"
    if made_mae and report.source != LIGHTLY_MAE and "norm_pix_loss" not in known:
        lines.append(
            "note: the file does not state norm_pix_loss (loss on normalized pixels); true is assumed (--args)"
        )
    if report.source == CLIP and not known and not named:
        lines.append(
            "note: no tensor shows the activation, and GELU is assumed; OpenAI's own weights have QuickGELU: "
            f"--backbone {name.replace('_clip_', '_clip_quickgelu_')}"
        )
    return lines
