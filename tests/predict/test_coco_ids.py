"""COCO's ids: predictions have those of the training data, with gaps, and pycocotools loads them as results."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from toy_dense import NAMES, SIZE, make_detector, make_segmenter, write_pictures
from toy_models import write_run

from lit_vision.cli.main import main
from lit_vision.data import AnnotatedDataModule
from lit_vision.errors import UserError
from lit_vision.evaluation.detection import coco_metric, coco_values, update_boxes
from lit_vision.methods.fine_tuning import metadata_for
from lit_vision.predict.coco_ids import coco_ids
from lit_vision.predict.detection import DecodeBoxes
from lit_vision.predict.models import load_model
from lit_vision.predict.tasks import accuracy_check_for
from lit_vision.weights.model_metadata import ModelMetadata

IDS = [3, 17, 90]  # of cup, pan, pot


def predict(root: Path, model: str, out: Path, *more: str, images: str = "set/test/images") -> int:
    arguments = ["predict", str(root / images), "--model", str(root / model), "--out", str(out), "--device", "cpu"]
    return main([*arguments, "--batch_size", "3", *more])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A set with gaps in its category ids, labeled with every third box of a detector, and runs trained on it."""
    folder = tmp_path_factory.mktemp("ids")
    for i, name in enumerate(write_pictures(folder / "all", 8)):
        if i % 4 in (0, 3):  # square: the view has no padding
            (folder / "set/test/images").mkdir(parents=True, exist_ok=True)
            (folder / "all" / name).rename(folder / "set/test/images" / name)
    write_run(folder / "old", make_detector())
    assert predict(folder, "old", folder / "found.json") == 0
    found = json.loads((folder / "found.json").read_text())
    assert [c["id"] for c in found["categories"]] == [1, 2, 3]  # metadata without ids
    found["categories"] = [{"id": IDS[i], "name": NAMES[i]} for i in (2, 0, 1)]
    found["annotations"] = found["annotations"][::3]
    for note in found["annotations"]:
        note["category_id"] = IDS[note["category_id"] - 1]
    (folder / "set/test/annotations.json").write_text(json.dumps(found))
    (folder / "set/train").symlink_to("test")
    data = AnnotatedDataModule(str(folder / "set"), img_size=SIZE, num_workers=0)
    data.setup()
    for head in ("fcos", "mask_rcnn"):
        method = make_detector(head)
        method.metadata = metadata_for("detection", data, {"head": head})
        write_run(folder / head, method)
    write_run(folder / "segmenter", make_segmenter())
    return folder


def _measured(root: Path) -> float:
    """Return torchmetrics' mAP of the model's own detections, without those that have no area."""
    model, metric = load_model(root / "fcos", "cpu"), coco_metric()
    check, decode = accuracy_check_for(str(root / "set"), model.metadata), DecodeBoxes(model.metadata)
    for batch, outputs in check.batches(model):
        found = decode(outputs)
        for i, one in enumerate(found):
            left = (one["boxes"][:, 2:] - one["boxes"][:, :2] > 0.01).all(1)
            found[i] = {name: value[left] for name, value in one.items()}
        update_boxes(metric, found, batch["targets"])
    return coco_values(metric)["map"]


def test_results_load_in_pycocotools_with_the_datas_ids_and_measure_the_same(root, tmp_path) -> None:
    out = tmp_path / "o.results.json"
    assert predict(root, "fcos", out) == 0
    assert predict(root, "fcos", tmp_path / "o.json") == 0
    whole = json.loads((tmp_path / "o.json").read_text())
    assert whole["categories"] == [{"id": i, "name": name} for i, name in zip(IDS, NAMES)]
    assert {note["category_id"] for note in whole["annotations"]} == set(IDS)
    truth = COCO(str(root / "set/test/annotations.json"))
    results = truth.loadRes(str(out))
    assert len(results.anns) == len(whole["annotations"]) > 10
    for one, note in zip(results.dataset["annotations"], whole["annotations"]):
        assert {key: one[key] for key in ("image_id", "category_id", "bbox", "score")} == {
            key: note[key] for key in ("image_id", "category_id", "bbox", "score")
        }
    measure = COCOeval(truth, results, "bbox")
    measure.evaluate()
    measure.accumulate()
    measure.summarize()
    assert measure.stats[0] == pytest.approx(_measured(root), abs=1e-4)
    assert 0.05 < measure.stats[0] < 1


def test_results_of_masks_load_too(root, tmp_path) -> None:
    out = tmp_path / "o.results.json"
    assert predict(root, "mask_rcnn", out) == 0
    results = COCO(str(root / "set/test/annotations.json")).loadRes(str(out))
    masks = [results.annToMask(note) for note in results.anns.values()]
    assert len(masks) > 5
    assert np.any(masks[0])


