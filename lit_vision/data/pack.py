"""Packs: a folder of images stored in one file, read by mmap; a data module takes it in place of the folder.

Layout: MAGIC, then the image files one after the other, then an index (JSON: splits, classes, paths, and each image's
offset, length and CRC-32), then a tail of fixed size with the index's offset, length and sha256.
`lit-vision pack ROOT --out FILE.pack` writes them. With `--lossless` a pack holds the original bytes of the files, so
the views have the same pixels and the fingerprint is the folder's; otherwise every image is downscaled to a short side
and stored as JPEG.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.folder import Folder, Paths, Split
from lit_vision.data.views.pixel_values import DEFAULT_FORMAT, PixelFormat, ValueRange
from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_path

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
                raise UserError(f"{path}: is no pack; create one with lit-vision pack ROOT --out {path}")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; create it with lit-vision pack ROOT --out {path}") from None
    offset, length, digest, end = TAIL.unpack(mapped[-TAIL.size :])
    if end != MAGIC or offset + length + TAIL.size != size:
        raise UserError(f"{path}: truncated: its end is missing; copy or create it again")
    text = mapped[offset : offset + length]
    if hashlib.sha256(text).digest() != digest:
        raise UserError(f"{path}: altered: the checksum of its index does not match; create the pack again")
    return mapped, json.loads(text)


def downscale(data: bytes, short_side: int, quality: int, pixel_format: PixelFormat = DEFAULT_FORMAT) -> bytes:
    """Return an image file as a JPEG whose short side has at most `short_side` pixels (bicubic, antialiased).

    An upright JPEG that is small enough is returned unchanged: encoding it again would only lose quality.

    Args:
        data: the file.
        short_side: pixels.
        quality: of the JPEG, 1 to 100; chroma at half resolution, as cameras store it.
        pixel_format: conversion of images deeper than 8 bits.

    Raises:
        ImageDecodeError: the bytes are no complete image.
    """
    import simplejpeg

    from lit_vision.data.views.decode import decode, read_header
    from lit_vision.data.views.views import resize

    header = read_header(data)
    image = decode(data, pixel_format)
    height, width = image.shape[:2]
    if header.scalable and header.orientation == 1 and min(height, width) <= short_side:
        return data
    if min(height, width) > short_side:
        shrink = short_side / min(height, width)
        image = resize(image, max(1, round(height * shrink)), max(1, round(width * shrink)))
    is_gray = (image[..., :1] == image).all()
    image = np.ascontiguousarray(image[..., :1] if is_gray else image)
    encoded: bytes = simplejpeg.encode_jpeg(image, quality, *(("GRAY", "Gray") if is_gray else ("RGB", "420")))
    return encoded


class _EncodeImage:
    """Function for worker processes: path -> (bytes to store, ""), or (b"", reason) for a file that cannot be read."""

    def __init__(self, folder: Folder, short_side: int | None, quality: int, pixel_format: PixelFormat):
        self.folder, self.short_side, self.quality, self.pixel_format = folder, short_side, quality, pixel_format

    def __call__(self, path: str) -> tuple[bytes, str]:
        from lit_vision.data.views.decode import ImageDecodeError

        try:
            data = self.folder.read(path)
            if self.short_side is not None:
                data = downscale(data, self.short_side, self.quality, self.pixel_format)
            return data, ""
        except ImageDecodeError as error:
            return b"", str(error)
        except OSError as error:
            return b"", f"{error.strerror}; restore the file"


def write_pack(
    folder: Folder,
    out: Path,
    short_side: int | None,
    quality: int = 92,
    workers: int = 1,
    progress: bool = False,
    value_range: ValueRange | None = None,
) -> dict[str, int]:
    """Write a pack; a file of that name is replaced only when the new one is complete.

    Args:
        folder: what to pack.
        out: the file to write.
        short_side: pixels, see `downscale`; None stores the original bytes of all files, broken ones included.
        quality: of the JPEGs, 1 to 100; not used without `short_side`.
        workers: number of processes.
        progress: show a progress bar.
        value_range: values of images deeper than 8 bits that become 0 and 255; not used without `short_side`.

    Returns:
        {"images", "bytes" of the pack, "bytes_before": those of the folder's files}.

    Raises:
        UserError: a broken image (with `short_side`), or the file cannot be written.
    """
    splits = {**folder.splits, "": folder.unlabeled}
    paths = sorted(path for split in splits.values() for path in split.paths)
    row = {path: i for i, path in enumerate(paths)}
    rows = {
        name: [[row[path], label] for path, label in zip(split.paths, split.labels.tolist())]
        for name, split in splits.items()
    }
    index = {"paths": paths, "classes": folder.classes, "unlabelled": rows.pop(""), "splits": rows}
    index["made"] = {"short_side": short_side, "quality": quality if short_side else None}
    if short_side is not None and value_range is not None:
        index["value_range"] = list(value_range)
    offsets: list[int] = []
    sizes: list[int] = []
    checksums: list[int] = []
    try:
        with atomic_path(out) as temporary, open(temporary, "wb") as file:
            file.write(MAGIC)
            for path, (data, reason) in _encoded_images(
                _EncodeImage(folder, short_side, quality, PixelFormat(value_range)), paths, workers, progress
            ):
                if reason:
                    raise UserError(
                        f"{folder.root}/{path}: {reason} (lit-vision doctor lists all such files for --quarantine)"
                    )
                offsets.append(file.tell())
                sizes.append(len(data))
                checksums.append(zlib.crc32(data))
                file.write(data)
            text = json.dumps({**index, "starts": offsets, "sizes": sizes, "crc32": checksums}).encode()
            file.write(text + TAIL.pack(file.tell(), len(text), hashlib.sha256(text).digest(), MAGIC))
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; free some space or choose another folder") from None
    before = sum(int(split.sizes.sum()) for split in splits.values())
    return {"images": len(paths), "bytes": out.stat().st_size, "bytes_before": before}


def _encoded_images(
    encode: _EncodeImage, paths: Sequence[str], workers: int, progress: bool
) -> Iterator[tuple[str, tuple[bytes, str]]]:
    """Yield (path, result of `encode`) in the order of the paths."""
    from lit_vision.io.processes import parallel_map

    return zip(paths, parallel_map(encode, paths, workers, "packing" if progress else ""))
