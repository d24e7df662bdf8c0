"""Packs: same API, keys and (lossless) pixels as the folder; an error if truncated or altered."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_files import encode, odd_and_broken_images, picture
from torch.utils.data import DataLoader

from lit_vision.cli import pack as pack_command
from lit_vision.data import ImageFolderDataModule
from lit_vision.data.loader import identity_collate
from lit_vision.data.open_images import open_images
from lit_vision.data.pack import Pack, downscale
from lit_vision.data.views.decode import decode
from lit_vision.errors import UsageError, UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Folder of JPEGs and PNGs of several sizes, of two classes and two splits, and an unlabeled image."""
    folder = tmp_path_factory.mktemp("pack") / "photos"
    for split, count in (("train", 6), ("val", 2)):
        for label in ("ant", "bee"):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                image = picture(i + 10 * (label == "bee"), 200 + 10 * i, 260)
                kind = ("JPEG", "PNG")[i % 2]
                (folder / split / label / f"{i}.{kind.lower()}").write_bytes(encode(image, kind))
    (folder / "unlabeled").mkdir()
    (folder / "unlabeled/x.jpg").write_bytes(encode(picture(99), "JPEG"))
    return folder


@pytest.fixture(scope="module")
def lossless(root) -> Path:
    out = root.parent / "whole.pack"
    assert pack_command.main([str(root), "--out", str(out), "--lossless", "--workers", "1"]) == 0
    return out


def _batches(source: Path, **options) -> list[dict]:
    settings = {"img_size": 100, "batch_size": 4, "num_workers": 0, "train_view": "simclr", "in_memory": False}
    module = ImageFolderDataModule(str(source), **{**settings, **options})
    return [*module.train_dataloader(), *module.eval_loader("val")]


def _same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(torch.equal(x[k], y[k]) for x, y in zip(a, b) for k in ("images", "label", "key"))


def test_lossless_pack__is_the_folder(root, lossless) -> None:
    folder, pack = open_images(root), open_images(lossless)
    assert isinstance(pack, Pack)
    assert pack.fingerprint() == folder.fingerprint()
    assert pack.fingerprint(hash_content=True) == folder.fingerprint(hash_content=True)
    assert pack.classes == folder.classes
    assert _same(_batches(lossless), _batches(root))
    assert _same(_batches(lossless, num_workers=2), _batches(root))
    again = pickle.loads(pickle.dumps(pack))
    assert again.read("train/ant/0.jpeg") == (root / "train/ant/0.jpeg").read_bytes()


@pytest.mark.slow
def test_pixels__are_the_same_for_any_workers_batch_size_start_method_and_source(root, lossless) -> None:
    def rows(source: Path, workers: int, size: int, method: str | None) -> dict:
        module = ImageFolderDataModule(
            str(source), img_size=100, batch_size=size, num_workers=0, train_view="simclr", in_memory=False
        )
        plain = module.train_dataloader()
        loader = DataLoader(
            plain.dataset,
            batch_sampler=plain.batch_sampler,
            collate_fn=identity_collate,
            num_workers=workers,
            multiprocessing_context=method,
        )
        return {tuple(key.tolist()): image for batch in loader for key, image in zip(batch["key"], batch["images"])}

    expected = rows(root, 0, 13, None)
    assert len(expected) == 13
    for source in (root, lossless):
        for workers, size, method in ((0, 1, None), (1, 13, "fork"), (2, 4, "fork"), (4, 2, "fork"), (2, 3, "spawn")):
            got = rows(source, workers, size, method)
            assert all(torch.equal(image, expected[key]) for key, image in got.items()), (source.name, workers, method)
            assert len(got) >= 12


