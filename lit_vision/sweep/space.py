"""The space file of a sweep, and the points that follow from it: grid points by number, random ones by (seed, number).

A space file maps keys of the recipe to what is tried:

    model.init_args.lr: {low: 1e-4, high: 1e-1, log: true}
    model.init_args.depth: {low: 2, high: 6, step: 2}      # whole numbers, because both ends are
    model.init_args.optimizer: {values: [sgd, adamw]}
"""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_vision.errors import UsageError
from lit_vision.io.text import check_text_file

if TYPE_CHECKING:
    import numpy as np

LARGEST_GRID = 100_000
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_FIELDS = ({"values"}, {"low", "high", "log", "step"})
Point = dict[str, Any]  # key of the recipe: value


class _Loader(yaml.SafeLoader):
    """YAML as recipes are read: 1e-4 is a number, which plain PyYAML takes for a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True)
class Values:
    """Values to try, in the order of the file."""

    values: tuple[Any, ...]

    def all(self) -> list[Any]:
        """Return every value."""
        return list(self.values)

    def draw(self, rng: np.random.Generator) -> Any:
        """Return one of the values, each as likely."""
        return self.values[int(rng.integers(len(self.values)))]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole numbers if both ends are. `log`: even on a log scale."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """True if the values are whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def all(self) -> list[float]:
        """Return every value of a range with a step.

        Raises:
            ValueError: it has no step.
        """
        if self.step is None:
            raise ValueError("has no step; give values, or low, high and step")
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [self._clean(self.low + i * self.step) for i in range(count)]

    def draw(self, rng: np.random.Generator) -> float:
        """Return a random value: of 4 significant digits if it is not a whole number, so that recipes stay readable."""
        if self.step is not None:
            values = self.all()
            return values[int(rng.integers(len(values)))]
        half = 0.5 if self.whole else 0.0  # each whole number gets the share of its neighborhood
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low - half), math.log(self.high + half)))
        else:
            value = rng.uniform(self.low - half, self.high + half)
        return self._clean(min(max(value, self.low), self.high), digits=4)

    def _clean(self, value: float, digits: int = 12) -> float:
        if self.whole:
            return round(value)
        return min(max(float(f"{value:.{digits}g}"), self.low), self.high)


Space = dict[str, Values | Range]


def read_space(path: str | Path) -> Space:
    """Read a space file.

    Raises:
        UsageError: it is missing, is no such file, or a key or field is wrong; names file and key.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"--space {path}: no such file; it maps keys of the recipe to values, or to low and high")
    check_text_file("--space", path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"--space {path}: not a YAML file: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UsageError(f"--space {path}: is nested too deeply; give one line a key") from None
    if not isinstance(content, dict) or not content:
        raise UsageError(
            f"--space {path}: is empty or no mapping; write lines such as model.lr: {{values: [0.1, 0.01]}}"
        )
    return {str(key): _read_entry(f"--space {path}: {key}", str(key), entry) for key, entry in content.items()}


def _read_entry(where: str, key: str, entry: Any) -> Values | Range:
    if key.split(".")[-1] in ("seed_everything", "seed"):
        raise UsageError(f"{where}: seeds are not searched; --seeds N repeats settings over seeds")
    if not _KEY.fullmatch(key):
        raise UsageError(f"{where}: is no key of a recipe; write it with dots, such as model.init_args.lr")
    if isinstance(entry, dict) and set(entry) == {"values"}:
        values = entry["values"]
        if not isinstance(values, list) or not values:
            raise UsageError(f"{where}: values is no list, or empty; write values: [0.1, 0.01]")
        try:
            texts = [as_text(value) for value in values]
        except (TypeError, ValueError) as error:  # a date, a value that contains itself
            raise UsageError(f"{where}: values: {error}; give numbers, texts, true, false, null or lists") from None
        if len(set(texts)) < len(texts):
            raise UsageError(f"{where}: a value stands twice in values; remove one")
        return Values(tuple(values))
    if not isinstance(entry, dict) or not {"low", "high"} <= set(entry) <= _FIELDS[1]:
        raise UsageError(f"{where}: give {{values: [...]}}, or {{low: A, high: B}} with log: true or step: C if wanted")
    return _read_range(where, entry)


def _read_range(where: str, entry: dict[str, Any]) -> Range:
    low, high, step, log = entry["low"], entry["high"], entry.get("step"), entry.get("log", False)
    for name, value in (("low", low), ("high", high), ("step", 1 if step is None else step)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise UsageError(f"{where}: {name} is {value!r}; give a number")
    if not isinstance(log, bool):
        raise UsageError(f"{where}: log is {log!r}; give true or false")
    if not low < high:
        raise UsageError(f"{where}: low {low} is not below high {high}")
    if log and low <= 0:
        raise UsageError(f"{where}: low {low} has no logarithm; give a positive one, or leave log out")
    if step is not None and (log or step <= 0 or (high - low) / step > LARGEST_GRID):
        raise UsageError(f"{where}: step is not for log, is positive, and gives {LARGEST_GRID} values at most")
    return Range(low, high, log, step)


def as_text(value: Any) -> str:
    """Return a value as the command line takes it: a text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def to_arguments(point: Point) -> list[str]:
    """Return a point as arguments of `fit`: --KEY=VALUE."""
    return [f"--{key}={as_text(value)}" for key, value in point.items()]


def grid_size(space: Space) -> int:
    """Return the number of grid points.

    Raises:
        UsageError: a range has no step, or there are more than LARGEST_GRID points.
    """
    size = 1
    for key, entry in space.items():
        try:
            size *= len(entry.all())
        except ValueError as error:
            raise UsageError(f"--space: {key}: {error}; a grid needs it") from None
    if size > LARGEST_GRID:
        raise UsageError(f"--space: its grid has {size} points; take --sampler random or tpe")
    return size


def grid_point(space: Space, seed: int, number: int) -> Point:
    """Return point `number` of the grid, in an order that follows from the seed.

    The order is shuffled, so that a sweep that is stopped early has tried values of all kinds.
    """
    import numpy as np

    points = list(itertools.product(*(entry.all() for entry in space.values())))
    order = np.random.default_rng(seed).permutation(len(points))
    return dict(zip(space, points[order[number]]))


def random_point(space: Space, seed: int, number: int) -> Point:
    """Return random point `number`, which follows from (seed, number) alone."""
    import numpy as np

    rng = np.random.default_rng([seed, number])
    return {key: entry.draw(rng) for key, entry in space.items()}
