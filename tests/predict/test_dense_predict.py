"""predict for detection and segmentation: results in the file's pixels, in every format and runtime, and resumed."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image
from toy_dense import NAMES, SIZE, make_detector, make_segmenter, write_pictures
from toy_models import write_run

from lit_vision.cli.main import main
from lit_vision.data.annotations.views import AnnotatedViews, AugmentationOptions
from lit_vision.data.batch import normalize
from lit_vision.evaluation.detection import to_original_size
from lit_vision.predict.detection import DetectionLines, paste_masks
from lit_vision.predict.image_writer import ImageWriter
from lit_vision.predict.inputs import InputBatch
from lit_vision.predict.models import load_model
from lit_vision.predict.predictions import encode_rle
from lit_vision.predict.tasks import example_input


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Runs of a detector, two two-stage ones and a segmenter, and seven pictures."""
    folder = tmp_path_factory.mktemp("dense")
    write_run(folder / "detector", make_detector())
    write_run(folder / "two-stage", make_detector("faster_rcnn"))
    write_run(folder / "instances", make_detector("mask_rcnn"))
    write_run(folder / "segmenter", make_segmenter())
    write_pictures(folder / "images")
    return folder


def predict(root: Path, model: str, out: Path, *more: str) -> int:
    arguments = ["predict", str(root / "images"), "--model", str(root / model), "--out", str(out), "--device", "cpu"]
    return main([*arguments, "--batch_size", "3", *more])


def _seen(root: Path, name: str, method) -> tuple[np.ndarray, torch.Tensor, tuple[int, int], torch.Tensor]:
    """The file's view, its normalised tensor, the file's size, and pixels of the view per pixel of the file."""
    image = np.asarray(Image.open(root / "images" / name).convert("RGB"))
    view = AnnotatedViews("fit", SIZE, 0, AugmentationOptions())(image, (0, 0, 0))
    tensor = normalize(torch.from_numpy(view.image)[None, None], method.mean, method.std)[:, 0]
    return view.image, tensor, image.shape[:2], torch.from_numpy(view.scale)


def _with_area(boxes: torch.Tensor) -> torch.Tensor:
    """(n,) bool: boxes of the file that are more than the padding of the view."""
    return (boxes[:, 2:] - boxes[:, :2] > 0.01).all(1)


HEADS = {"detector": "fcos", "two-stage": "faster_rcnn", "instances": "mask_rcnn"}


@pytest.mark.parametrize("model", HEADS)
def test_boxes_are_the_detectors_in_the_files_pixels(root, tmp_path, model: str) -> None:
    assert predict(root, model, tmp_path / "a.csv") == 0
    assert predict(root, model, tmp_path / "a.jsonl", "--min_score", "0.3", "--draw", str(tmp_path / "drawn")) == 0
    assert predict(root, model, tmp_path / "a.json") == 0
    method = make_detector(HEADS[model])
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    records = {r["path"]: r for r in map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())}
    coco = json.loads((tmp_path / "a.json").read_text())
    assert [c["name"] for c in coco["categories"]] == NAMES
    assert len(records) == len(coco["images"]) == 7
    assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"]) == len(rows) > 7
    for one in (*coco["annotations"], *(d for r in records.values() for d in r["detections"])):
        assert ("segmentation" in one) == (model == "instances")
    for number, name in enumerate(sorted(records)):
        _, tensor, size, scale = _seen(root, name, method)
        with torch.inference_mode():
            (found,) = method(tensor)
        boxes = to_original_size(found["boxes"], scale, torch.tensor(size))
        left = _with_area(boxes)
        boxes, found = boxes[left], {name: value[left] for name, value in found.items()}
        own = [row for row in rows if row["path"] == name]
        got = torch.tensor([[float(row[k]) for k in ("x1", "y1", "x2", "y2")] for row in own]).reshape(-1, 4)
        torch.testing.assert_close(got, boxes, rtol=0, atol=0.02)
        assert [row["label"] for row in own] == [NAMES[k] for k in found["labels"]]
        sure = int((found["scores"] >= 0.3).sum())
        assert len(records[name]["detections"]) == sure
        assert (records[name]["height"], records[name]["width"]) == size
        mine = [a for a in coco["annotations"] if a["image_id"] == number + 1]
        x, y, w, h = mine[0]["bbox"]
        assert [x, y, x + w, y + h] == pytest.approx(boxes[0].tolist(), abs=0.03)
        drawn = np.asarray(Image.open(tmp_path / "drawn" / name))
        assert max(drawn.shape) == 384
        assert abs(drawn.shape[0] / drawn.shape[1] - size[0] / size[1]) < 0.1


