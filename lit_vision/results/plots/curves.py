"""Line plots: accuracy over labels, losses over steps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.results.plots.style import MARKERS, PALETTE, legend_below, new_figure, save_figure, style


@dataclass(frozen=True)
class Curve:
    """Fitted curve of a series with its interval: x, y, and the ends of the interval, all of one length."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Series:
    """Data of one line of a plot: name, x, y, and the half height of its error bars (None: no bars)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    baseline: bool = False  # drawn dashed
    group: str | None = (
        None  # series of one group (such as the seeds of one init) share a color and an entry of the legend
    )
    curve: Curve | None = None  # drawn as a dotted line in its band; the points are then not joined


def accuracy_against_labels(
    path: str | os.PathLike[str],
    series: Iterable[Series],
    title: str = "Accuracy against labels",
    y: str = "test accuracy, %",
    x: str = "labeled images",
) -> Path:
    """Plot accuracy over the number of labels (log scale) with error bars of one standard deviation over seeds.

    Args:
        path: the PNG.
        series: x labels (images), y, error and curve as fractions 0 to 1; baselines are dashed.
        title, y, x: texts; x may be seconds instead, for accuracy against cost.
    """
    series = [s for s in series if len(s.x)]
    figure, axes = new_figure(height=4.2 + 0.12 * len(series))
    ticks = sorted({value for s in series for value in s.x})
    for i, s in enumerate(series):
        color, line = PALETTE[i % len(PALETTE)], "--" if s.baseline else "-"
        if s.curve:
            line = "none"
            low, middle, high = (100 * np.asarray(values) for values in (s.curve.low, s.curve.y, s.curve.high))
            axes.fill_between(s.curve.x, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(s.curve.x, middle, color=color, linewidth=1.6, linestyle=":")
        shift = 1.025 ** (i - (len(series) - 1) / 2)  # side by side, so that error bars do not cover each other
        axes.errorbar(
            [value * shift for value in s.x],
            [100 * value for value in s.y],
            yerr=None if s.error is None else [100 * (value or 0) for value in s.error],
            label=s.name,
            color=color,
            marker=MARKERS[i % len(MARKERS)],
            linestyle=line,
            linewidth=2,
            markersize=6.5,
            markeredgecolor="white",
            markeredgewidth=0.7,
            capsize=3.5,
            elinewidth=1.4,
        )
    style(axes, title, x, y)
    if ticks:
        axes.set_xscale("log")
        apart = all(b > 1.3 * a for a, b in pairwise(ticks))
        if apart and len(ticks) <= 8:
            axes.set_xticks(ticks, [f"{value:,.0f}" for value in ticks])
            axes.set_xticks([], minor=True)
        else:
            from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        legend_below(axes, len(series))
    return save_figure(figure, path)


def training_curves(
    path: str | os.PathLike[str],
    series: Iterable[Series],
    title: str = "Training",
    y: str = "loss",
    x: str = "step",
    log: bool = False,
) -> Path:
    """Plot lines over steps; of more than 400 points the raw line is drawn faint, with its running mean over it.

    Args:
        path: the PNG.
        series: x steps, y in its own unit; a value that is not finite breaks the line.
        title, y, x: texts.
        log: logarithmic y axis.
    """
    series = [s for s in series if len(s.x)]
    names = list(dict.fromkeys(s.group or s.name for s in series))
    figure, axes = new_figure(height=4.0 + 0.12 * len(names))
    named = set()
    for s in series:
        name = s.group or s.name
        color, label = PALETTE[names.index(name) % len(PALETTE)], "_" if name in named else name
        named.add(name)
        steps, values = np.asarray(s.x, float), np.asarray(s.y, float)
        if len(values) > 400:
            axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.25)
            window = len(values) // 60
            good = np.isfinite(values)
            sums = np.convolve(np.where(good, values, 0), np.ones(window), "valid")
            counts = np.convolve(good, np.ones(window), "valid")
            values = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
            steps = steps[window // 2 : window // 2 + len(values)]
        dash = "--" if s.baseline else "-"
        axes.plot(steps, values, color=color, linewidth=2, linestyle=dash, label=label)
    style(axes, title, x, y)
    if log:
        axes.set_yscale("log")
    if series:
        legend_below(axes, len(names))
    return save_figure(figure, path)


def series_from_cells(
    cells: Iterable[Mapping[str, Any]], baselines: Sequence[str] = ("pixels", "scratch")
) -> list[Series]:
    """Return a study's cells as series: one per (init, protocol), in order of first appearance, labels ascending.

    Args:
        cells: as in results.json; those without values are left out.
        baselines: inits whose names begin with one of these are drawn as baselines.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        if cell["values"]:
            groups.setdefault((cell["init"], cell["protocol"]), []).append(cell)
    series = []
    for (init, protocol), found in groups.items():
        found.sort(key=lambda cell: cell["labels"])
        xs, ys = [cell["labels"] for cell in found], [cell["mean"] for cell in found]
        errors = [cell["std"] or 0.0 for cell in found]
        series.append(Series(f"{init}, {protocol}", xs, ys, errors, init.startswith(tuple(baselines))))
    return series
