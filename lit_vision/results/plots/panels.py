"""Plot confusion matrices, image grids, embeddings and tables."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_vision.io.text import printable
from lit_vision.results.plots.style import FAINT, GRID, INK, new_figure, save_figure, style

MOST_LINES = 3  # of a caption


def confusion_heat_map(
    path: str | os.PathLike[str],
    matrix: np.ndarray,
    class_names: Sequence[str],
    title: str = "Confusion, % of each true class",
) -> Path:
    """Plot a confusion matrix with class names, each row in percent of its true class.

    Args:
        path: the PNG.
        matrix: (K, K) counts, rows true.
        class_names: K names. Above 20 classes the numbers are left out, above 40 the names too.
        title: text.
    """
    matrix = np.asarray(matrix, float)
    support = matrix.sum(axis=1, keepdims=True)
    percent = 100 * np.divide(matrix, support, out=np.zeros_like(matrix), where=support > 0)
    count = len(matrix)
    side = float(np.clip(2.6 + 0.42 * count, 4.6, 10))
    figure, axes = new_figure(side + 0.4, side)
    picture = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    names = [textwrap.shorten(printable(str(name)), 16, placeholder="…") for name in class_names]
    style(axes, title, "predicted", "true", grid=None)
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
    return save_figure(figure, path)


def image_grid(
    path: str | os.PathLike[str],
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    columns: int = 5,
    title: str = "",
) -> Path:
    """Plot images in a grid with a caption under each.

    Args:
        path: the PNG.
        images: (H, W, 3) or (H, W) uint8; sizes may differ. Small ones are enlarged without smoothing.
        captions: one text each; at most MOST_LINES lines of it are shown.
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
    tall = max(image.shape[0] / image.shape[1] for image in images)  # of the tallest, so that wide images leave no gaps
    texts = [_caption_lines(printable(str(caption)), max(8, int(cell * 11.5))) for caption in captions]
    text_height = 0.1 + 0.16 * max(map(len, texts)) if any(captions) else 0.06
    figure, axes = new_figure(6.4, rows * (cell * min(tall, 1) + text_height) + (0.4 if title else 0))
    axes.remove()
    if title:
        figure.suptitle(title, fontsize=13, color=INK, x=0.01, ha="left", parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False)
    for panel in grid.flat:
        panel.set_axis_off()
    for panel, image, lines in zip(grid.flat, images, texts):
        image = np.asarray(image)
        small = max(image.shape[:2]) < 160
        panel.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if small else "antialiased")
        panel.text(0.5, -0.04, "\n".join(lines), transform=panel.transAxes, ha="center", va="top", fontsize=9.5,
                   color=INK, parse_math=False)  # fmt: skip
    return save_figure(figure, path)


def _caption_lines(caption: str, width: int) -> list[str]:
    """Return a caption as lines of `width` characters; its own line breaks are kept if there is room for them."""
    lines = [line for part in caption.split("\n") for line in textwrap.wrap(part, width)]
    return lines if len(lines) <= MOST_LINES else textwrap.wrap(caption, width, max_lines=MOST_LINES, placeholder=" …")


def draw_table(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    note: str = "",
) -> Path:
    """Draw a table of texts with a bold header and thin rules."""
    widths = [max(len(str(row[i])) for row in [columns, *rows]) + 2 for i in range(len(columns))]
    width = max(4.0, 0.088 * sum(widths))
    notes = textwrap.wrap(note, int(width / 0.07))  # inches a letter of 9 points
    height = 0.3 * (len(rows) + 1) + 0.2 + (0.35 if title else 0) + (0.14 + 0.16 * len(notes) if note else 0)
    figure, axes = new_figure(width, height)
    axes.set_axis_off()
    top, total = len(rows) + 1, sum(widths)
    axes.set_xlim(0, total)
    axes.set_ylim(-0.1, top + 0.1)
    lefts = np.cumsum([0, *widths[:-1]])
    for number, row in enumerate([columns, *rows]):
        for left, text in zip(lefts, row):
            faint = str(text) == "not run yet"
            axes.text(left + 0.5, top - number - 0.5, printable(str(text)), va="center", fontsize=10, parse_math=False,
                      color=FAINT if faint else INK, style="italic" if faint else "normal",
                      weight="bold" if number == 0 else "normal")  # fmt: skip
        axes.axhline(top - number - 1, color=INK if number == 0 else GRID, linewidth=1 if number == 0 else 0.7)
    if title:
        axes.set_title(title, fontsize=12.5, color=INK, loc="left", parse_math=False)
    if note:
        figure.supxlabel("\n".join(notes), fontsize=9, color=FAINT, x=0.01, ha="left", parse_math=False)
    return save_figure(figure, path)
