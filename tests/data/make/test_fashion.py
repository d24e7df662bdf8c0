"""`lit-vision data fashion`: the round trip on a small stand-in, and the embedded files themselves."""

import gzip
import hashlib
import json
import struct

import cv2
import numpy as np
import pytest

from lit_vision.cli.main import main
from lit_vision.data.make import fashion


def _idx(array: np.ndarray) -> bytes:
    return gzip.compress(
        b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """200 made-up images in the place of the embedded ones, 60 and 40 in that of Debian's."""
    rng, folder = np.random.default_rng(0), tmp_path / "fashion-mnist"
    folder.mkdir()
    for name, count in (("train10k", 200), ("train", 60), ("t10k", 40)):
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(_idx(rng.integers(0, 256, (count, 28, 28), np.uint8)))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(_idx(np.arange(count, dtype=np.uint8) % 10))
    monkeypatch.setattr(fashion, "EMBEDDED", folder)
    monkeypatch.setattr(fashion, "DEBIAN", folder)
    return folder


def _digest(folder) -> str:
    parts = [str(p.relative_to(folder)).encode() + p.read_bytes() for p in sorted(folder.rglob("*.png"))]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_fashion__round_trip_of_pixels_labels_and_stratified_splits(stand_in, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["data", "fashion", "--out", str(out)]) == 0
    assert f"train 160, val 20, test 20 images in {out}" in capsys.readouterr().out.replace("\n", " ")
    images, labels = fashion.embedded_fashion()
    seen = []
    for path in out.rglob("*.png"):
        index = int(path.stem)
        assert path.parent.name == fashion.GARMENT_CLASSES[labels[index]]
        assert (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) == images[index]).all()
        seen.append(index)
    assert sorted(seen) == list(range(200))
    assert all(len(list((out / "val" / name).iterdir())) == 2 for name in fashion.GARMENT_CLASSES)


def test_fashion__is_idempotent_finishes_half_a_folder_and_refuses_others(stand_in, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    command = ["data", "fashion", "--rotated", "--out", str(out)]
    assert main(command) == 0
    first, some = _digest(out), next(out.rglob("*.png"))
    stamp = some.stat().st_mtime_ns
    assert main(command) == 0
    assert some.stat().st_mtime_ns == stamp
    some.unlink()
    assert main(command) == 0
    assert _digest(out) == first
    (out / fashion.DATASET_NOTE).rename(out / (fashion.DATASET_NOTE + ".begun"))  # as an interrupted call leaves it
    some.unlink()
    assert main(["data", "fashion", "--out", str(out)]) == 1
    assert "lit_vision_data.json.begun" in capsys.readouterr().err
    (out / (fashion.DATASET_NOTE + ".begun")).write_text(json.dumps(fashion.dataset_note(True, False, 0)))
    assert main(command) == 0
    assert _digest(out) == first


def test_fashion__rotated_depends_on_the_seed_alone_and_keeps_the_garment(stand_in, tmp_path) -> None:
    digests = {}
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["data", "fashion", "--rotated", "--seed", seed, "--out", str(tmp_path / name)]) == 0
        digests[name] = _digest(tmp_path / name)
    assert digests["a"] == digests["b"] != digests["c"]
    garment = np.zeros((28, 28), np.uint8)
    garment[8:20, 10:18] = 200
    for index in range(20):
        rotated = fashion.rotate_image(garment, 0, index)
        ratio = rotated.sum() / garment.sum()
        assert rotated.shape == (32, 32)
        assert 0.8**2 * 0.95 < ratio < 1.05
    assert (fashion.rotate_image(garment, 0, 3) != fashion.rotate_image(garment, 0, 4)).any()


def test_fashion__full_takes_the_official_split(stand_in, tmp_path) -> None:
    assert fashion.make_fashion(tmp_path / "full", full=True) == {"train": 60, "test": 40}
    assert (tmp_path / "full/test" / fashion.GARMENT_CLASSES[0] / "60000.png").exists()


def test_fashion__refuses_a_foreign_folder_and_other_options(stand_in, tmp_path, capsys) -> None:
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("all of it")
    assert main(["data", "fashion", "--out", str(foreign)]) == 1
    assert f"--out {foreign}" in capsys.readouterr().err
    assert [p.name for p in foreign.iterdir()] == ["thesis.tex"]
    assert main(["data", "fashion", "--out", str(tmp_path / "x")]) == 0
    assert main(["data", "fashion", "--rotated", "--out", str(tmp_path / "x")]) == 1
    assert "lit_vision_data.json" in capsys.readouterr().err


def test_fashion__names_a_missing_or_damaged_source(stand_in, tmp_path, monkeypatch, capsys) -> None:
    (stand_in / "train10k-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b broken")
    assert main(["data", "fashion", "--out", str(tmp_path / "x")]) == 1
    assert "train10k-images" in capsys.readouterr().err
    monkeypatch.setattr(fashion, "EMBEDDED", tmp_path / "none")
    assert main(["data", "fashion", "--out", str(tmp_path / "y")]) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err.replace("\n", "")


def test_embedded__files_match_their_committed_sums_and_are_fashion_mnist() -> None:
    sums = dict(reversed(line.split("  ", 1)) for line in (fashion.EMBEDDED / "SHA256SUMS").read_text().splitlines())
    for path in fashion.EMBEDDED.glob("*.gz"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sums[path.name]
    images, labels = fashion.embedded_fashion()
    assert images.shape == (10_000, 28, 28)
    assert labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert np.bincount(labels).min() > 900
    assert abs(images.mean() / 255 - 0.286) < 0.002  # Fashion-MNIST's known mean
