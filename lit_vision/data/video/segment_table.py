"""Videos, or parts of them, from a table (CSV or JSON lines) with a row a sample: path, label, start, end, split.

`path` is a video's folder of frames below the root. `start` and `end` are seconds, by the folder's FRAME_TIMES, the end
excluded; `start_frame` and `end_frame` count frames instead, from 0. Either may be missing or empty: from the first
frame, to the last. Parts of one video stay together when a split is drawn, and stand in one split when the table has
them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.folder import check_within_root
from lit_vision.data.label_table import LABEL_COLUMNS, LabeledImages
from lit_vision.data.labeled_folder import LabelOptions, folder_of_table
from lit_vision.data.longest_end import longest_end
from lit_vision.data.table_rows import (
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    cell_text,
    find_column,
    listed_path,
    read_rows,
    split_role,
)
from lit_vision.data.video.frame_folder import (
    FrameLists,
    Segment,
    VideoFolder,
    in_number_order,
    list_frames,
    read_frame_times,
)
from lit_vision.data.video.video_files import is_video_name
from lit_vision.errors import UserError

_VIDEO_PATHS = ("video", "video_path", "video_id", "clip", *PATH_COLUMNS)
_STARTS, _ENDS = ("start", "start_time", "start_seconds"), ("end", "end_time", "end_seconds")
_MOST_SECONDS = 1e7  # a larger number is milliseconds or a mistake


@dataclass(frozen=True)
class _Row:
    where: str
    line: int
    path: str
    label: str
    split: str
    group: str
    bounds: tuple[str, str, str, str]  # start, end, start_frame, end_frame


def open_segments(root: str | Path, split_names: Mapping[str, str], options: LabelOptions) -> VideoFolder:
    """Return the videos and parts of videos that the table `options.file` lists.

    Args:
        root: what the paths of the table are below.
        split_names: {"train", "val", "test": name of the split}; without a split column all are of the first.
        options: the table, its columns, and the column of groups.

    Returns:
        The folder. Its `groups` are the videos, or those of the column that `options.group_by` names.

    Raises:
        UserError: the table cannot be read, a video is missing or has no frame, a part is empty or outside its video,
            or a row is there twice; it names the file and the line.
    """
    root, file = Path(root), Path(options.file or "").expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; check data.root")
    rows = _read(file, options)
    frames: dict[str, list[tuple[str, int]]] = {}
    videos = [_find_video(root, row, frames) for row in rows]
    times: dict[str, np.ndarray] = {}
    segments, listed = {}, LabeledImages(groups=[])
    assert listed.groups is not None
    for row, video in zip(rows, videos):
        segment = _cut(root, row, video, [os.path.basename(path) for path, _ in frames[video]], times)
        whole = (segment.first, segment.end) == (0, len(frames[video]))
        path = video if whole else f"{video}#{segment.first:06d}-{segment.end:06d}"
        if path in segments:
            before = listed.lines[listed.paths.index(path)]
            raise UserError(f"{row.where}: the same frames of {video} are on line {before} too; remove one")
        segments[path] = segment
        listed.paths.append(path)
        listed.lines.append(row.line)
        listed.labels.append([row.label] if row.label else None)
        listed.unknown.append([])
        listed.groups.append(row.group or video)
    listed.splits = [row.split for row in rows] if any(row.split for row in rows) else None
    lists = FrameLists(frames)
    sizes = {path: sum(size for _, size in frames[s.video][s.first : s.end]) for path, s in segments.items()}
    table = folder_of_table(root, listed, file, split_names, sizes)
    return VideoFolder(
        root,
        table.classes,
        table.splits,
        label_file=str(file),
        groups=dict(zip(listed.paths, listed.groups)),
        frames=lists,
        segments=segments,
    )


def _read(file: Path, options: LabelOptions) -> list[_Row]:
    """Return the rows of the table."""
    found = read_rows(file)
    if not found:
        raise UserError(f"{file}: has no row below its header; give a table with a row a video")
    names = list(dict.fromkeys(name for _, row in found for name in row))
    columns = options.columns
    path = find_column(file, names, columns.path, _VIDEO_PATHS, "path")
    label = find_column(file, names, columns.label, LABEL_COLUMNS, "label")
    split = find_column(file, names, columns.split, SPLIT_COLUMNS, "split", required=False)
    group = options.group_by if isinstance(options.group_by, str) else None
    group = group and find_column(file, names, group, (), "group")
    bounds = [find_column(file, names, None, usual, usual[0], required=False) for usual in (_STARTS, _ENDS)]
    bounds += [name if name in names else None for name in ("start_frame", "end_frame")]
    rows = []
    for line, values in found:
        where = f"{file}, line {line}"

        def text(column: str | None, values: Mapping[str, Any] = values) -> str:
            return cell_text(values.get(column)) if column else ""

        role = split_role(text(split), where) if split else ""
        if split and not role:
            raise UserError(f"{where}: has no {split}; write train, val or test")
        if group and not text(group):
            raise UserError(f"{where}: has no {group}, which data.group_by needs; fill it in")
        start, end, first, last = (text(column) for column in bounds)
        if (start or end) and (first or last):
            raise UserError(f"{where}: has a start or an end both in seconds and in frames; keep one")
        listed = listed_path(text(path), where)
        rows.append(_Row(where, line, listed, text(label), role, text(group), (start, end, first, last)))
    return rows


def _find_video(root: Path, row: _Row, frames: dict[str, list[tuple[str, int]]]) -> str:
    """Return the path of a row's video below the root, and put its frames, in order, into `frames`."""
    stem, _, _ = row.path.rpartition(".")
    names = [row.path, *([stem] if is_video_name(row.path) else [])]
    if found := next((name for name in names if _has_frames(root, name, frames)), ""):
        return found
    below = {os.path.relpath(parent, root).replace(os.sep, "/") for parent, _, files in os.walk(root) if files}
    for near in (longest_end(name, below) for name in names):
        if near and _has_frames(root, near, frames):
            return near
    if (root / row.path).is_file() and is_video_name(row.path):
        raise UserError(
            f"{row.where}: {row.path} is a video, not its frames; extract them: lit-vision data frames {root} --out DIR"
        )
    raise UserError(
        f"{row.where}: there is no folder {row.path} with frames below {root}; correct the path column or data.root"
    )


