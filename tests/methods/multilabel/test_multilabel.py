"""MultiLabelClassifier: loss and metrics against loops and scikit-learn, thresholds, from a table to predictions."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from torchmetrics.functional.classification import multilabel_precision_recall_curve

import lit_vision
from lit_vision.cli.main import main
from lit_vision.methods import Classifier, MultiLabelClassifier
from lit_vision.methods.multilabel.network import average_precision, best_threshold, masked_bce
from lit_vision.predict.models import load_model
from lit_vision.predict.multilabel import sigmoid

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, "pool": "avg"}
NAN = float("nan")


def test_masked_bce__is_the_loop_over_known_labels() -> None:
    logits = torch.tensor([[0.3, -2.0, 5.0], [1.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1.0, NAN, 0.0], [0.0, 1.0, NAN]])
    total = 0.0
    for i in range(2):
        for k in range(3):
            if not labels[i, k].isnan():
                p = 1 / (1 + np.exp(-logits[i, k].item()))
                total -= np.log(p if labels[i, k] == 1 else 1 - p)
    loss = masked_bce(logits, labels)
    assert loss.item() == pytest.approx(total / 6, abs=1e-12)
    loss.backward()
    assert logits.grad[0, 1] == logits.grad[1, 2] == 0
    assert (logits.grad[0, 0], logits.grad[1, 1]) != (0, 0)


def test_masked_bce__closed_forms_and_two_halves_with_the_gradient_of_one() -> None:
    assert masked_bce(torch.zeros(3, 2), torch.ones(3, 2)).item() == pytest.approx(np.log(2))
    assert masked_bce(torch.zeros(3, 2), torch.full((3, 2), NAN)).item() == 0
    labels = torch.tensor([[1.0, NAN], [NAN, NAN], [0.0, 1.0], [1.0, 1.0]])
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (one,) = torch.autograd.grad(masked_bce(logits, labels), logits)
    halves = sum(masked_bce(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2)) / 2  # DDP's mean
    torch.testing.assert_close(torch.autograd.grad(halves, logits)[0], one)


def test_average_precision_and_threshold_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.random((40, 3)), rng.integers(0, 2, (40, 3))
    curves = multilabel_precision_recall_curve(torch.tensor(scores), torch.tensor(truth), 3)
    for k, (precision, recall, thresholds) in enumerate(zip(*curves)):
        expected = average_precision_score(truth[:, k], scores[:, k])
        assert average_precision(precision, recall).item() == pytest.approx(expected, abs=1e-6)
        best = max(f1_score(truth[:, k], scores[:, k] >= t) for t in scores[:, k])
        chosen = best_threshold(precision, recall, thresholds)
        assert f1_score(truth[:, k], scores[:, k] >= chosen) == pytest.approx(best)
    none = multilabel_precision_recall_curve(torch.tensor(scores), torch.zeros(40, 3, dtype=torch.int64), 3)
    assert best_threshold(none[0][0], none[1][0], none[2][0]) == 0.5


def test_sigmoid_is_stable() -> None:
    np.testing.assert_allclose(sigmoid(np.array([[-1000.0, 0.0, 1000.0]])), [[0, 0.5, 1]])


def test_one_label_an_image_is_refused_and_several_by_the_classifier() -> None:
    images, key = torch.zeros(2, 1, 16, 16, 3, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.int64)
    several = MultiLabelClassifier("vit_tiny_patch16_224", 3, VIT)
    with pytest.raises(Exception, match="label_columns"):
        several.on_before_batch_transfer({"images": images, "label": torch.tensor([0, 1]), "key": key}, 0)
    one = Classifier("vit_tiny_patch16_224", 3, VIT)
    with pytest.raises(Exception, match="MultiLabelClassifier"):
        one.on_before_batch_transfer({"images": images, "label": torch.zeros(2, 3), "key": key}, 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on images whose labels are the colors that they have; some labels are unknown."""
    root = tmp_path_factory.mktemp("colors")
    rng, rows = np.random.default_rng(0), []
    for i in range(96):
        on = rng.integers(0, 2, 3)
        pixels = np.where(on, 200, 30) + rng.integers(-20, 20, (16, 16, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i:02d}.png")
        cells = ["" if rng.random() < 0.1 else str(v) for v in on]
        rows.append([f"{i:02d}.png", *cells, "train" if i < 64 else "val" if i < 80 else "test"])
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "red", "green", "blue", "split"], *rows])
    recipe = {
        "seed_everything": 0,
        "trainer": {"max_epochs": 10, "enable_progress_bar": False, "accelerator": "cpu"},
        "model": {
            "class_path": "lit_vision.methods.MultiLabelClassifier",
            "init_args": {"backbone": "vit_tiny_patch16_224", "backbone_args": VIT, "num_labels": 3, "lr": 3e-3,
                          "warmup_epochs": 0.5},
        },
        "data": {
            "class_path": "lit_vision.data.ImageFolderDataModule",
            "init_args": {"root": str(root), "label_file": str(root / "labels.csv"), "img_size": 16, "batch_size": 16,
                          "label_columns": ["red", "green", "blue"], "num_workers": 0, "crop_scale": [0.5, 1.0]},
        },
    }  # fmt: skip
    (root / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["fit", "--config", str(root / "recipe.yaml"), "--run_dir", str(root / "run")]) == 0
    return root


