"""Picture of a video: frames of it, and below them the scores of its best classes over time."""

from __future__ import annotations

import numpy as np

from lit_vision.predict.predictions import VideoScores
from lit_vision.results.plots.style import MARKERS, PALETTE, figure_pixels, legend_below, new_figure, style

CURVES = 3  # classes, those of the largest mean score
_WIDTH = 8.0  # inches


def video_strip(scores: VideoScores, frames: np.ndarray, seconds: float) -> np.ndarray:
    """Return the picture of a video.

    Args:
        scores: of its clips.
        frames: (M, H, W, 3) uint8, each from the middle of one of M equal parts of the video.
        seconds: length of the video.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    seconds = max(seconds, 1e-3)
    slot = 0.85 * _WIDTH / len(frames)  # inches; the rest is the y axis
    height = slot * frames.shape[1] / frames.shape[2]
    figure, axes = new_figure(_WIDTH, height + 3.4)
    axes.remove()
    strip, axes = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [height, 2.4]})
    for i, frame in enumerate(frames):
        place = i * seconds / len(frames), (i + 1) * seconds / len(frames)
        strip.imshow(frame, extent=(*place, 0, 1), aspect="auto", interpolation="bilinear")
    strip.set_axis_off()
    best = np.argsort(-scores.mean, kind="stable")[:CURVES].tolist()
    middles = (scores.starts + scores.ends) / 2
    for color, marker, number in zip(PALETTE, MARKERS, best):
        label = scores.classes[number]
        values = scores.probabilities[:, number]
        axes.plot(middles, values, color=color, marker=marker if len(values) <= 60 else "", markersize=4, label=label)
    style(axes, "", "seconds", "score")
    axes.set_xlim(0, seconds)
    axes.set_ylim(-0.02, 1.02)
    legend_below(axes, len(best))
    return figure_pixels(figure)
