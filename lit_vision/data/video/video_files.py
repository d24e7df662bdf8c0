"""Video files: find them, and read their frames upright with their times, by PyAV or else by OpenCV.

PyAV gives each frame's own time stamp. OpenCV, where PyAV is not installed, gives milliseconds that it computes from
the frame rate for some formats, so that frames of files with a variable rate may be a frame off. A file may come from a
stranger: only demuxers of FORMATS open it, and none of them a further file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_vision.data.image_files import device_and_inode, extension_of, is_system_folder, list_entries
from lit_vision.data.views.decode import PIXEL_CAP
from lit_vision.errors import UserError

_ENDINGS = "mp4 m4v mov qt avi mkv webm mpg mpeg mpe m2v m2ts mts ts vob wmv asf flv f4v 3gp 3g2 ogv y4m mxf divx"
VIDEO_ENDINGS = frozenset(_ENDINGS.split())
# FFmpeg's names; no playlists, image sequences or devices, which open other files
FORMATS = "mov,mp4,avi,matroska,webm,mpeg,mpegvideo,mpegts,asf,flv,live_flv,ogg,yuv4mpegpipe,mxf,h264,hevc,m4v"
WITHOUT_PYAV = (
    "PyAV is not installed, so OpenCV reads the videos, whose time stamps are then not exact; "
    "pip install 'lit-vision[video]'"
)
_OPENCV_OPTIONS = f"format_whitelist;{FORMATS}|protocol_whitelist;file"
_CUT_OFF = 1.0, 0.05  # seconds and share of its length that a file may end earlier than it says
_LONGEST_FRAME = 3600.0  # seconds; at a frame rate, a forged time stamp would fill the disk with copies


class VideoReadError(UserError):
    """Error for a file that is no readable video: of another format, damaged, cut off, or without frames."""


class VideoFrame(NamedTuple):
    """Frame of a video.

    Attributes:
        seconds: since the first frame; larger than those of the frame before.
        pixels: returns it upright, (H, W, 3) uint8 RGB.
    """

    seconds: float
    pixels: Callable[[], np.ndarray]


def is_video_name(name: str) -> bool:
    """True if a file name has one of VIDEO_ENDINGS, in upper or lower case."""
    return extension_of(name) in VIDEO_ENDINGS


def videos_below(folder: str, parents: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Yield the paths of the video files below a folder, sorted in each folder; a link to a parent is not followed."""
    here = device_and_inode(folder)
    if here in parents:
        return
    for entry in sorted(list_entries(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or is_system_folder(entry.name):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself
            continue
        if is_folder:
            yield from videos_below(entry.path, (*parents, here))
        elif is_video_name(entry.name):
            yield entry.path


def has_pyav() -> bool:
    """True if PyAV is installed."""
    return find_spec("av") is not None


def read_video(path: str | Path, threads: int = 0) -> Iterator[VideoFrame]:
    """Yield the frames of a video file in the order in which they are shown, each with its time.

    Quarter turns, as phones note them in the file, are applied, and with PyAV mirrorings too. A frame without a time
    stamp, or with one that does not increase, comes one frame's duration after the one before it.

    Args:
        path: of the file.
        threads: of the decoder; 0: as it chooses.

    Raises:
        VideoReadError: the file is no video, is damaged or cut off, shows a frame for more than an hour, or has more
            pixels than the limit for images; one line that names it. The frames before the damage have been yielded.
    """
    if not os.path.isfile(path):
        raise VideoReadError(f"{path}: no such file; check the path")
    if not os.path.getsize(path):
        raise VideoReadError(f"{path}: is empty; fetch it again")
    before: float | None = None
    for frame in _read_with_pyav(path, threads) if has_pyav() else _read_with_opencv(path):
        if before is not None and frame.seconds - before > _LONGEST_FRAME:
            raise VideoReadError(
                f"{path}: its time stamps jump from {before:.1f} to {frame.seconds:.1f} s, more than an hour; "
                "cut it there"
            )
        before = frame.seconds
        yield frame
    if before is None:
        raise VideoReadError(f"{path}: has no frame that can be decoded; fetch it again")


def _check_pixels(path: str | Path, width: int, height: int) -> None:
    if width * height > PIXEL_CAP:
        raise VideoReadError(f"{path}: says {width} x {height} pixels, above the limit of {PIXEL_CAP}; remove it")


def _read_with_pyav(path: str | Path, threads: int) -> Iterator[VideoFrame]:
    import av

    try:
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        with av.open(f"file:{os.fspath(path)}", options=options, metadata_errors="replace") as container:
            if not container.streams.video:
                raise VideoReadError(f"{path}: has no video, only sound or text; remove it")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoReadError(f"{path}: is of a codec that FFmpeg does not know here; convert it to H.264")
            stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
            _check_pixels(path, stream.codec_context.width, stream.codec_context.height)
            first: Any = None
            seconds, step = -1.0, 1 / float(stream.average_rate or 25)
            for frame in container.decode(stream):
                _check_pixels(path, frame.width, frame.height)
                first = frame.pts if first is None else first
                tick = float(frame.time_base or 0)
                time = -1.0 if frame.pts is None else (frame.pts - first) * tick
                step = frame.duration * tick or step
                seconds = max(0.0, seconds + step) if time <= seconds else time
                yield VideoFrame(seconds, partial(_pixels, frame))
            length = float((stream.duration or 0) * (stream.time_base or 0))
            if container.format.name == "avi" and stream.average_rate:  # FFmpeg shortens the duration of a cut file
                length = max(length, float(stream.frames / stream.average_rate))
    except av.error.ArgumentError:  # FFmpeg's answer to a format outside the list
        raise VideoReadError(f"{path}: is of a format that is not read; convert it to .mp4") from None
    except av.error.FFmpegError as error:
        raise VideoReadError(f"{path}: is no video that can be read ({error.strerror}); fetch it again") from None
    _check_end(path, seconds + step, length)


def _check_end(path: str | Path, end: float, length: float) -> None:
    if length - end > max(_CUT_OFF[0], _CUT_OFF[1] * length):
        raise VideoReadError(f"{path}: is cut off after {end:.1f} of {length:.1f} s; fetch it again")


def _pixels(frame: Any) -> np.ndarray:
    """Return PyAV's frame as pixels, turned by quarters and mirrored as the file's display matrix says."""
    pixels: np.ndarray = frame.to_ndarray(format="rgb24")
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(data, np.int32)[:5].astype(np.int64)  # shown at x' = ax + cy, y' = bx + dy
            if abs(b) > abs(a):
                pixels, a, d = pixels.swapaxes(0, 1), c, b
            pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(pixels)


def _read_with_opencv(path: str | Path) -> Iterator[VideoFrame]:
    import cv2

    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = _OPENCV_OPTIONS  # OpenCV takes them in no other way
    video = cv2.VideoCapture(os.fspath(path), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise VideoReadError(f"{path}: is no video that can be read; fetch it again")
        _check_pixels(path, int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        step = 1 / (video.get(cv2.CAP_PROP_FPS) or 25)
        length = video.get(cv2.CAP_PROP_FRAME_COUNT) * step
        first, seconds = None, -1.0
        while video.grab():
            time = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
            first = time if first is None else first
            seconds = max(0.0, seconds + step) if time - first <= seconds else time - first
            image = video.retrieve()[1]  # the next grab replaces it
            yield VideoFrame(seconds, partial(np.ascontiguousarray, image[..., ::-1]))
    finally:
        video.release()
    _check_end(path, seconds + step, length)
