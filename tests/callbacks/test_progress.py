"""The arithmetic of the progress report, and pictures."""

import numpy as np
import pytest

from lit_vision.callbacks.progress import Throughput
from lit_vision.io.text import format_duration
from lit_vision.results.overlays import tile_images


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (187, "3:07"), (7509, "2:05:09"), (266400, "3d 02:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_pace_counts_waiting_but_neither_saving_nor_validation() -> None:
    times = iter([0.0, 1.0, 4.0, 14.0, 20.0, 23.0, 24.0])
    pace = Throughput(now=lambda: next(times))  # begins at 0
    pace.batch_came()  # waited 1
    pace.batch_done(40)  # worked 3
    pace.batch_came(written=9.0)  # 10 passed, 9 of them on a checkpoint: waited 1
    pace.skip()  # validation until 20
    pace.batch_done(40)  # worked 3
    assert (pace.waited, pace.worked, pace.images, pace.batches) == (2.0, 6.0, 80, 2)
    assert pace.waiting == 0.25
    assert pace.images_per_second == 10.0


def test_grid_tiles_row_by_row_on_white() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    sheet = tile_images(images, columns=2, pad=1)
    assert sheet.shape == (7, 7, 3)
    assert (sheet[1, 1], sheet[1, 4], sheet[4, 1]) == (
        pytest.approx([0] * 3),
        pytest.approx([1] * 3),
        pytest.approx([2] * 3),
    )
    assert (sheet[4:, 4:] == 255).all()
