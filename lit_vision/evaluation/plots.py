"""Plots of results as PNG files, in one style: colour-blind safe, readable at phone width, same bits on every machine.

matplotlib's object interface only: no pyplot, so no global state, no display, no leak of open figures.
Every function writes one file and returns its path; folders are made. Names are drawn as they are: `$` starts no formula.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

# Okabe and Ito 2008, "Color Universal Design"; their yellow is left out, it is too pale for lines on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"  # colour is never the only difference
INK, FAINT, GRID = "#222222", "#666666", "#E3E3E3"
DPI = 160  # 6.4 inches make 1024 pixels: sharp on a phone, fits a page


@dataclass(frozen=True)
class Series:
    """One line of a plot: name, x, y, and the half height of its error bars (None: none)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    baseline: bool = False  # drawn dashed: what has to be beaten
    like: str | None = None  # repetitions of one thing (seeds) share this name, one colour and one line of the legend


def _figure(width: float = 6.4, height: float = 4.2) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.09)  # inches of air at the edges
    return figure, figure.add_subplot()


def _style(axes: Any, title: str = "", x: str = "", y: str = "", grid: str | None = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=11, length=3)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    axes.set_title("\n".join(textwrap.wrap(title, 52)), fontsize=13, color=INK, loc="left", pad=10, parse_math=False)
    axes.set_xlabel(x, fontsize=11.5, color=INK)
    axes.set_ylabel(y, fontsize=11.5, color=INK)


def _legend(axes: Any, count: int) -> None:
    """Below the axes, where no line can be hidden."""
    legend = axes.figure.legend(loc="outside lower center", ncols=2 if count > 1 else 1, frameon=False, fontsize=11)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _save(figure: Any, path: str | os.PathLike) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
    return path


def accuracy_against_labels(
    path: str | os.PathLike,
    series: Iterable[Series],
    title: str = "Accuracy against labels",
    y: str = "test accuracy, %",
    x: str = "labelled images",
) -> Path:
    """Accuracy over the number of labels (log scale), error bars of one standard deviation over seeds.

    Args:
        path: the PNG.
        series: x labels (images), y and error as fractions 0 to 1; baselines are dashed.
        title, y, x: texts; x may as well be seconds for accuracy against cost.
    """
    series = [s for s in series if len(s.x)]
    figure, axes = _figure(height=4.2 + 0.12 * len(series))
    ticks = sorted({value for s in series for value in s.x})
    for i, s in enumerate(series):
        shift = 1.025 ** (i - (len(series) - 1) / 2)  # side by side, so that error bars do not cover each other
        axes.errorbar(
            [value * shift for value in s.x],
            [100 * value for value in s.y],
            yerr=None if s.error is None else [100 * (value or 0) for value in s.error],
            label=s.name,
            color=PALETTE[i % len(PALETTE)],
            marker=MARKERS[i % len(MARKERS)],
            linestyle="--" if s.baseline else "-",
            linewidth=2,
            markersize=6.5,
            markeredgecolor="white",
            markeredgewidth=0.7,
            capsize=3.5,
            elinewidth=1.4,
        )
    _style(axes, title, x, y)
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
        _legend(axes, len(series))
    return _save(figure, path)


