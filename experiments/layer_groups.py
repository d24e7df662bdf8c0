"""List the layer groups of one small model of each of timm's families.

Run: python experiments/layer_groups.py, which writes experiments/results/layer-groups.txt. One line a family: its name,
the model, and its groups from input to output, separated by "|"; a group is written as the shortest beginnings of names
that only its parameters have. Models are built without memory (device "meta"); a minute.
tests/backbones/test_layer_groups.py compares the file with the code.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import timm
import torch

from lit_vision.backbones.backbone import Backbone
from lit_vision.cli.parser import ScriptParser
from lit_vision.errors import UserError

OUT = Path(__file__).resolve().parent / "results" / "layer-groups.txt"
SMALL = ("atto", "nano", "pico", "xxs", "tiny", "small", "18", "_s0", "_b0", "_050")  # in names of small models
HEADER = "# timm {}: layer groups of a model of each family, input to output; made by experiments/layer_groups.py"


def families() -> dict[str, str]:
    """Return the name of a small model of each family (module) of timm."""
    return {
        family: min(
            timm.list_models(module=family),
            key=lambda name: ("test_" in name, not any(word in name for word in SMALL), len(name), name),
        )
        for family in timm.list_modules()
    }


def layer_groups(name: str) -> list[list[str]]:
    """Return the layer groups of a model of timm; names without `model.`.

    Raises:
        UserError: it has none.
    """
    with torch.device("meta"):
        groups = Backbone(name).layer_groups()
    return [[key.removeprefix("model.") for key in group] for group in groups]


def shorten(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return each group as the shortest beginnings of names that no other group has."""
    owners: dict[str, Counter[int]] = {}
    for i, group in enumerate(groups):
        for name in group:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                owners.setdefault(".".join(parts[:end]), Counter())[i] += 1

    def shortest(name: str) -> str:
        parts = name.split(".")
        starts = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        return next(start for start in starts if len(owners[start]) == 1)

    return [list(dict.fromkeys(map(shortest, group))) for group in groups]


def line_of(family: str, name: str) -> str:
    """Return the line of a family."""
    groups = " | ".join(" ".join(group) for group in shorten(layer_groups(name)))
    return f"{family} {name}: {groups}"


def main(argv: Sequence[str]) -> int:
    """Write the file; returns 0, or 1 if a family has no groups."""
    ScriptParser(prog="layer_groups.py", description=__doc__).parse_args(list(argv))
    lines, failed = [HEADER.format(timm.__version__)], 0
    for family, name in families().items():
        try:
            lines.append(line_of(family, name))
        except UserError as error:
            failed = 1
            print(f"{family}: {error}", file=sys.stderr)
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{OUT}: {len(lines) - 1} families")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
