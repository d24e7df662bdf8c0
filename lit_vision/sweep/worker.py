"""The loop of one process of a sweep: add what is to be run next, take a run that nobody has, run it, record it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lit_vision.errors import UserError
from lit_vision.io.atomic import write_json
from lit_vision.io.text import format_duration
from lit_vision.sweep import finish
from lit_vision.sweep.journal import COMPLETE, FAILED, PRUNED, WAITING, Journal, Trial, values_of
from lit_vision.sweep.pairs import next_runs
from lit_vision.sweep.report_trial import PRUNED_FILE, VARIABLE
from lit_vision.sweep.settings import SweepSettings, read, recipe_of
from lit_vision.sweep.space import as_text, grid_point, random_point, to_arguments

FAILURES = 3  # so many first trials that all fail end the sweep: it is not the settings then
WAIT = 1.0  # seconds between looks at what other processes do
INTERRUPTED = (130, 138, 143)  # exit codes of a run that was told to stop and can be resumed

# arguments after `lit-vision`, log, environment to an exit code
Run = Callable[[Sequence[str], Path, Mapping[str, str]], int]


def log_line(text: str) -> None:
    """Print a line at once, also into a file or pipe."""
    print(text, flush=True)


@dataclass(frozen=True)
class RunOutcome:
    """RunOutcome of a run: its state, the metric's value and, of a failed one, the reason."""

    state: str
    value: float | None = None
    reason: str = ""


def work(
    folder: Path, journal: Journal, run: Run, finish_seeds: int = 0, log: Callable[[str], None] = log_line
) -> None:
    """Run trials until none is left; other processes may do the same.

    Args:
        folder: of the sweep.
        journal: of this folder.
        run: runs a command of lit-vision.
        finish_seeds: new seeds on which the best setting and the recipe alone are trained at the end; 0: none.
        log: takes lines about the progress.

    Raises:
        UserError: the first FAILURES trials have all failed.
        SystemExit: a run was told to stop from outside; it can be resumed.
    """
    while True:
        with journal.lock():
            settings = read(folder)
            add_next(journal, settings)
            if finish_seeds:
                finish.add_runs(folder, journal, settings, finish_seeds)
            claimed = journal.claim()
            left = any(not trial.ended for trial in journal.trials())
        if claimed:
            _run_trial(journal, settings, *claimed, run, log)
        elif left:
            time.sleep(WAIT)
        else:
            return


def add_next(journal: Journal, settings: SweepSettings) -> None:
    """Add the trials that are to be run next, if they are known already; the caller holds the lock."""
    trials = journal.trials()
    first = [trial for trial in trials if not trial.finish and trial.seed == settings.first_seed]
    if settings.sampler == "tpe":
        if len(first) < settings.trials and not any(trial.state == WAITING for trial in trials):
            journal.propose(len(first))
            return
    else:
        make = grid_point if settings.sampler == "grid" else random_point
        for number in range(len(first), settings.trials):
            journal.add(make(journal.space, settings.seed, number))
    if len(first) < settings.trials or not all(trial.ended for trial in first):
        return
    runs, _ = next_runs(values_of(trials), settings.all_seeds, settings.minimize)
    known = {(trial.setting, trial.seed) for trial in trials}
    points = {trial.setting: trial.point for trial in first}
    for setting, seed in runs:
        if (setting, seed) not in known:
            journal.add(points[setting], setting, seed)


def _run_trial(
    journal: Journal, settings: SweepSettings, trial: Trial, held: IO[str], run: Run, log: Callable[[str], None]
) -> None:
    run_dir, start = journal.trial_folder(trial), time.perf_counter()
    name = f"{run_dir.parent.name} {run_dir.name}"
    with held:
        outcome = read_outcome(run_dir, settings.metric)
        if outcome is None:
            log(f"{name}: {', '.join(f'{key}={as_text(value)}' for key, value in trial.point.items()) or 'the recipe'}")
            code = run(
                fit_arguments(journal, settings, trial), run_dir / "log.txt", _environment(journal, settings, trial)
            )
            outcome = read_outcome(run_dir, settings.metric)
            if outcome is None and code in INTERRUPTED:
                raise SystemExit(code)
            outcome = outcome or _record_failure(run_dir, code)
        with journal.lock():
            journal.end(trial, outcome.state, outcome.value)
    result = (
        f"{settings.metric} {outcome.value:.4f}" if outcome.state == COMPLETE else f"{outcome.state} {outcome.reason}"
    )
    log(f"{name}: {result.strip()} ({format_duration(time.perf_counter() - start)})")
    states = [other.state for other in journal.trials() if other.ended]
    if len(states) >= FAILURES and set(states) == {FAILED}:
        raise UserError(f"{run_dir / 'log.txt'}: all {len(states)} trials so far failed; this one: {outcome.reason}")


def fit_arguments(journal: Journal, settings: SweepSettings, trial: Trial) -> list[str]:
    """Return the command of a trial's run, after `lit-vision`."""
    run_dir = journal.trial_folder(trial)
    arguments = ["fit", "--config", str(recipe_of(journal.folder)), "--run_dir", str(run_dir), "--resume", "auto"]
    arguments += [f"--seed_everything={trial.seed}", *settings.overrides, *to_arguments(trial.point)]
    return arguments + (["--wandb", settings.wandb] if settings.wandb else [])


def _environment(journal: Journal, settings: SweepSettings, trial: Trial) -> dict[str, str]:
    """Return the variables of a trial's run: W&B's group, and what lets it report to a pruner.

    Repeats are not pruned: the rule of pairs decides about them.
    """
    group = {"WANDB_RUN_GROUP": f"sweep-{journal.folder.resolve().name}"} if settings.wandb else {}
    prunes = settings.pruner and trial.seed == settings.first_seed and not trial.finish
    return group | ({VARIABLE: f"{journal.folder.resolve()}:{trial.number}"} if prunes else {})


def read_outcome(run_dir: Path, metric: str) -> RunOutcome | None:
    """Return the outcome that a run's folder holds, or None if the run has not ended."""
    if (run_dir / PRUNED_FILE).exists():
        return RunOutcome(PRUNED)
    if failed := _read(run_dir / "failed.json"):
        return RunOutcome(FAILED, reason=str(failed.get("reason", "")))
    results = _read(run_dir / "results.json")
    if results is None:
        return None
    measured = results.get("metrics") or {}
    if metric not in measured:
        return RunOutcome(
            FAILED, reason=f"did not measure {metric}; it measured {', '.join(sorted(measured)) or 'nothing'}"
        )
    return RunOutcome(COMPLETE, float(measured[metric]))


def _record_failure(run_dir: Path, code: int) -> RunOutcome:
    """Write failed.json, so that no other process tries the run again."""
    lines = (run_dir / "log.txt").read_text(errors="replace").splitlines() if (run_dir / "log.txt").exists() else []
    last = next((line for line in reversed(lines) if line.strip()), "no output")
    by = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    reason = f"{by}: {last.removeprefix('lit-vision: error: ')[:300]}"
    write_json(run_dir / "failed.json", {"exit_code": code, "reason": reason})
    return RunOutcome(FAILED, reason=reason)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}); remove it to repeat the run") from None
    return found if isinstance(found, dict) else {}
