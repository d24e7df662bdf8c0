"""Index of tar files that another program wrote, such as webdataset's ShardWriter, made in one pass over them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.image_files import has_image_extension, image_extensions
from lit_vision.data.layout import UNLABELED, role_of
from lit_vision.data.shards.index import INDEX_NAME, ShardFile, ShardIndex, checksum_of, join_texts
from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write
from lit_vision.io.file_lock import locked
from lit_vision.io.hashing import sha256_of_file

log = logging.getLogger(__name__)
MOST_CLASSES = 1_000_000  # a larger number in a .cls file is no class
MOST_TEXT = 1 << 20  # bytes of a .cls or .json member that are read


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


@dataclass
class _Sample:
    """Members of one key in a tar file."""

    key: str
    shard: int
    offset: int = 0
    length: int = -1  # -1: there is no image
    checksum: bytes = b""
    ending: str = ""
    label: str | None = None  # of the .cls member
    described: dict[str, Any] = field(default_factory=dict)  # the .json member


def add_index(folder: Path) -> None:
    """Write the index of a folder of tar files beside them, after reading each file once.

    Members of one key are one sample, as for webdataset: a key is the name up to the first dot of its last part. The
    image is the first member with an image's ending; KEY.cls is the number or the name of its class; from KEY.json come
    path, class, split and group, where `lit-vision pack` wrote them. Without them the path is FILE/KEY.ending, and the
    split is what the name of the tar file shows (train-, val-, test-), else train.

    Raises:
        UserError: a file is no tar file or is truncated, there is no image, a label that is no class, two images of one
            path, or the index cannot be written.
    """
    names = sorted(path.name for path in folder.iterdir() if path.suffix == ".tar" and not path.name.startswith("."))
    lock = folder / f".{INDEX_NAME}.lock"
    try:
        with locked(lock):
            if (folder / INDEX_NAME).is_file():  # another process was faster
                return
            log.warning("%s: has no %s; reading its %d tar files once to write it", folder, INDEX_NAME, len(names))
            samples: list[_Sample] = []
            files = []
            for number, name in enumerate(names):
                samples += _read_tar(folder / name, number)
                files.append(ShardFile(name, (folder / name).stat().st_size, sha256_of_file(folder / name)))
            if not samples:
                raise UserError(
                    f"{folder}: no image in its tar files; name a folder of images, or of WebDataset shards"
                )
            atomic_write(folder / INDEX_NAME, _index_of(samples, files, folder).save)
    except OSError as error:
        raise UserError(f"{folder / INDEX_NAME}: {error.strerror}; copy the set to where it may be written") from None
    finally:
        lock.unlink(missing_ok=True)


def _read_tar(path: Path, number: int) -> Iterator[_Sample]:
    """Yield the samples of a tar file that have an image."""
    sample = _Sample("", number)
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it keeps every header
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > size:
                    raise UserError(f"{path}: truncated in {member.name}; copy it again")
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if key != sample.key:
                    if sample.length >= 0:
                        yield sample
                    sample = _Sample(key, number)
                _add_member(sample, tar, member, ending.lower(), path)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as a tar file ({error}); copy it again") from None
    if sample.length >= 0:
        yield sample


def _add_member(sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str, path: Path) -> None:
    """Add what a member says to its sample."""
    last = ending.rpartition(".")[2]
    is_image = last in image_extensions() and sample.length < 0
    if not is_image and not (ending in ("cls", "json") and member.size <= MOST_TEXT):
        return
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if is_image:
        sample.offset, sample.length, sample.ending = member.offset_data, len(data), ending
        sample.checksum = checksum_of(data)
    elif ending == "cls":
        sample.label = data.decode("utf-8", "surrogateescape").strip()
    else:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise UserError(f"{path}: {member.name} is no JSON; correct it or leave it out") from None
        sample.described = found if isinstance(found, dict) else {}


def _index_of(samples: Sequence[_Sample], files: Sequence[ShardFile], folder: Path) -> ShardIndex:
    """Return the index of samples."""
    own = all({"path", "class", "split", "group"} <= sample.described.keys() for sample in samples)
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
