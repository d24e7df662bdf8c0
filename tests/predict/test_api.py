"""lit_vision.load: the numbers of the commands, for every kind of image, task and runtime."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from toy_dense import make_detector, make_segmenter, write_pictures
from toy_models import NAMES, make_classifier, write_images, write_run

import lit_vision
from lit_vision.cli.main import main
from lit_vision.errors import UserError
from lit_vision.predict.predictions import encode_rle
from lit_vision.predict.search import read_index


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Runs of a classifier, two detectors and a segmenter; small images by color, and pictures of several shapes."""
    folder = tmp_path_factory.mktemp("api")
    write_run(folder / "classifier", make_classifier())
    write_run(folder / "detector", make_detector())
    write_run(folder / "instances", make_detector("mask_rcnn"))
    write_run(folder / "segmenter", make_segmenter())
    write_images(folder / "images", 7)
    write_pictures(folder / "pictures", 5)
    return folder


def command(root: Path, name: str, model: str, images: str, out: Path, *more: str) -> Path:
    arguments = [name, str(root / images), "--model", str(root / model), "--out", str(out), "--device", "cpu"]
    assert main([*arguments, *more]) == 0
    return out


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def test_classes_are_those_of_the_command(root, tmp_path) -> None:
    rows = rows_of(command(root, "predict", "classifier", "images", tmp_path / "a.csv", "--top_k", "2"))
    model = lit_vision.load(root / "classifier", "cpu")
    found = model.predict(root / "images", top_k=2)
    pairs = [[x for name, p in zip(f.classes, f.probabilities) for x in (name, f"{p:.6f}")] for f in found]
    assert [[f.path, *values] for f, values in zip(found, pairs)] == rows
    assert len(rows) == 7
    assert len({row[1] for row in rows}) > 1
    assert model.classes == tuple(NAMES)
    assert model.metadata.task == "classification"
    assert all(f.classes == tuple(NAMES[i] for i in f.labels) for f in found)


