"""Broken and odd image files: each has a defined outcome in decoding, training, evaluation and the folder check."""

import contextlib
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from broken_files import encode, forged_jpeg, odd_and_broken_images, picture, rotated_jpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_vision.cli import doctor as doctor_command
from lit_vision.data import ImageFolderDataModule
from lit_vision.data.check.image_check import ImageCheck
from lit_vision.data.folder import Folder
from lit_vision.data.views.decode import ImageDecodeError, decode, read_header, read_size
from lit_vision.data.views.views import make_views

ZOO = odd_and_broken_images()
BAD = sorted(name for name, (_, outcome, _) in ZOO.items() if outcome == "bad")
OK = sorted(set(ZOO) - set(BAD))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The zoo as the class `odd` of a training split, beside a class of sound files; a sound validation split."""
    folder = tmp_path_factory.mktemp("zoo")
    for place in ("train/odd", "train/sound", "val/odd", "val/sound"):
        (folder / place).mkdir(parents=True)
    for name, (data, _, _) in ZOO.items():
        (folder / "train/odd" / name).write_bytes(data)
    for i in range(12):
        split = "train" if i < 8 else "val"
        for label in ("sound", "odd")[: 1 if split == "train" else 2]:
            data = encode(picture(100 + i + 50 * (label == "odd")), "JPEG")
            (folder / split / label / f"{i}.jpg").write_bytes(data)
    return folder


def _module(root: Path, **options) -> ImageFolderDataModule:
    return ImageFolderDataModule(
        str(root), **{"img_size": 32, "batch_size": 8, "num_workers": 0, "train_view": "simclr", **options}
    )


def test_zoo__is_large_and_each_file_has_its_outcome_in_views_evaluation_and_doctor() -> None:
    assert len(ZOO) >= 60
    views, evaluation = make_views("simclr", 32, 0), make_views("eval", 32, 0)
    folder = SimpleNamespace(packed=False, read=lambda name: ZOO[name][0])
    for name, (data, outcome, words) in ZOO.items():
        seen = ImageCheck(folder)(name)
        if outcome == "ok":
            assert views(data, 0, 0).shape == (2, 32, 32, 3), name
            assert evaluation(data, 0, 0).shape == (1, 32, 32, 3), name
            image = decode(data)
            assert (seen.error, set(seen.notes), seen.width) == ("", set(words), image.shape[1]), name
            assert image.dtype == np.uint8
        else:
            for view in (views, evaluation):
                with pytest.raises(ImageDecodeError) as caught:
                    view(data, 0, 0)
                assert "\n" not in str(caught.value), name
            assert seen.kind == words[0], name


@pytest.mark.parametrize(
    "name", ["plain.jpg", "plain.png", "plain.tif", "plain.bmp", "plain.ppm", "lossless.webp", "deflate.tiff"]
)
def test_zoo__usual_formats_show_the_picture(name: str) -> None:
    assert np.abs(decode(ZOO[name][0]).astype(int) - picture()).mean() < (3 if name.endswith("jpg") else 0.01)


def test_views__of_a_turned_jpeg_are_those_of_the_upright_one() -> None:
    """Also at a decoding scale: crops of 16 pixels from 160 x 192 are decoded at 1/2 and more."""
    upright = picture(3, 160, 192)
    stored = {6: np.rot90(upright, 1), 3: np.rot90(upright, 2), 8: np.rot90(upright, -1), 2: upright[:, ::-1]}
    from PIL import Image

    make = make_views("mae", 16, 0)
    for orientation, image in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(np.ascontiguousarray(image), "JPEG", exif=exif, quality=95)
        for index in range(6):
            expected = make(encode(upright, "JPEG", quality=95), 0, index).astype(int)
            assert np.abs(make(data, 0, index) - expected).mean() < 4, (orientation, index)
    assert decode(rotated_jpeg(6)).shape == (96, 80, 3)


def test_training__stops_when_more_than_one_per_cent_is_broken_and_goes_on_with_doctors_list(
    root, tmp_path, capsys
) -> None:
    module = _module(root)
    module.trainer = SimpleNamespace(
        default_root_dir=str(tmp_path / "run"),
        is_global_zero=True,
        global_rank=0,
        world_size=1,
        accumulate_grad_batches=1,
        num_devices=1,
    )
    with pytest.raises(ImageDecodeError, match=r"1%.*lit-vision doctor") as caught:
        list(module.train_dataloader())
    assert "\n" not in str(caught.value)
    with open(tmp_path / "run/bad_images.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2  # the second one stops the run
    assert all(Path(row["path"]).name in BAD and row["reason"] and row["epoch"] == "0" for row in rows)

    assert doctor_command.main([str(root), "--out", str(tmp_path), "--workers", "1"]) == 1
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert not report["fit"]
    assert sorted(Path(path).name for path, _ in report["quarantine"]) == BAD
    assert "FAIL" in capsys.readouterr().out

    module = _module(root, quarantine=str(tmp_path / "quarantine.txt"))
    assert module.num_train == len(OK) + 8
    assert sum(len(batch["label"]) for batch in module.train_dataloader()) == module.num_train // 8 * 8
    assert len(list(_module(root, quarantine=str(tmp_path / "quarantine.txt")).eval_loader("train"))) > 0


def test_evaluation__names_the_broken_file_also_from_a_worker(root) -> None:
    for workers in (0, 1):
        with pytest.raises(ImageDecodeError) as caught:
            list(_module(root, num_workers=workers).eval_loader("train"))
        assert "\n" not in str(caught.value)
        assert any(name in str(caught.value) for name in BAD)


def test_one_broken_file__is_replaced_counted_and_listed_in_each_epoch(root, tmp_path, caplog) -> None:
    for i in range(40):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{i}.jpg").write_bytes(ZOO["half.jpg"][0] if i == 7 else encode(picture(i), "JPEG"))
    module = _module(tmp_path / "data")
    module.trainer = SimpleNamespace(
        default_root_dir=str(tmp_path / "run"),
        is_global_zero=True,
        global_rank=0,
        world_size=1,
        accumulate_grad_batches=1,
        num_devices=1,
    )
    loader = module.train_dataloader()
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        assert sum(len(batch["label"]) for batch in loader) == 40
        assert loader.dataset.files.count_broken(epoch) == 1
    assert "epoch 0: 1 broken image(s) replaced, listed in" in caplog.text
    module.teardown()
    assert "epoch 1: 1 broken image(s)" in caplog.text
    with open(tmp_path / "run/bad_images.csv", newline="", encoding="utf-8") as file:
        assert [(row["epoch"], row["path"]) for row in csv.DictReader(file)] == [("0", "7.jpg"), ("1", "7.jpg")]


_SOUND = [
    ZOO[name][0]
    for name in (
        "plain.jpg",
        "progressive.jpg",
        "plain.png",
        "palette.png",
        "plain.webp",
        "plain.gif",
        "plain.tif",
        "plain.bmp",
    )
]
_VIEWS = make_views("simclr", 16, 0)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(_SOUND),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
@example(_SOUND[0], [(0.02, 255)], 1.0)
def test_damage__gives_an_image_or_a_named_error(data: bytes, flips: list, keep: float) -> None:
    damaged = bytearray(data)
    for place, value in flips:
        damaged[int(place * len(damaged))] = value
    damaged = bytes(damaged[: int(keep * len(damaged))])
    for read in (decode, lambda d: _VIEWS(d, 0, 0)):
        try:
            assert read(damaged).dtype == np.uint8
        except ImageDecodeError as error:
            message = str(error)
            assert message.count("\n") == 0 < len(message)
    seen = ImageCheck(SimpleNamespace(packed=False, read=lambda _: damaged))("x.jpg")
    assert bool(seen.error) == bool(seen.kind)
    with tempfile.NamedTemporaryFile() as file:
        file.write(damaged)
        file.flush()
        for size in (lambda: read_size(file.name), lambda: (read_header(damaged).height, read_header(damaged).width)):
            with contextlib.suppress(ImageDecodeError):
                assert min(size()) > 0


_MEASURE = """
import resource, sys
from lit_vision.data.views.decode import ImageDecodeError, decode, read_header
from lit_vision.data.views.views import make_views
from PIL import Image
import io
data = open(sys.argv[1], "rb").read()
warm = io.BytesIO(); Image.new("RGB", (64, 64)).save(warm, sys.argv[2]); decode(warm.getvalue())
views = make_views("mae", 32, 0); views(warm.getvalue(), 0, 0)
before, size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
for read in (decode, lambda d: views(d, 0, 0)):
    try:
        size = max(size, read(data).nbytes)
    except ImageDecodeError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, size)
