"""Extract the frames of videos into folders, once and by time stamp: `lit-vision data frames`.

OUT/<path of the video without its ending>/<number>.jpg, so that VIDEOS/train/<class>/a.mp4 becomes a video of
`VideoFolderDataModule` in OUT/train/<class>/a. A folder appears when all its frames are there, so a call that was
stopped is repeated and goes on with the videos that are not finished.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from lit_vision.data.image_files import list_entries
from lit_vision.data.make.fashion import DATASET_NOTE
from lit_vision.data.video.frame_folder import FRAME_TIMES, write_frame_times
from lit_vision.data.video.video_files import VideoFrame, VideoReadError, is_video_name, read_video, videos_below
from lit_vision.errors import UsageError, UserError
from lit_vision.io.atomic import atomic_path, atomic_write
from lit_vision.io.completion_marker import is_complete, mark_complete, mark_started, report_write_errors
from lit_vision.io.file_lock import try_lock
from lit_vision.io.processes import cores

BROKEN_VIDEOS = "broken_videos.csv"
FORMATS = ("jpg", "png")
MOST_FPS = 1000.0
_QUALITY = 95  # of JPEG
_SAME_TIME = 1e-6  # seconds


@dataclass(frozen=True)
class FrameOptions:
    """Options of the frames that are extracted.

    Attributes:
        fps: frames per second of the video, each the one that is shown at that time; None takes every frame.
        short_side: pixels of the shorter side; a larger frame is shrunk to it. None keeps its size.
        file_format: "jpg" (quality 95) or "png" (without loss, about five times as large).

    Raises:
        UsageError: an option is out of its range.
    """

    fps: float | None = None
    short_side: int | None = None
    file_format: str = "jpg"

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if self.fps is not None and not 0 < self.fps <= MOST_FPS:
            raise UsageError(f"--fps {self.fps}: give more than 0, at most {MOST_FPS:g} frames per second")
        if self.short_side is not None and not 8 <= self.short_side <= 8192:
            raise UsageError(f"--short_side {self.short_side}: give 8 to 8192 pixels")
        if self.file_format not in FORMATS:
            raise UsageError(f"--format {self.file_format}: give {' or '.join(FORMATS)}")


@dataclass
class Extracted:
    """Outcome of `extract_frames`.

    Attributes:
        videos: with a folder of frames, those of earlier calls included.
        frames: that this call wrote.
        broken: (path, reason) of the files that could not be read.
    """

    videos: int
    frames: int
    broken: list[tuple[str, str]]


def find_video_files(paths: Sequence[str | Path]) -> list[tuple[str, str]]:
    """Return (path of a video file, its folder of frames below OUT) of files and folders.

    Args:
        paths: files, whatever their ending; and folders, in which files with the ending of a video count.

    Raises:
        UserError: a path does not exist, a folder holds no video, or two videos would have one folder of frames.
    """
    found: list[tuple[str, str]] = []
    for path in (os.fspath(path) for path in paths):
        if os.path.isdir(path):
            below = list(videos_below(path))
            if not below:
                raise UserError(f"{path}: no video in it, by the endings of names (.mp4, .avi, .mkv, .webm and others)")
            found += [(video, os.path.splitext(os.path.relpath(video, path))[0]) for video in below]
        elif os.path.exists(path):
            name = os.path.basename(path)
            found.append((path, os.path.splitext(name)[0] if is_video_name(name) else name))
        else:
            raise UserError(f"{path}: no such file or folder; check the path")
    first: dict[str, str] = {}
    for path, folder in found:
        if (other := first.setdefault(folder, path)) != path:
            raise UserError(
                f"{path}: its frames would come into the folder of {other}'s ({folder}); rename one of them"
            )
    for path, folder in found:
        parents = (str(parent) for parent in Path(folder).parents)
        if outer := next((first[parent] for parent in parents if parent in first), ""):
            raise UserError(f"{path}: its frames would come into the folder of {outer}'s; rename that video")
    return sorted(dict.fromkeys(found), key=lambda video: video[1])


def extract_frames(paths: Sequence[str | Path], out: Path, options: FrameOptions, workers: int = 0) -> Extracted:
    """Write the frames of videos and their times (FRAME_TIMES) to `out`, except for videos whose folder is there.

    Files that cannot be read to their end get no folder; they are listed in OUT/broken_videos.csv (path, reason).

    Args:
        paths: see `find_video_files`.
        out: folder that is missing, empty, or of earlier calls with the same options.
        options: of the frames.
        workers: videos that are read at the same time; 0: the number of cores.

    Raises:
        UserError: no video, none that can be read, or the folder holds other files or cannot be written.
    """
    videos = find_video_files(paths)
    note = {"name": "frames", **asdict(options)}
    with report_write_errors(out, "--out "):
        is_complete(out, DATASET_NOTE, note, "--out ")
        mark_started(out, DATASET_NOTE, json.dumps(note))
        waiting = [(path, folder) for path, folder in videos if not (out / folder / FRAME_TIMES).is_file()]
        frames, broken = 0, []
        with _only_writer(out):
            _remove_unfinished(out, waiting)
            for path, result in _extract_all(waiting, out, options, workers or cores()):
                if isinstance(result, int):
                    frames += result
                else:
                    broken.append((path, result))
        broken.sort()
        _write_broken(out / BROKEN_VIDEOS, broken)
        if len(broken) == len(videos):
            raise UserError(
                f"{out / BROKEN_VIDEOS}: lists all {len(videos)} videos, none could be read; the first: {broken[0][1]}"
            )
        mark_complete(out, DATASET_NOTE, json.dumps(note, indent=1) + "\n")
    return Extracted(len(videos) - len(broken), frames, broken)


@contextlib.contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that no other call removes what this one is writing; UserError if one has it."""
    lock = try_lock(out / f".{DATASET_NOTE}.lock")
    if lock is None:
        raise UserError(f"--out {out}: another call is writing there; wait for it, or name another folder")
    with lock:
        yield


