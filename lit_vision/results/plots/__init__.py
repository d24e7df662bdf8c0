"""Plots of results as PNG files, in one style: colour-blind safe, readable at phone width, same bits on every machine.

matplotlib's object interface only: no pyplot, so no global state, no display, no leak of open figures.
Every function writes one file and returns its path; folders are made. Names are drawn as they are: `$` starts no formula.
"""

from lit_vision.results.plots.curves import Series, accuracy_against_labels, series_from_cells, training_curves
from lit_vision.results.plots.panels import confusion_heat_map, draw_table, embedding_scatter, image_grid

__all__ = [
    "Series",
    "accuracy_against_labels",
    "confusion_heat_map",
    "draw_table",
    "embedding_scatter",
    "image_grid",
    "series_from_cells",
    "training_curves",
]
