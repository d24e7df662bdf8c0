"""Specification of a table that varies one thing about pre-training; ablation.py runs, prints and verifies it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_vision.study.presets import StudyPreset

Values = Mapping[tuple[str, str, int], Sequence[float]]  # (variant, protocol, labels) -> one value per seed


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        label: its name.
        method: changes to the arguments of the study's pre-training method.
        views: changes to its augmentation.
        trained: False for the encoder as initialized.
    """

    label: str
    method: dict[str, Any] = field(default_factory=dict)
    views: dict[str, Any] = field(default_factory=dict)
    trained: bool = True


@dataclass(frozen=True)
class Claim:
    """A direction that the paper reports.

    Attributes:
        text: the claim as a sentence.
        paper: the paper's numbers.
        sides: takes the table's values and returns two lists, a value per seed; in the paper the first is higher.
    """

    text: str
    paper: str
    sides: Callable[[Values], tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Ablation:
    """A table that varies one thing about pre-training.

    Attributes:
        name: of its files, its folder under runs/ and its make target.
        title: its question, with the source.
        note: printed under the table: what differs from the source.
        init: "mae" or "simclr".
        variants: its rows.
        columns: (protocol, labels) of its columns; protocols are linear, knn, finetune.
        claims: the paper's directions that it checks.
        published: {(variant, protocol): the source's number as text}.
        paper_scale: commands for the same question at the source's scale.
        epochs: of pre-training.
        tune_epochs: of fine-tuning.
        seeds: number of seeds.
        committed_seeds: number of seeds whose weights are committed.
        rotation: of the views, degrees each way.
    """

    name: str
    title: str
    note: str
    init: str
    variants: tuple[Variant, ...]
    columns: tuple[tuple[str, int], ...]
    claims: tuple[Claim, ...]
    published: Mapping[tuple[str, str], str]
    paper_scale: tuple[str, ...]
    epochs: int
    tune_epochs: int = 25
    seeds: int = 3
    committed_seeds: int = 1
    rotation: float = 180.0

    def preset(self, size: int, variant: Variant) -> StudyPreset:
        """Return the study's preset with the variant's changes, for images of `size` pixels."""
        from lit_vision.study.presets import preset_for

        base, views = preset_for(size, self.rotation), f"{self.init}_views"
        changes = {
            self.init: getattr(base, self.init) | variant.method,
            views: getattr(base, views) | variant.views,
        }
        return replace(base, **changes)
