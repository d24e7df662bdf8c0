"""Protocols of the adaptation table: each changes the study's fine-tuning of a ViT, with the study's values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lit_vision.study.presets import StudyPreset, preset_for

NAME, INIT, ROTATION = "adaptation", "mae", 180.0
_STUDY = preset_for(32).adapt  # the same for every size
# protocol: its changes to the study's fine-tuning; None is the linear probe
PROTOCOLS: dict[str, dict[str, Any] | None] = {
    "linear": None,
    "finetune": {},
    **{name: _STUDY[name] for name in ("last-1", "head+norm", "bias")},
    "lora": {**_STUDY["lora"], "lora_targets": ["qkv"]},
    "lora-all": {**_STUDY["lora"], "lora_targets": ["qkv", "proj", "mlp"]},
    **{name: _STUDY[name] for name in ("prompt-shallow", "prompt-deep")},
}


def preset_of(size: int) -> StudyPreset:
    """Return the study's preset with this table's protocols, for images of `size` pixels."""
    changes = {name: options for name, options in PROTOCOLS.items() if options is not None}
    return replace(preset_for(size, ROTATION), adapt=changes)
