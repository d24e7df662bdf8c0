"""Settings of a study as the user gives them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Settings:
    """Settings of a study as the user gives them.

    Attributes:
        labels: numbers of labels at which networks are trained, ascending.
        seeds: paired seeds, by number of labels.
        max_seeds: limits of the seeds of trainings, by init.
        epochs: set beforehand, by init (pre-trainings) or number of labels as text (trainings on labels).
        protocols: how networks are trained on labels, out of `presets.ON_LABELS`.
        frozen_size: side at which frozen weights see the images, pixels; None: the best that the time allows.
        choose: strategies of choosing what to label that are measured against random; see `chosen_labels`.
    """

    labels: list[int]
    seeds: dict[int, int]
    max_seeds: dict[str, int] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    protocols: list[str] = field(default_factory=lambda: ["finetune"])
    frozen_size: int | None = None
    choose: list[str] = field(default_factory=list)

    def seeds_at(self, count: int) -> int:
        """Return the paired seeds at a number of labels; those that were added for the law get the most."""
        return self.seeds.get(count, max(self.seeds.values()))