def test_ids_travel_with_every_file_of_the_model(root, tmp_path) -> None:
    for model in ("fcos", "mask_rcnn"):
        file = tmp_path / f"{model}.safetensors"
        assert main(["export", str(root / model), "--format", "safetensors", "--out", str(file)]) == 0
        assert (
            load_model(root / model, "cpu").metadata.category_ids
            == load_model(file, "cpu").metadata.category_ids
            == IDS
        )
    card = load_model(root / "old", "cpu").metadata
    assert card.category_ids == []
    card.category_ids = [1]
    with pytest.raises(UserError, match=r"m\.onnx: .*1 category_ids for 3 classes"):
        ModelMetadata.from_json(card.to_json(), "m.onnx")


@pytest.mark.parametrize(
    ("names", "ids"), [(None, IDS), (["pot", "cup", "pan"], [90, 3, 17]), (["pot", "cup", "pan", "lid"], [])]
)
def test_category_ids__follow_the_classes(root, names, ids) -> None:
    data = AnnotatedDataModule(str(root / "set"), img_size=SIZE, class_names=names, labels=2, num_workers=0)
    data.setup()
    assert data.category_ids == ids
    assert data.table("train").category_ids == ids


def test_results_of_a_segmenter_are_refused(root, tmp_path, capsys) -> None:
    assert predict(root, "segmenter", tmp_path / "o.results.json") == 2
    assert "csv, jsonl, json" in capsys.readouterr().err


# ids of the user's own truth


def renumbered_truth(root: Path, path: Path, prefix: str = "", drop: int = 0) -> dict:
    """Write the set's truth with shuffled image ids and other category ids; return its content."""
    truth = json.loads((root / "set/test/annotations.json").read_text())
    of_old = {image["id"]: 7 * i % 11 + 100 for i, image in enumerate(reversed(truth["images"]))}
    for image in truth["images"]:
        image.update(id=of_old[image["id"]], file_name=prefix + image["file_name"])
    for note in truth["annotations"]:
        note.update(image_id=of_old[note["image_id"]], category_id=note["category_id"] + 1)
    for category in truth["categories"]:
        category["id"] += 1
    truth["images"] = truth["images"][drop:]
    path.write_text(json.dumps(truth))
    return truth


@pytest.mark.parametrize("prefix", ["", "test/images/", "C:\\data\\", "https://host/of/another/"])
def test_truth__its_ids_by_name_and_the_same_precision_in_pycocotools(root, tmp_path, prefix, capsys) -> None:
    renumbered_truth(root, tmp_path / "truth.json", prefix)
    out = tmp_path / "o.results.json"
    assert predict(root, "fcos", out, "--truth", str(tmp_path / "truth.json")) == 0
    text = capsys.readouterr().out
    assert "image ids and category ids: those of" in text
    truth = COCO(str(tmp_path / "truth.json"))
    measure = COCOeval(truth, truth.loadRes(str(out)), "bbox")
    measure.evaluate()
    measure.accumulate()
    measure.summarize()
    assert measure.stats[0] == pytest.approx(_measured(root), abs=1e-4)


def test_truth__of_coco_json_and_of_a_segmenter(root, tmp_path, capsys) -> None:
    truth = renumbered_truth(root, tmp_path / "truth.json")
    for model in ("mask_rcnn", "segmenter"):
        out = tmp_path / f"{model}.json"
        assert predict(root, model, out, "--truth", str(tmp_path / "truth.json")) == 0
        written = json.loads(out.read_text())
        assert {i["file_name"]: i["id"] for i in written["images"]} == {
            i["file_name"]: i["id"] for i in truth["images"]
        }
        wanted = {c["name"]: c["id"] for c in truth["categories"]}
        assert wanted.items() <= {c["name"]: c["id"] for c in written["categories"]}.items()
        assert len({c["id"] for c in written["categories"]}) == len(written["categories"])
        assert {a["image_id"] for a in written["annotations"]} <= {i["id"] for i in truth["images"]}
    assert "background, which get new ids" in capsys.readouterr().out


WRONG_TRUTH = {
    "missing": (None, "truth.json"),
    "no JSON": ("{", "JSON"),
    "a list": ("[]", "'images'"),
    "no categories": ('{"images": []}', "'categories'"),
    "no id": ('{"images": [{"file_name": "a"}], "categories": []}', r"images\[0\]"),
    "id true": ('{"images": [{"id": true, "file_name": "a"}], "categories": []}', r"images\[0\]"),
    "id twice": ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "categories": []}', "same id"),
    "other images": ('{"images": [{"id": 1, "file_name": "z.png"}], "categories": []}', "no image a/1.png"),
    "other classes": (
        '{"images": [{"id": 1, "file_name": "a/1.png"}], "categories": [{"id": 1, "name": "car"}]}',
        "car.*cup",
    ),
    "two candidates": (
        '{"images": [{"id": 1, "file_name": "x/a/1.png"}, {"id": 2, "file_name": "y/a/1.png"}], "categories": []}',
        "x/a/1.png and y/a/1.png",
    ),
}


@pytest.mark.parametrize("name", WRONG_TRUTH)
def test_truth__wrong_files_are_refused_in_one_line(name: str, tmp_path) -> None:
    content, message = WRONG_TRUTH[name]
    if content is not None:
        (tmp_path / "truth.json").write_text(content)
    metadata = ModelMetadata("detection", 32, [0.5] * 3, [0.25] * 3, class_names=NAMES)
    with pytest.raises(UserError, match=f"^--truth .*truth.json: .*{message}|^--truth .*{message}: ") as error:
        coco_ids(["a/1.png"], metadata, str(tmp_path / "truth.json"))
    assert "\n" not in str(error.value)


