"""The end of a sweep: best setting and recipe alone are trained on new seeds, then the test split is read once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError
from lit_vision.evaluation.metrics import mean_sd
from lit_vision.evaluation.paired_intervals import LEVEL, paired_interval
from lit_vision.io.atomic import write_json
from lit_vision.io.file_lock import locked
from lit_vision.sweep.journal import COMPLETE, RECIPE_ALONE, Journal, Trial
from lit_vision.sweep.luck import Luck, best_by_luck, spread_over_seeds
from lit_vision.sweep.settings import SweepSettings, read, write
from lit_vision.sweep.summary import GIVEN_UP, Row, best_of, summarize_settings

RESULT = "finish.json"


def add_runs(folder: Path, journal: Journal, settings: SweepSettings, new_seeds: int) -> None:
    """Add the runs of best setting and recipe alone on new seeds, once the search is over; the caller holds the lock.

    From then on the sweep is decided and cannot grow.

    Raises:
        UserError: no trial has ended well.
    """
    trials = journal.trials()
    if not all(trial.ended for trial in trials):
        return
    if settings.finish is None:
        best = best_of(summarize_settings(trials, settings))
        if best is None:
            raise UserError(f"{folder}: no trial has ended well, so there is no best setting to finish with")
        first = settings.first_seed + settings.seeds
        settings = write(
            folder,
            replace(settings, finish={"setting": best.setting, "seeds": list(range(first, first + new_seeds))}),
        )
    assert settings.finish is not None
    known = {(trial.setting, trial.seed) for trial in trials if trial.finish}
    points = {trial.setting: trial.point for trial in trials} | {RECIPE_ALONE: {}}
    for seed in settings.finish["seeds"]:
        for setting in (settings.finish["setting"], RECIPE_ALONE):
            if (setting, seed) not in known:
                journal.add(points[setting], setting, seed, finish=True)


def compare_on_test(
    folder: Path, journal: Journal, run: Callable[[Sequence[str], Path, Mapping[str, str]], int]
) -> dict[str, Any]:
    """Measure the runs on new seeds on the test split, each once, and write finish.json; return its content.

    Args:
        folder: of the sweep, whose trials have all ended.
        journal: of this folder.
        run: runs a command of lit-vision.

    Raises:
        UserError: a run on new seeds failed, or the test split cannot be read.
    """
    settings, path = read(folder), folder / RESULT
    with locked(folder / "finish.lock"):
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        runs = [trial for trial in journal.trials() if trial.finish]
        for trial in runs:
            if trial.state != COMPLETE:
                log = journal.trial_folder(trial) / "log.txt"
                raise UserError(f"{log}: a run on new seeds failed, so there is no comparison; see there")
        measured = {(trial.setting, trial.seed): _measure(journal.trial_folder(trial), settings, run) for trial in runs}
        content = _compare(runs, measured, summarize_settings(journal.trials(), settings), settings)
        write_json(path, content)
    return content


def _measure(
    run_dir: Path, settings: SweepSettings, run: Callable[[Sequence[str], Path, Mapping[str, str]], int]
) -> tuple[float, int]:
    """Return the metric on the test split, and the images of the split; reads the split if it was not read before."""
    path = run_dir / "results-test.json"
    if not path.exists():
        code = run(["test", "--ckpt_path", str(run_dir / "checkpoints" / "last.ckpt")], run_dir / "log.txt", {})
        if code or not path.exists():
            raise UserError(f"{run_dir / 'log.txt'}: the test split was not measured (exit code {code}); see there")
    result = json.loads(path.read_text(encoding="utf-8"))
    name = "test/" + settings.metric.removeprefix("val/")
    return float(result["metrics"].get(name, result["metric"]["value"])), int(result["samples"])


def _compare(
    runs: Sequence[Trial],
    measured: Mapping[tuple[int, int], tuple[float, int]],
    rows: Sequence[Row],
    settings: SweepSettings,
) -> dict[str, Any]:
    assert settings.finish is not None
    best, seeds = settings.finish["setting"], settings.finish["seeds"]
    on_validation = {(trial.setting, trial.seed): trial.value for trial in runs}
    ours, alone = ([measured[setting, seed][0] for seed in seeds] for setting in (best, RECIPE_ALONE))
    chosen = next(row for row in rows if row.setting == best)
    luck = luck_of(rows, [[on_validation[s, seed] or 0.0 for seed in seeds] for s in (best, RECIPE_ALONE)])
    return {
        "setting": best,
        "point": chosen.point,
        "metric": settings.metric,
        "test_metric": "test/" + settings.metric.removeprefix("val/"),
        "test_images": measured[best, seeds[0]][1],
        "seeds": seeds,
        "best": ours,
        "recipe": alone,
        "gain": gain(ours, alone, measured[best, seeds[0]][1], settings.minimize),
        "validation_in_search": chosen.mean,
        "validation_on_new_seeds": [on_validation[best, seed] for seed in seeds],
        "recipe_validation_on_new_seeds": [on_validation[RECIPE_ALONE, seed] for seed in seeds],
        "luck": None if luck is None else asdict(luck),
    }


def luck_of(rows: Sequence[Row], otherwise: Sequence[Sequence[float]] = ()) -> Luck | None:
    """Return how much the best of as many equal settings would seem better, from the spread that the sweep measured.

    Args:
        rows: the settings; those with fewer seeds than the best are counted as if they had as many.
        otherwise: values to take the spread from if no two settings have two seeds.
    """
    tried = [row for row in rows if row.values]
    if not tried:
        return None
    seeds = max(len(row.values) for row in tried)
    full = [row.values for row in tried if len(row.values) == seeds and row.state != GIVEN_UP]
    spread = spread_over_seeds(full)
    if spread is None:
        spread = spread_over_seeds(otherwise)
    return None if spread is None else best_by_luck(len(tried), seeds, spread)


def gain(best: Sequence[float], recipe: Sequence[float], images: int, minimize: bool) -> dict[str, float]:
    """Return mean and 95 % interval of how much better the best setting is over paired seeds; positive is better.

    Args:
        best: one value per new seed.
        recipe: as many, of the same seeds.
        images: of the test split, see `paired_interval`; not used for losses.
        minimize: the values are losses.
    """
    if not minimize:
        interval = paired_interval(best, recipe, images)
        return {"mean": interval.mean, "low": interval.low, "high": interval.high}
    from scipy.special import stdtrit

    mean, sd = mean_sd([b - a for a, b in zip(best, recipe)])
    if sd is None:
        return {"mean": mean, "low": mean, "high": mean}
    half = float(stdtrit(len(best) - 1, (1 + LEVEL) / 2)) * sd / math.sqrt(len(best))
    return {"mean": mean, "low": mean - half, "high": mean + half}