def test_lossy_pack__is_smaller_and_looks_the_same(root, tmp_path) -> None:
    out = tmp_path / "small.pack"
    assert (
        pack_command.main([str(root), "--out", str(out), "--short_side", "128", "--quality", "90", "--workers", "1"])
        == 0
    )
    pack = open_images(out)
    for path in pack.splits["train"].paths:
        image = decode(pack.read(path))
        assert min(image.shape[:2]) == 128
        full = decode((root / path).read_bytes())
        assert np.abs(image.mean((0, 1)) - full.mean((0, 1))).max() < 2
        assert image.shape[1] / image.shape[0] == pytest.approx(full.shape[1] / full.shape[0], abs=0.02)
    assert pack.read("unlabeled/x.jpg") == (root / "unlabeled/x.jpg").read_bytes()  # small enough: not encoded again
    assert [len(b["label"]) for b in _batches(out)] == [len(b["label"]) for b in _batches(root)]


def test_downscale__keeps_gray_gray_and_turns_the_picture_upright() -> None:
    files = odd_and_broken_images()
    assert decode(downscale(files["exif_6.jpg"][0], 40, 90)).shape == (48, 40, 3)
    assert downscale(files["gray.png"][0], 40, 90)[:2] == b"\xff\xd8"
    gray = decode(downscale(files["gray.png"][0], 40, 90))
    assert (gray[..., 0] == gray[..., 2]).all()


def test_truncated_or_altered__is_refused(lossless, tmp_path) -> None:
    data = lossless.read_bytes()
    index = data.rindex(b'{"paths"')
    for name, changed, match in (
        ("cut", data[:-1], "truncated"),
        ("half", data[: len(data) // 2], "truncated"),
        ("short", data[:10], "lit-vision pack"),
        ("text", b"hello" * 99, "lit-vision pack"),
        ("pixel", data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "altered: "),
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


def test_large_packs__are_checked_image_by_image(lossless, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lit_vision.data.pack.VERIFY_AT_ONCE", 0)
    data = lossless.read_bytes()
    file = tmp_path / "a.pack"
    file.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    pack = Pack(file)
    first, *others = sorted(path for split in pack.splits.values() for path in split.paths)
    for path in others:
        pack.read(path)
    with pytest.raises(UserError, match=first):
        pack.read(first)


def test_command__refuses_wrong_arguments_and_names_broken_files(root, tmp_path) -> None:
    for arguments in (
        ["--out", "x.tar"],
        ["--out", "x.pack", "--lossless", "--quality", "9"],
        ["--out", "x.pack", "--quality", "101"],
        ["--out", "x.pack", "--quality", "0"],
        ["--out", "x.pack", "--short_side", "0"],
        ["--out", "x.pack", "--lossless", "--quality", "0"],
    ):
        with pytest.raises(UsageError, match=arguments[-2]) as caught:
            pack_command.main([str(root), *arguments])
        assert caught.value.exit_code == 2
        assert "--lossless" in arguments or len(re.findall(r"--\w+", str(caught.value))) == 1  # only the wrong one
    for i in range(2):
        (tmp_path / "data" / str(i)).mkdir(parents=True)
        (tmp_path / "data" / str(i) / "a.jpg").write_bytes(encode(picture(i), "JPEG") if i else b"")
    out = tmp_path / "b.pack"
    with pytest.raises(UserError, match=r"0/a\.jpg: .*--quarantine"):
        pack_command.main([str(tmp_path / "data"), "--out", str(out)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    (tmp_path / "list.txt").write_text("# empty\n0/a.jpg\n")
    assert (
        pack_command.main([str(tmp_path / "data"), "--out", str(out), "--quarantine", str(tmp_path / "list.txt")]) == 0
    )
    assert open_images(out).count() == 1


def test_predict_and_checks__read_a_pack_as_its_folder(root, lossless) -> None:
    from lit_vision.data.check.folder_check import examine
    from lit_vision.predict.inputs import batches, find_images

    folder, pack = find_images([str(root)]), find_images([str(lossless)])
    assert list(pack.names) == list(folder.names)
    shown = [[batch.pixels for batch in batches(found, lambda image: image[:8, :8], 4)] for found in (folder, pack)]
    assert all(np.array_equal(a, b) for a, b in zip(*shown, strict=True))
    checked, of_pack = (examine(path, ("train", "val", "test")) for path in (root, lossless))
    assert checked["uses"].keys() == of_pack["uses"].keys()
    assert [bool(reason) for reason in checked["uses"].values()] == [bool(r) for r in of_pack["uses"].values()]