def test_instance_masks_are_the_detectors_at_the_files_size(root, tmp_path) -> None:
    """Against torchvision's own pasting at that size and, where the view is the file, against the detector's masks."""
    assert predict(root, "instances", tmp_path / "a.json") == 0
    assert predict(root, "instances", tmp_path / "a.jsonl") == 0
    method, coco = make_detector("mask_rcnn"), json.loads((tmp_path / "a.json").read_text())
    lines = list(map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines()))
    shapes = set()
    for number, record in enumerate(lines):
        _, tensor, size, scale = _seen(root, record["path"], method)
        with torch.inference_mode():
            (grids,), (found,) = method.detect_with_mask_probs(tensor), method(tensor)
        left = _with_area(to_original_size(grids["boxes"], scale, torch.tensor(size)))
        grids, found = ({name: value[left] for name, value in one.items()} for one in (grids, found))
        boxes = grids["boxes"] / scale.repeat(2)
        inside = ((boxes[:, 0] < size[1]) & (boxes[:, 1] < size[0])).numpy()  # torchvision fails on others
        want = np.zeros((len(boxes), *size), bool)
        want[inside] = paste_masks_in_image(grids["mask_probs"][inside][:, None], boxes[inside], size)[:, 0] > 0.5
        own = [a for a in coco["annotations"] if a["image_id"] == number + 1]
        got = np.stack([coco_mask.decode(a["segmentation"]) for a in own]).astype(bool)
        assert got.shape == want.shape
        assert got.any()
        assert (got != want).mean() < 1e-4  # a batch of three rounds otherwise than one image
        if size == (SIZE, SIZE):
            assert (got != found["masks"].numpy()).mean() < 1e-4
        assert [a["area"] for a in own] == got.sum((1, 2)).tolist()
        assert [d["segmentation"] for d in record["detections"]] == [a["segmentation"] for a in own]
        shapes.add(size)
    assert {(32, 32), (40, 64), (50, 21)} <= shapes


def test_pasted__is_torchvisions_and_outside_is_empty() -> None:
    torch.manual_seed(0)
    corners = torch.rand(40, 2, 2) * torch.tensor([60.0, 45.0])  # over the edges of 50 x 40 too
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    boxes = boxes[(boxes[:, 0] < 50) & (boxes[:, 1] < 40)]
    probs = torch.rand(len(boxes), 28, 28)
    want = paste_masks_in_image(probs[:, None], boxes, (40, 50))[:, 0] > 0.5
    got = list(paste_masks(probs, boxes, (40, 50)))
    assert len(got) == len(boxes) > 20
    for mine, theirs in zip(got, want.numpy()):
        np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(coco_mask.decode(encode_rle(mine)), theirs)
    (beyond,) = paste_masks(probs[:1], torch.tensor([[55.0, 3, 90, 9]]), (40, 50))
    assert beyond.shape == (40, 50)
    assert not beyond.any()
    assert list(paste_masks(probs[:0], boxes[:0], (40, 50))) == []


def test_boxes_that_lie_in_the_padding_are_in_no_output(root, tmp_path) -> None:
    """The view's padding is not in the file: a box there has no area, which our reader would refuse."""
    model, shape = load_model(root / "instances", "cpu"), (8, 64)  # 4 x 32 pixels of the view
    boxes = np.array([[[2, 1, 20, 4], [2, 6, 20, 30], [2, 4, 9, 9], [5, 2, 5, 3], [4, 3.998, 9, 12]]], np.float32)
    scores, labels = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]], np.float32), np.zeros((1, 5))
    outputs = {"boxes": boxes, "scores": scores, "labels": labels, "mask_probs": np.ones((1, 5, 28, 28), np.float32)}
    batch = InputBatch(0, 1, ["a.png"], [0], np.zeros((1, SIZE, SIZE, 3), np.uint8), [shape])
    made = {name: DetectionLines(model.metadata, name).lines(batch, outputs) for name in DetectionLines.formats}
    assert len(made["csv"]["rows"].splitlines()) == 1
    (line,) = json.loads(made["jsonl"]["rows"])["detections"]
    (note,) = map(json.loads, made["json"]["rows"].splitlines())
    assert line["box"] == [4, 2, 40, 8]
    assert note["bbox"] == [4, 2, 36, 6]
    assert coco_mask.area(note["segmentation"]) == note["area"] > 0
    one = {name: value[:, :1] for name, value in outputs.items()}
    for name, given in (("all", outputs), ("one", one)):
        DetectionLines(model.metadata, "csv", draw=ImageWriter("--draw", tmp_path / name)).lines(batch, given)
    assert (tmp_path / "all/a.png").read_bytes() == (tmp_path / "one/a.png").read_bytes()


