"""Frames of a clip: which of a video's frames it has, from where it begins, as a pure function of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_vision.errors import UsageError

SAMPLINGS = ("dense", "uniform")
MOST_FRAMES = 4096  # of a clip; more is a mistake that fills the memory
_SAME_TIME = 1e-6  # seconds; time stamps are written with six decimals


@dataclass(frozen=True)
class ClipFrames:
    """Rule that says which frames of a video make a clip.

    `dense` takes frames at equal distances from one start, `stride` frames or 1 / `fps` seconds apart. A video that is
    shorter than that repeats its last frame. `uniform` takes one frame from each of `frames` equal parts of the video,
    however long it is; in a video of fewer frames some come several times, in order. Source of `uniform`: Wang et al.
    2016 (Temporal Segment Networks), arXiv:1608.00859, 3.1; Lin et al. 2019 (TSM), arXiv:1811.08383, for
    Something-Something.

    Attributes:
        frames: T, of a clip.
        stride: distance of two frames of a dense clip, in frames.
        fps: frames of a dense clip per second of the video, by the time stamps of its frames; None counts frames.
        sampling: "dense" or "uniform".

    Raises:
        UsageError: an argument is out of its range, or two of them exclude each other.
    """

    frames: int = 8
    stride: int = 1
    fps: float | None = None
    sampling: str = "dense"

    def __post_init__(self) -> None:
        """Refuse values that cannot work; `data.` is where a recipe has them."""
        if not 1 <= self.frames <= MOST_FRAMES:
            raise UsageError(f"data.frames_per_clip: {self.frames}; give 1 to {MOST_FRAMES}")
        if self.stride < 1:
            raise UsageError(f"data.frame_stride: {self.stride}; give at least 1")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise UsageError(f"data.fps: {self.fps}; give more than 0, or null to count frames")
        if self.fps is not None and self.stride != 1:
            raise UsageError("data.fps, data.frame_stride: set one of them, they both say how far frames are apart")
        if self.sampling not in SAMPLINGS:
            raise UsageError(f"data.sampling: {self.sampling!r}; give {' or '.join(SAMPLINGS)}")
        if self.sampling == "uniform" and (self.fps is not None or self.stride != 1):
            raise UsageError("data.sampling: uniform spreads the frames over the video; leave fps and frame_stride out")

    @property
    def draws(self) -> int:
        """Random numbers that place a clip: one start, or a place in each part."""
        return self.frames if self.sampling == "uniform" else 1

    def numbers(self, count: int, places: Sequence[float], times: np.ndarray | None = None) -> list[int]:
        """Return the numbers of the T frames of a clip, in [0, count), never decreasing.

        Args:
            count: frames of the video, at least 1.
            places: `draws` numbers in [0, 1): where the clip lies between the first and the last possible start; or
                where the frame lies in each part.
            times: (count,) seconds, increasing; needed with `fps`.
        """
        if self.sampling == "uniform":
            # the sum may round up to the next part
            return [min(int((part + place) * count / self.frames), count - 1) for part, place in enumerate(places)]
        if self.fps is None:
            starts = max(1, count - (self.frames - 1) * self.stride)
            first = int(places[0] * starts)
            return [min(first + k * self.stride, count - 1) for k in range(self.frames)]
        assert times is not None
        room = max(0.0, float(times[-1] - times[0]) - (self.frames - 1) / self.fps)
        wanted = times[0] + places[0] * room + np.arange(self.frames) / self.fps
        return frames_at(times, wanted)

    def evenly_placed(self, clips: int) -> list[list[float]]:
        """Return the places of some clips, evenly over a video: the middle of each of `clips` equal parts."""
        return [[(2 * clip + 1) / (2 * clips)] * self.draws for clip in range(clips)]


def frames_at(times: np.ndarray, wanted: np.ndarray) -> list[int]:
    """Return the number of the frame that is shown at each wanted time: the last one that began by then, or the first.

    Args:
        times: (N,) seconds, increasing: when each frame begins.
        wanted: (T,) seconds.
    """
    found: list[int] = np.clip(np.searchsorted(times, wanted + _SAME_TIME, side="right") - 1, 0, None).tolist()
    return found
