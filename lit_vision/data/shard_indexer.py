"""Index of tar files that another program wrote, such as webdataset's ShardWriter, made in one pass over them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lit_vision.data.folder import check_within_root
from lit_vision.data.image_files import has_image_extension, image_extensions
from lit_vision.data.layout import UNLABELED, role_of
from lit_vision.data.shards.index import INDEX_NAME, ShardFile, ShardIndex, checksum_of_part, is_plain_name, join_texts
from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write
from lit_vision.io.file_lock import locked
from lit_vision.io.hashing import sha256_of_file

log = logging.getLogger(__name__)
MOST_CLASSES = 1_000_000  # a larger number in a .cls file is no class
MOST_TEXT = 1 << 20  # bytes of a .cls or .json member that are read, and of a header
_OWN = frozenset({"path", "class", "split", "group"})  # keys of a .json member that lit-vision pack wrote


def is_shard_folder(folder: Path) -> bool:
    """True for a folder with an index of shards, or with tar files and neither images nor folders beside them."""
    found = False
    with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:  # ValueError: a zero byte in the name
        if (folder / INDEX_NAME).is_file():
            return True
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if has_image_extension(entry.name) or entry.is_dir():
                return False
            found = found or entry.name.endswith(".tar")
    return found


@dataclass(slots=True)
class _Sample:
    """Members of one key in a tar file."""

    key: str
    shard: int
    offset: int = 0
    length: int = -1  # -1: there is no image
    checksum: bytes = b""
    ending: str = ""
    label: str | None = None  # of the .cls member
    described: dict[str, Any] = field(default_factory=dict)  # of the .json member, what is in _OWN


def add_index(folder: Path) -> None:
    """Write the index of a folder of tar files beside them, after reading each file.

    Members of one key are one sample, as for webdataset, also where others lie between them: a key is the name up to
    the first dot of its last part; names in double underscores and hidden ones are left out. The image is the first
    member with an image's ending, one without a further dot (KEY.jpg) before others (KEY.depth.png); KEY.cls is the
    number or the name of its class; from KEY.json come path, class, split and group, where `lit-vision pack` wrote
    them. Without them the path is FILE/KEY.ending, and the split is what the name of the tar file shows (train-, val-,
    test-), else train. What has no image, or is a link, is counted and logged.

    Raises:
        UserError: a file is no tar file, or is truncated or damaged, there is no image, a label that is no class, two
            images of one path, a path that leads out of a folder, or the index cannot be written.
    """
    names = sorted(path.name for path in folder.iterdir() if path.suffix == ".tar" and not path.name.startswith("."))
    for name in names:
        if not (folder / name).is_file():  # a pipe would be waited for
            raise UserError(f"{folder / name}: is no file that can be read; remove it")
        if not is_plain_name(name):
            raise UserError(f"{folder / name}: a tar file's name may not hold % ? # or \\; rename it")
    lock = folder / f".{INDEX_NAME}.lock"
    try:
        with locked(lock):
            if not (folder / INDEX_NAME).is_file():  # else another process was faster
                log.warning("%s: has no %s; reading its %d tar files to write it", folder, INDEX_NAME, len(names))
                atomic_write(folder / INDEX_NAME, _read_folder(folder, names).save)
    except OSError as error:
        raise UserError(
            f"{folder}: {INDEX_NAME} cannot be written there ({error.strerror}); make the folder writable, or name "
            "another one with links to its tar files"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # a disk that is read only, whether or not there is a lock
            lock.unlink()


def _read_folder(folder: Path, names: Sequence[str]) -> ShardIndex:
    samples: list[_Sample] = []
    files = []
    left_out: Counter[str] = Counter()
    for number, name in enumerate(names):
        samples += _read_tar(folder / name, number, left_out)
        files.append(ShardFile(name, (folder / name).stat().st_size, sha256_of_file(folder / name)))
    if left_out := +left_out:
        log.warning("%s: left out: %s", folder, ", ".join(f"{count} {what}" for what, count in left_out.items()))
    if not samples:
        raise UserError(f"{folder}: no image in its tar files; name a folder of images, or of WebDataset shards")
    return _index_of(samples, files, folder)


class _HeaderReader(io.BufferedReader):
    """File of which tarfile reads headers: one that asks for more bytes than any header has is refused, not made."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, or raise a ReadError."""
        if size is None or not 0 <= size <= MOST_TEXT:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _read_tar(path: Path, number: int, left_out: Counter[str]) -> list[_Sample]:
    """Return the samples of a tar file that have an image, in their order, and count the others in `left_out`."""
    samples: dict[str, _Sample] = {}
    try:
        with open(path, "rb") as file, _HeaderReader(io.FileIO(path)) as headers:
            if file.read(2) == b"\x1f\x8b":
                raise UserError(f"{path}: is compressed, so that no image can be read by itself; run gunzip on it")
            size, end = path.stat().st_size, -1
            with tarfile.open(fileobj=headers, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # it keeps every header
                    if member.size < 0 or tar.offset <= end:  # it would be read for ever
                        raise tarfile.ReadError("a member before its own header")
                    end = tar.offset
                    if end > size or (member.isreg() and member.offset_data + member.size > size):
                        raise UserError(f"{path}: truncated in {member.name}; copy it again")
                    _add_member(samples, file, member, path, number, left_out)
                end = tar.offset
            _check_end(file, end, path)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:  # ValueError: of numbers
        raise UserError(f"{path}: cannot be read as a tar file ({error}); copy it again") from None
    if without := sum(sample.length < 0 for sample in samples.values()):
        left_out["without an image"] += without
    return [sample for sample in samples.values() if sample.length >= 0]


def _check_end(file: BinaryIO, end: int, path: Path) -> None:
    """Raise unless a tar file ends where its members do: tarfile takes any damaged header for the end."""
    file.seek(end)
    mark = file.read(tarfile.BLOCKSIZE)
    if not mark:
        log.warning("%s: has no end mark; if it was copied, compare its size with the original's", path)
    elif any(mark):
        raise tarfile.ReadError(f"damaged at byte {end}")
    while piece := file.read(MOST_TEXT):
        if piece.strip(b"\0"):
            raise UserError(f"{path}: goes on after its end mark, as joined tar files do; make one tar file of each")


def _add_member(
    samples: dict[str, _Sample],
    file: BinaryIO,
    member: tarfile.TarInfo,
    path: Path,
    number: int,
    left_out: Counter[str],
) -> None:
    """Add what a member says to the sample of its key."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    stem, _, ending = (parts or [""])[-1].partition(".")
    ending = ending.lower()
    if not stem or not ending or member.isdir() or re.fullmatch("__.*__", parts[0]):
        return
    if not member.isreg() or member.issparse():
        left_out["linked or sparse"] += 1
        return
    if ".." in parts:
        raise UserError(f"{path}: {member.name} leads out of the folder; rename it")
    key = "/".join([*parts[:-1], stem])
    sample = samples.setdefault(key, _Sample(key, number))
    if ending.rpartition(".")[2] in image_extensions():
        if sample.ending == ending:
            raise UserError(f"{path}: holds {member.name} twice; give each key once")
        left_out["further images of a key"] += bool(sample.ending)
        if not sample.ending or ("." in sample.ending and "." not in ending):
            sample.offset, sample.length, sample.ending = member.offset_data, member.size, ending
            sample.checksum = checksum_of_part(file, member.offset_data, member.size)
    elif ending in ("cls", "json") and member.size <= MOST_TEXT:
        file.seek(member.offset_data)
        data = file.read(member.size)
        if ending == "cls":
            sample.label = data.decode("utf-8", "surrogateescape").strip()
            if re.search(r"[\0-\x1f\x7f]", sample.label):
                raise UserError(f"{path}: {member.name} is no number and no name of a class; correct it")
        else:
            sample.described = _parse_json(data, f"{path}: {member.name}")


def _parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Return what `lit-vision pack` writes into a .json member, {} for one that another program wrote."""
    try:
        found = json.loads(data)
        if not isinstance(found, dict) or not found.keys() >= _OWN:
            return {}
        for text in (check_within_root(found["path"]), str(found["split"]), str(found["class"])):
            os.fsencode(text)
    except (ValueError, RecursionError):  # ValueError: also half a character
        raise UserError(f"{where} is no JSON; correct it or leave it out") from None
    except (UserError, TypeError, AttributeError):
        raise UserError(f"{where} holds a path that is no path in a folder; correct it or leave it out") from None
    return {name: found[name] for name in _OWN}


def _index_of(samples: Sequence[_Sample], files: Sequence[ShardFile], folder: Path) -> ShardIndex:
    """Return the index of samples."""
    own = all(sample.described for sample in samples)
    named = [_place(sample, files[sample.shard].name, own) for sample in samples]
    roles = {"train": 0, "": 1}  # then the others by name
    order = sorted(range(len(samples)), key=lambda i: (roles.get(named[i][0], 2), *named[i]))
    for before, after in pairwise(order):
        if named[before] == named[after]:
            raise UserError(f"{folder}: two images have the path {named[after][1]}; give each key once")
    classes, labels = _classes_of([samples[i] for i in order], own, folder)
    counts: dict[str, int] = {}
    for i in order:
        counts[named[i][0]] = counts.get(named[i][0], 0) + 1
    groups = [str(samples[i].described.get("group") or "") if own else "" for i in order]
    path_ends, path_bytes = join_texts([named[i][1] for i in order])
    group_ends, group_bytes = join_texts(groups)
    arrays: dict[str, np.ndarray] = {
        "shard": np.array([samples[i].shard for i in order], np.int32),
        "offset": np.array([samples[i].offset for i in order], np.int64),
        "length": np.array([samples[i].length for i in order], np.int64),
        "checksum": np.frombuffer(b"".join(samples[i].checksum for i in order), np.uint8).reshape(-1, 16),
        "label": labels,
        "path_ends": path_ends,
        "path_bytes": path_bytes,
        "group_ends": group_ends,
        "group_bytes": group_bytes,
    }
    return ShardIndex(list(files), classes, list(counts.items()), arrays)


def _place(sample: _Sample, file: str, own: bool) -> tuple[str, str]:
    """Return the split, "" for unlabeled images, and the path of a sample."""
    if own:
        split = str(sample.described["split"])
        return "" if split == UNLABELED else split, str(sample.described["path"])
    stem = file.removesuffix(".tar")
    shown = (role_of(word) for word in re.findall(r"[a-z]+", stem.lower()))
    return next((role for role in shown if role), "train"), f"{stem}/{sample.key}.{sample.ending}"


def _classes_of(samples: Sequence[_Sample], own: bool, folder: Path) -> tuple[list[str], np.ndarray]:
    """Return the names of the classes, and (N,) int64 labels, -1 without one."""
    texts = [sample.label or None for sample in samples]
    known = {text for text in texts if text is not None}
    if not all(re.fullmatch(r"-?\d{1,18}", text, re.ASCII) for text in known):
        classes = sorted(known)
        number = {name: i for i, name in enumerate(classes)}
        return classes, np.array([-1 if text is None else number[text] for text in texts], np.int64)
    labels = np.array([-1 if text is None else max(-1, int(text)) for text in texts], np.int64)
    if labels.max(initial=-1) >= MOST_CLASSES:
        raise UserError(f"{folder}: a .cls member holds {labels.max()}, which is no number of a class; correct it")
    classes = [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
    if own:
        for sample, label in zip(samples, labels.tolist()):
            if label >= 0:
                classes[label] = str(sample.described["class"])
    return classes, labels