def test_the_first_lines_of_the_readme_run_as_printed(root, tmp_path, monkeypatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(import lit_vision\n.*?)```", readme, re.DOTALL)
    assert code
    path, folder = re.findall(r'"([\w/.]+)"', code[1])[:2]
    lit_vision.export_model(root / "classifier", "safetensors", out=tmp_path / path)
    write_images(tmp_path / folder, 3)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code[1], names)
    assert names["model"].embed(folder).features.shape == (3, 32)


def test_features_are_those_of_the_command(root, tmp_path) -> None:
    index = read_index(command(root, "embed", "classifier", "images", tmp_path / "a.safetensors"))
    found = lit_vision.load(root / "classifier", "cpu").embed(root / "images")
    assert list(found.paths) == index.names
    np.testing.assert_array_equal(found.features, index.features)


@pytest.mark.parametrize("name", ["detector", "instances"])
def test_boxes_and_masks_are_those_of_the_command(root, tmp_path, name) -> None:
    out = command(root, "predict", name, "pictures", tmp_path / "a.jsonl", "--min_score", "0.3")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    found = lit_vision.load(root / name, "cpu").predict(root / "pictures", min_score=0.3)
    assert sum(len(f.scores) for f in found) > 0
    for prediction, record in zip(found, records, strict=True):
        assert (prediction.path, *prediction.size) == (record["path"], record["height"], record["width"])
        assert list(prediction.classes) == [d["label"] for d in record["detections"]]
        scores = [round(score, 6) for score in prediction.scores.round(6).tolist()]
        assert scores == [d["score"] for d in record["detections"]]
        wanted = np.array([d["box"] for d in record["detections"]], np.float32).reshape(-1, 4)
        np.testing.assert_array_equal(prediction.boxes, wanted)
        if name == "instances":
            masks = prediction.masks()
            assert masks.shape == (len(wanted), *prediction.size)
            assert masks.dtype == bool
            assert [encode_rle(mask) for mask in masks] == [d["segmentation"] for d in record["detections"]]
        else:
            with pytest.raises(ValueError, match="no masks"):
                prediction.masks()


@pytest.mark.parametrize("name", ["detector", "instances"])
def test_the_best_detections_are_kept_in_one_call_only(root, name) -> None:
    model = lit_vision.load(root / name, "cpu")
    everything = model.predict(root / "pictures")
    found = model.predict(root / "pictures", max_detections=2)
    assert max(len(f.scores) for f in everything) > 2
    assert max(len(f.scores) for f in found) == 2
    for some, every in zip(model.predict(root / "pictures"), everything, strict=True):
        np.testing.assert_array_equal(some.boxes, every.boxes)


def test_pixel_classes_are_those_of_the_command(root, tmp_path) -> None:
    masks = tmp_path / "masks"
    rows = rows_of(command(root, "predict", "segmenter", "pictures", tmp_path / "a.csv", "--masks", str(masks)))
    found = lit_vision.load(root / "segmenter", "cpu").predict(root / "pictures")
    for prediction, row in zip(found, rows, strict=True):
        assert [prediction.path, *(f"{share:.6f}" for share in prediction.shares)] == row
        np.testing.assert_array_equal(prediction.mask, np.asarray(Image.open(masks / prediction.path)))


def test_every_kind_of_image_gives_the_same_numbers(root) -> None:
    model = lit_vision.load(root / "classifier", "cpu")
    paths = [root / "images/red/000.png", root / "images/blue/002.png"]
    arrays = [np.asarray(Image.open(path)) for path in paths]
    batch = np.stack(arrays)  # both 20 x 20
    tensors = torch.from_numpy(batch).permute(0, 3, 1, 2)
    wanted = model.embed(paths).features
    many = [list(map(str, paths)), [Image.open(p) for p in paths], arrays, batch, list(tensors), tensors, tensors / 255]
    for images in [*many, iter(paths), [paths[0], tensors[1] / 255]]:
        np.testing.assert_array_equal(model.embed(images).features, wanted)
    for image in (paths[0], Image.open(paths[0]), arrays[0], tensors[0], tensors[0].double() / 255):
        np.testing.assert_allclose(model.embed(image).features, wanted[:1], rtol=1e-5, atol=1e-6)  # a batch of one
    gray = arrays[0][..., 0].copy()  # writable
    repeated = model.embed(np.repeat(gray[..., None], 3, 2)).features
    for image in (gray, gray[..., None], gray[None, ..., None], torch.from_numpy(gray)[None], Image.fromarray(gray)):
        np.testing.assert_array_equal(model.embed(image).features, repeated)
    assert model.predict(paths[0])[0].path == str(paths[0])
    assert model.predict(arrays[0])[0].path == ""


BAD = {
    "normalized": torch.full((3, 8, 8), -0.5),
    "not a number": torch.full((3, 8, 8), float("nan")),
    "float array": np.zeros((8, 8, 3)),
    "channels first": np.zeros((3, 8, 8), np.uint8),
    "channels last": torch.zeros(8, 8, 3),
    "four channels": np.zeros((8, 8, 4), np.uint8),
    "no pixels": np.zeros((0, 8, 3), np.uint8),
    "integers": torch.zeros(3, 8, 8, dtype=torch.int64),
    "nothing": [],
    "a number": 3,
    "a batch in a list": [np.zeros((2, 8, 8, 3), np.uint8)],
    "bytes": b"photo.png",
    "no path": "photo\0.png",
    "no pixels in Pillow": Image.new("RGB", (0, 5)),
}


@pytest.mark.parametrize("images", BAD.values(), ids=BAD)
def test_other_images_are_refused_with_what_is_accepted(root, images) -> None:
    with pytest.raises(UserError, match=r"give (a path, a folder|pixels / 255)"):
        lit_vision.load(root / "classifier", "cpu").predict(images)


def test_unreadable_images_raise_or_are_skipped(root, tmp_path) -> None:
    good, torn = root / "images/red/000.png", tmp_path / "torn.png"
    torn.write_bytes(good.read_bytes()[:300])
    model = lit_vision.load(root / "classifier", "cpu")
    images = [good, torn, good, tmp_path / "none.png", Image.open(torn)]
    for bad in images[1], images[3]:
        with pytest.raises(UserError, match=rf"{bad.name}: "):
            model.predict([good, bad])
    with pytest.raises(UserError, match=r"images\[1\]: "):
        model.predict([good, images[4]])
    found = model.predict(images, errors="skip", batch_size=2)
    assert [f is None for f in found] == [False, True, False, True, True]
    assert np.isnan(model.embed(images, errors="skip").features).all(1).tolist() == [False, True, False, True, True]
    with pytest.raises(UserError, match="none of them can be read"):
        model.embed([torn], errors="skip")


def test_the_home_folder_may_be_written_as_a_tilde(root, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(root))
    model = lit_vision.load("~/classifier", "cpu")
    wanted = model.embed(root / "images")
    np.testing.assert_array_equal(model.embed("~/images").features, wanted.features)
    found = model.embed([f"~/images/{name}" for name in wanted.paths])
    np.testing.assert_array_equal(found.features, wanted.features)
    with pytest.raises(UserError, match="folder or shards"):
        model.embed(["~/images", "~/images/none.png"])


@pytest.mark.parametrize("device", ["tpu", "mps", "meta", "", None, "cuda:99"])
def test_another_device_is_one_line(root, device) -> None:
    with pytest.raises(UserError, match="--device") as caught:
        lit_vision.load(root / "classifier", device)
    assert "\n" not in str(caught.value)


def test_options_of_another_task_or_out_of_range_are_refused(root) -> None:
    classifier, detector = (lit_vision.load(root / name, "cpu") for name in ("classifier", "detector"))
    picture = np.zeros((8, 8, 3), np.uint8)
    for model, options in (
        (classifier, {"min_score": 0.5}),
        (detector, {"top_k": 1}),
        (classifier, {"top_k": 0}),
        (detector, {"min_score": 2}),
        (detector, {"max_detections": 0}),
        (classifier, {"batch_size": 0}),
        (classifier, {"batch_size": 1.5}),
        (classifier, {"top_k": "3"}),
        (classifier, {"errors": "ignore"}),
    ):
        with pytest.raises(UserError, match=next(iter(options))):
            model.predict(picture, **options)
    with pytest.raises(UserError, match="no features"):
        detector.embed(picture)


@pytest.mark.parametrize(
    "form",
    [
        "safetensors",
        "pt2",
        pytest.param("onnx", marks=pytest.mark.slow),
        pytest.param("openvino", marks=pytest.mark.slow),
    ],
)
def test_exports_give_the_numbers_of_torch(root, tmp_path, form) -> None:
    exported = lit_vision.export_model(
        root / "classifier", form, out=tmp_path / f"m{'.xml' if form == 'openvino' else '.' + form}"
    )
    assert "largest difference to torch" in exported.notes[0]
    images = root / "images"
    wanted = lit_vision.load(root / "classifier", "cpu").predict(images)
    model = lit_vision.load(exported.path, "cpu", trust_pt2=True)
    assert model.runtime == {"safetensors": "torch"}.get(form, form)
    for a, b in zip(model.predict(images), wanted, strict=True):
        assert a.classes == b.classes
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)


def test_a_name_of_timm_is_its_model_with_the_classes_of_imagenet(monkeypatch) -> None:
    create = timm.create_model

    def untrained(name: str, pretrained: bool, **arguments) -> torch.nn.Module:
        assert pretrained
        torch.manual_seed(0)
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", untrained)
    model = lit_vision.load("test_vit.r160_in1k", "cpu")
    assert len(set(model.classes)) == 1000
    assert model.classes[0].startswith("tench")
    size = model.metadata.size
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    network = untrained("test_vit.r160_in1k", True).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        wanted = network(images).softmax(1).topk(3)
        network.reset_classifier(0)
        features = network(images).numpy()
    for i, found in enumerate(model.predict(pixels, top_k=3)):
        assert found.labels.tolist() == wanted.indices[i].tolist()
        np.testing.assert_allclose(found.probabilities, wanted.values[i], atol=1e-5)
    np.testing.assert_allclose(model.embed(pixels).features, features, atol=1e-4)


def test_names_without_weights_are_one_line() -> None:
    with pytest.raises(UserError, match=r"^test_vit: timm's weights are not on this machine .* connect once") as caught:
        lit_vision.load("test_vit")  # tests have no network
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^test_vit\.none: timm has no such weights; choose test_vit\.r160_in1k"):
        lit_vision.load("test_vit.none")
    with pytest.raises(UserError, match="no such run, file or timm model"):
        lit_vision.load("resnet18.ckpt")
