"""Videos as folders of frames: their order, their time stamps, and the scan of a folder of such videos.

Layouts: `ROOT/<split>/<class>/**/<video>/*.jpg` and `ROOT/<class>/**/<video>/*.jpg` (all of it is the training split).
Frames are sorted as numbers where their names hold numbers (frame2 before frame10). A file FRAME_TIMES in a video's
folder, which `lit-vision data frames` writes, says at which second each frame is shown.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lit_vision.data.folder import Folder, Paths, Split, check_within_root, scan
from lit_vision.data.image_files import has_image_extension, is_system_folder, list_entries
from lit_vision.data.video.video_files import videos_below
from lit_vision.data.views.decode import ImageDecodeError
from lit_vision.errors import UserError
from lit_vision.io.text import join_names

FRAME_TIMES = "frame_times.csv"
_DIGITS = re.compile(r"(\d+)")


def in_number_order(name: str) -> tuple[list[str | int], str]:
    """Return what sorts names by the numbers in them: frame2 before frame10; equal ones (1 and 01) as text."""
    parts = _DIGITS.split(name)  # text and digits by turns, so that two lists compare like with like
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


@dataclass(frozen=True)
class Segment:
    """Sample of a set of videos: a video, or a part of it.

    Attributes:
        video: path of its folder below the root.
        first: number of its first frame.
        end: one more than that of its last frame.
    """

    video: str
    first: int
    end: int


class FrameLists:
    """Names and sizes of the frames of many videos, in arrays that forked workers share (see `Paths`).

    Args:
        frames: {video: [(path of a frame below the root, bytes)]}, in any order.
    """

    def __init__(self, frames: Mapping[str, Sequence[tuple[str, int]]]):
        self.videos = sorted(frames)
        listed = [sorted(frames[video], key=lambda item: in_number_order(item[0])) for video in self.videos]
        self._ends = np.cumsum([0, *map(len, listed)])
        self._paths = Paths(path for items in listed for path, _ in items)
        self.sizes = np.array([size for items in listed for _, size in items], np.int64)

    def __contains__(self, video: object) -> bool:
        return isinstance(video, str) and self._row(video) is not None

    def _row(self, video: str) -> int | None:
        row = bisect_left(self.videos, video)
        return row if row < len(self.videos) and self.videos[row] == video else None

    def place(self, video: str) -> tuple[int, int]:
        """Return the first row of a video's frames in `sizes` and `path`, and one more than the last."""
        row = self._row(video)
        assert row is not None
        return int(self._ends[row]), int(self._ends[row + 1])

    def path(self, row: int) -> str:
        """Return the path of a frame below the root."""
        return self._paths[row]

    def names(self, video: str) -> list[str]:
        """Return the names of a video's frames in its folder, in order."""
        return [os.path.basename(self._paths[row]) for row in range(*self.place(video))]


@dataclass
class VideoFrames:
    """Frames of a segment, read when they are asked for.

    Attributes:
        folder: that holds them.
        rows: of the segment's frames in the folder's `FrameLists`.
    """

    folder: VideoFolder
    rows: range

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, number: int) -> bytes:
        """Return the bytes of a frame; OSError if it cannot be read."""
        return self.folder.read(self.name(number))

    def name(self, number: int) -> str:
        """Return the path of a frame below the root."""
        return self.folder.frames.path(self.rows[number])

    def times(self) -> np.ndarray:
        """Return the seconds at which the frames are shown, (N,) float64; ImageDecodeError if they do not fit."""
        video = os.path.dirname(self.name(0))
        first, _ = self.folder.frames.place(video)
        seconds = read_frame_times(self.folder.root / video, self.folder.frames.names(video))
        return seconds[self.rows.start - first : self.rows.stop - first]


@dataclass
class VideoFolder(Folder):
    """Splits, classes and frames of a set of videos; the paths of its splits name segments.

    Attributes:
        frames: of all videos.
        segments: by the paths of the splits; a whole video's path is that of its folder.
        empty_videos: folders without a frame beside those of videos.
    """

    frames: FrameLists = field(default_factory=lambda: FrameLists({}))
    segments: dict[str, Segment] = field(default_factory=dict)
    empty_videos: list[str] = field(default_factory=list)

    def open(self, path: str) -> VideoFrames:
        """Return the frames of a segment."""
        segment = self.segments[path]
        first, _ = self.frames.place(segment.video)
        return VideoFrames(self, range(first + segment.first, first + segment.end))

    def read(self, path: str) -> bytes:
        """Return the bytes of a frame; of a segment, those of its first frame."""
        return super().read(self.open(path).name(0) if path in self.segments else path)

    def exclude(self, paths: set[str]) -> int:
        """Remove segments from every split: those listed, and all of a video that is listed or has a listed frame.

        Returns:
            Segments that were removed.
        """
        videos = paths | {os.path.dirname(path) for path in paths if has_image_extension(path)}
        return super().exclude({path for path, s in self.segments.items() if path in paths or s.video in videos})

    def fingerprint(self, hash_content: bool = False) -> str:
        """Return the sha256 (hex) over the segments' labels and the names and sizes of their frames.

        Args:
            hash_content: include the sha256 of each frame's bytes.
        """
        digest = hashlib.sha256()
        rows = [row for split in self.splits.values() for row in zip(split.paths, split.labels.tolist())]
        for path, label in sorted(rows):
            video = self.open(path)
            digest.update(os.fsencode(path) + f"\0{label}\n".encode())
            for number, row in enumerate(video.rows):
                digest.update(os.fsencode(video.name(number)) + f"\0{self.frames.sizes[row]}\0".encode())
                if hash_content:
                    digest.update(hashlib.sha256(video.read(number)).digest())
        return digest.hexdigest()

    def lines(self) -> list[str]:
        """Return the lines of `Folder.lines` with the number of frames, and one about empty folders of videos."""
        segments = [self.segments[path] for split in self.splits.values() for path in split.paths]
        counts = [segment.end - segment.first for segment in segments] or [0]
        first, *rest = super().lines()
        if self.empty_videos:
            several = "s" * (len(self.empty_videos) > 1)
            rest.append(
                f"without a frame: {len(self.empty_videos)} video folder{several}: {join_names(self.empty_videos)}"
            )
        return [f"{first} (videos of {min(counts)} to {max(counts)} frames)", *rest]


