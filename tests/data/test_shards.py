"""Shards: same API, keys and (lossless) pixels as the folder; an error if truncated or altered."""

import itertools
import json
import pickle
import re
import shutil
import tarfile
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
from lit_vision.data.shard_set import ShardSet
from lit_vision.data.shards.index import INDEX_NAME, ShardIndex, ShardIndexError, load_index
from lit_vision.data.shards.layout import stored_order
from lit_vision.data.stored_images import downscale
from lit_vision.data.views.decode import decode
from lit_vision.errors import UsageError, UserError


def make_set(root: Path, out: Path, *options: str) -> Path:
    assert pack_command.main([str(root), "--out", str(out), "--workers", "1", *options]) == 0
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Folder of JPEGs and PNGs of several sizes, of two classes and two splits, and an unlabeled image."""
    folder = tmp_path_factory.mktemp("shards") / "photos"
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
    return make_set(root, root.parent / "lossless", "--lossless", "--shards", "5", "--group_by", "0")


def _batches(source: Path, **options) -> list[dict]:
    settings = {"img_size": 100, "batch_size": 4, "num_workers": 0, "train_view": "simclr", "in_memory": False}
    module = ImageFolderDataModule(str(source), **{**settings, **options})
    return [*module.train_dataloader(), *module.eval_loader("val")]


def _same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(torch.equal(x[k], y[k]) for x, y in zip(a, b) for k in ("images", "label", "key"))


def test_lossless_shards__are_the_folder(root, lossless) -> None:
    folder, shards = open_images(root), open_images(lossless)
    assert isinstance(shards, ShardSet)
    assert shards.fingerprint() == folder.fingerprint()
    assert shards.fingerprint(hash_content=True) == folder.fingerprint(hash_content=True)
    assert shards.classes == folder.classes
    assert _same(_batches(lossless), _batches(root))
    assert _same(_batches(lossless, num_workers=2), _batches(root))
    again = pickle.loads(pickle.dumps(shards))
    assert again.read("train/ant/0.jpeg") == (root / "train/ant/0.jpeg").read_bytes()
    assert shards.groups["val/bee/1.png"] == "val"
    for missing in ("train/ant/9.jpeg", "", "\udcff"):
        with pytest.raises(UserError, match=str(lossless) if missing else "leads out"):
            shards.read(missing)


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


def test_tar_files__hold_every_image_once_with_its_class_and_description(root, lossless) -> None:
    names = sorted(path.name for path in lossless.iterdir())
    assert names == [INDEX_NAME, *(f"train-0000{i}.tar" for i in range(4)), "val-00000.tar"]
    folder, paths = open_images(root), []
    for name in names[1:]:
        with tarfile.open(lossless / name) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for key, own in itertools.groupby(members, lambda name: name.partition(".")[0]):
            image, *others = own
            described = json.loads(members[f"{key}.json"])
            path = described["path"]
            assert members[image] == folder.read(path)
            assert image == f"{key}.{path.rpartition('.')[2]}"
            assert described["split"] == path.partition("/")[0]
            assert others == ([f"{key}.cls"] if described["class"] else []) + [f"{key}.json"]
            if described["class"]:
                assert folder.classes[int(members[f"{key}.cls"])] == described["class"] == path.split("/")[1]
            paths.append((int(key), path))
    every = [path for split in ("train", "", "val") for path in (folder.splits.get(split) or folder.unlabeled).paths]
    assert sorted(paths) == list(enumerate(every))


def test_webdataset__reads_our_shards_and_we_read_its_own(root, lossless, tmp_path) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(lossless.glob("train-*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert sorted(int(sample["__key__"]) for sample in found) == list(range(13))
    assert {sample["json"]["class"] for sample in found if "cls" in sample} == {"ant", "bee"}
    folder = open_images(root)
    for split in ("train", "val"):
        with webdataset.ShardWriter(str(tmp_path / f"birds-{split}-%03d.tar"), maxcount=5, verbose=0) as writer:
            for i, (path, label) in enumerate(zip(folder.splits[split].paths, folder.splits[split].labels.tolist())):
                sample = {"__key__": f"{i:04d}", path.rpartition(".")[2]: folder.read(path), "cls": label}
                writer.write({**sample, "json": {"width": 3}, "txt": "a picture"})
    theirs = open_images(tmp_path)
    assert theirs.classes == ["0", "1"]
    for split in ("train", "val"):  # its own order, which is that of the keys here
        assert np.array_equal(theirs.splits[split].labels, folder.splits[split].labels)
        stored = [theirs.read(path) for path in theirs.splits[split].paths]
        assert stored == [folder.read(path) for path in folder.splits[split].paths]
    assert theirs.splits["val"].paths[0] == "birds-val-000/0000.jpeg"
    assert (tmp_path / INDEX_NAME).is_file()


def test_index__is_made_again_from_the_tar_files(lossless, tmp_path) -> None:
    shutil.copytree(lossless, tmp_path / "set")
    (tmp_path / "set" / INDEX_NAME).unlink()
    made, written = open_images(tmp_path / "set").index, load_index(lossless / INDEX_NAME)
    assert made.digest == written.digest
    with tarfile.open(tmp_path / "set" / "train-00009.tar", "w") as tar:
        tar.add(lossless / "val-00000.tar", "x.mp4")
    (tmp_path / "set" / "val-00000.tar").write_bytes((lossless / "val-00000.tar").read_bytes()[:-20000])
    (tmp_path / "set" / INDEX_NAME).unlink()
    with pytest.raises(UserError, match=r"val-00000\.tar: "):
        open_images(tmp_path / "set")


def test_lossy_shards__are_smaller_and_look_the_same(root, tmp_path) -> None:
    out = make_set(root, tmp_path / "small", "--short_side", "128", "--quality", "90")
    shards = open_images(out)
    for path in shards.splits["train"].paths:
        image = decode(shards.read(path))
        assert min(image.shape[:2]) == 128
        full = decode((root / path).read_bytes())
        assert np.abs(image.mean((0, 1)) - full.mean((0, 1))).max() < 2
        assert image.shape[1] / image.shape[0] == pytest.approx(full.shape[1] / full.shape[0], abs=0.02)
    assert shards.read("unlabeled/x.jpg") == (root / "unlabeled/x.jpg").read_bytes()  # small enough: not encoded again
    assert [len(b["label"]) for b in _batches(out)] == [len(b["label"]) for b in _batches(root)]
    again = open_images(make_set(out, tmp_path / "again", "--lossless", "--shards", "1"))
    assert again.encoding == shards.encoding == {"short_side": 128, "quality": 90}
    assert again.fingerprint(True) == shards.fingerprint(True)


def test_downscale__keeps_gray_gray_and_turns_the_picture_upright() -> None:
    files = odd_and_broken_images()
    assert decode(downscale(files["exif_6.jpg"][0], 40, 90)).shape == (48, 40, 3)
    assert downscale(files["gray.png"][0], 40, 90)[:2] == b"\xff\xd8"
    gray = decode(downscale(files["gray.png"][0], 40, 90))
    assert (gray[..., 0] == gray[..., 2]).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 997, 1024])
def test_stored_order__has_every_image_once_and_spreads_neighbors(n: int) -> None:
    order = stored_order(0, n, n)
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(stored_order(n // 3, n // 2, n), order[n // 3 : n // 2])
    if n > 100:  # any 64 places in a row have about as many images of each eighth of the sorted list
        for start in range(0, n - 64, 50):
            counts = np.histogram(order[start : start + 64], 8, (0, n))[0]
            assert np.abs(counts - 8).max() <= 3


def _changed(index: ShardIndex, path: Path, **arrays) -> None:
    ShardIndex(index.shards, index.classes, index.splits, {**index.arrays, **arrays}).save(path)


def test_truncated_or_altered__is_refused(lossless, tmp_path) -> None:
    index, place = load_index(lossless / INDEX_NAME), tmp_path / "set"
    huge = np.full(len(index), 1 << 62)
    wrong = {
        "offset": (huge, -huge, index.arrays["offset"] + (1 << 30)),
        "length": (huge, -huge, index.arrays["length"][:-1]),
        "shard": (np.full(len(index), 99, np.int32), np.full(len(index), -1, np.int32)),
        "label": (index.arrays["label"] + 2, index.arrays["label"] - 1),
        "path_ends": (index.arrays["path_ends"][::-1], np.append(index.arrays["path_ends"][:-1], 1 << 60)),
        "checksum": (index.arrays["checksum"][:, :8],),
    }
    for name, values in wrong.items():
        for value in values:  # with a right digest: a stranger can make one
            _changed(index, tmp_path / "a.safetensors", **{name: value})
            with pytest.raises(ShardIndexError, match=r"a\.safetensors: "):
                load_index(tmp_path / "a.safetensors")
    data = (lossless / INDEX_NAME).read_bytes()
    claimed = (len(data) * 2).to_bytes(8, "little")
    for changed in (data[:-1], data[:10], b"", b"hello" * 99, claimed + data[8:], b"\xff" * 8 + data[8:]):
        (tmp_path / "b.safetensors").write_bytes(changed)
        with pytest.raises(ShardIndexError, match=r"b\.safetensors: "):
            load_index(tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").write_bytes(data.replace(b"train/ant/0", b"train/ant/q"))
    with pytest.raises(ShardIndexError, match="altered"):
        load_index(tmp_path / "b.safetensors")
    for name in ("../x.tar", "/etc/x.tar", "a/b.tar", ".tar", "x.txt"):
        index.shards[0], first = type(index.shards[0])(name, 1 << 40, ""), index.shards[0]
        _changed(index, tmp_path / "c.safetensors")
        index.shards[0] = first
        with pytest.raises(ShardIndexError, match="plain name"):
            load_index(tmp_path / "c.safetensors")
    shutil.copytree(lossless, place)
    tar = place / "val-00000.tar"
    row = next(start for name, start, _ in index.ranges() if name == "val")
    content = bytearray(tar.read_bytes())
    content[int(index.arrays["offset"][row]) + 100] ^= 1
    tar.write_bytes(content)
    shards = open_images(place)
    with pytest.raises(UserError, match=r"val-00000\.tar: altered: .*key 00000013 \(val/ant/0\.jpeg\)"):
        shards.read("val/ant/0.jpeg")
    assert shards.read("val/ant/1.png")
    tar.write_bytes(content[:-512])
    with pytest.raises(UserError, match=r"val-00000\.tar: has \d+ bytes"):
        open_images(place)
    tar.unlink()
    with pytest.raises(UserError, match=r"val-00000\.tar: No such file"):
        ImageFolderDataModule(str(place), train_view="simclr").setup()


def test_command__refuses_wrong_arguments_and_names_broken_files(root, lossless, tmp_path) -> None:
    for arguments in (
        ["--out", "x.pack"],
        ["--out", "x", "--lossless", "--quality", "9"],
        ["--out", "x", "--quality", "101"],
        ["--out", "x", "--quality", "0"],
        ["--out", "x", "--short_side", "0"],
        ["--out", "x", "--lossless", "--quality", "0"],
        ["--out", "x", "--shards", "-1"],
        ["--lossless", "--out", "s3://bucket/set"],
    ):
        with pytest.raises(UsageError, match=arguments[-2]) as caught:
            pack_command.main([str(root), *arguments])
        assert caught.value.exit_code == 2
        assert "--lossless" in arguments or len(re.findall(r"--\w+", str(caught.value))) == 1  # only the wrong one
    for i in range(2):
        (tmp_path / "data" / str(i)).mkdir(parents=True)
        (tmp_path / "data" / str(i) / "a.jpg").write_bytes(encode(picture(i), "JPEG") if i else b"")
    out = tmp_path / "b"
    with pytest.raises(UserError, match=r"0/a\.jpg: .*--quarantine"):
        pack_command.main([str(tmp_path / "data"), "--out", str(out)])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    (tmp_path / "list.txt").write_text("# empty\n0/a.jpg\n")
    make_set(tmp_path / "data", out, "--quarantine", str(tmp_path / "list.txt"))
    assert open_images(out).count() == 1
    for taken in (out, tmp_path / "data"):
        with pytest.raises(UserError, match=f"--out {taken}: hol|--out {taken}: is a folder with other files"):
            pack_command.main([str(root), "--out", str(taken)])
    make_set(root, out, "--overwrite", "--lossless", "--shards", "5", "--group_by", "0")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in lossless.iterdir()}


def test_predict_and_checks__read_shards_as_their_folder(root, lossless) -> None:
    from lit_vision.data.check.folder_check import examine
    from lit_vision.predict.inputs import batches, find_images

    folder, shards = find_images([str(root)]), find_images([str(lossless)])
    assert list(shards.names) == list(folder.names)
    shown = [[batch.pixels for batch in batches(found, lambda image: image[:8, :8], 4)] for found in (folder, shards)]
    assert all(np.array_equal(a, b) for a, b in zip(*shown, strict=True))
    checked, of_shards = (examine(path, ("train", "val", "test")) for path in (root, lossless))
    assert checked["uses"].keys() == of_shards["uses"].keys()
    assert [bool(reason) for reason in checked["uses"].values()] == [bool(r) for r in of_shards["uses"].values()]
