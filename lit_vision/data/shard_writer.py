"""Writing of sharded sets: tar files that any WebDataset reader opens, and their index.

Each image has the members KEY.jpg (or the file's own ending), KEY.cls (the number of its class, if it has one) and
KEY.json (path, class, split, group). Equal contents give equal bytes: members have no dates and no owners.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_vision.data.folder import Folder, Split
from lit_vision.data.image_files import extension_of
from lit_vision.data.pack import Pack
from lit_vision.data.shards.index import INDEX_NAME, ShardFile, ShardIndex, checksum_of, join_texts
from lit_vision.data.shards.layout import key_of, shard_name, stored_order
from lit_vision.data.stored_images import EncodeImage, encoded_images
from lit_vision.data.views.pixel_values import PixelFormat, ValueRange
from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_path, remove_temporaries
from lit_vision.io.file_lock import try_lock
from lit_vision.io.hashing import sha256_of_file

SHARD_BYTES = 256 << 20  # of a tar file, about, where the number of files is not given


@dataclass(frozen=True)
class Encoding:
    """Form in which images are stored.

    Attributes:
        short_side: pixels that larger images are shrunk to, see `downscale`; None stores the files' own bytes.
        quality: of the JPEGs, 1 to 100; not used without `short_side`.
        value_range: values of images deeper than 8 bits that become 0 and 255; not used without `short_side`.
    """

    short_side: int | None = None
    quality: int = 92
    value_range: ValueRange | None = None


@dataclass(frozen=True)
class WrittenSet:
    """Counts of a set that was written: images, tar files, their bytes, and the bytes of the folder's files."""

    images: int
    shards: int
    bytes: int
    bytes_before: int


@dataclass(frozen=True)
class _Rows:
    """Images of a set in the order of the index."""

    paths: list[str]
    labels: np.ndarray
    split_of: list[str]
    splits: list[tuple[str, int]]
    groups: list[str]