def read_frame_times(folder: Path, names: Sequence[str]) -> np.ndarray:
    """Return the seconds at which the frames of a video's folder are shown.

    Args:
        folder: with its file FRAME_TIMES.
        names: of the frames, in order.

    Returns:
        (N,) float64, increasing.

    Raises:
        ImageDecodeError: there is no such file, or it does not have an increasing time for each frame; one line.
    """
    file = folder / FRAME_TIMES
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ImageDecodeError(
            f"{file}: no such file; extract the frames by `lit-vision data frames`, or count frames (data.frame_stride)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ImageDecodeError(f"{file}: cannot be read ({error}); extract the frames again") from None
    seconds = {}
    for line in lines[1:]:
        name, _, value = line.rpartition(",")
        try:
            seconds[name] = float(value)
        except ValueError:
            raise ImageDecodeError(f"{file}: {line!r} is not `frame,seconds`; extract the frames again") from None
    if missing := [name for name in names if name not in seconds]:
        raise ImageDecodeError(f"{file}: has no time for {missing[0]}; extract the frames again")
    times = np.array([seconds[name] for name in names])
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ImageDecodeError(f"{file}: its times do not increase; extract the frames again")
    return times


def write_frame_times(folder: Path, names: Iterable[str], seconds: Iterable[float]) -> None:
    """Write a video's FRAME_TIMES, with six decimals."""
    text = io.StringIO()
    text.write("frame,seconds\n")
    text.writelines(f"{name},{time:.6f}\n" for name, time in zip(names, seconds))
    (folder / FRAME_TIMES).write_text(text.getvalue(), encoding="utf-8")


def group_frames(paths: Iterable[str], sizes: Iterable[int]) -> dict[str, list[tuple[str, int]]]:
    """Return {folder: [(path, bytes)]} of frames; "" for those in no folder."""
    found: dict[str, list[tuple[str, int]]] = {}
    for path, size in zip(paths, sizes):
        found.setdefault(os.path.dirname(path), []).append((path, size))
    return found


def scan_videos(root: str | Path, train: str = "train", val: str = "val", test: str = "test") -> VideoFolder:
    """Read the names and sizes of all frames below a folder; none is opened.

    Args:
        root: the folder.
        train, val, test: names of the splits' folders, as for `lit_vision.data.folder.scan`.

    Returns:
        The folder; each segment of its splits is a whole video.

    Raises:
        UserError: as `scan`; the folder holds video files instead of frames, or frames outside a video's own folder.
    """
    try:
        images = scan(root, train, val, test)
    except UserError as error:
        if Path(root).is_dir() and (video := next(videos_below(str(root)), "")):
            raise UserError(
                f"{root}: holds videos ({os.path.relpath(video, root)}), not their frames; extract them: "
                f"lit-vision data frames {root} --out DIR"
            ) from error
        raise
    splits, frames = {}, {}
    for name, split in images.splits.items():
        place = images.inventory.splits.get(name, "")
        by_video = group_frames(split.paths, split.sizes.tolist())
        labels = dict(zip(map(os.path.dirname, split.paths), split.labels.tolist()))
        for video, listed in by_video.items():
            if place in (video, os.path.dirname(video)):
                raise UserError(
                    f"{images.root / listed[0][0]}: a frame outside a folder of its video's own; the layout is "
                    f"{place or train}/<class>/<video>/*.jpg"
                )
        videos = sorted(by_video)
        sizes = np.array([sum(size for _, size in by_video[video]) for video in videos], np.int64)
        splits[name] = Split(Paths(videos), np.array([labels[video] for video in videos], np.int64), sizes)
        frames.update(by_video)
    lists = FrameLists(frames)
    segments = {video: Segment(video, 0, lists.place(video)[1] - lists.place(video)[0]) for video in lists.videos}
    return VideoFolder(
        images.root,
        images.classes,
        splits,
        inventory=images.inventory,
        frames=lists,
        segments=segments,
        empty_videos=_empty_videos(images.root, frames),
    )


def list_frames(root: Path, video: str) -> list[tuple[str, int]]:
    """Return (path below the root, bytes) of the frames directly in a video's folder.

    Raises:
        UserError: the path leads out of the root, or the folder may not be read.
    """
    check_within_root(video)
    entries = [e for e in list_entries(root / video) if e.is_file() and not e.name.startswith(".")]
    return [(f"{video}/{e.name}", e.stat().st_size) for e in entries if has_image_extension(e.name)]


def _empty_videos(root: Path, frames: Mapping[str, object]) -> list[str]:
    """Return the folders without a frame that stand beside those of videos."""
    found = []
    for parent in sorted({os.path.dirname(video) for video in frames}):
        for entry in list_entries(root / parent):
            path = f"{parent}/{entry.name}" if parent else entry.name
            if entry.name.startswith(".") or is_system_folder(entry.name) or not entry.is_dir() or path in frames:
                continue
            if not any(video.startswith(f"{path}/") for video in frames):
                found.append(path)
    return sorted(found)