def training_curves(
    path: str | os.PathLike,
    series: Iterable[Series],
    title: str = "Training",
    y: str = "loss",
    x: str = "step",
    log: bool = False,
) -> Path:
    """Lines over steps. Above 400 points the raw line is drawn faint, with its running mean over it.

    Args:
        path: the PNG.
        series: x steps, y in its own unit; a value that is not finite breaks the line.
        title, y, x: texts.
        log: logarithmic y axis.
    """
    series = [s for s in series if len(s.x)]
    names = list(dict.fromkeys(s.like or s.name for s in series))
    figure, axes = _figure(height=4.0 + 0.12 * len(names))
    named = set()
    for s in series:
        name = s.like or s.name
        colour, label = PALETTE[names.index(name) % len(PALETTE)], "_" if name in named else name
        named.add(name)
        steps, values = np.asarray(s.x, float), np.asarray(s.y, float)
        if len(values) > 400:
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.25)
            window = len(values) // 60
            good = np.isfinite(values)
            sums = np.convolve(np.where(good, values, 0), np.ones(window), "valid")
            counts = np.convolve(good, np.ones(window), "valid")
            values = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
            steps = steps[window // 2 : window // 2 + len(values)]
        dash = "--" if s.baseline else "-"
        axes.plot(steps, values, color=colour, linewidth=2, linestyle=dash, label=label)
    _style(axes, title, x, y)
    if log:
        axes.set_yscale("log")
    if series:
        _legend(axes, len(names))
    return _save(figure, path)


def confusion_heat_map(
    path: str | os.PathLike,
    matrix: np.ndarray,
    class_names: Sequence[str],
    title: str = "Confusion, % of each true class",
) -> Path:
    """Confusion matrix with class names, each row in percent of its true class.

    Args:
        path: the PNG.
        matrix: (K, K) counts, rows true.
        class_names: K names; above 40 classes they are left out, above 20 the numbers are.
        title: text.
    """
    matrix = np.asarray(matrix, float)
    support = matrix.sum(axis=1, keepdims=True)
    percent = 100 * np.divide(matrix, support, out=np.zeros_like(matrix), where=support > 0)
    count = len(matrix)
    side = float(np.clip(2.6 + 0.42 * count, 4.6, 10))
    figure, axes = _figure(side + 0.4, side)
    picture = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    names = [textwrap.shorten(str(name), 16, placeholder="…") for name in class_names]
    _style(axes, title, "predicted", "true", grid=None)
    axes.spines[:].set_visible(False)
    if count <= 40:
        size = 10.5 if count <= 15 else 7
        axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
        axes.tick_params(labelsize=size, length=0)
    if count <= 20:
        for row, column in np.ndindex(*percent.shape):
            value = percent[row, column]
            if value >= 0.5:
                dark = value > 55
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=9 if count <= 12 else 7,
                          color="white" if dark else INK)  # fmt: skip
    if count > 20:
        bar = figure.colorbar(picture, ax=axes, shrink=0.8)
        bar.outline.set_visible(False)
    return _save(figure, path)


def image_grid(
    path: str | os.PathLike,
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    columns: int = 5,
    title: str = "",
) -> Path:
    """Images side by side with a caption under each.

    Args:
        path: the PNG.
        images: (H, W, 3) or (H, W) uint8; sizes may differ. Small ones are enlarged without smoothing.
        captions: one text each; at most two lines of it are shown.
        columns: images in a row.
        title: text.

    Raises:
        ValueError: no image, or not as many captions.
    """
    captions = [""] * len(images) if captions is None else list(captions)
    if len(images) == 0 or len(captions) != len(images):
        raise ValueError(f"{len(images)} images with {len(captions)} captions")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell = 6.4 / columns
    text_height = 0.42 if any(captions) else 0.06
    figure, axes = _figure(6.4, rows * (cell + text_height) + (0.4 if title else 0))
    axes.remove()
    if title:
        figure.suptitle(title, fontsize=13, color=INK, x=0.01, ha="left", parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False)
    for place in grid.flat:
        place.set_axis_off()
    for place, image, caption in zip(grid.flat, images, captions):
        image = np.asarray(image)
        small = max(image.shape[:2]) < 160
        place.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if small else "antialiased")
        lines = textwrap.wrap(str(caption), max(8, int(cell * 11.5)), max_lines=2, placeholder=" …")
        place.text(0.5, -0.04, "\n".join(lines), transform=place.transAxes, ha="center", va="top", fontsize=9.5,
                   color=INK, parse_math=False)  # fmt: skip
    return _save(figure, path)


