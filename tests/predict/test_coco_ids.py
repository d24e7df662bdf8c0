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