def test_truth__is_for_cocos_formats_alone(root, tmp_path, capsys) -> None:
    renumbered_truth(root, tmp_path / "truth.json", drop=1)
    assert predict(root, "fcos", tmp_path / "o.csv", "--truth", str(tmp_path / "truth.json")) == 2
    assert "--truth" in capsys.readouterr().err
    assert predict(root, "fcos", tmp_path / "o.json", "--truth", str(tmp_path / "truth.json")) == 1
    assert "has no image 000.png" in capsys.readouterr().err  # `drop` took it away


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["val/000000000139.jpg", "val/000000000285.jpg"], [139, 285]),
        (["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000007.jpg"], [42, 7]),
        (["7.png", "x.png"], [1, 2]),
        (["a/1.png", "b/1.png"], [1, 2]),
        (["000.png", "001.png", "002.png"], [1, 2, 3]),  # a count, not ids
        (["2.png", "3.png"], [2, 3]),
        (["IMG_20240101.png"], [1]),
        (["\u0663.png", "\u0665.png"], [1, 2]),  # digits of another script
    ],
)
def test_image_ids__are_numbers_in_file_names_or_count_from_one(names, ids) -> None:
    metadata = ModelMetadata("detection", 32, [0.5] * 3, [0.25] * 3, class_names=NAMES)
    found = coco_ids(names, metadata)
    assert list(found.images) == ids
    assert "image ids: " in found.note


def test_truth__of_another_folder_matches_unique_names_and_says_so(tmp_path) -> None:
    metadata = ModelMetadata("detection", 32, [0.5] * 3, [0.25] * 3, class_names=NAMES)
    images = [{"id": i, "file_name": f"old/{name}"} for i, name in enumerate(("a/1.png", "a/2.png", "b/2.png"))]
    categories = [{"id": 4, "name": "pan"}, {"id": 9, "name": "lid"}]
    (tmp_path / "truth.json").write_text(json.dumps({"images": images, "categories": categories}))
    found = coco_ids(["new/1.png", "./b/2.png"], metadata, str(tmp_path / "truth.json"))
    assert (list(found.images), found.categories) == ([0, 2], [10, 4, 11])
    for part in ("1 images matched by name without folder", "1 of its 3 images", "the model has no lid", "cup, pot"):
        assert part in found.note
    with pytest.raises(UserError, match="no image new/2"):  # two entries have this name
        coco_ids(["new/2.png"], metadata, str(tmp_path / "truth.json"))
    with pytest.raises(UserError, match=r"no image x/1\.png, y/1\.png"):  # two images have it
        coco_ids(["x/1.png", "y/1.png"], metadata, str(tmp_path / "truth.json"))
    with pytest.raises(UserError, match="name each image once"):
        coco_ids(["old/a/1.png", "a/1.png"], metadata, str(tmp_path / "truth.json"))


@pytest.mark.parametrize("model", ["fcos", "mask_rcnn"])
def test_max_detections__are_the_best_ones_and_a_line_says_when_the_limit_is_reached(
    root, tmp_path, model, capsys
) -> None:
    def boxes(name: str, *more: str) -> tuple[dict[str, list], str]:
        assert predict(root, model, tmp_path / name, *more) == 0
        records = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        return {r["path"]: [d["box"] for d in r["detections"]] for r in records}, capsys.readouterr().out

    everything, text = boxes("a.jsonl", "--max_detections", "3000")
    assert "--max_detections" not in text
    most = max(map(len, everything.values()))
    usual, _ = boxes("b.jsonl")
    assert all(0 < len(usual[name]) <= 100 for name in everything)
    assert all(found == everything[name][: len(found)] for name, found in usual.items())
    few, text = boxes("c.jsonl", "--max_detections", "2")
    assert "4 images have 2 detections" in text
    assert most > 2
    for name, found in few.items():
        assert len(found) <= 2  # fewer where the best lie in the padding
        assert found == everything[name][: len(found)]
    assert predict(root, model, tmp_path / "d.jsonl", "--max_detections", "0") == 2
    assert predict(root, "segmenter", tmp_path / "d.jsonl", "--max_detections", "5") == 2


def test_max_detections__of_training_is_that_of_every_file_of_the_model(root, tmp_path) -> None:
    write_run(tmp_path / "run", make_detector(max_detections=3))
    file = tmp_path / "m.safetensors"
    assert main(["export", str(tmp_path / "run"), "--format", "safetensors", "--out", str(file)]) == 0
    for source in (tmp_path / "run", file):
        model = load_model(source, "cpu")
        assert model.metadata.options["max_detections"] == 3
        found = DecodeBoxes(model.metadata)(model(np.zeros((1, SIZE, SIZE, 3), np.uint8) + 90))
        assert len(found[0]["scores"]) == 3
    with pytest.raises(UserError, match=r"model\.max_detections"):
        make_detector(max_detections=0)