def write_shards(
    folder: Folder,
    out: Path,
    shards: int = 0,
    encoding: Encoding = Encoding(),
    *,
    train: str = "train",
    groups: Mapping[str, str] | None = None,
    overwrite: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> WrittenSet:
    """Write a sharded set; the folder appears when it is complete, so that a killed call leaves nothing to be read.

    Training images, with unlabeled ones after them, are stored in the order of `layout.stored_order`; other splits in
    the order of their paths. Each has tar files of its own.

    Args:
        folder: what to pack: a scanned folder, an opened pack or another set.
        out: the folder to write.
        shards: number of tar files, about: images in all / shards is what one holds at most; 0: files of SHARD_BYTES.
        encoding: form of the images.
        train: name of the training split.
        groups: of each path, or None.
        overwrite: replace a sharded set that is there.
        workers: number of processes.
        progress: show a progress bar.

    Raises:
        UserError: a broken image (with `encoding.short_side`), labels that are no class numbers, `out` is not empty,
            another process writes it, or it cannot be written.
    """
    check_out(out, overwrite)
    rows = _list_rows(folder, train, groups)
    before = sum(int(split.sizes.sum()) for split in (*folder.splits.values(), folder.unlabeled))
    per_shard = -(-len(rows.paths) // (shards or max(1, round(before / SHARD_BYTES))))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = try_lock(out.with_name(f".{out.name[:60]}.lock"))
        if lock is None:
            raise UserError(f"--out {out}: another lit-vision pack is writing it; wait for its end")
        try:
            remove_temporaries(out)
            with atomic_path(out) as temporary:
                temporary.mkdir()
                index = _write_files(folder, rows, temporary, per_shard, encoding, workers, progress)
                index.save(temporary / INDEX_NAME)
                check_out(out, overwrite)
        finally:
            Path(lock.name).unlink(missing_ok=True)
            lock.close()
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; free some space or choose another folder") from None
    return WrittenSet(len(index), len(index.shards), sum(shard.size for shard in index.shards), before)


def check_out(out: Path, overwrite: bool) -> None:
    """Raise a UserError unless a set may be written to a folder: it is absent or empty, or a set to be replaced."""
    if out.is_file():
        raise UserError(f"--out {out}: is a file; name a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / INDEX_NAME).is_file():
        raise UserError(f"--out {out}: is a folder with other files in it; name a new one")
    others = sorted(path.name for path in out.iterdir() if path.suffix != ".tar" and path.name != INDEX_NAME)
    if others:
        raise UserError(f"--out {out}: holds {others[0]} besides its shards; name a new folder")
    if not overwrite:
        raise UserError(f"--out {out}: holds shards already; name another folder, or give --overwrite to replace them")


def _list_rows(folder: Folder, train: str, groups: Mapping[str, str] | None) -> _Rows:
    """Return the images in the order of the index: training, unlabeled, then the other splits."""
    named: dict[str, Split] = {train: folder.splits[train]} if train in folder.splits else {}
    named |= {"": folder.unlabeled} if len(folder.unlabeled) else {}
    named |= folder.splits
    paths = [path for split in named.values() for path in split.paths]
    if any(split.labels.ndim > 1 for split in named.values()):
        raise UserError(f"{folder.root}: its images have several labels each, which shards do not hold; see label_file")
    labels = np.concatenate([split.labels for split in named.values()])
    split_of = [name for name, split in named.items() for _ in range(len(split))]
    return _Rows(
        paths,
        labels,
        split_of,
        [(name, len(split)) for name, split in named.items()],
        [groups.get(path, "") for path in paths] if groups else [],
    )


def _plan(rows: _Rows, train: str, per_shard: int) -> list[tuple[str, np.ndarray]]:
    """Return (file name, rows of the index in the order in which they are stored) of each tar file."""
    parts: list[tuple[str, np.ndarray]] = []  # name of the files, rows
    start = 0
    for name, count in rows.splits:
        own = np.arange(start, start + count)
        if parts and name == "" and parts[-1][0] == train:
            parts[-1] = (train, np.concatenate([parts[-1][1], own]))
        else:
            parts.append((name, own))
        start += count
    files: list[tuple[str, np.ndarray]] = []
    for name, own in parts:
        if name in (train, ""):
            own = own[stored_order(0, len(own), len(own))]
        count = -(-len(own) // per_shard)
        edges = [len(own) * i // count for i in range(count + 1)]
        files += [(shard_name(name, i, count), own[edges[i] : edges[i + 1]]) for i in range(count)]
    if len({name for name, _ in files}) < len(files):
        raise UserError(
            f"the splits {', '.join(name for name, _ in rows.splits)} give tar files of one name; rename one"
        )
    return files


def _write_files(
    folder: Folder,
    rows: _Rows,
    place: Path,
    per_shard: int,
    encoding: Encoding,
    workers: int,
    progress: bool,
) -> ShardIndex:
    """Write the tar files into a folder and return their index."""
    files = _plan(rows, rows.splits[0][0], per_shard)
    in_order = np.concatenate([stored for _, stored in files])
    encode = EncodeImage(folder, encoding.short_side, encoding.quality, PixelFormat(encoding.value_range))
    images = encoded_images(encode, [rows.paths[row] for row in in_order], workers, progress)
    count = len(rows.paths)
    shard, offset, length = np.zeros(count, np.int32), np.zeros(count, np.int64), np.zeros(count, np.int64)
    checksum = np.zeros((count, 16), np.uint8)
    described = []
    # images of an older pack are JPEGs under the names of their files
    by_content = encoding.short_side is not None or isinstance(folder, Pack)
    for number, (name, stored) in enumerate(files):
        with tarfile.open(place / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in stored.tolist():
                path, (data, reason) = next(images)
                if reason:
                    raise UserError(
                        f"{folder.root}/{path}: {reason} (lit-vision doctor lists all such files for --quarantine)"
                    )
                key, label = key_of(row, count), int(rows.labels[row])
                ending = "jpg" if by_content and data[:2] == b"\xff\xd8" else extension_of(path)
                offset[row] = _add(tar, f"{key}.{ending}", data)
                shard[row], length[row] = number, len(data)
                checksum[row] = np.frombuffer(checksum_of(data), np.uint8)
                if label >= 0:
                    _add(tar, f"{key}.cls", str(label).encode())
                _add(tar, f"{key}.json", _describe(folder, rows, row))
        described.append(ShardFile(name, (place / name).stat().st_size, sha256_of_file(place / name)))
    path_ends, path_bytes = join_texts(rows.paths)
    group_ends, group_bytes = join_texts(rows.groups or [""] * count)
    arrays: dict[str, np.ndarray] = {
        "shard": shard,
        "offset": offset,
        "length": length,
        "checksum": checksum,
        "label": rows.labels.astype(np.int64),
        "path_ends": path_ends,
        "path_bytes": path_bytes,
        "group_ends": group_ends,
        "group_bytes": group_bytes,
    }
    short_side: int | None = encoding.short_side
    quality: int | None = encoding.quality
    value_range = encoding.value_range
    earlier = getattr(folder, "encoding", {})  # of a pack or set that is stored again as it is
    if short_side is None:
        short_side, quality = earlier.get("short_side"), earlier.get("quality")
        value_range = getattr(folder, "value_range", None) if short_side else None
    return ShardIndex(
        described,
        folder.classes,
        rows.splits,
        arrays,
        short_side,
        quality if short_side else None,
        None if value_range is None or not short_side else [float(value) for value in value_range],
    )


def _describe(folder: Folder, rows: _Rows, row: int) -> bytes:
    """Return the JSON of an image; a path that is no UTF-8 keeps its bytes as lone surrogates, which JSON escapes."""
    label = int(rows.labels[row])
    described = {
        "path": rows.paths[row],
        "class": folder.classes[label] if label >= 0 else None,
        "split": rows.split_of[row] or "unlabeled",
        "group": rows.groups[row] if rows.groups else None,
    }
    return json.dumps(described).encode()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a member and return the offset of its bytes in the tar file."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(data))
    tar.members = []  # type: ignore[attr-defined]  # it keeps every header
    return offset
