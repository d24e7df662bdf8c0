"""One process of a sweep: begin or join it, work until nothing is left, finish, write table, recipe and report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lit_vision.errors import UserError
from lit_vision.io.file_lock import locked
from lit_vision.sweep import finish
from lit_vision.sweep.journal import Journal
from lit_vision.sweep.report import conclusions, facts_of, lead, write_sweep_report
from lit_vision.sweep.settings import SweepSettings, begin, open_journal, read, recipe_of
from lit_vision.sweep.summary import best_of, summarize_settings, write_recipe, write_trials_table
from lit_vision.sweep.worker import Run, log_line, work

TABLE, RECIPE = "trials.csv", "best.yaml"


def run_sweep(
    folder: Path,
    recipe: Path,
    space_file: Path,
    settings: SweepSettings,
    run: Run,
    finish_seeds: int = 0,
    log: Callable[[str], None] = log_line,
) -> list[Path]:
    """Begin the sweep of a folder, or join it, and work until nothing is left; return the files that it wrote.

    Args:
        folder: of the sweep.
        recipe: to search settings of.
        space_file: see `space`.
        settings: of the sweep; a sweep that exists may get more trials and seeds.
        run: runs a command of lit-vision: its arguments, a log, variables of the environment; returns the exit code.
        finish_seeds: new seeds for the comparison with the recipe on the test split; 0 leaves the test split alone.
        log: takes lines about the progress.

    Raises:
        UserError: another sweep is in the folder, or the sweep cannot go on.
        UsageError: the space file is wrong.
    """
    with locked(folder / "sweep.lock"):
        settings = begin(folder, recipe, space_file, settings)
    journal = open_journal(folder, settings)
    if settings.finish is not None and not finish_seeds:
        log(f"{folder}: its best setting has been chosen; --finish compares it on the test split")
    try:
        work(folder, journal, run, finish_seeds, log)
    finally:
        rows = summarize_settings(journal.trials(), settings)
        write_trials_table(folder / TABLE, rows, settings.metric)
    return write_results(folder, journal, run, bool(finish_seeds), log)


def write_results(
    folder: Path, journal: Journal, run: Run, with_finish: bool, log: Callable[[str], None]
) -> list[Path]:
    """Compare on the test split if asked, write best.yaml and report.html, print what came out; return the files.

    Raises:
        UserError: no trial has ended well.
    """
    settings = read(folder)
    rows = summarize_settings(journal.trials(), settings)
    write_trials_table(folder / TABLE, rows, settings.metric)
    best = best_of(rows)
    if best is None:
        raise UserError(f"{folder}: no trial has ended well; trials/*/seed-*/log.txt say why")
    finished = finish.compare_on_test(folder, journal, run) if with_finish else None
    write_recipe(folder / RECIPE, recipe_of(folder), best, settings)
    facts = facts_of(rows, settings)
    report = write_sweep_report(folder, rows, settings, journal.space, facts, finished)
    for line in (lead(rows, settings, best), *conclusions(rows, settings, finished), *facts):
        log(line)
    return [folder / TABLE, folder / RECIPE, report]
