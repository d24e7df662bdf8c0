"""Index of a sharded set: where each image lies in the tar files, with its checksum, label, split and path.

INDEX_NAME in the set's folder is a safetensors file: a JSON header, then plain arrays, which are mapped into memory, so
that the index of any number of images takes no memory of its own. Row i of every array belongs to the image whose key
in the tar files is i, zero-padded:

    shard       (N,) int32    number of the tar file
    offset      (N,) int64    of the image's bytes in it
    length      (N,) int64    bytes
    checksum    (N, 16) uint8 blake2b of the bytes, 16 bytes long
    label       (N,) int64    number of the class, -1 without one
    path_bytes  (M,) uint8    all paths, one after the other; path_ends (N + 1,) int64 says where each begins and ends
    group_bytes, group_ends   likewise; empty and zeros without groups

Rows of a split lie together, sorted by path. The header's metadata: `format`, `set` (JSON: shards as [name, bytes,
sha256], classes, splits as [name, rows], with "" for unlabeled images, short_side, quality, value_range) and `blake2b`
of arrays and `set`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lit_vision.data.shards.layout import key_of
from lit_vision.errors import UserError

INDEX_NAME = "index.safetensors"
FORMAT = "lit_vision shards 1"
CHECKSUM_BYTES = 16
ROWS_AT_ONCE = 1 << 16  # rows that a check of the arrays copies
_ARRAYS = {  # name: (type, dimensions)
    "shard": (np.int32, 1),
    "offset": (np.int64, 1),
    "length": (np.int64, 1),
    "checksum": (np.uint8, 2),
    "label": (np.int64, 1),
    "path_ends": (np.int64, 1),
    "path_bytes": (np.uint8, 1),
    "group_ends": (np.int64, 1),
    "group_bytes": (np.uint8, 1),
}
# a name in a folder, here and in an address: no separators, nothing that an address escapes or reads otherwise
_PLAIN_NAME = re.compile(r"(?!\.)[^/\\%?#\x00-\x1f]+\.tar")


class ShardIndexError(UserError):
    """The index of a sharded set is missing, damaged, or does not fit its files."""


@dataclass(frozen=True)
class ShardFile:
    """A tar file of a set: its name in the set's folder, its bytes, and their sha256 (hex)."""

    name: str
    size: int
    sha256: str


@dataclass
class ShardIndex:
    """Index of a sharded set; see the module's text for the arrays.

    Attributes:
        shards: the tar files.
        classes: names of the classes.
        splits: (name, number of rows) in the order of the rows; "" has the unlabeled images.
        arrays: by name.
        short_side: pixels that larger images were shrunk to; None if they are as they were.
        quality: of the JPEGs, if they were shrunk.
        value_range: values of deeper images that became 0 and 255, if they were converted.
    """

    shards: list[ShardFile]
    classes: list[str]
    splits: list[tuple[str, int]]
    arrays: dict[str, np.ndarray]
    short_side: int | None = None
    quality: int | None = None
    value_range: list[float] | None = None
    digest: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.arrays["shard"])

    def ranges(self) -> Iterator[tuple[str, int, int]]:
        """Yield (name, first row, row after the last) of each split."""
        start = 0
        for name, rows in self.splits:
            yield name, start, start + rows
            start += rows

    def checksum_matches(self, row: int, data: bytes) -> bool:
        """True if these are the bytes of an image."""
        expected: bytes = self.arrays["checksum"][row].tobytes()
        return checksum_of(data) == expected

    def texts(self, kind: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends and bytes of the paths ("path") or groups ("group") of some rows, for `folder.Paths`."""
        return self.arrays[f"{kind}_ends"][start : stop + 1], self.arrays[f"{kind}_bytes"]

    def text(self, kind: str, row: int) -> str:
        """Return the path ("path") or group ("group") of a row."""
        first, stop = self.arrays[f"{kind}_ends"][row : row + 2].tolist()
        return os.fsdecode(self.arrays[f"{kind}_bytes"][first:stop].tobytes())

    def check(self, row: int, data: bytes, where: str) -> None:
        """Raise a UserError that names tar file, key and path unless these are the bytes of an image.

        Args:
            row: of the image.
            data: what was read.
            where: the folder or address of the set.
        """
        if not self.checksum_matches(row, data):
            shard, path = self.shards[int(self.arrays["shard"][row])].name, self.text("path", row)
            raise UserError(
                f"{where}/{shard}: altered: the checksum of key {key_of(row, len(self))} ({path}) does not match; copy "
                "the file again or pack again"
            )

    def _description(self) -> dict[str, Any]:
        shards = [list(asdict(shard).values()) for shard in self.shards]
        names = ("classes", "splits", "short_side", "quality", "value_range")
        return {"shards": shards, **{name: getattr(self, name) for name in names}}

    def compute_digest(self) -> str:
        """Return the blake2b (hex) of the arrays and the description."""
        digest = hashlib.blake2b(json.dumps(self._description()).encode(), digest_size=32)
        for name in _ARRAYS:
            array = np.ascontiguousarray(self.arrays[name])
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the index to a file; the caller makes that atomic. OSError if it cannot be written."""
        import torch

        from lit_vision.io.safetensors_file import save_tensors

        metadata = {"format": FORMAT, "set": json.dumps(self._description()), "blake2b": self.compute_digest()}
        save_tensors({name: torch.from_numpy(np.array(self.arrays[name])) for name in _ARRAYS}, path, metadata)


def checksum_of(data: bytes) -> bytes:
    """Return the checksum of an image's bytes: blake2b of 16 bytes."""
    return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES).digest()


