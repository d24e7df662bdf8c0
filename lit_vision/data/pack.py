"""`lit-vision pack ROOT --out FILE.pack`: a folder of images as one file, read by mmap; the data module takes it in place of the folder.

Layout: MAGIC, then the image files one after the other, then an index (JSON: splits, classes, paths, and each image's place, length and CRC-32),
then a tail of fixed size with the index's place, length and sha256. Made with `--lossless` it holds the very bytes of the files, so the
views have the same pixels and the fingerprint is the folder's; otherwise every image is shrunk to a short side and stored as JPEG.
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

import numpy as np

from lit_vision.data.folder import Folder, Paths, Split
from lit_vision.errors import UserError

MAGIC = b"LVPACK1\n"
TAIL = struct.Struct("<QQ32s8s")  # index's place, its length, its sha256, MAGIC again
VERIFY_AT_ONCE = (
    1 << 28
)  # bytes: a pack up to this size is checked whole when it is opened (0.2 s), a larger one image by image


class Pack(Folder):
    """An opened pack: a `Folder` whose images lie in one file. Sent to a worker it opens the file anew.

    Args:
        path: the file.

    Raises:
        UserError: no pack, truncated or altered.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        self._map, index = _open(path)
        names = index["paths"]
        self._place = {name: i for i, name in enumerate(names)}
        self._starts, self._sizes = np.array(index["starts"], np.int64), np.array(index["sizes"], np.int64)
        self._sums = np.array(index["crc32"], np.int64)
        self._proved = np.zeros(len(names), bool)
        self.made = index["made"]

        def split(rows: list) -> Split:
            rows = np.array(rows, np.int64).reshape(-1, 2)
            return Split(Paths(names[i] for i in rows[:, 0]), rows[:, 1].copy(), self._sizes[rows[:, 0]])

        splits = {name: split(rows) for name, rows in index["splits"].items()}
        super().__init__(path, index["classes"], splits, split(index["unlabelled"]))
        if len(self._map) <= VERIFY_AT_ONCE:
            for name in names:
                self.read(name)

    def read(self, path: str) -> bytes:
        """The bytes of one image; the first time, its checksum is compared.

        Raises:
            UserError: the pack was altered.
        """
        i = self._place[path]
        start = int(self._starts[i])
        data = self._map[start : start + int(self._sizes[i])]
        if not self._proved[i]:
            if zlib.crc32(data) != self._sums[i]:
                raise UserError(f"{self.root}: altered: the checksum of {path} does not fit; make it again")
            self._proved[i] = True
        return data

    def __reduce__(self):
        return Pack, (self.root,)


def _open(path: Path) -> tuple[mmap.mmap, dict]:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < len(MAGIC) + TAIL.size or file.read(len(MAGIC)) != MAGIC:
                raise UserError(f"{path}: no pack; make one with lit-vision pack ROOT --out {path}")
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it with lit-vision pack ROOT --out {path}") from None
    start, length, digest, end = TAIL.unpack(whole[-TAIL.size :])
    if end != MAGIC or start + length + TAIL.size != size:
        raise UserError(f"{path}: truncated: its end is missing; copy it or make it again")
    text = whole[start : start + length]
    if hashlib.sha256(text).digest() != digest:
        raise UserError(f"{path}: altered: the checksum of its index does not fit; make it again")
    return whole, json.loads(text)


def downscale(data: bytes, short_side: int, quality: int) -> bytes:
    """One image file as a JPEG of a short side of at most `short_side` pixels (bicubic, antialiased).

    An upright JPEG that is small enough stays as it is: encoding it again would only lose.

    Args:
        data: the file.
        short_side: pixels.
        quality: JPEG's, 1 to 100; chroma at half resolution, as cameras store it.

    Raises:
        ImageDecodeError: the bytes are no whole image.
    """
    import simplejpeg

    from lit_vision.data.views.decode import decode, read_header
    from lit_vision.data.views.views import resize

    header = read_header(data)
    image = decode(data)
    height, width = image.shape[:2]
    if header.scalable and header.orientation == 1 and min(height, width) <= short_side:
        return data
    if min(height, width) > short_side:
        shrink = short_side / min(height, width)
        image = resize(image, max(1, round(height * shrink)), max(1, round(width * shrink)))
    if (image[..., :1] == image).all():
        return simplejpeg.encode_jpeg(np.ascontiguousarray(image[..., :1]), quality, "GRAY", "Gray")
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420")


class _EncodeImage:
    """What a worker process does with one path: the bytes to store, or the reason why there are none."""

    def __init__(self, folder: Folder, short_side: int | None, quality: int):
        self.folder, self.short_side, self.quality = folder, short_side, quality

    def __call__(self, path: str) -> tuple[bytes, str]:
        from lit_vision.data.views.decode import ImageDecodeError

        try:
            data = self.folder.read(path)
            return (data if self.short_side is None else downscale(data, self.short_side, self.quality)), ""
        except ImageDecodeError as error:
            return b"", str(error)
        except OSError as error:
            return b"", f"{error.strerror}; bring it back"


def write_pack(
    folder: Folder, out: Path, short_side: int | None, quality: int = 92, workers: int = 1, progress: bool = False
) -> dict[str, int]:
    """Write a pack, whole or not at all.

    Args:
        folder: what to pack.
        out: the file to make.
        short_side: pixels, see `downscale`; None stores the files' own bytes, broken ones included.
        quality: JPEG's.
        workers: processes.
        progress: show a bar.

    Returns:
        {"images", "bytes", "bytes_before"}.

    Raises:
        UserError: a broken image (with `short_side`), or the file cannot be written.
    """
    splits = {**folder.splits, "": folder.unlabeled}
    paths = sorted(path for split in splits.values() for path in split.paths)
    place = {path: i for i, path in enumerate(paths)}
    rows = {name: [[place[p], n] for p, n in zip(split.paths, split.labels.tolist())] for name, split in splits.items()}
    index = {"paths": paths, "classes": folder.classes, "unlabelled": rows.pop(""), "splits": rows}
    index["made"] = {"short_side": short_side, "quality": quality if short_side else None}
    starts, sizes, sums = [], [], []
    beside = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(MAGIC)
            for path, (data, fault) in _encoded_images(
                _EncodeImage(folder, short_side, quality), paths, workers, progress
            ):
                if fault:
                    raise UserError(
                        f"{folder.root}/{path}: {fault} (lit-vision doctor lists all such files for --quarantine)"
                    )
                starts.append(file.tell()), sizes.append(len(data)), sums.append(zlib.crc32(data))
                file.write(data)
            text = json.dumps({**index, "starts": starts, "sizes": sizes, "crc32": sums}).encode()
            start = file.tell()
            file.write(text + TAIL.pack(start, len(text), hashlib.sha256(text).digest(), MAGIC))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, out)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; free some space or name another place") from None
    finally:
        beside.unlink(missing_ok=True)
    before = sum(int(split.sizes.sum()) for split in splits.values())
    return {"images": len(paths), "bytes": out.stat().st_size, "bytes_before": before}


def _encoded_images(
    job: _EncodeImage, paths: Sequence[str], workers: int, progress: bool
) -> Iterator[tuple[str, tuple[bytes, str]]]:
    """(path, what the job made of it), in order."""
    from lit_vision.io.processes import parallel_map

    return zip(paths, parallel_map(job, paths, workers, "packing" if progress else ""))
