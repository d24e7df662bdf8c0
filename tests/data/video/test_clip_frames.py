"""Frames of a clip: compared with slow loops, and at the ends of what is possible."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_vision.data.video.clip_frames import ClipFrames, frames_at
from lit_vision.errors import UsageError

PLACES = st.floats(0, 1, exclude_max=True)


@given(count=st.integers(1, 40), frames=st.integers(1, 9), stride=st.integers(1, 6), place=PLACES)
def test_a_dense_clip_has_equal_distances_and_repeats_the_last_frame(
    count: int, frames: int, stride: int, place: float
) -> None:
    found = ClipFrames(frames, stride).numbers(count, [place])
    expected, frame = [], found[0]
    for _ in range(frames):
        expected.append(frame)
        frame = frame + stride if frame + stride < count else count - 1
    assert found == expected
    fits = count - (frames - 1) * stride  # starts at which no frame is repeated
    assert 0 <= found[0] < max(1, fits)
    if fits < 1:
        assert found[0] == 0
        assert found[-1] == count - 1


def test_every_start_of_a_dense_clip_is_as_likely_as_any_other() -> None:
    places = (np.arange(1000) + 0.5) / 1000
    starts = [ClipFrames(4, 2).numbers(16, [place])[0] for place in places]
    assert np.bincount(starts).tolist() == [100] * 10  # 0 to 9: the last one ends with frame 15


@given(count=st.integers(1, 40), frames=st.integers(1, 9), data=st.data())
def test_a_uniform_clip_has_one_frame_of_each_equal_part(count: int, frames: int, data: st.DataObject) -> None:
    rule = ClipFrames(frames, sampling="uniform")
    found = rule.numbers(count, data.draw(st.lists(PLACES, min_size=frames, max_size=frames)))
    assert rule.draws == frames
    assert max(found) < count
    for part, frame in enumerate(found):
        assert part * count // frames <= frame <= (part + 1) * count / frames
    assert found == sorted(found)


def test_a_clip_by_seconds_takes_the_frame_that_is_shown() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.7, 0.8, 2.0])  # 0.2 is shown for half a second, 0.8 for 1.2
    assert ClipFrames(5, fps=4).numbers(6, [0.0], times) == [0, 2, 2, 3, 4]  # at 0, 0.25, 0.5, 0.75 and 1 s
    assert ClipFrames(5, fps=4).numbers(6, [0.999], times) == [4, 4, 4, 4, 4]  # from 0.999 s on
    assert ClipFrames(4, fps=1).numbers(6, [0.7], times) == [0, 4, 5, 5]  # longer than the video: its last frame
    assert frames_at(times + 5, np.array([0.0, 5.1, 99.0])) == [0, 1, 5]


def test_several_clips_lie_in_the_middle_of_equal_parts() -> None:
    rule = ClipFrames(2, 1)
    assert [rule.numbers(21, place)[0] for place in rule.evenly_placed(1)] == [10]
    assert [rule.numbers(21, place)[0] for place in rule.evenly_placed(4)] == [2, 7, 12, 17]
    assert [rule.numbers(1, place) for place in rule.evenly_placed(3)] == [[0, 0]] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 0}, "data.frames_per_clip: 0"),
        ({"frames": 10**9}, "data.frames_per_clip: 1000000000; give 1 to 4096"),
        ({"stride": 0}, "data.frame_stride: 0"),
        ({"fps": float("nan")}, "data.fps: nan"),
        ({"fps": 5.0, "stride": 2}, "set one of them"),
        ({"sampling": "random"}, "'random'; give dense or uniform"),
        ({"sampling": "uniform", "stride": 2}, "leave fps and frame_stride out"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ClipFrames(**arguments)