def _remove_unfinished(out: Path, videos: Iterable[tuple[str, str]]) -> None:
    """Remove the temporary folders of a call that was killed."""
    for parent in {(out / folder).parent for _, folder in videos}:
        for entry in list_entries(parent) if parent.is_dir() else ():
            if entry.name.startswith(".") and entry.name.endswith(".tmp"):
                shutil.rmtree(entry.path, ignore_errors=True)


def _extract_all(
    videos: Sequence[tuple[str, str]], out: Path, options: FrameOptions, workers: int
) -> Iterator[tuple[str, int | str]]:
    """Yield (path, number of frames written, or the reason why it is broken), as the videos are finished."""
    from rich.progress import track

    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(_extract, path, out / folder, options, stop): path for path, folder in videos}
        try:
            for job in track(as_completed(jobs), "extracting frames", len(jobs), transient=True):
                yield jobs[job], job.result()
        finally:  # Ctrl-C or a full disk ends the others after their next frame
            stop.set()
            pool.shutdown(cancel_futures=True)


def _extract(path: str, folder: Path, options: FrameOptions, stop: threading.Event) -> int | str:
    """Write one video's folder and return the number of its frames, or the reason why it cannot be read."""
    try:
        with atomic_path(folder, fsync=False) as temporary:
            temporary.mkdir()
            names: list[str] = []
            seconds: list[float] = []
            frames = read_video(path, threads=1)  # other threads read other videos
            timed = at_rate(frames, options.fps) if options.fps else ((f.seconds, f.pixels()) for f in frames)
            for time, pixels in timed:
                if stop.is_set():
                    raise VideoReadError("stopped")
                names.append(f"{len(names):06d}.{options.file_format}")
                seconds.append(time)
                (temporary / names[-1]).write_bytes(_encode(pixels, options))
            write_frame_times(temporary, names, seconds)
    except VideoReadError as error:
        return str(error)
    return len(names)


def at_rate(frames: Iterator[VideoFrame], fps: float) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (k / fps, the frame that is shown then) for k = 0, 1, ... until the last frame's time.

    A frame that is shown for long comes several times, so that the frames are at equal distances in time whatever the
    video's own rate.
    """
    k, shown = 0, None
    pixels: np.ndarray | None = None
    for frame in frames:
        while shown is not None and k / fps < frame.seconds - _SAME_TIME:
            pixels = shown.pixels() if pixels is None else pixels
            yield k / fps, pixels
            k += 1
        shown, pixels = frame, None
    while shown is not None and k / fps <= shown.seconds + _SAME_TIME:
        pixels = shown.pixels() if pixels is None else pixels
        yield k / fps, pixels
        k += 1


def _encode(pixels: np.ndarray, options: FrameOptions) -> bytes:
    height, width = pixels.shape[:2]
    if options.short_side is not None and min(height, width) > options.short_side:
        scale = options.short_side / min(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    settings = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY] if options.file_format == "jpg" else []
    encoded, data = cv2.imencode(f".{options.file_format}", pixels[..., ::-1], settings)
    assert encoded
    return bytes(data)


def _write_broken(file: Path, broken: Sequence[tuple[str, str]]) -> None:
    """Write the list of broken videos; remove it if there are none."""
    if not broken:
        file.unlink(missing_ok=True)
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *broken])
    atomic_write(file, lambda path: path.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape"))
