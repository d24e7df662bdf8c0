"""One range of values a data set: fit, doctor, study and pack take the same one. Gray views of one channel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_vision.data.annotations.datamodule import AnnotatedDataModule
from lit_vision.data.check.folder_check import examine
from lit_vision.data.datamodule import ImageFolderDataModule
from lit_vision.data.dataset_datamodule import DatasetDataModule
from lit_vision.data.open_images import open_images
from lit_vision.data.shard_writer import Encoding, write_shards
from lit_vision.data.value_range import measure_folder_range
from lit_vision.data.views.decode import ImageDecodeError
from lit_vision.data.views.pixel_values import to_8bit
from lit_vision.errors import UsageError, UserError
from lit_vision.study.images import read_images

SPLITS = ("train", "val", "test")


def deep_folder(root: Path, scale: float = 1.0, kind: type = np.uint16, ending: str = "png", hot: int = 0) -> Path:
    """Write 12-bit images, 16 x 16, times `scale`, with one pixel of value `hot`; 4 of each class and split."""
    for split, name in ((split, name) for split in SPLITS for name in ("cat", "dog")):
        (root / split / name).mkdir(parents=True)
        for i in range(4):
            values = np.random.default_rng([SPLITS.index(split), name == "dog", i]).integers(0, 4096, (16, 16)) * scale
            values[0, 0] = hot or values[0, 0]
            Image.fromarray(values.astype(kind)).save(root / split / name / f"{i}.{ending}")
    return root


def data_module(root: Path | str, **options) -> ImageFolderDataModule:
    return ImageFolderDataModule(str(root), **{"img_size": 16, "batch_size": 8, "num_workers": 0, **options})


def pixels_of(data: ImageFolderDataModule, split: str = "test") -> np.ndarray:
    return np.concatenate([batch["images"].numpy()[:, 0] for batch in data.eval_loader(split)])


def stored_values(root: Path, split: str = "test") -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted((root / split).rglob("*.*"))])


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("scale", "kind", "ending", "wanted"),
    [
        (1, np.uint16, "png", (0.0, 4095.0)),
        (1 / 4095, np.float32, "tif", (0.0, 1.0)),
        (16, np.int32, "tif", (0.0, 65535.0)),
    ],
)
def test_batches__have_the_pixels_of_the_measured_range(tmp_path, in_memory, scale, kind, ending, wanted) -> None:
    root = deep_folder(tmp_path / "set", scale, kind, ending)
    data = data_module(root, in_memory=in_memory)
    assert data.value_range == wanted
    assert np.array_equal(pixels_of(data)[..., 0], to_8bit(stored_values(root), wanted))
    assert read_images(root).value_range == wanted  # a study takes the same
    notes = read_images(root).notes
    assert any(f"[{wanted[0]:g}, {wanted[1]:g}] becomes 0 to 255" in note for note in notes)
    assert "data.range" not in " ".join(notes)  # a study has no such setting


def test_declared_range__wins_and_a_wrong_one_is_refused(tmp_path) -> None:
    root = deep_folder(tmp_path / "set")
    data = data_module(root, range=[1000, 3000])
    assert np.array_equal(pixels_of(data)[..., 0], to_8bit(stored_values(root), (1000.0, 3000.0)))
    with pytest.raises(UsageError, match=r"data\.range: \[3, 1\]; give two numbers"):
        data_module(root, range=[3, 1])
    with pytest.raises(UsageError, match=r"data\.channels: 4; give 3, or 1"):
        data_module(root, channels=4)


def test_model_range__replaces_the_measured_one(tmp_path) -> None:
    root = deep_folder(tmp_path / "set")
    data = data_module(root)
    before = pixels_of(data)
    data.use_range_of([0, 8191])
    assert np.array_equal(pixels_of(data)[..., 0], to_8bit(stored_values(root), (0.0, 8191.0)))
    assert not np.array_equal(pixels_of(data), before)
    data.use_range_of(None)  # the model saw 8-bit images only: nobody knows what 4095 means
    with pytest.raises(ImageDecodeError, match="would keep 16 of 256 gray levels"):
        pixels_of(data)
    with pytest.raises(UserError, match=r"data\.range: \[0\.0, 4095\.0\], but .* with \[0\.0, 1\.0\]"):
        data_module(root, range=[0, 4095]).use_range_of([0, 1])


def test_no_range_fits__fit_study_and_doctor_refuse_alike_and_accept_the_declared_one(tmp_path) -> None:
    root = deep_folder(tmp_path / "set", 1 / 16, hot=65535)  # 8 bits, and a dead pixel
    for refused in (lambda: pixels_of(data_module(root)), lambda: read_images(root)):
        with pytest.raises(
            UserError, match=r"8 of 8 sampled images would keep fewer than 32 .*data\.range, such as \[0, 255\]"
        ):
            refused()
    report = examine(root, SPLITS)
    failed = [f["what"] for f in report["findings"] if f["level"] == "FAIL"]
    assert len(failed) == 1
    assert "data.range, such as [0, 255]" in failed[0]
    assert not report["quarantine"]  # all images look alike in the range that does not fit: no copies are reported
    assert examine(root, SPLITS, value_range=(0.0, 255.0))["fit"]
    assert not examine(root, SPLITS, value_range=(0.0, 20000.0))["fit"]
    assert len(np.unique(pixels_of(data_module(root, range=[0, 255])))) == 256


def test_doctor__says_the_range_that_fit_takes(tmp_path) -> None:
    report = examine(deep_folder(tmp_path / "set"), SPLITS)
    assert report["fit"]
    [said] = [f for f in report["findings"] if "[0, 4095] becomes 0 to 255" in f["what"]]
    assert (said["level"], said["count"]) == ("warn", 24)
    full = examine(deep_folder(tmp_path / "full", 16), SPLITS)
    assert [f["level"] for f in full["findings"] if "[0, 65535] becomes 0 to 255" in f["what"]] == ["note"]


def test_doctor__names_clipped_images_and_tiffs_of_several_pages(tmp_path) -> None:
    root = deep_folder(tmp_path / "set", 1, np.uint16, "tif")
    bright = np.random.default_rng(0).integers(0, 9000, (16, 16)).astype(np.uint16)
    Image.fromarray(bright).save(root / "test/dog/0.tif", save_all=True, append_images=[Image.fromarray(bright)])
    found = {f["what"].partition(":")[0]: f["files"] for f in examine(root, SPLITS)["findings"]}
    assert found["clipped"] == found["several pages"] == ["test/dog/0.tif"]


def test_8_bit_folder__has_no_range_and_its_run_keeps_its_identity(tmp_path) -> None:
    root = deep_folder(tmp_path / "set", 1 / 16, np.uint8)
    data = data_module(root)
    assert data.value_range is None
    assert measure_folder_range(open_images(root), "train").images == 0
    assert data._identity() == data_module(root, range=[0, 65535])._identity()
    assert data._identity() != data_module(root, range=[0, 4095])._identity()


def test_shards__store_the_range_it_converted_with(tmp_path) -> None:
    root = deep_folder(tmp_path / "set")
    write_shards(open_images(root), tmp_path / "a", 1, Encoding(16, 100, (0.0, 4095.0)))
    write_shards(open_images(root), tmp_path / "b")
    converted, lossless = data_module(tmp_path / "a"), data_module(tmp_path / "b")
    assert converted.value_range == lossless.value_range == (0.0, 4095.0)
    wanted = pixels_of(data_module(root)).astype(int)
    assert np.array_equal(pixels_of(lossless), wanted)
    assert np.abs(pixels_of(converted) - wanted).max() <= 3  # JPEG of quality 100


def test_own_data_sets__keep_deep_images(tmp_path) -> None:
    values = stored_values(deep_folder(tmp_path / "set"))
    for items in (list(values), [Image.fromarray(v) for v in values], [(v / 4095).astype(np.float32) for v in values]):
        dataset = [(item, i % 2) for i, item in enumerate(items)]
        data = DatasetDataModule(dataset, test=dataset, img_size=16, batch_size=8, num_workers=0)
        assert np.abs(pixels_of(data)[..., 0].astype(int) - (values >> 4)).max() <= 1  # floats are rounded, not cut


def test_annotated_images__are_measured_too(tmp_path) -> None:
    (tmp_path / "train/images").mkdir(parents=True)
    (tmp_path / "train/semantic").mkdir()
    for i in range(4):
        values = np.random.default_rng(i).integers(0, 4096, (16, 16)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"train/images/{i}.png")
        Image.fromarray((values > 2000).astype(np.uint8)).save(tmp_path / f"train/semantic/{i}.png")
    data = AnnotatedDataModule(
        str(tmp_path), format="masks", class_names=["a", "b"], img_size=16, batch_size=4, num_workers=0
    )
    assert data.value_range == (0.0, 4095.0)
    [batch] = data.eval_loader("train")
    wanted = np.stack([np.asarray(Image.open(tmp_path / f"train/images/{i}.png")) >> 4 for i in range(4)])
    assert np.array_equal(batch["images"][:, 0, :, :, 0].numpy(), wanted)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("view", ["train", "simclr"])
def test_one_channel__is_that_of_the_gray_images(tmp_path, in_memory, view) -> None:
    gray, color = tmp_path / "gray", tmp_path / "color"
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3)).astype(np.uint8)
        for root, image in ((color, Image.fromarray(pixels)), (gray, Image.fromarray(pixels).convert("L"))):
            path = root / "train" / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    options = {"train_view": view, "in_memory": in_memory}
    [wanted] = data_module(gray, **options).train_dataloader()
    [found] = data_module(gray, channels=1, **options).train_dataloader()
    assert found["images"].shape == (*wanted["images"].shape[:-1], 1)
    assert np.array_equal(found["images"].numpy(), wanted["images"].numpy()[..., :1])
    [converted] = data_module(color, channels=1, **options).train_dataloader()
    difference = np.abs(converted["images"].numpy().astype(int) - found["images"].numpy())
    assert difference.max() <= 4  # Pillow's luma differs by one, which contrast may stretch
