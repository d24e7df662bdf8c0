"""What trains of the ViT of the adaptation table: each protocol is a change of the study's fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

NAME, START, ROTATION = "adaptation", "mae", 180.0
# protocol: what it changes of the study's fine-tuning; None is the probe itself
PROTOCOLS: dict[str, dict[str, Any] | None] = {
    "linear": None,
    "finetune": {},
    "last-1": {"tune": "last-1"},
    "head+norm": {"tune": "head+norm", "lr": 3e-3, "layer_decay": 1.0},
    "bias": {"tune": "bias", "lr": 3e-3, "layer_decay": 1.0},
    "lora": {"tune": "lora", "lr": 3e-3, "layer_decay": 1.0, "lora_targets": ["qkv"]},
    "lora-all": {"tune": "lora", "lr": 3e-3, "layer_decay": 1.0, "lora_targets": ["qkv", "proj", "mlp"]},
    "prompt-shallow": {"tune": "prompt-shallow", "lr": 3e-3, "layer_decay": 1.0, "prompt_length": 8},
    "prompt-deep": {"tune": "prompt-deep", "lr": 3e-3, "layer_decay": 1.0, "prompt_length": 8},
}


def recipe_of(size: int) -> Any:
    """The study's recipe with this table's protocols."""
    from lit_vision.study.recipes import recipe_for

    changes = {name: options for name, options in PROTOCOLS.items() if options is not None}
    return replace(recipe_for(size, ROTATION), adapt=changes)
