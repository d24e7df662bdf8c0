"""Packs: a folder of images in one file of an own format, which `lit-vision pack` wrote before it wrote shards.

They are read and no longer written; shard_writer.py replaces them. Layout: MAGIC, then the image files one after the
other, then an index (JSON: splits, classes, paths, and each image's offset, length and CRC-32), then a tail of fixed
size with the index's offset, length and sha256.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.folder import Folder, Paths, Split
from lit_vision.errors import UserError

MAGIC = b"LVPACK1\n"
TAIL = struct.Struct("<QQ32s8s")  # the index's offset, length and sha256, and MAGIC again
# Bytes: all checksums of a pack up to this size are compared when it is opened (0.2 s), those of a larger one image by
# image when each is read first.
VERIFY_AT_ONCE = 1 << 28


class Pack(Folder):
    """Opened pack: a `Folder` whose images lie in one file. A copy sent to a worker process opens the file again.

    Attributes:
        encoding: {"short_side", "quality"} that the pack was written with; both None for a lossless one.
        value_range: values of images deeper than 8 bits that became 0 and 255 when it was written; None for none.

    Args:
        path: the file.

    Raises:
        UserError: the file is no pack, or it is truncated or altered.
    """

    packed = True

    def __init__(self, path: str | Path):
        path = Path(path)
        self._map, index = _open(path)
        names = index["paths"]
        self._row = {name: i for i, name in enumerate(names)}
        self._offsets, self._sizes = np.array(index["starts"], np.int64), np.array(index["sizes"], np.int64)
        self._checksums = np.array(index["crc32"], np.int64)
        self._verified = np.zeros(len(names), bool)
        self.encoding: dict[str, int | None] = index["made"]
        self.value_range: list[float] | None = index.get("value_range")

        def split(entries: list[list[int]]) -> Split:
            rows = np.array(entries, np.int64).reshape(-1, 2)  # (row in `names`, label)
            return Split(Paths(names[i] for i in rows[:, 0]), rows[:, 1].copy(), self._sizes[rows[:, 0]])

        splits = {name: split(rows) for name, rows in index["splits"].items()}
        super().__init__(path, index["classes"], splits, split(index["unlabelled"]))  # spelled so in the format
        if len(self._map) <= VERIFY_AT_ONCE:
            for name in names:
                self.read(name)

    def read(self, path: str) -> bytes:
        """Return the bytes of one image; on its first read the checksum is compared.

        Raises:
            UserError: the pack was altered.
        """
        i = self._row[path]
        offset = int(self._offsets[i])
        data: bytes = self._map[offset : offset + int(self._sizes[i])]
        if not self._verified[i]:
            if zlib.crc32(data) != self._checksums[i]:
                raise UserError(f"{self.root}: altered: the checksum of {path} does not match; create the pack again")
            self._verified[i] = True
        return data

    def __reduce__(self) -> tuple[type[Pack], tuple[Path]]:
        return Pack, (self.root,)


def _open(path: Path) -> tuple[mmap.mmap, dict[str, Any]]:
    """Return the mapped file and its index, after a check of the index's sha256."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < len(MAGIC) + TAIL.size or file.read(len(MAGIC)) != MAGIC:
                raise UserError(f"{path}: is no pack; name a folder, or shards that lit-vision pack wrote")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a folder, or shards that lit-vision pack wrote") from None
    offset, length, digest, end = TAIL.unpack(mapped[-TAIL.size :])
    if end != MAGIC or offset + length + TAIL.size != size:
        raise UserError(f"{path}: truncated: its end is missing; copy or create it again")
    text = mapped[offset : offset + length]
    if hashlib.sha256(text).digest() != digest:
        raise UserError(f"{path}: altered: the checksum of its index does not match; create the pack again")
    return mapped, json.loads(text)
