"""The cells of a study: what is asked, what came out, kept on disk one by one so that a stopped study goes on where it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.errors import UserError
from lit_vision.io.atomic import write_json
from lit_vision.results.schema import make_cell


@dataclass(frozen=True)
class CellKey:
    """One training and measurement: a start, a protocol, a number of labels, a seed (label subset, initialisation and order)."""

    init: str
    protocol: str
    labels: int
    seed: int

    @property
    def name(self) -> str:
        """A file name."""
        return f"{self.init.replace(':', '_')}-{self.protocol}-{self.labels}-{self.seed}"


@dataclass(frozen=True)
class CellResult:
    """What came out: top-1 on the test split (fraction), seconds, steps, how its choices were made, and (M, K) probabilities on disk."""

    key: CellKey
    top1: float
    seconds: float
    steps: int
    chosen_on: str
    held_out: float | None  # accuracy inside the labels (k-fold), where the protocol has one


def hash_inputs(*parts: Any) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class CellStore:
    """Outcomes under `folder`, each with a hash of all that it depends on; another hash counts as not there.

    Args:
        folder: made if missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: CellKey, inputs: str) -> CellResult | None:
        """The stored outcome, or None if there is none for these inputs."""
        try:
            found = json.loads((self.folder / f"{key.name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if found.pop("inputs", None) != inputs or not (self.folder / f"{key.name}.npy").exists():
            return None
        stored = found.pop("ask")
        return CellResult(CellKey(stored.pop("start"), **stored), **found)

    def put(self, outcome: CellResult, inputs: str, probabilities: np.ndarray) -> None:
        """Store whole or not at all: the numbers are written after the predictions."""
        np.save(self.folder / f"{outcome.key.name}.npy", probabilities.astype(np.float16))
        content = asdict(outcome)
        key = content.pop("key")
        stored = {"ask": {"start": key.pop("init"), **key}, **content, "inputs": inputs}
        write_json(self.folder / f"{outcome.key.name}.json", stored)

    def probabilities(self, key: CellKey) -> np.ndarray:
        """(M, K) float32 class probabilities on the test split."""
        return np.load(self.folder / f"{key.name}.npy").astype(np.float32)


def parse_labels(text: str, per_class: list[int]) -> list[int]:
    """How many labels each cell gets: `1%`, `10%`, `all`, a count (`200`), or shots per class (`5-shot`), separated by commas.

    Never fewer than one a class, never more than there are; duplicates fall together.

    Args:
        text: as typed.
        per_class: labelled training images of each class.

    Raises:
        UserError: a word that is none of these.
    """
    total, classes = sum(per_class), len(per_class)
    counts = []
    for word in (part.strip() for part in text.split(",")):
        try:
            if word in ("all", "these"):
                count = total
            elif word.endswith("%"):
                count = round(float(word[:-1]) / 100 * total)
            elif word.endswith("-shot"):
                count = int(word[:-5]) * classes
            else:
                count = int(word)
        except ValueError:
            raise UserError(f"--labels: {word!r} is not 1%, 200, 5-shot or all; separate them by commas") from None
        if count <= 0:
            raise UserError(f"--labels: {word!r} leaves no label; give more than 0")
        counts.append(min(max(count, classes), total))
    return sorted(set(counts))


def to_cells(outcomes: list[CellResult], pretrain_seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Outcomes as the `cells` of results.json: one per (start, protocol, labels), values in the order of their seeds."""
    groups: dict[tuple, list[CellResult]] = {}
    for outcome in sorted(outcomes, key=lambda o: o.key.seed):
        groups.setdefault((outcome.key.init, outcome.key.protocol, outcome.key.labels), []).append(outcome)
    cells = []
    for (init, protocol, labels), group in groups.items():
        held = [o.held_out for o in group]
        cells.append(
            make_cell(
                init,
                protocol,
                labels,
                [o.top1 for o in group],
                seconds=sum(o.seconds for o in group),
                pretrain_seconds=pretrain_seconds.get(init, 0.0),
                chosen_on=group[0].chosen_on,
                seeds=[o.key.seed for o in group],
                steps=group[0].steps,
                held_out=None if None in held else sum(held) / len(held),
            )
        )
    return cells
