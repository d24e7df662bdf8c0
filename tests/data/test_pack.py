"""Packs, which earlier versions wrote: read like the folder, stored again as shards; refused if altered."""

import logging
import pickle
import sys
from pathlib import Path

import pytest
from broken_files import encode, picture

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
from benchmarks._pack_file import write_pack

from lit_vision.cli import pack as pack_command
from lit_vision.data import ImageFolderDataModule
from lit_vision.data.folder import scan
from lit_vision.data.open_images import open_images
from lit_vision.data.pack import Pack
from lit_vision.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pack") / "photos"
    for i in range(8):
        path = folder / ("train", "val")[i % 2] / "ab"[i // 2 % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(i), "JPEG"))
    return folder


@pytest.fixture(scope="module")
def pack_file(root) -> Path:
    write_pack(scan(root), root.parent / "photos.pack")
    return root.parent / "photos.pack"


def test_pack__is_the_folder_and_says_how_to_convert_it(root, pack_file, tmp_path, caplog) -> None:
    folder = open_images(root)
    with caplog.at_level(logging.WARNING):
        pack = open_images(pack_file)
    assert [record.message.count("lit-vision pack") for record in caplog.records] == [1]
    assert isinstance(pack, Pack)
    assert pack.fingerprint(hash_content=True) == folder.fingerprint(hash_content=True)
    assert pickle.loads(pickle.dumps(pack)).read("train/a/0.jpg") == (root / "train/a/0.jpg").read_bytes()
    assert pack_command.main([str(pack_file), "--out", str(tmp_path / "set"), "--lossless", "--workers", "1"]) == 0
    assert open_images(tmp_path / "set").fingerprint(hash_content=True) == folder.fingerprint(hash_content=True)


def test_truncated_or_altered__is_refused(pack_file, tmp_path) -> None:
    data = pack_file.read_bytes()
    index = data.rindex(b'{"paths"')
    for name, changed, match in (
        ("cut", data[:-1], "truncated"),
        ("half", data[: len(data) // 2], "truncated"),
        ("short", data[:10], "lit-vision pack"),
        ("text", b"hello" * 99, "lit-vision pack"),
        ("pixel", data[:500] + bytes([data[500] ^ 1]) + data[501:], "altered: "),
        (
            "index",
            data[: index + 20] + bytes([data[index + 20] ^ 1]) + data[index + 21 :],
            "altered: .*index",
        ),
    ):
        file = tmp_path / f"{name}.pack"
        file.write_bytes(changed)
        with pytest.raises(UserError, match=match):
            ImageFolderDataModule(str(file), train_view="simclr").setup()
    with pytest.raises(UserError, match=r"none\.pack: .*data\.root"):
        ImageFolderDataModule(str(tmp_path / "none.pack"), train_view="simclr").setup()


def test_large_packs__are_checked_image_by_image(pack_file, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lit_vision.data.pack.VERIFY_AT_ONCE", 0)
    data = pack_file.read_bytes()
    file = tmp_path / "a.pack"
    file.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    pack = Pack(file)
    first, *others = sorted(path for split in pack.splits.values() for path in split.paths)
    for path in others:
        pack.read(path)
    with pytest.raises(UserError, match=first):
        pack.read(first)
