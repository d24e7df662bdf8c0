"""Tar files that other programs wrote: what is taken, what is counted, and what is refused with no index written."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import os
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_vision.data import shard_indexer
from lit_vision.data.open_images import open_images
from lit_vision.data.shards.index import INDEX_NAME
from lit_vision.errors import UserError


def tar_of(*members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def linked() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in (("0.jpg", tarfile.SYMTYPE), ("1.jpg", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("2.jpg")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"c"))
    return file.getvalue()


def header(size: int, kind: bytes = b"0") -> bytes:
    """Header of a member with a size that tarfile would not write."""
    block = bytearray(tarfile.TarInfo("x.jpg").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (b"\xff" * 4 if size < 0 else b"\x80\0\0\0") + struct.pack(">q", size)
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


GOOD = tar_of(("0.jpg", b"a"), ("1.jpg", b"b"), ("2.jpg", b"c"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("my set.tar", tar_of(("0.jpg", b"a")), {"my set/0.jpg": (-1, b"a")}),
        ("größe{0..3}.tar", tar_of(("0.jpg", b"a")), {"größe{0..3}/0.jpg": (-1, b"a")}),
        ("a.tar", tar_of(("./x/0.JPEG", b"a"), ("./x/0.CLS", b"1")), {"a/x/0.jpeg": (1, b"a")}),
        ("a.tar", tar_of(("/etc/0.jpg", b"a")), {"a/etc/0.jpg": (-1, b"a")}),
        ("a.tar", tar_of((f"{'k' * 200}/ü.jpg", b"a")), {f"a/{'k' * 200}/ü.jpg": (-1, b"a")}),
        ("a.tar", tar_of((f"{'k' * 200}.jpg", b"a"), form=tarfile.GNU_FORMAT), {f"a/{'k' * 200}.jpg": (-1, b"a")}),
        ("a.tar", tar_of(("._0.jpg", b"x"), ("__m__/0.jpg", b"x"), ("0.jpg", b"a")), {"a/0.jpg": (-1, b"a")}),
        ("a.tar", tar_of(("0.depth.png", b"x"), ("0.jpg", b"a"), ("0.png", b"x")), {"a/0.jpg": (-1, b"a")}),
        (  # members of a key apart from each other, as tar stores a folder that nothing sorted
            "a.tar",
            tar_of(("0.jpg", b"a"), ("1.cls", b"dog\n"), ("1.jpg", b"b"), ("0.cls", b"cat")),
            {"a/0.jpg": (0, b"a"), "a/1.jpg": (1, b"b")},
        ),
        ("a.tar", linked(), {"a/2.jpg": (-1, b"c")}),
    ],
)
def test_what_is_taken(name: str, content: bytes, expected: dict, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    folder = open_images(tmp_path)
    split = folder.splits["train"]
    found = {path: (label, folder.read(path)) for path, label in zip(split.paths, split.labels.tolist())}
    assert found == expected


def test_what_is_left_out_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.tar").write_bytes(linked())
    (tmp_path / "b.tar").write_bytes(tar_of(("0.jpg", b"a"), ("0.png", b"b"), ("1.txt", b"c"))[:2048])
    with caplog.at_level(logging.WARNING):
        open_images(tmp_path)
    assert "2 linked or sparse, 1 further images of a key" in caplog.text
    assert "b.tar: has no end mark" in caplog.text


def test_tar_files_that_came_later__are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.tar").write_bytes(GOOD)
    open_images(tmp_path)
    (tmp_path / "b.tar").write_bytes(GOOD)
    with caplog.at_level(logging.WARNING):
        assert len(open_images(tmp_path).splits["train"]) == 3
    assert "does not know 1 tar files (b.tar)" in caplog.text


def own(**changed: object) -> bytes:
    described = json.dumps({"path": "a/0.jpg", "class": "a", "split": "train", "group": None, **changed}).encode()
    return tar_of(("0.jpg", b"a"), ("0.cls", b"0"), ("0.json", described))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (GOOD[:600], "truncated in 0.jpg"),
        (GOOD[:1029] + b"\x01" + GOOD[1030:], "damaged at byte 1024"),  # tarfile takes it for the end
        (GOOD + GOOD, "goes on after its end mark"),
        (gzip.compress(GOOD), "gunzip"),
        (tar_of(("0.jpg", b"a"), ("0.jpg", b"b")), "0.jpg twice"),
        (tar_of(("../0.jpg", b"a")), "leads out"),
        (tar_of(("0.jpg", b"a"), ("0.cls", bytes(8))), "0.cls is no number"),
        (tar_of(("0.jpg", b"a"), ("0.json", b"[" * 100_000)), "0.json is no JSON"),
        (own(path="../0.jpg"), "no path in a folder"),
        (own(path=3), "no path in a folder"),
        (own(path="\ud800.jpg"), "0.json is no JSON"),
        *((header(1 << 60, kind) + bytes(1024), "a.tar") for kind in (b"0", b"x", b"g", b"L", b"S")),
        *((GOOD[:1024] + header(-1024, kind) + bytes(1024), "a.tar") for kind in (b"0", b"x", b"Q", b"S")),
    ],
)
def test_what_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_images(tmp_path)
    assert not (tmp_path / INDEX_NAME).exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_named(make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(GOOD)
    make(tmp_path / "a.tar")
    with pytest.raises(UserError, match=r"a\.tar: is no file"):
        open_images(tmp_path)


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.tar").write_bytes(GOOD)
    monkeypatch.setattr(shard_indexer, "atomic_write", refuse)
    with pytest.raises(UserError, match="cannot be written there"):
        open_images(tmp_path)


def test_damaged_headers__end_in_one_line(tmp_path: Path) -> None:
    """Headers changed at random, with the right checksum: tarfile raises ValueError or MemoryError, or never ends."""
    forms = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    files = [tar_of(("0.jpg", b"a"), (f"{'k' * 150}ü.jpg", b"b"), form=form) for form in forms]
    rng = random.Random(0)
    for _ in range(100):
        content = bytearray(rng.choice(files))
        start = rng.randrange(len(content) // 512) * 512
        content[start + rng.choice([rng.randrange(512), 124 + rng.randrange(12), 156])] = rng.randrange(256)
        if content[start + 257 : start + 262] == b"ustar":
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
        (tmp_path / "a.tar").write_bytes(content)
        (tmp_path / INDEX_NAME).unlink(missing_ok=True)
        with contextlib.suppress(UserError):
            open_images(tmp_path)
