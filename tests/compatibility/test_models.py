"""Exports, adapters, imported weights and indexes of before the rooms were moved: they load and answer as then."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from lit_vision.cli.main import main

GARMENTS, SHAPES = "garments/test", "shapes/val/images"
VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 1}
CNN = {"stem": "small", "stem_type": "deep", "stem_width": 4, "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def predict(here: Path, tmp_path: Path, model: str, images: str, answer: str, *more: str) -> tuple[Path, Path]:
    """Files with the answers of a model, now and then."""
    out = tmp_path / answer
    assert main(["predict", "--model", model, images, "--out", str(out), "--device", "cpu", *more]) == 0
    return out, here / "answers" / answer


@pytest.mark.parametrize("name", ["classifier", "imported", "adapter"])
def test_a_classifier_answers_as_before(here, tmp_path, name) -> None:
    base = ["--base", "exports/mae.safetensors"] if name == "adapter" else []
    out, then = predict(here, tmp_path, f"exports/{name}.safetensors", GARMENTS, f"{name}.csv", *base)
    assert_same_answers(rows(out), rows(then))


def assert_same_answers(found: list[dict[str, str]], wanted: list[dict[str, str]]) -> None:
    """Classes and their scores; of two that are within rounding either may come first."""

    def scores(row: dict[str, str]) -> dict[str, float]:
        return {row[key]: float(row[key.replace("label", "score")]) for key in row if key.startswith("label")}

    assert [row["path"] for row in found] == [row["path"] for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        assert scores(row) == pytest.approx(scores(other), abs=1e-4)


def test_a_model_of_images_and_captions_answers_as_before(here, files, tmp_path) -> None:
    """Of its first release; its tokenizer lies in the checkpoint."""
    pytest.importorskip("tokenizers")
    classes = tmp_path / "classes.txt"
    classes.write_text("t-shirt\ntrouser\nsneaker\nbag\n")
    last = str(files / "fits" / "image_text" / "checkpoints" / "last.ckpt")
    out, then = predict(here, tmp_path, last, GARMENTS, "image_text.csv", "--classes", str(classes))
    assert_same_answers(rows(out), rows(then))


def test_a_detector_answers_as_before(here, tmp_path) -> None:
    out, then = predict(here, tmp_path, "exports/detector.safetensors", SHAPES, "detector.json", "--min_score", "0.06")
    found, wanted = (json.loads(path.read_text()) for path in (out, then))
    assert found["categories"] == wanted["categories"]
    assert found["images"] == wanted["images"]
    assert len(found["annotations"]) == pytest.approx(len(wanted["annotations"]), abs=3)  # a score at the limit
    mine = [(a["image_id"], a["category_id"], *a["bbox"], a["score"]) for a in found["annotations"]]
    for a in wanted["annotations"]:
        if a["score"] > 0.061:
            box = (a["image_id"], a["category_id"], *a["bbox"], a["score"])
            assert any(other == pytest.approx(box, abs=0.02) for other in mine), a


def test_a_segmenter_answers_as_before(here, tmp_path) -> None:
    out, then = predict(here, tmp_path, "exports/segmenter.safetensors", SHAPES, "segmenter.json")
    found, wanted = (json.loads(path.read_text()) for path in (out, then))
    assert found["categories"] == wanted["categories"]

    def areas(coco: dict) -> dict[tuple[int, int], int]:
        return {(a["image_id"], a["category_id"]): a["area"] for a in coco["annotations"]}

    assert areas(found) == pytest.approx(areas(wanted), abs=3)  # pixels at the edge of two classes


@pytest.mark.parametrize(("model", "index"), [("mae.safetensors", "index"), ("simclr.onnx", "index-simclr")])
def test_features_are_those_of_an_index_of_before(here, files, tmp_path, model, index) -> None:
    if model.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    out = tmp_path / "index.safetensors"
    assert main(["embed", GARMENTS, "--model", f"exports/{model}", "--out", str(out), "--device", "cpu"]) == 0
    found, wanted = load_file(out), load_file(files / f"{index}.safetensors")
    assert found["names"].tobytes() == wanted["names"].tobytes()
    np.testing.assert_allclose(found["features"], wanted["features"], atol=1e-4)
    with safe_open(out, "np") as one, safe_open(files / f"{index}.safetensors", "np") as other:
        assert one.metadata() == other.metadata()  # the same model: each may be searched with the other's


def test_an_index_of_before_is_searched(here, files, tmp_path) -> None:
    pytest.importorskip("faiss")
    index = ["search", "--index", str(files / "index.safetensors"), "--out"]
    query = rows(here / "answers" / "search.csv")[0]["query"]
    model = ["--model", "exports/mae.safetensors", "--device", "cpu"]
    assert main([*index, str(tmp_path / "search.csv"), *model, "--query", query, "--top_k", "4"]) == 0
    assert main([*index, str(tmp_path / "duplicates.csv"), "--duplicates", "0.98"]) == 0
    for name in ("search.csv", "duplicates.csv"):
        found, wanted = rows(tmp_path / name), rows(here / "answers" / name)
        for row, other in zip(found, wanted, strict=True):
            assert float(row.pop("score")) == pytest.approx(float(other.pop("score")), abs=2e-4)
            assert row == other


@pytest.mark.parametrize(
    ("name", "license"),
    [
        ("classifier.safetensors", "CC-BY-4.0"),
        ("detector.safetensors", "CC-BY-4.0"),
        ("mae.safetensors", "CC-BY-4.0"),
        ("simclr.onnx", "CC-BY-4.0"),
        ("imported.safetensors", "MIT"),
    ],
)
def test_the_license_of_an_export_of_before_is_kept(here, name, license) -> None:
    from lit_vision.predict.models import load_model

    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    assert load_model(here / "exports" / name, "cpu").metadata.license == license


def test_an_export_of_before_is_exported_again_with_its_license(here, tmp_path) -> None:
    out = tmp_path / "again.safetensors"
    assert main(["export", "exports/classifier.safetensors", "--format", "safetensors", "--out", str(out)]) == 0
    with safe_open(out, "np") as file:
        metadata = file.metadata()
    assert metadata["license"] == "CC-BY-4.0"
    assert "licence" not in json.dumps(metadata)


def test_a_checkpoint_of_before_is_loaded_in_python(files) -> None:
    from lit_vision.methods import MAE, Classifier, Detector, Segmenter, SimCLR

    for method in (MAE, SimCLR, Classifier, Detector, Segmenter):
        path = files / "fits" / method.__name__.lower() / "checkpoints" / "last.ckpt"
        module = method.load_from_checkpoint(path, map_location="cpu", weights_only=True)
        assert module.hparams.backbone in ("vit_tiny_patch16_224", "resnet18")


@pytest.mark.parametrize("source", ["exports/mae.safetensors", "fits/mae", "fits/classifier", "fits/simclr"])
def test_a_training_begins_from_weights_of_before(files, source) -> None:
    from lit_vision.methods import Classifier

    path = files / source if source.startswith("exports") else files / source / "checkpoints" / "last.ckpt"
    name, sizes = ("resnet18", CNN) if source == "fits/simclr" else ("vit_tiny_patch16_224", VIT)
    sizes = sizes | ({"pool": "avg"} if source == "fits/classifier" else {})
    fresh = Classifier(name, 4, sizes).backbone.state_dict()
    loaded = Classifier(name, 4, sizes, backbone_checkpoint=str(path)).backbone.state_dict()
    changed = [key for key, value in loaded.items() if key.endswith(".weight") and not torch.equal(value, fresh[key])]
    assert len(changed) > 9
