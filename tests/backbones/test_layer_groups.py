"""Layer groups of timm's families: those of the committed list, and none before a group whose layers run earlier."""

import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from lit_vision.backbones.backbone import Backbone
from lit_vision.weights.checkpoint_states import PREFIXES

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
from layer_groups import HEADER, OUT, families, line_of, shorten

LINES = OUT.read_text(encoding="utf-8").splitlines()
LISTED = {line.split(" ", 1)[0]: line for line in LINES[1:]}
SOME = ("cait", "convnext", "metaformer", "pit", "resnet", "vision_transformer_sam", "xcit")
FAMILIES = [pytest.param(f, marks=[] if f in SOME else pytest.mark.slow) for f in LISTED]
# CoaT adds one relative position encoding in all blocks of a stage; EfficientViM sums normalized maps of all stages
SHARED = {"coat": "crpe", "efficientvim": "norm."}
same_timm = pytest.mark.skipif(
    LINES[0] != HEADER.format(timm.__version__), reason="the list is of another version of timm"
)


def model_of(family: str) -> str:
    return LISTED[family].split(" ", 2)[1].removesuffix(":")


@same_timm
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
@pytest.mark.parametrize("family", FAMILIES)
def test_groups_are_those_of_the_list(family: str) -> None:
    assert line_of(family, model_of(family)) == LISTED[family]


@same_timm
def test_every_family_is_listed() -> None:
    assert {family: model_of(family) for family in LISTED} == families()


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_runs_later_is_in_no_earlier_group(family: str) -> None:
    with torch.device("meta"):
        backbone = Backbone(model_of(family)).eval()
        calls = calls_of(backbone)
    groups = {name: i for i, group in enumerate(backbone.layer_groups()) for name in group}
    assert set(groups) == {name for name, _ in backbone.named_parameters()}
    shared = SHARED.get(family, "\0")
    order = [groups[name] for name in calls if not name.startswith(f"model.{shared}")]
    assert order == sorted(order)
    assert order[0] == 0


def calls_of(backbone: Backbone) -> list[str]:
    """Return the names of parameters in the order in which their modules are first called."""
    names, found = {id(parameter): name for name, parameter in backbone.named_parameters()}, {}

    def note(module: nn.Module, _: object) -> None:
        found.update({names[id(p)]: None for p in module.parameters(recurse=False) if names[id(p)] not in found})

    for module in backbone.modules():
        if module is not backbone.model:  # its own parameters (cls token, positions) are added somewhere in forward
            module.register_forward_pre_hook(note)
    backbone(torch.empty(1, *backbone.data_config["input_size"]))
    return list(found)


@pytest.mark.parametrize(
    ("family", "late"),
    [("cait", "blocks_token_only.1"), ("xcit", "cls_attn_blocks.1"), ("vision_transformer_sam", "neck")],
)
def test_late_blocks_are_late(family: str, late: str) -> None:
    groups = [group.split() for group in LISTED[family].split(": ")[1].split(" | ")]
    assert late in groups[-1] + groups[-2]
    assert len(groups) > 2


def test_shorten__names_only_what_a_group_has_alone() -> None:
    groups = [["stem.weight", "pos"], ["blocks.0.a", "blocks.0.b.c"], ["blocks.1.a", "norm.weight", "norm.bias"]]
    assert shorten(groups) == [["stem", "pos"], ["blocks.0"], ["blocks.1", "norm"]]


def test_names_that_are_stripped_as_wrappers_are_of_no_other_family() -> None:
    """weights/checkpoint_layouts.py puts the name back for these three."""
    tops = {family: line.split(": ")[1].replace("| ", "").split() for family, line in LISTED.items()}
    found = {family for family, names in tops.items() if any(f"{name}.".startswith(PREFIXES) for name in names)}
    assert found == {"deepseek_vit", "gemma4_vit", "qwen3_vit"}