def test_instance_masks_tint_the_drawn_view(root, tmp_path) -> None:
    model, size = load_model(root / "instances", "cpu"), (SIZE, SIZE)
    pixels = np.array(Image.open(root / "images" / "000.png").convert("RGB"))[None]
    batch, outputs = InputBatch(0, 1, ["a.png"], [0], pixels, [size]), model(pixels)
    grids = outputs.pop("mask_probs")
    for name, more in (("plain", {}), ("tinted", {"mask_probs": grids})):
        DetectionLines(model.metadata, "csv", min_score=0.3, draw=ImageWriter("--draw", tmp_path / name)).lines(
            batch, {**outputs, **more}
        )
    plain, tinted = (np.asarray(Image.open(tmp_path / name / "a.png")) for name in ("plain", "tinted"))
    sure = outputs["scores"][0] >= 0.3
    times = plain.shape[0] // SIZE
    boxes = torch.from_numpy(outputs["boxes"][0][sure] * times)
    union = np.any(list(paste_masks(torch.from_numpy(grids[0][sure]), boxes, plain.shape[:2])), axis=0)
    changed = (plain != tinted).any(2)
    assert not changed[~union].any()
    assert changed.sum() > 0.5 * union.sum() > 0  # the rest lies under lines and texts


def test_masks_are_the_segmenters_in_the_files_size(root, tmp_path) -> None:
    folders = ["--masks", str(tmp_path / "masks"), "--draw", str(tmp_path / "drawn")]
    assert predict(root, "segmenter", tmp_path / "a.csv", *folders) == 0
    assert predict(root, "segmenter", tmp_path / "a.json") == 0
    method = make_segmenter()
    with open(tmp_path / "a.csv", newline="") as file:
        rows = {row.pop("path"): row for row in csv.DictReader(file)}
    coco = json.loads((tmp_path / "a.json").read_text())
    assert [c["id"] for c in coco["categories"]] == [0, 1, 2, 3]
    seen = set()
    for number, name in enumerate(sorted(rows)):
        view, tensor, size, _ = _seen(root, name, method)
        with torch.inference_mode():
            best = method(tensor)[0].argmax(0).numpy()
        mask = np.asarray(Image.open(tmp_path / "masks" / name))
        assert mask.shape == size
        if size == view.shape[:2]:
            np.testing.assert_array_equal(mask, best)
        shares = [float(rows[name][k]) for k in ("background", *NAMES)]
        assert shares == pytest.approx([(mask == k).mean() for k in range(4)], abs=1e-6)
        for note in (a for a in coco["annotations"] if a["image_id"] == number + 1):
            flat = np.repeat(np.arange(len(note["segmentation"]["counts"])) % 2, note["segmentation"]["counts"])
            np.testing.assert_array_equal(flat.reshape(size, order="F") == 1, mask == note["category_id"])
        seen |= set(np.unique(mask).tolist())
        assert (tmp_path / "drawn" / name).exists()
    assert len(seen) > 1
    assert {a["category_id"] for a in coco["annotations"]} == seen - {0}


@pytest.mark.parametrize("model", ["detector", "instances", "segmenter"])
@pytest.mark.parametrize("shape", [(2, 1000), (1000, 2)])
def test_a_very_thin_image_keeps_a_pixel_of_its_shorter_side(root, tmp_path, model: str, shape: tuple) -> None:
    """500 : 1 on 32 pixels is 0.06 pixels high, which rounded to none."""
    write_pictures(tmp_path / "images", 1)
    Image.fromarray(np.full((*shape, 3), 90, np.uint8)).save(tmp_path / "images" / "thin.png")
    out = tmp_path / "o.json"
    more = ["--draw", str(tmp_path / "drawn")]
    assert predict(tmp_path, str(root / model), out, *more) == 0
    coco = json.loads(out.read_text())
    assert [(i["height"], i["width"]) for i in coco["images"]] == [(32, 32), shape]
    for note in coco["annotations"]:
        assert np.isfinite(note["bbox"]).all()
        if note["image_id"] == 2 and model != "detector":
            assert tuple(note["segmentation"]["size"]) == shape
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert min(np.asarray(Image.open(drawn[1])).shape[:2]) == 384 // SIZE


