"""What trains of the ViT of the adaptation table: each protocol is a change of the study's fine-tuning, with the study's values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lit_vision.study.presets import StudyPreset, preset_for

NAME, INIT, ROTATION = "adaptation", "mae", 180.0
_STUDY = preset_for(32).adapt  # the same for every size
# protocol: what it changes of the study's fine-tuning; None is the probe itself
PROTOCOLS: dict[str, dict[str, Any] | None] = {
    "linear": None,
    "finetune": {},
    **{name: _STUDY[name] for name in ("last-1", "head+norm", "bias")},
    "lora": {**_STUDY["lora"], "lora_targets": ["qkv"]},
    "lora-all": {**_STUDY["lora"], "lora_targets": ["qkv", "proj", "mlp"]},
    **{name: _STUDY[name] for name in ("prompt-shallow", "prompt-deep")},
}


def preset_of(size: int) -> StudyPreset:
    """The study's recipe with this table's protocols."""
    changes = {name: options for name, options in PROTOCOLS.items() if options is not None}
    return replace(preset_for(size, ROTATION), adapt=changes)
