"""The medical case from end to end on images whose brightness is the finding, and what it refuses."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments/classify/medical.py"


@pytest.fixture(scope="module")
def medical():
    spec = importlib.util.spec_from_file_location("medical", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 48), ("val", 12), ("test", 24)):
        labels = (rng.random(n) < 0.35).astype(np.uint8)
        labels[:2] = 0, 1
        arrays[f"{split}_labels"] = labels[:, None]
        noise = rng.integers(0, 60, (n, 28, 28))
        arrays[f"{split}_images"] = (noise + 150 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "toy.npz", **arrays)
    return tmp_path / "toy.npz"


NET = "{stem: small, stem_type: deep, stem_width: 8, layers: [1, 1, 1, 1], channels: [8, 16, 16, 16]}"
TINY = ["--model.backbone", "resnet18", "--model.backbone_args", NET, "--model.lr", "5e-3", "--data.img_size", "32"]
TINY += [
    "--data.batch_size",
    "8",
    "--trainer.max_epochs",
    "3",
    "--trainer.logger",
    "false",
    "--trainer.accelerator",
    "cpu",
]
TINY += ["--data.num_workers", "0"]


def test_from_a_medmnist_file_to_the_clinical_report(medical, file: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        str(file),
        "--class_names",
        "healthy",
        "tumour",
        "--positive",
        "tumour",
        "--sensitivity",
        "0.9",
        "--run_dir",
        "run",
    ]
    assert medical.main([*words, *TINY]) == 0
    text = Path("run/clinical.txt").read_text()
    for word in ("AUROC", "sensitivity", "specificity", "calibration", "precision", "tumour", "healthy"):
        assert word in text
    result = json.loads(Path("run/results-medical.json").read_text())
    assert result["metric"]["name"] == "test/auroc"
    assert result["metric"]["value"] > 0.9
    assert sum(map(sum, result["confusion"])) == 24
    point = result["clinical"]["operating_point"]
    assert result["confusion"] == [
        [point["true_negative"], point["false_positive"]],
        [point["false_negative"], point["true_positive"]],
    ]
    assert Path("run/confusion.png").is_file()
    assert "--model.class_weights [" in capsys.readouterr().out


def test_what_it_refuses(medical, file: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert medical.main([str(file), "--positive", "tumour", "--dry"]) == 1
    assert "the classes are class-0 and class-1" in capsys.readouterr().err
    assert medical.main([str(file), "--dry"]) == 0
    assert medical.main([str(file), "--sensitivity", "2"]) == 1
    assert medical.main([str(tmp_path / "none"), "--dry"]) == 1
    assert not Path("runs").exists()
    assert "medical" not in sys.modules
