"""Colors, markers, figures, axes and legends that all plots share."""

from __future__ import annotations

import contextlib
import functools
import os
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.io.text import printable

# Okabe and Ito 2008, "Color Universal Design"; their yellow is left out, it is too pale for lines on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"  # so that color is never the only difference
INK, FAINT, GRID = "#222222", "#666666", "#E3E3E3"
# names of classes may be in any script, and the first font has few of them: these are tried where they are installed
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "PingFang SC",
    "Yu Gothic",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Noto Sans",
    "Arial Unicode MS",
)
DPI = 160  # 6.4 inches make 1024 pixels: sharp on a phone, fits a page


def new_figure(width: float = 6.4, height: float = 4.2) -> tuple[Any, Any]:
    """Return a figure of this size in inches, and its axes, without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.09)  # inches of air at the edges
    return figure, figure.add_subplot()


def style(axes: Any, title: str = "", x: str = "", y: str = "", grid: str | None = "y") -> None:
    """Set title, axis labels, spines and the grid ("x", "y" or None) of the axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=11, length=3)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    axes.set_title(
        "\n".join(textwrap.wrap(printable(title), 52)), fontsize=13, color=INK, loc="left", pad=10, parse_math=False
    )
    axes.set_xlabel(x, fontsize=11.5, color=INK)
    axes.set_ylabel(y, fontsize=11.5, color=INK)


def legend_below(axes: Any, count: int) -> None:
    """Put the legend of `count` entries below the axes, where it cannot cover a line."""
    legend = axes.figure.legend(loc="outside lower center", ncols=2 if count > 1 else 1, frameon=False, fontsize=11)
    for text in legend.get_texts():
        text.set_parse_math(False)


def save_figure(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write the figure as a PNG file without metadata, create its folder, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _fonts_of_all_scripts(figure):
        figure.savefig(path, format="png", metadata={"Software": None})
    return path


def figure_pixels(figure: Any) -> np.ndarray:
    """Return the figure as pixels, (H, W, 3) uint8."""
    with _fonts_of_all_scripts(figure):
        figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]


@contextlib.contextmanager
def _fonts_of_all_scripts(figure: Any) -> Iterator[None]:
    """Give texts that are not ASCII the fonts that are installed, and say nothing of letters that none of them has."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if not text.get_text().isascii():
            text.set_fontfamily(_installed_fonts())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box in a figure; the report's text has it
        yield


@functools.cache
def _installed_fonts() -> list[str]:
    from matplotlib.font_manager import fontManager

    return [FONTS[0], *(name for name in FONTS[1:] if name in fontManager.get_font_names())]