"""


def _growth(data: bytes, kind: str, folder: Path) -> tuple[float, float]:
    """(MB that the process grew by, MB of the decoded image or 0) in a fresh process."""
    (folder / "file").write_bytes(data)
    words = [sys.executable, "-c", _MEASURE, str(folder / "file"), kind]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    growth, size = map(int, done.stdout.split())
    return growth / 1024, size / 1e6


@pytest.mark.slow
def test_memory__of_refused_and_accepted_files(tmp_path) -> None:
    large = np.tile(picture(5, 1000, 1000), (5, 5, 1))  # 25 million pixels, 75 MB
    for kind in ("JPEG", "PNG"):
        data = encode(large, kind)
        growth, size = _growth(data, kind, tmp_path)
        assert size == pytest.approx(75)
        assert growth < 100 + 2 * size
        growth, size = _growth(data[: len(data) // 2], kind, tmp_path)
        assert size == 0
        assert growth < 100
    for name in (
        "forged.jpg",
        "forged_below_cap.jpg",
        "forged_progressive.jpg",
        "forged.png",
        "forged_below_cap.png",
        "forged.gif",
        "forged.bmp",
    ):
        growth, size = _growth(ZOO[name][0], "PNG" if name.endswith("png") else "JPEG", tmp_path)
        assert size == 0
        assert growth < 100, name
    growth, _ = _growth(forged_jpeg(encode(picture(1, 1500, 2000), "JPEG"), 9000, 8000), "JPEG", tmp_path)
    assert growth < 100


def test_folder__of_one_read_method_serves_doctor(root) -> None:
    assert ImageCheck(Folder(root, [], {}))("train/odd/gone.jpg").kind == "unreadable"
