"""Videos to predict on, files or folders of frames, and the frames of their clips over time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from lit_vision.data.folder import Paths
from lit_vision.data.image_files import device_and_inode, has_image_extension, is_system_folder, list_entries
from lit_vision.data.video.clip_frames import ClipFrames, frames_at
from lit_vision.data.video.frame_folder import FRAME_TIMES, in_number_order, list_frames, read_frame_times
from lit_vision.data.video.video_files import is_video_name, read_video, videos_below
from lit_vision.data.views.decode import ImageDecodeError, decode
from lit_vision.data.views.pixel_values import DEFAULT_FORMAT, PixelFormat, to_gray
from lit_vision.errors import UserError
from lit_vision.predict.input_paths import expand_paths
from lit_vision.predict.inputs import Inputs


def names_a_video(paths: Sequence[str]) -> bool:
    """True if one of some arguments of a command is a video file, by its ending."""
    return any(is_video_name(path) and not os.path.isdir(path) for path in paths)


def holds_a_video(paths: Sequence[str]) -> bool:
    """True if one of some arguments of a command is a folder with a video file at any depth."""
    return any(os.path.isdir(path) and next(videos_below(path), "") for path in paths)


def find_videos(paths: Sequence[str]) -> Inputs:
    """Return the videos that some arguments name: files, folders of frames, and folders of both.

    Args:
        paths: as for `find_images`; a folder that holds images is taken for the frames of a video, which an image names
            too; any other file for a video, whatever its ending.

    Raises:
        UserError: no such path, or no video in a folder.
    """
    paths = expand_paths(paths)
    found: dict[str, None] = {}
    for path in paths:
        if not os.path.isdir(path):
            below = [_video_of(path)]
        elif not (below := sorted([*videos_below(path), *_frame_folders(path)])):
            raise UserError(f"{path}: no video in it, neither a file (.mp4, .avi, ...) nor a folder of frames")
        found |= dict.fromkeys(below)
    if len(paths) == 1 and os.path.isdir(paths[0]) and list(found) != [paths[0]]:
        return Inputs(Paths(os.path.relpath(path, paths[0]) for path in found), paths[0])
    return Inputs(Paths(found), "")


def videos_of(images: Inputs) -> Inputs:
    """Return the videos that a list of files names, as `find_videos` does."""
    return Inputs(Paths(dict.fromkeys(_video_of(images.path(i)) for i in range(len(images)))), "")


def _video_of(file: str) -> str:
    """Return the folder of a frame; a file that is no image is a video itself."""
    return (os.path.dirname(file) or ".") if has_image_extension(file) else file


def _frame_folders(folder: str, parents: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Yield the folders at or below a folder that hold images, and no video: beside one they are pictures of it.

    A link to a parent is not followed.
    """
    here = device_and_inode(folder)
    if here in parents:
        return
    has_frames = has_video = False
    for entry in list_entries(folder):
        if entry.name.startswith(".") or is_system_folder(entry.name):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself
            continue
        if is_folder:
            yield from _frame_folders(entry.path, (*parents, here))
        else:
            has_frames = has_frames or has_image_extension(entry.name)
            has_video = has_video or is_video_name(entry.name)
    if has_frames and not has_video:
        yield folder


class VideoSource:
    """Frames of a video file or of a folder of frames.

    Args:
        path: of the file or folder.
        fps: frames per second of a folder without FRAME_TIMES; None: such a folder is refused.
        pixel_format: of the model's metadata.
        threads: of the decoder of a file; 0: as it chooses.

    Attributes:
        times: (N,) float64, seconds of all frames.

    Raises:
        UserError: the file cannot be read, or nothing says at which times the frames of a folder are shown.
    """

    def __init__(
        self,
        path: str,
        fps: float | None = None,
        pixel_format: PixelFormat = DEFAULT_FORMAT,
        threads: int = 0,
    ) -> None:
        self.path, self.pixel_format, self.threads = path, pixel_format, threads
        self.names: list[str] | None = None  # of the files in a folder of frames
        if not os.path.isdir(path):
            self.times = np.array([frame.seconds for frame in read_video(path, threads)])
            return
        folder = Path(path)
        self.names = sorted(
            (os.path.basename(name) for name, _ in list_frames(folder.parent, folder.name)), key=in_number_order
        )
        if not self.names:
            raise UserError(f"{path}: no frame in it")
        if (folder / FRAME_TIMES).is_file():
            self.times = read_frame_times(folder, self.names)
        elif fps is not None:
            self.times = np.arange(len(self.names)) / fps
        else:
            raise UserError(f"{path}: has no {FRAME_TIMES}; say how many frames a second has (--fps)")

    def frames(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield some frames, (H, W, 3) uint8; their numbers increase.

        Raises:
            UserError: a frame cannot be read.
        """
        if self.names is not None:
            for number in numbers:
                path = os.path.join(self.path, self.names[number])
                try:
                    with open(path, "rb") as file:
                        yield decode(file.read(), self.pixel_format)
                except ImageDecodeError as error:
                    raise ImageDecodeError(f"{self.names[number]}: {error}") from None
                except OSError as error:
                    raise UserError(f"{self.names[number]}: {error.strerror}; bring it back") from None
            return
        done = 0
        for i, frame in enumerate(read_video(self.path, self.threads)):
            if done == len(numbers):
                return
            if i == numbers[done]:
                pixels = frame.pixels()
                yield to_gray(pixels) if self.pixel_format.gray else pixels
                done += 1


@dataclass(frozen=True)
class TimedClip:
    """Clip of a video: the seconds at which its first and its last frame are shown, and the numbers of its T frames."""

    start: float
    end: float
    numbers: tuple[int, ...]


def clips_over_time(
    times: np.ndarray, rule: ClipFrames, fps: float | None = None, step: float | None = None
) -> list[TimedClip]:
    """Return the clips of a video from its start to its end.

    Dense clips follow one another without a gap, or begin every `step` seconds. The last one repeats the video's last
    frame where it is shorter, and is left out if less than half of it is there. A uniform clip covers the whole video,
    or `step` seconds of it.

    Args:
        times: (N,) seconds of its frames, increasing.
        rule: of the model's training; its `fps` is not used.
        fps: frames per second that dense clips are cut from, each the one shown at that time; None takes every frame.
        step: seconds.
    """
    times = times - times[0]
    if rule.sampling == "uniform":
        borders: list[int] = []
        if step is not None:
            parts_of = np.minimum((times + 1e-9) // step, np.ceil(times[-1] / step) - 1)  # by frame
            borders = (np.flatnonzero(np.diff(parts_of)) + 1).tolist()
        (middle,) = rule.evenly_placed(1)
        windows = pairwise([0, *borders, len(times)])
        parts = [[first + i for i in rule.numbers(end - first, middle)] for first, end in windows if end > first]
        return [TimedClip(float(times[part[0]]), float(times[part[-1]]), tuple(part)) for part in parts]
    shown = times if fps is None else np.arange(0, times[-1] + 1e-6, 1 / fps)
    frames = frames_at(times, shown)
    span = (rule.frames - 1) * rule.stride + 1
    per_second = fps or (len(times) - 1) / max(float(times[-1]), 1e-9)
    distance = span if step is None else max(1, round(step * per_second))
    clips = []
    for first in range(0, len(frames), distance):
        if first and 2 * (len(frames) - first) < span:
            break
        places = [min(first + k * rule.stride, len(frames) - 1) for k in range(rule.frames)]
        numbers = tuple(frames[place] for place in places)
        clips.append(TimedClip(float(shown[places[0]]), float(shown[places[-1]]), numbers))
    return clips
