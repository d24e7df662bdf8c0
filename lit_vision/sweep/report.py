"""Write a sweep's report: one HTML file that opens offline, with the table, a figure for each key, and the finish."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lit_vision.io.atomic import atomic_write
from lit_vision.results.html_page import html_page, html_picture, html_table, html_text
from lit_vision.results.plots.style import FAINT, PALETTE, new_figure, save_figure, style
from lit_vision.results.tables import Table
from lit_vision.sweep.finish import luck_of
from lit_vision.sweep.journal import RUNNING, WAITING
from lit_vision.sweep.pairs import ERRORS, false_stop_rate
from lit_vision.sweep.settings import SweepSettings
from lit_vision.sweep.space import Range, Space, as_text
from lit_vision.sweep.summary import GIVEN_UP, Row, best_of

MOST_ROWS = 50


def write_sweep_report(
    folder: Path,
    rows: Sequence[Row],
    settings: SweepSettings,
    space: Space,
    facts: Sequence[str],
    finished: Mapping[str, Any] | None = None,
) -> Path:
    """Write report.html and its figures, and return its path.

    Args:
        folder: of the sweep.
        rows: of `summarize_settings`.
        settings: of the sweep.
        space: that was searched.
        facts: of `facts_of`.
        finished: content of finish.json, if the sweep has been finished.
    """
    title = f"Sweep: {folder.resolve().name}"
    best = best_of(rows)
    body = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{html_text(lead(rows, settings, best))}</p>']
    lines = conclusions(rows, settings, finished)
    kinds = ["better" if line.startswith("Better") else "" for line in lines]
    items = "\n".join(f'<li class="{kind}">{html_text(line)}</li>' for kind, line in zip(kinds, lines))
    body.append(f'<ul class="answers">\n{items}\n</ul>' if lines else "")
    body += ["<h2>All settings</h2>", html_table(to_table(rows, settings))]
    for i, key in enumerate(space):
        if any(row.values for row in rows):
            picture = _draw(folder / "figures" / f"key-{i}.png", key, space, rows, settings.metric)
            body += [f"<h2>{escape(key)}</h2>", html_picture(f"{settings.metric} over {key}", picture)]
    made = "\n".join(f"<li>{html_text(fact)}</li>" for fact in facts)
    body.append(f'<h2>How it was made</h2>\n<ul class="facts">\n{made}\n</ul>')
    path = folder / "report.html"
    page = html_page(title, "\n".join(part for part in body if part))
    atomic_write(path, lambda file: file.write_text(page, encoding="utf-8"), fsync=False)
    return path


def lead(rows: Sequence[Row], settings: SweepSettings, best: Row | None) -> str:
    """Return the sentence that names the best setting."""
    left = sum(row.state in (WAITING, RUNNING) for row in rows)
    still = f" {left} of {len(rows)} settings are still to be run." if left else ""
    if best is None:
        return f"No run has ended well yet.{still}"
    values = ", ".join(f"{key.replace('init_args.', '')} {_short(value)}" for key, value in best.point.items())
    seeds = f"mean of {len(best.values)} seeds" if len(best.values) > 1 else "one seed"
    score = f"{settings.metric} {number(best.mean, settings)} ({seeds})"
    return f"Best of {len(rows)} settings: {values}, with {score}.{still}"


def conclusions(rows: Sequence[Row], settings: SweepSettings, finished: Mapping[str, Any] | None) -> list[str]:
    """Return what the sweep shows: the gain on new seeds if it is finished, and what luck alone would show."""
    lines = []
    if finished:
        gain, seeds = finished["gain"], len(finished["seeds"])
        mean, low, high = (difference(gain[name], settings) for name in ("mean", "low", "high"))
        better = "Better than the recipe" if gain["low"] > 0 else ""
        verdict = better or ("Worse than the recipe" if gain["high"] < 0 else "No difference to the recipe is shown")
        lines.append(
            f"{verdict} on the test split, read once: {mean} (95 % interval {low} to {high}), {seeds} new seeds."
        )
        searched = number(finished["validation_in_search"], settings)
        now = number(math.fsum(finished["validation_on_new_seeds"]) / seeds, settings)
        lines.append(f"On validation the best setting had {searched} in the search and has {now} on the new seeds.")
    luck = finished["luck"] if finished else _as_mapping(luck_of(rows))
    if luck:
        mean, high, sd = (difference(luck[key], settings, sign=False) for key in ("mean", "high", "spread"))
        lines.append(
            f"By luck alone the best of {luck['arms']} equal settings, {_count(luck['seeds'], 'seed')} each, seems "
            f"better by {mean} (in 5 % of sweeps by more than {high}): simulated from the measured sd of {sd}."
        )
    elif any(row.values for row in rows):
        lines.append(
            "How much the best would seem better by luck is not known from one seed a setting: give --seeds 3."
        )
    return lines


def facts_of(rows: Sequence[Row], settings: SweepSettings) -> list[str]:
    """Return how the sweep was made, with the measured rate of wrong decisions of the rule of pairs."""
    facts = [
        f"Points: {settings.sampler}, seed {settings.seed}; {len(rows)} of {settings.trials} settings so far. "
        f"Chosen by {settings.metric} of the last weights on the validation split.",
    ]
    if settings.pruner:
        facts.append(f"Pruner: {settings.pruner}; a pruned run was stopped early and has no value.")
    if settings.seeds > 1:
        rate = false_stop_rate(max(2, sum(bool(row.values) for row in rows)), settings.seeds)
        stopped = sum(row.state == GIVEN_UP for row in rows)
        facts.append(
            f"Repeats: {settings.seeds} seeds in pairs, the best setting first. A setting was given up when its paired "
            f"mean was worse than the leader's by more than {ERRORS:g} standard errors (a rule of our own): {stopped} "
            f"were. Of settings that are as good as the leader the rule gives up {100 * rate:.2g} % (simulated)."
        )
    return facts


def to_table(rows: Sequence[Row], settings: SweepSettings) -> Table:
    """Return the settings as a table of texts."""
    keys = list(dict.fromkeys(key for row in rows for key in row.point))
    short = [key.replace("init_args.", "").removeprefix("model.") for key in keys]
    table = Table(
        ["setting", settings.metric, "seeds", "state", *short],
        note="± is the sd over seeds" + ("; the other settings are in trials.csv" if len(rows) > MOST_ROWS else ""),
    )
    for row in rows[:MOST_ROWS]:
        score = number(row.mean, settings, row.sd) if row.values else "not measured"
        given = [_short(row.point.get(key)) for key in keys]
        table.rows.append([str(row.setting), score, str(len(row.values)), row.state, *given])
    return table


def _short(value: Any) -> str:
    """Return a value with 4 significant digits; trials.csv and best.yaml have all of them."""
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)


def number(value: float, settings: SweepSettings, sd: float | None = None) -> str:
    """Return a value of the metric: percent, or as it is for a loss."""
    if settings.minimize:
        return f"{value:.4f}" + ("" if sd is None else f" ± {sd:.4f}")
    return f"{100 * value:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}") + " %"


def difference(value: float, settings: SweepSettings, sign: bool = True) -> str:
    """Return a difference of two values: in points of percent, or as it is for losses."""
    plus = "+" if sign else ""
    return f"{value:{plus}.4f}" if settings.minimize else f"{100 * value:{plus}.1f} points"


def _draw(path: Path, key: str, space: Space, rows: Sequence[Row], metric: str) -> Path:
    """Draw the metric over the values of one key, a dot for each setting; the best one is a star."""
    figure, axes = new_figure(height=2.8)
    entry, shown = space[key], [row for row in rows if row.values]
    if isinstance(entry, Range):
        places = {row.setting: float(row.point[key]) for row in shown}
        if entry.log:
            axes.set_xscale("log")
        elif entry.whole:
            axes.locator_params(axis="x", integer=True)
    else:
        names = [as_text(value) for value in entry.values]
        places = {row.setting: float(names.index(as_text(row.point[key]))) for row in shown}
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    scale = 1.0 if metric.endswith("loss") else 100.0
    for row in reversed(shown):
        is_best, dropped = row is best_of(rows), row.state == GIVEN_UP
        axes.plot(
            places[row.setting],
            scale * row.mean,
            linestyle="",
            marker="*" if is_best else "x" if dropped else "o",
            markersize=14 if is_best else 6,
            color=PALETTE[1] if is_best else FAINT if dropped else PALETTE[0],
            alpha=1.0 if is_best else 0.75,
        )
    style(axes, "star: best; cross: given up", key, metric if scale == 1 else f"{metric}, %")
    return save_figure(figure, path)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _as_mapping(luck: Any) -> dict[str, Any] | None:
    return None if luck is None else vars(luck)
