"""Shards of a long run: each of N commands does a range of the images and writes a part file; merging joins the parts.

Shard i of n, i from 0, does the batches from i*B//n to (i+1)*B//n - 1 of all B. Batches hold the same images as without
shards, since the last bit of an output depends on the batch. Of OUT.csv, its part is OUT-0000i-of-0000n.csv; beside it
PART.done.json, written last, records the model, the images, the settings and the part's sha256.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.errors import UsageError, UserError
from lit_vision.io.atomic import atomic_write, write_json
from lit_vision.io.file_lock import try_lock
from lit_vision.io.hashing import sha256_of_file
from lit_vision.predict.writers import atomic_write_streams

if TYPE_CHECKING:
    from lit_vision.predict.inputs import Inputs

DONE, LOCK, SKIPPED = ".done.json", ".lock", ".skipped.csv"  # endings of the files beside a part
FORMATS = ("csv", "jsonl", "parquet", "safetensors")  # of files that can be joined from parts
MOST_SHARDS = 99_999  # five digits in the names of the parts


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a run; `number` is from 0 to count - 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that a text such as "0/8" names.

        Raises:
            UsageError: another text, or a number that is not below the count.
        """
        match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text, re.ASCII)
        shard = cls(int(match[1]), int(match[2])) if match else None
        if shard is None or not shard.number < shard.count:
            raise UsageError(
                f"--shard {text}: give i/n with i from 0 to n - 1, such as 0/8 to 7/8, and n of at most {MOST_SHARDS}"
            )
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def images(self, total: int, batch_size: int) -> range:
        """Return the positions of its images in a list of `total`, whole batches.

        Raises:
            UserError: more shards than batches.
        """
        all_batches = -(-total // batch_size)
        if self.count > all_batches:
            raise UserError(
                f"--shard {self}: {total} images are {all_batches} batches of {batch_size}; give n of at most "
                f"{all_batches}, or a smaller --batch_size"
            )
        first, last = (i * all_batches // self.count for i in (self.number, self.number + 1))
        return range(first * batch_size, min(last * batch_size, total))

    def part(self, out: Path) -> Path:
        """Return the path of its part of OUT."""
        return out.with_name(f"{out.stem}-{self.number:05}-of-{self.count:05}{out.suffix}")


@dataclass(frozen=True)
class DonePart:
    """Record of a finished part, stored beside it.

    Attributes:
        identity: model, images and settings, as `inference.run_identity` returns them.
        shard: number and count.
        images: first position, position after the last, and length of the whole list.
        skipped: number of images that could not be read.
        header_bytes: length of the part's beginning that every part has.
        size: bytes of the part.
        sha256: of the part.
        skipped_sha256: of the list of skipped images; "" if there were none.
    """

    identity: dict[str, Any]
    shard: list[int]
    images: list[int]
    skipped: int
    header_bytes: int
    size: int
    sha256: str
    skipped_sha256: str

    @classmethod
    def read(cls, part: Path) -> DonePart | None:
        """Return the record of a part; None if it is not finished.

        Raises:
            UserError: a record that is damaged.
        """
        path = beside(part, DONE)
        try:
            record = cls(**json.loads(path.read_text(encoding="utf-8")))
            numbers = [*record.shard, *record.images, record.skipped, record.header_bytes, record.size]
            if not isinstance(record.identity, dict) or not all(type(n) is int and n >= 0 for n in numbers):
                raise ValueError
            done = Shard(*record.shard).images(record.images[2], record.identity["batch_size"])
            if record.images[:2] != [done.start, done.stop] or record.skipped > len(done):
                raise ValueError
            return record
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError, UserError):
            raise UserError(f"{path}: is damaged; remove it and {part.name}, and run the shard again") from None

    def check_same_run(self, identity: Mapping[str, Any], part: Path, of: str) -> None:
        """Refuse a part of another run.

        Args:
            identity: of the run that it should be of.
            part: its path.
            of: what the identity is of, for the message.

        Raises:
            UserError: names the first value that differs.
        """
        keys = [*identity, *self.identity]
        differing = [key for key in keys if self.identity.get(key) != identity.get(key)]
        if differing:
            what = {"model": "another model", "images": "other images"}.get(differing[0], f"another {differing[0]}")
            raise UserError(
                f"{part}: is of {what} than {of}; remove it and {part.name}{DONE}, and run shard "
                f"{Shard(*self.shard)} again"
            )


def beside(part: Path, ending: str) -> Path:
    """Return the path of a file that belongs to a part."""
    return part.with_name(part.name + ending)


def run_shard(
    shard: Shard,
    out: Path,
    identity: Mapping[str, Any],
    inputs: Inputs,
    run: Callable[[Path, range, Callable[[dict[str, Path]], None]], tuple[int, int]],
    *,
    header: bytes = b"",
    write: Callable[[Path, dict[str, Path]], None] | None = None,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Do one shard, unless it is finished.

    Args:
        shard: the shard.
        out: the file that the parts are joined to.
        identity: from `run_identity`.
        inputs: all images of the run.
        run: calls `run_inference` with the part's path, the positions of its images, and a function for `finish`.
        header: first bytes of the part, which every part has.
        write: writes the part to a path from {stream: path}; None: it is the main stream.
        overwrite: do a finished shard again.

    Returns:
        (number of images done, number of images skipped).

    Raises:
        UserError: a finished part of another run, a part that another process is writing, or too many shards.
    """
    part, images = shard.part(out), shard.images(len(inputs), identity["batch_size"])
    lock = try_lock(beside(part, LOCK))
    if lock is None:
        raise UserError(f"{part}: is being written by another process; wait for it, or end it")
    with lock:
        found = DonePart.read(part)
        if found is not None and part.exists() and not overwrite:
            found.check_same_run(identity, part, "this command (--overwrite replaces it)")
            return len(images) - found.skipped, found.skipped
        if overwrite or beside(part, ".part.json").exists():  # what a run wrote that was killed at its end
            part.unlink(missing_ok=True)
        beside(part, DONE).unlink(missing_ok=True)

        def finish(paths: dict[str, Path]) -> None:
            atomic_write_streams(part, write or _copy_rows, paths)
            skipped = paths["skipped"].read_bytes().count(b"\n") - 1
            sha256 = ""
            if skipped:
                atomic_write(beside(part, SKIPPED), lambda file: shutil.copyfile(paths["skipped"], file))
                sha256 = sha256_of_file(beside(part, SKIPPED))
            record = DonePart(
                dict(identity),
                [shard.number, shard.count],
                [images.start, images.stop, len(inputs)],
                skipped,
                len(header),
                part.stat().st_size,
                sha256_of_file(part),
                sha256,
            )
            write_json(beside(part, DONE), asdict(record))

        counts = run(part, images, finish)
        beside(part, LOCK).unlink(missing_ok=True)
        return counts


def _copy_rows(path: Path, paths: dict[str, Path]) -> None:
    shutil.copyfile(paths["rows"], path)


def finished_parts(out: Path) -> list[tuple[Path, DonePart]]:
    """Return all parts of OUT with their records, in order, each compared with its sha256.

    Raises:
        UserError: there are none, they are of several counts, one is missing or not finished, was changed, or is of
            another model, other images or other settings than the first.
    """
    pattern = re.compile(rf"{re.escape(out.stem)}-(\d{{5}})-of-(\d{{5}}){re.escape(out.suffix)}{re.escape(DONE)}")
    names = os.listdir(out.parent) if out.parent.is_dir() else []
    found = [Shard(int(match[1]), int(match[2])) for name in names if (match := pattern.fullmatch(name))]
    counts = sorted({shard.count for shard in found})
    if not found:
        raise UserError(
            f"--merge: {out} has no finished part beside it, such as {Shard(0, 8).part(out).name}; run the shards "
            "(--shard 0/8 to 7/8) first"
        )
    if len(counts) > 1:
        texts = " and ".join(f"{count}" for count in counts)
        raise UserError(f"--merge: {out} has parts of {texts} shards beside it; remove those that are not wanted")
    numbers = {shard.number for shard in found if shard.part(out).exists()}
    if missing := [f"{Shard(i, counts[0])}" for i in range(counts[0]) if i not in numbers]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(f"--merge: {out} lacks the finished part of shard {', '.join(missing[:5])}{more}; run --shard")
    parts: list[tuple[Path, DonePart]] = []
    for shard in (Shard(i, counts[0]) for i in range(counts[0])):
        part = shard.part(out)
        record = DonePart.read(part)
        if record is None or record.shard != [shard.number, shard.count]:
            raise UserError(f"{beside(part, DONE)}: is of another shard; remove it and run shard {shard} again")
        if parts:
            record.check_same_run(parts[0][1].identity, part, parts[0][0].name)
        skipped = beside(part, SKIPPED)
        changed = part.stat().st_size != record.size or sha256_of_file(part) != record.sha256
        if record.skipped and (not skipped.exists() or sha256_of_file(skipped) != record.skipped_sha256):
            part, changed = skipped, True
        if changed:
            raise UserError(
                f"{part}: was changed or removed after it was written; run shard {shard} again with --overwrite"
            )
        parts.append((part, record))
    return parts


def merge_parts(out: Path, join: Callable[[Path, list[Path]], None] | None = None) -> tuple[int, int, int]:
    """Join the parts of OUT to one file, with the rows that one run without shards has, and remove the parts.

    Args:
        out: the file; it appears under this name only when it is complete.
        join: (path, parts) -> None writes the file; None: the parts are texts, which follow each other.

    Returns:
        (number of images done, number of images skipped, number of parts).

    Raises:
        UserError: as `finished_parts`; or no image of any part could be read.
    """
    parts = finished_parts(out)
    total, skipped = parts[0][1].images[2], sum(record.skipped for _, record in parts)
    lists = [beside(part, SKIPPED) for part, record in parts if record.skipped]
    if lists:
        header = len(lists[0].read_bytes().split(b"\n")[0]) + 1
        atomic_write(beside(out, SKIPPED), lambda file: _concatenate(file, lists, [header] * len(lists)))
    else:
        beside(out, SKIPPED).unlink(missing_ok=True)
    if skipped == total:
        raise UserError(f"{beside(out, SKIPPED)}: lists all {skipped} images, none could be read; repair them")
    paths = [part for part, _ in parts]
    if join is None:
        headers = [record.header_bytes for _, record in parts]
        atomic_write(out, lambda file: _concatenate(file, paths, headers))
    else:
        # a part without an image that could be read does not know the width of the rows
        readable = [part for part, record in parts if record.images[1] - record.images[0] > record.skipped]
        atomic_write(out, lambda file: join(file, readable))
    for part in paths:
        for path in (part, *(beside(part, ending) for ending in (SKIPPED, DONE, LOCK))):
            path.unlink(missing_ok=True)
    return total - skipped, skipped, len(parts)


def _concatenate(path: Path, parts: list[Path], headers: list[int]) -> None:
    """Write files one after the other; only the first keeps its beginning of so many bytes."""
    with open(path, "wb") as file:
        for i, (part, header) in enumerate(zip(parts, headers)):
            with open(part, "rb") as source:
                source.seek(header if i else 0)
                shutil.copyfileobj(source, file, 1 << 22)


def default_count(total: int, batch_size: int) -> int:
    """Return how many shards an engine makes of so many images: one for 64 batches, on any number of machines."""
    return max(1, min(-(-total // (64 * batch_size)), MOST_SHARDS))