def embedding_scatter(
    path: str | os.PathLike,
    points: np.ndarray,
    labels: Sequence[int],
    class_names: Sequence[str],
    title: str = "Embedding",
) -> Path:
    """Points of a 2-D projection, coloured by class; up to 14 classes differ by colour and marker.

    Args:
        path: the PNG.
        points: (N, 2). Axes carry no ticks: distances in a projection have no unit.
        labels: (N,) classes; -1 (no label) is grey and drawn first.
        class_names: K names.
        title: text.
    """
    points, labels = np.asarray(points, float), np.asarray(labels)
    figure, axes = _figure(6.4, 5.6)
    size = float(np.clip(14000 / max(len(points), 1), 6, 40))
    none = labels < 0
    if none.any():
        axes.scatter(*points[none].T, s=size, color="#BBBBBB", linewidths=0, label="no label")
    shown = [label for label in range(len(class_names)) if (labels == label).any()]
    for label in shown:
        marker = MARKERS[(label + label // len(PALETTE)) % len(MARKERS)]
        axes.scatter(*points[labels == label].T, s=size, color=PALETTE[label % len(PALETTE)], marker=marker,
                     linewidths=0, alpha=0.75, label=str(class_names[label]) if len(shown) <= 14 else None)  # fmt: skip
    _style(axes, title, grid=None)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if shown and len(shown) <= 14:
        legend = figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=10.5, markerscale=1.6,
                               handletextpad=0.2, columnspacing=1.2)  # fmt: skip
        for handle, text in zip(legend.legend_handles, legend.get_texts()):
            handle.set_alpha(1)
            handle.set_sizes([45])
            text.set_parse_math(False)
    return _save(figure, path)


def draw_table(
    path: str | os.PathLike,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    note: str = "",
) -> Path:
    """A table of texts as a picture: header in bold, thin rules, numbers right of names."""
    widths = [max(len(str(row[i])) for row in [columns, *rows]) + 2 for i in range(len(columns))]
    width = max(4.0, 0.088 * sum(widths))
    notes = textwrap.wrap(note, int(width / 0.07))  # inches a letter of 9 points
    height = 0.3 * (len(rows) + 1) + 0.2 + (0.35 if title else 0) + (0.14 + 0.16 * len(notes) if note else 0)
    figure, axes = _figure(width, height)
    axes.set_axis_off()
    top, total = len(rows) + 1, sum(widths)
    axes.set_xlim(0, total)
    axes.set_ylim(-0.1, top + 0.1)
    lefts = np.cumsum([0, *widths[:-1]])
    for number, row in enumerate([columns, *rows]):
        for left, text in zip(lefts, row):
            faint = str(text) == "not run yet"
            axes.text(left + 0.5, top - number - 0.5, str(text), va="center", fontsize=10, parse_math=False,
                      color=FAINT if faint else INK, style="italic" if faint else "normal",
                      weight="bold" if number == 0 else "normal")  # fmt: skip
        axes.axhline(top - number - 1, color=INK if number == 0 else GRID, linewidth=1 if number == 0 else 0.7)
    if title:
        axes.set_title(title, fontsize=12.5, color=INK, loc="left", parse_math=False)
    if note:
        figure.supxlabel("\n".join(notes), fontsize=9, color=FAINT, x=0.01, ha="left", parse_math=False)
    return _save(figure, path)


def series_from_cells(
    cells: Iterable[Mapping[str, Any]], baselines: Sequence[str] = ("pixels", "scratch")
) -> list[Series]:
    """A study's cells as series: one per (start, protocol), in order of first appearance, labels ascending.

    Args:
        cells: as in results.json; those without values are left out.
        baselines: starts that begin so are drawn as baselines.
    """
    groups: dict[tuple[str, str], list] = {}
    for cell in cells:
        if cell["values"]:
            groups.setdefault((cell["start"], cell["protocol"]), []).append(cell)
    series = []
    for (start, protocol), found in groups.items():
        found.sort(key=lambda cell: cell["labels"])
        xs, ys = [cell["labels"] for cell in found], [cell["mean"] for cell in found]
        errors = [cell["std"] or 0.0 for cell in found]
        series.append(Series(f"{start}, {protocol}", xs, ys, errors, start.startswith(tuple(baselines))))
    return series