def checksum_of_part(file: BinaryIO, offset: int, length: int) -> bytes:
    """Return `checksum_of` so many bytes of a file, read in pieces; EOFError if it has fewer."""
    digest = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    file.seek(offset)
    while length:
        piece = file.read(min(length, 1 << 22))
        if not piece:
            raise EOFError("it ends before its last member does")
        digest.update(piece)
        length -= len(piece)
    return digest.digest()


def is_plain_name(name: str) -> bool:
    """True for the name of a tar file that a set may have."""
    return _PLAIN_NAME.fullmatch(name) is not None


def join_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (N + 1,) int64 ends and the bytes of N texts, as `path_ends` and `path_bytes` hold them."""
    encoded = [os.fsencode(text) for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return ends, np.frombuffer(b"".join(encoded), np.uint8)


def load_index(path: Path, verify: bool = True, where: str = "") -> ShardIndex:
    """Return the index in a file, mapped into memory.

    Args:
        path: the file.
        verify: check sizes, ranges and the digest; False for a file that this program has checked already.
        where: names the file in messages; "" is its path.

    Raises:
        ShardIndexError: it is no index, or it is truncated or altered, or its numbers cannot be right.
    """
    where = where or str(path)
    arrays, metadata = _map_arrays(path, where)
    if metadata.get("format") != FORMAT:
        raise ShardIndexError(f"{where}: is no index of shards ({metadata.get('format', 'another file')}); remove it")
    index = _parse_description(metadata.get("set", ""), arrays, where)
    if verify:
        _check_rows(index, where)
        index.digest = index.compute_digest()
        if index.digest != metadata.get("blake2b"):
            raise ShardIndexError(f"{where}: altered: its checksum does not match; copy it again or pack again")
    return index


def _map_arrays(path: Path, where: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of a safetensors file, mapped, and its metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:  # checks header, shapes and offsets against the file's size
            metadata, names = file.metadata() or {}, set(file.keys())
        with open(path, "rb") as raw:
            header_bytes = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(header_bytes))
        if missing := sorted(set(_ARRAYS) - names):
            raise ShardIndexError(f"{where}: is no index of shards: it has no {missing[0]}; remove it")
        mapped = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or f"is no index of shards ({error})"
        raise ShardIndexError(f"{where}: {reason}; copy the set again or pack again") from None
    arrays = {}
    for name, (kind, dimensions) in _ARRAYS.items():
        begin, end = header[name]["data_offsets"]
        shape = header[name]["shape"]
        # an array of another type has other bytes than its shape times this type, so the view or the reshape fails
        raw_bytes = mapped[8 + header_bytes + begin : 8 + header_bytes + end]
        try:
            array = np.frombuffer(raw_bytes, kind).reshape(shape)
        except ValueError:
            raise ShardIndexError(f"{where}: its {name} has another type; pack again") from None
        if array.ndim != dimensions:
            raise ShardIndexError(f"{where}: its {name} has {array.ndim} dimensions; pack again")
        arrays[name] = array
    return arrays, metadata


def _parse_description(text: str, arrays: dict[str, np.ndarray], where: str) -> ShardIndex:
    try:
        found = json.loads(text)
        shards = [ShardFile(str(name), int(size), str(sha256)) for name, size, sha256 in found["shards"]]
        splits = [(str(name), int(rows)) for name, rows in found["splits"]]
        classes = [name for name in found["classes"] if isinstance(name, str)]
        value_range = None if found["value_range"] is None else [float(value) for value in found["value_range"]]
        short_side, quality = (None if found[key] is None else int(found[key]) for key in ("short_side", "quality"))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise ShardIndexError(f"{where}: its description cannot be read; pack again") from None
    names = [shard.name for shard in shards]
    if bad := next((name for name in names if not is_plain_name(name)), None):
        raise ShardIndexError(f"{where}: names the tar file {bad[:100]!r}, which is no plain name; pack again")
    wrong = len(set(names)) < len(names) or len({name for name, _ in splits}) < len(splits)
    if wrong or len(classes) < len(found["classes"]) or any(not 0 <= shard.size < 1 << 63 for shard in shards):
        raise ShardIndexError(f"{where}: its description cannot be right; pack again")
    return ShardIndex(shards, classes, splits, arrays, short_side, quality, value_range)


def _check_rows(index: ShardIndex, where: str) -> None:
    """Raise unless every row names bytes in its tar file, a class, and a path."""
    arrays, rows = index.arrays, len(index)
    wrong = {name for name in ("offset", "length", "checksum", "label") if len(arrays[name]) != rows}
    wrong |= {name for name in ("path_ends", "group_ends") if len(arrays[name]) != rows + 1}
    if arrays["checksum"].shape[1:] != (CHECKSUM_BYTES,):
        wrong.add("checksum")
    if wrong:
        raise ShardIndexError(f"{where}: its {min(wrong)} has another number of rows than its shard; pack again")
    if any(count < 0 for _, count in index.splits) or sum(count for _, count in index.splits) != rows:
        raise ShardIndexError(f"{where}: its splits have other rows than its arrays; pack again")
    sizes = np.array([shard.size for shard in index.shards], np.int64)
    for start in range(0, rows, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        shard, offset, length = (arrays[name][part] for name in ("shard", "offset", "length"))
        if shard.min() < 0 or shard.max() >= len(sizes):
            raise ShardIndexError(f"{where}: names a tar file that is not listed; pack again")
        if (
            min(offset.min(), length.min()) < 0
            or (length > sizes[shard]).any()
            or (offset > sizes[shard] - length).any()
        ):
            raise ShardIndexError(f"{where}: names bytes outside of the tar files; pack again")
        label = arrays["label"][part]
        if label.min() < -1 or label.max() >= len(index.classes):
            raise ShardIndexError(f"{where}: has a label without a class; pack again")
    for name in ("path", "group"):
        ends, texts = arrays[f"{name}_ends"], arrays[f"{name}_bytes"]
        steps = (ends[start : start + ROWS_AT_ONCE + 1] for start in range(0, rows, ROWS_AT_ONCE))
        if ends[0] != 0 or ends[-1] != len(texts) or any((np.diff(step) < 0).any() for step in steps):
            raise ShardIndexError(f"{where}: its {name}_ends do not fit its {name}_bytes; pack again")
