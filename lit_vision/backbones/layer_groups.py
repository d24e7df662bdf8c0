"""Group a timm model's parameters by depth, from input to output, for layer-wise learning rates.

Of transformers of `patch_embed` and `blocks` (ViT, BEiT, EVA, CaiT, XCiT, SAM, ...): cls, positions, patch embedding
and what else comes before the blocks; one group per block; then one per block of a later list, such as CaiT's and
XCiT's blocks of class attention; last what comes after all blocks (norms, SAM's neck). Of other families: as timm's
matcher has it. experiments/results/layer-groups.txt lists the groups of every family.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.models import group_parameters
from torch import nn

# for families that timm has no matcher for (MetaFormer, PiT, CSATv2): what is not matched comes last
_STAGES_OF_BLOCKS: dict[str, Any] = {
    "stem": r"^stem|^patch_embed|^cls_token|^pos_embed",
    "blocks": [
        (r"^(?:stages|transformers)\.(\d+)\.(?:downsample|pool)\.", (0,)),  # with the stage's first block
        (r"^(?:stages|transformers)\.(\d+)\.(?:blocks\.)?(\d+)\.", None),
    ],
}


def group_layers(model: nn.Module) -> list[list[str]]:
    """Return the names of the model's parameters by depth; the last group, which may be empty, follows all blocks.

    If nothing matches, all but the last group are empty or missing.
    """
    if hasattr(model, "blocks") and hasattr(model, "patch_embed"):
        return _groups_of_blocks(model)
    # The parameter that no pattern can match opens the group of what is unmatched, even where there is nothing else in
    # it.
    names, probe = [name for name, _ in model.named_parameters()], "\0unmatched"
    patterns = model.group_matcher(coarse=False) if hasattr(model, "group_matcher") else _STAGES_OF_BLOCKS
    matched = group_parameters(_Names([*names, probe]), patterns)
    return [[name for name in matched[i] if name != probe] for i in sorted(matched)]


def _groups_of_blocks(model: nn.Module) -> list[list[str]]:
    """Return the groups of a transformer: before its blocks, each block, each block of later lists, what follows."""
    children = [name for name, _ in model.named_children()]
    after = children[children.index("blocks") + 1 :]  # timm registers modules in the order in which they are applied
    layer: dict[str, int] = {}  # "blocks.3": its group
    for name in ("blocks", *(name for name in after if "block" in name)):
        for i in range(len(getattr(model, name))):
            layer[f"{name}.{i}"] = len(layer) + 1
    groups: list[list[str]] = [[] for _ in range(len(layer) + 2)]
    for name, _ in model.named_parameters():
        parts = name.split(".")
        default = len(layer) + 1 if parts[0] in after else 0
        groups[layer.get(".".join(parts[:2]), default)].append(name)
    return groups


class _Names:
    """Stand-in for a module in timm's `group_parameters`, which reads only `named_parameters()`."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def named_parameters(self) -> Iterator[tuple[str, None]]:
        return ((name, None) for name in self.names)