def _has_frames(root: Path, video: str, frames: dict[str, list[tuple[str, int]]]) -> bool:
    """True if a path is that of a folder with frames, which are put, in order, into `frames`."""
    if video not in frames:
        try:
            check_within_root(video)
        except UserError:  # written on another machine
            return False
        found = list_frames(root, video) if (root / video).is_dir() else []
        if not found:
            return False
        frames[video] = sorted(found, key=lambda item: in_number_order(item[0]))
    return True


def _cut(root: Path, row: _Row, video: str, names: list[str], times: dict[str, np.ndarray]) -> Segment:
    """Return the part of a video that a row names."""
    start, end, first, last = row.bounds
    count = len(names)
    if start or end:
        if video not in times:
            try:
                times[video] = read_frame_times(root / video, names)
            except UserError as error:
                raise UserError(f"{row.where}: start and end are seconds, but {error}") from None
        low = _number(start, row.where, "start") if start else 0.0
        high = _number(end, row.where, "end") if end else math.inf
        begin = int(np.searchsorted(times[video], low - 1e-6))
        stop = int(np.searchsorted(times[video], high - 1e-6)) if end else count
        what = f"from {start or 'the start'} to {end or 'the end'} s"
    else:
        begin = int(_number(first, row.where, "start_frame", whole=True)) if first else 0
        stop = min(count, int(_number(last, row.where, "end_frame", whole=True))) if last else count
        what = f"from frame {begin} to {last or 'the end'}"
    if begin >= stop:
        raise UserError(f"{row.where}: {video} has no frame {what} ({count} frames); correct the row")
    return Segment(video, begin, stop)


def _number(text: str, where: str, column: str, whole: bool = False) -> float:
    """Return a number of a cell; UserError unless it is 0 or more, and an integer if `whole`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _MOST_SECONDS or (whole and not value.is_integer()):
        kind = "a number of frames" if whole else "seconds"
        raise UserError(f"{where}: {column} is {text!r}; write {kind} from 0, or nothing")
    return value
