"""Plot results as PNG files in one style: color-blind safe, readable at phone width, the same bits on every machine.

Only matplotlib's object interface is used, not pyplot: no global state, no display, no figures that stay open. Every
function writes one file, creates its folder and returns its path. Names are drawn literally: `$` does not start a
formula.
"""

from lit_vision.results.plots.curves import Curve, Series, accuracy_against_labels, series_from_cells, training_curves
from lit_vision.results.plots.panels import confusion_heat_map, draw_table, image_grid

__all__ = [
    "Curve",
    "Series",
    "accuracy_against_labels",
    "confusion_heat_map",
    "draw_table",
    "image_grid",
    "series_from_cells",
    "training_curves",
]