@pytest.mark.parametrize(
    ("model", "ending"),
    [
        ("detector", "json"),
        ("segmenter", "json"),
        ("detector", "csv"),
        ("instances", "json"),
        ("instances", "jsonl"),
        ("instances", "results.json"),
    ],
)
def test_stopped_and_resumed_gives_the_same_bytes(root, tmp_path, stopped_writer, model: str, ending: str) -> None:
    assert predict(root, model, tmp_path / f"whole.{ending}") == 0
    out = tmp_path / f"part.{ending}"
    with stopped_writer(3):
        assert predict(root, model, out) == 130
    assert not out.exists()
    assert predict(root, model, out) == 0
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {out.name, f"whole.{ending}"}


def test_an_unfinished_run_of_before_the_flags_were_renamed_is_continued(root, tmp_path, stopped_writer) -> None:
    """The record as commit 37adabd wrote it: the same values under form, score and draw."""
    assert predict(root, "detector", tmp_path / "all.json", "--min_score", "0.05") == 0
    out, state = tmp_path / "part.json", tmp_path / "part.json.part.json"
    with stopped_writer(3):
        assert predict(root, "detector", out, "--min_score", "0.05") == 130
    record = json.loads(state.read_text())
    old = {"format": "form", "min_score": "score"}
    record["identity"] = {old.get(key, key): value for key, value in record["identity"].items()}
    assert {"form", "score", "draw"} < set(record["identity"])
    state.write_text(json.dumps(record))
    assert predict(root, "detector", out, "--min_score", "0.05") == 0
    assert out.read_bytes() == (tmp_path / "all.json").read_bytes()


