"""Settings of a sweep and its copies of recipe and space, which every process of the sweep reads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lit_vision.errors import UsageError, UserError
from lit_vision.io.atomic import atomic_write, write_json
from lit_vision.sweep.journal import Journal
from lit_vision.sweep.space import Space, grid_size, read_space

SAMPLERS, PRUNERS = ("grid", "random", "tpe"), ("median", "hyperband")
SCHEMA = 1


@dataclass(frozen=True)
class SweepSettings:
    """Settings of a sweep.

    Attributes:
        metric: of the validation split that settings are chosen by.
        trials: number of settings to try.
        seeds: runs of each setting that is not given up.
        sampler: of SAMPLERS.
        pruner: of PRUNERS, or "".
        seed: of the points.
        first_seed: the recipe's own seed_everything.
        max_epochs: the recipe's, if it has one.
        overrides: arguments that change the recipe for all trials alike.
        wandb: project of Weights & Biases, or "".
        finish: {"setting": the best, "seeds": new ones}, once the sweep has been decided; it cannot grow from then on.
    """

    metric: str
    trials: int
    seeds: int = 1
    sampler: str = "tpe"
    pruner: str = ""
    seed: int = 0
    first_seed: int = 0
    max_epochs: int | None = None
    overrides: tuple[str, ...] = ()
    wandb: str = ""
    finish: dict[str, Any] | None = None

    @property
    def minimize(self) -> bool:
        """True if smaller values are better: of losses; all other metrics are better when larger."""
        return self.metric.endswith("loss")

    @property
    def all_seeds(self) -> list[int]:
        """The seeds of the repeats, the first runs' seed first."""
        return list(range(self.first_seed, self.first_seed + self.seeds))


def recipe_of(folder: Path) -> Path:
    """Return the sweep's copy of the recipe."""
    return folder / "recipe.yaml"


def space_of(folder: Path) -> Path:
    """Return the sweep's copy of the space file."""
    return folder / "space.yaml"


def begin(folder: Path, recipe: Path, space_file: Path, settings: SweepSettings) -> SweepSettings:
    """Write the settings of a new sweep, or let the sweep of this folder go on, perhaps with more trials or seeds.

    The caller holds the lock of the sweep.

    Returns:
        The settings to use.

    Raises:
        UserError: the folder holds another sweep, or one that is decided and cannot grow.
        UsageError: the grid has fewer points than the trials that were asked for.
    """
    space = read_space(space_file)
    if settings.sampler == "grid" and settings.trials > grid_size(space):
        raise UsageError(f"--trials {settings.trials}: the grid of {space_file} has {grid_size(space)} points")
    if not (folder / "sweep.json").exists():
        for source, copy in ((recipe, recipe_of(folder)), (space_file, space_of(folder))):
            text = source.read_bytes()
            atomic_write(copy, lambda file, text=text: file.write_bytes(text))  # type: ignore[misc]
        return write(folder, settings)
    known = read(folder)
    for name, source, copy in (("--config", recipe, recipe_of(folder)), ("--space", space_file, space_of(folder))):
        if source.read_bytes() != copy.read_bytes():
            raise UserError(
                f"{name} {source}: differs from {copy}, by which the sweep began; take that, or a new --run_dir"
            )
    for name in ("sampler", "pruner", "seed", "metric", "overrides"):
        if getattr(known, name) != getattr(settings, name):
            raise UserError(
                f"--run_dir {folder}: its sweep has {name} {getattr(known, name)!r}, not {getattr(settings, name)!r}; "
                "repeat that, or name another folder"
            )
    grown = replace(
        known, trials=max(known.trials, settings.trials), seeds=max(known.seeds, settings.seeds), wandb=settings.wandb
    )
    if known.finish and (grown.trials, grown.seeds) != (known.trials, known.seeds):
        raise UserError(
            f"--run_dir {folder}: its best setting has been chosen and trained on new seeds; more trials or seeds need "
            "a new folder, and other test images"
        )
    return write(folder, grown)


def write(folder: Path, settings: SweepSettings) -> SweepSettings:
    """Write sweep.json and return the settings."""
    write_json(folder / "sweep.json", {"schema": SCHEMA, **asdict(settings)})
    return settings


def read(folder: Path) -> SweepSettings:
    """Read sweep.json.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / "sweep.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content.pop("schema")
        found = SweepSettings(**content)
        found = replace(found, overrides=tuple(found.overrides))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: is missing or damaged ({type(error).__name__}); name the folder of a sweep") from None
    if schema != SCHEMA:
        raise UserError(f"{path}: has layout {schema!r}, this version reads {SCHEMA}; start in a new folder")
    return found


def open_journal(folder: Path, settings: SweepSettings, space: Space | None = None) -> Journal:
    """Return the journal of a sweep's folder; `space` is read from the folder if it is None."""
    return Journal(
        folder,
        read_space(space_of(folder)) if space is None else space,
        settings.minimize,
        settings.seed,
        settings.first_seed,
        settings.pruner,
        settings.max_epochs,
    )