def test_a_run_learns_names_its_labels_and_chooses_thresholds(trained, capsys) -> None:
    checkpoint = torch.load(trained / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["card"]["class_names"] == ["red", "green", "blue"]
    assert len(checkpoint["card"]["options"]["thresholds"]) == 3
    with open(trained / "run" / "metrics.csv") as file:
        last = [row for row in csv.DictReader(file) if row.get("val/map")][-1]
    assert float(last["val/map"]) > 0.95
    arguments = ["--config", str(trained / "run" / "config.yaml"), "--ckpt_path"]
    assert main(["test", *arguments, str(trained / "run" / "checkpoints" / "best.ckpt")]) == 0
    assert "test/map" in capsys.readouterr().out


@pytest.mark.parametrize("file_format", ["csv", "jsonl"])
def test_predict_writes_labels_above_their_threshold_and_all_scores(trained, tmp_path, file_format: str) -> None:
    out = tmp_path / f"out.{file_format}"
    assert main(["predict", "--model", str(trained / "run"), str(trained), "--out", str(out)]) == 0
    model = load_model(trained / "run", "cpu")
    thresholds = dict(zip(model.metadata.class_names, model.metadata.options["thresholds"]))
    right = 0
    with open(out) as file:
        rows = list(csv.DictReader(file)) if file_format == "csv" else [json.loads(line) for line in file]
    found = lit_vision.load(trained / "run").predict(trained)
    for row, result in zip(rows, found, strict=True):
        scores = row if file_format == "csv" else row["scores"]
        labels = row["labels"] if file_format == "jsonl" else [name for name in row["labels"].split("|") if name]
        given = [name for name in thresholds if float(scores[name]) >= thresholds[name]]
        assert labels == given == list(result.labels)
        wanted = {name: round(float(score), 6) for name, score in zip(result.classes, result.scores)}
        assert {name: float(scores[name]) for name in thresholds} == wanted
        means = np.asarray(Image.open(trained / row["path"])).mean((0, 1))
        right += labels == [name for name, value in zip(("red", "green", "blue"), means) if value > 100]
    assert len(rows) == 96
    assert right > 80


def test_exports_have_the_same_scores(trained, tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    expected = load_model(trained / "run", "cpu")(pixels)["logits"]
    for kind in ("safetensors", "onnx"):
        out = tmp_path / f"model.{kind}"
        assert main(["export", str(trained / "run"), "--format", kind, "--out", str(out)]) == 0
        model = load_model(out, "cpu")
        assert model.metadata.task == "multilabel"
        np.testing.assert_allclose(model(pixels)["logits"], expected, atol=1e-4)
