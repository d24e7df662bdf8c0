"""Results of a sweep: its settings in order, the table of them, and the best one as a recipe."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_vision.errors import UsageError
from lit_vision.evaluation.metrics import mean_sd
from lit_vision.io.atomic import atomic_write
from lit_vision.sweep.journal import COMPLETE, Trial, values_of
from lit_vision.sweep.pairs import next_runs
from lit_vision.sweep.settings import SweepSettings
from lit_vision.sweep.space import Point, as_text

GIVEN_UP = "given up"


@dataclass(frozen=True)
class Row:
    """One setting: its number, values, state (of its first run, or GIVEN_UP), and the metric's value for each seed."""

    setting: int
    point: Point
    state: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return sum(self.values) / len(self.values)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over the seeds; None with one."""
        return mean_sd(self.values)[1]


def summarize_settings(trials: Sequence[Trial], settings: SweepSettings) -> list[Row]:
    """Return a row for each setting, the best first: by the number of seeds, then by the mean; runs without value last.

    More seeds come first because the rule of pairs has given up the others.
    """
    first = {t.setting: t for t in trials if not t.finish and t.seed == settings.first_seed}
    values: dict[int, dict[int, float | None]] = {setting: {} for setting in first}
    values |= values_of(trials)
    stopped: dict[int, int] = {}
    if all(trial.ended for trial in first.values()):
        _, stopped = next_runs(values, settings.all_seeds, settings.minimize)
    rows = []
    for setting, trial in first.items():
        known = tuple(value for _, value in sorted(values[setting].items()) if value is not None)
        rows.append(Row(setting, trial.point, GIVEN_UP if setting in stopped else trial.state, known))
    sign = 1 if settings.minimize else -1
    return sorted(
        rows, key=lambda r: (r.state == GIVEN_UP, -len(r.values), sign * r.mean if r.values else 0, r.setting)
    )


def best_of(rows: Sequence[Row]) -> Row | None:
    """Return the best setting; None if no run has ended well."""
    return next((row for row in rows if row.values and row.state == COMPLETE), None)


def write_trials_table(path: Path, rows: Sequence[Row], metric: str) -> None:
    """Write a CSV with a row for each setting; it holds no times, so the same sweep gives the same bytes."""
    keys = list(dict.fromkeys(key for row in rows for key in row.point))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["setting", *keys, "state", "seeds", f"mean {metric}", "sd", "values"])
    for row in rows:
        given = [as_text(row.point[key]) if key in row.point else "" for key in keys]
        mean = repr(row.mean) if row.values else ""
        sd = "" if not row.values or row.sd is None else repr(row.sd)
        values = " ".join(repr(value) for value in row.values)
        writer.writerow([row.setting, *given, row.state, len(row.values), mean, sd, values])
    atomic_write(path, lambda file: file.write_text(out.getvalue(), encoding="utf-8"), fsync=False)


def write_recipe(path: Path, recipe: Path, row: Row, settings: SweepSettings) -> None:
    """Write the recipe with the values of a setting, complete and ready for `lit-vision fit`."""
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for key, value in [*_overrides(settings.overrides), *row.point.items()]:
        set_key(content, key, value)
    lines = [
        f"# Best setting that lit-vision sweep tried: {settings.metric} {row.mean:.4f}, seeds: {len(row.values)}.",
        "# It was chosen by this number, which is therefore too good; sweep --finish measures it on new seeds.",
        f"# run:      lit-vision fit --config {path}",
        *(f"# {key}: {as_text(value)}" for key, value in row.point.items()),
    ]
    text = "\n".join(lines) + "\n" + yaml.safe_dump(content, sort_keys=False, width=120)
    atomic_write(path, lambda file: file.write_text(text, encoding="utf-8"), fsync=False)


def _overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """Return (key, value) of arguments, which are all --KEY=VALUE."""
    pairs = (argument.removeprefix("--").partition("=") for argument in arguments)
    return [(key, yaml.safe_load(value)) for key, _, value in pairs]


def set_key(recipe: dict[str, Any], key: str, value: Any) -> None:
    """Set a key with dots in a recipe, as the command line does: `init_args` may be left out.

    Raises:
        UsageError: a part of the key is no mapping in the recipe.
    """
    *parents, last = key.split(".")
    at = recipe
    for part in parents:
        if "class_path" in at and part not in ("init_args", "class_path"):
            at = at.setdefault("init_args", {})
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise UsageError(f"{key}: {part} is no mapping in the recipe; set it as a whole")
    if "class_path" in at and last not in ("init_args", "class_path"):
        at = at.setdefault("init_args", {})
    at[last] = value