def test_folders_of_pictures_inside_the_images_folder_are_no_images(
    root, tmp_path, stopped_writer, monkeypatch, capsys
) -> None:
    """`cd photos; lit-vision predict . --masks masks`: stopped and gone on, and once more over what is there."""
    names = write_pictures(tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    arguments = ["predict", ".", "--model", str(root / "segmenter"), "--device", "cpu", "--batch_size", "2"]
    arguments += ["--masks", "out/masks", "--draw", f"{tmp_path / 'photos'}/drawn"]
    with stopped_writer(3):
        assert main([*arguments, "--out", "o.csv"]) == 130
    assert main([*arguments, "--out", "o.csv"]) == 0
    assert "2 of 7" in capsys.readouterr().out
    assert main([*arguments, "--out", "again.csv"]) == 0
    with open("again.csv", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == names
    assert Path("o.csv").read_bytes() == Path("again.csv").read_bytes()
    for folder in ("out/masks", "drawn"):
        assert len(list(Path(folder).rglob("*.png"))) == 7


MADE = {  # runs that this test alone needs
    "retinanet": lambda: make_detector("retinanet"),
    "vit-detector": lambda: make_detector(vit=True),
    "vit-segmenter": lambda: make_segmenter(vit=True),
    "prompted-detector": lambda: make_detector(vit=True, tune="prompt-deep", prompt_length=3),
}
RUNTIMES = [(model, form) for model in ("detector", "segmenter", *MADE) for form in ("onnx", "openvino", "safetensors")]
# by default one head as a graph, and every model as safetensors: an export takes seconds
QUICK = {("segmenter", "onnx")}


@pytest.mark.parametrize(
    ("model", "form"),
    [pytest.param(*one, marks=[pytest.mark.slow] * (one[1] != "safetensors" and one not in QUICK)) for one in RUNTIMES],
)
def test_every_runtime_gives_torchs_results(root, tmp_path, model: str, form: str) -> None:
    pytest.importorskip(
        {"onnx": "onnxruntime", "openvino": "openvino"}.get(form, "torch"), reason="needs the export extra"
    )
    if model in MADE and not (root / model).exists():
        write_run(root / model, MADE[model]())
    file = tmp_path / f"m.{ {'onnx': 'onnx', 'openvino': 'xml', 'safetensors': 'safetensors'}[form] }"
    assert main(["export", str(root / model), "--format", form, "--out", str(file)]) == 0
    torch_model, other = load_model(root / model, "cpu"), load_model(file, "cpu")
    assert vars(other.metadata) == vars(torch_model.metadata)
    for n in (1, 5):
        images = example_input(torch_model.metadata, n, seed=n + 9)
        wanted, found = torch_model.run(images), other.run(images)
        for name, value in wanted.items():
            assert found[name].shape == value.shape
            np.testing.assert_allclose(found[name], value, atol=1e-4 * max(1, np.abs(value).max()))
    here, there = tmp_path / "t.jsonl", tmp_path / "o.jsonl"
    assert predict(root, model, here) == 0
    arguments = ["predict", str(root / "images"), "--model", str(file), "--out", str(there), "--device", "cpu"]
    assert main([*arguments, "--batch_size", "5"]) == 0
    for a, b in zip(map(json.loads, here.read_text().splitlines()), map(json.loads, there.read_text().splitlines())):
        if model.endswith("segmenter"):
            assert a["shares"] == pytest.approx(b["shares"], abs=0.003)
            continue
        assert len(a["detections"]) == len(b["detections"])
        for x, y in zip(a["detections"], b["detections"]):
            assert x["label"] == y["label"]
            assert x["score"] == pytest.approx(y["score"], abs=1e-4)
            assert x["box"] == pytest.approx(y["box"], abs=0.5)


BROKEN = {
    "top of boxes": (["detector", "o.csv", "--top_k", "3"], 2, "--top_k"),
    "masks of boxes": (["detector", "o.csv", "--masks", "m"], 2, "--masks"),
    "score of masks": (["segmenter", "o.csv", "--min_score", "0.5"], 2, "--min_score"),
    "explain": (["detector", "o.csv", "--explain", "e"], 2, "--explain"),
    "score above one": (["detector", "o.csv", "--min_score", "50"], 2, "--min_score 50"),
    "ending": (["segmenter", "o.png"], 2, "o.png"),
    "draw into a file": (["detector", "o.csv", "--draw", "{images}/000.png"], 1, "--draw"),
    "masks into a file": (["segmenter", "o.csv", "--masks", "{images}/000.png"], 1, "--masks"),
    "two folders in one": (["segmenter", "o.csv", "--masks", "m", "--draw", "./m"], 2, "--draw"),
    "masks on images": (["segmenter", "o.csv", "--masks", "{images}/../images"], 1, "--masks"),
    "no run": (["nothing", "o.csv"], 1, "/nothing"),
    "torn": (["torn.ckpt", "o.csv"], 1, "torn.ckpt"),
    "other weights": (["misfit.ckpt", "o.csv"], 1, "misfit.ckpt"),
    "not finite": (["nan", "o.csv"], 1, "/nan/"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_command__one_line_and_nothing_lost(root, tmp_path, name: str, capsys) -> None:
    (model, out, *more), code, text = BROKEN[name]
    checkpoint = root / "detector" / "checkpoints" / "last.ckpt"
    if model == "torn.ckpt":
        (root / model).write_bytes(checkpoint.read_bytes()[:5000])
    if model == "misfit.ckpt":
        content = torch.load(checkpoint, weights_only=True)
        content["state_dict"].popitem()
        torch.save(content, root / model)
    if model == "nan" and not (root / "nan").exists():
        method = make_detector()
        next(method.backbone.parameters()).data.fill_(float("nan"))
        write_run(root / "nan", method)
    before = {p: p.stat().st_size for p in root.rglob("*") if p.is_file()}
    assert predict(root, model, tmp_path / out, *(word.format(images=root / "images") for word in more)) == code
    error = capsys.readouterr().err.strip()
    assert text in error
    assert len(error.splitlines()) == 1
    assert {p: p.stat().st_size for p in root.rglob("*") if p.is_file()} == before
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize("model", ["two-stage", "instances"])
def test_export_of_a_two_stage_head_is_refused_and_names_the_method(root, tmp_path, model: str, capsys) -> None:
    for form, ending in (("onnx", "onnx"), ("openvino", "xml"), ("pt2", "pt2")):
        out = tmp_path / f"m.{ending}"
        assert main(["export", str(root / model), "--format", form, "--out", str(out)]) == 1
        error = capsys.readouterr().err.strip()
        assert HEADS[model] in error
        assert "fcos or retinanet" in error
        assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    out = tmp_path / "m.safetensors"
    assert main(["export", str(root / model), "--format", "safetensors", "--out", str(out)]) == 0
    assert predict(root, model, tmp_path / "a.json") == 0
    arguments = ["predict", str(root / "images"), "--model", str(out), "--out", str(tmp_path / "b.json")]
    assert main([*arguments, "--device", "cpu", "--batch_size", "3"]) == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
