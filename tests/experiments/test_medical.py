"""The medical case from end to end on images whose brightness is the finding, and what it refuses."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
TINY = ["--model.backbone", "resnet18", "--model.backbone_args", NET, "--model.lr", "5e-3", "--data.img_size=32"]
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
    arguments = [
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
    sides, plain = [], medical.probabilities

    def spy(model, loader):
        sides.append({batch["images"].shape[2:4] for batch in loader})
        return plain(model, loader)

    monkeypatch.setattr(medical, "probabilities", spy)
    assert medical.main([*arguments, *TINY]) == 0
    assert sides == [{(32, 32)}, {(32, 32)}]  # val and test are measured at the size that was trained
    text = Path("run/clinical.txt").read_text()
    for word in ("AUROC", "sensitivity", "specificity", "calibration", "precision", "tumour", "healthy"):
        assert word in text
    result = json.loads(Path("run/results-medical.json").read_text())
    assert result["metric"]["name"] == "test/auroc"
    assert result["metric"]["value"] > 0.9
    assert result["seconds"] > 0
    assert sum(map(sum, result["confusion"])) == 24
    point = result["clinical"]["operating_point"]
    assert result["confusion"] == [
        [point["true_negative"], point["false_positive"]],
        [point["false_negative"], point["true_positive"]],
    ]
    assert Path("run/confusion.png").is_file()
    assert "--model.class_weights [" in capsys.readouterr().out


def folder_of(target: Path) -> Path:
    """Two classes in three splits, eight images each."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("healthy", "tumour"):
            (target / split / name).mkdir(parents=True)
            for i in range(8):
                Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(target / split / name / f"{i}.png")
    return target


def third_class(root: Path) -> None:
    shutil.copytree(root / "train/tumour", root / "train/unknown")


def labels_in_val_and_test_alone(root: Path) -> None:
    for i, file in enumerate(sorted((root / "train").rglob("*.png"))):
        file.rename(root / f"train/{i}.png")
    shutil.rmtree(root / "train/healthy")
    shutil.rmtree(root / "train/tumour")


def cut_image(root: Path) -> None:
    file = root / "test/tumour/3.png"
    file.write_bytes(file.read_bytes()[:200])


# name: (damage to the folder, arguments, exit code, texts in the message: the file, split, class or key)
BROKEN = {
    "no test split": (lambda root: shutil.rmtree(root / "test"), [], 1, ["test"]),
    "a test split of one class": (lambda root: shutil.rmtree(root / "test/healthy"), [], 1, ["test", "healthy"]),
    "a val split without findings": (
        *(lambda root: shutil.rmtree(root / "val/tumour"), ["--sensitivity", "0.9"]),
        *(1, ["val", "tumour"]),
    ),
    "one class": (
        *(lambda root: [shutil.rmtree(root / s / "tumour") for s in ("train", "val", "test")], []),
        *(1, ["healthy"]),
    ),
    "no labels to train on": (labels_in_val_and_test_alone, [], 1, ["train", "labels"]),
    "three classes": (third_class, [], 1, ["3", "healthy, tumour, unknown"]),
    "an image of test that cannot be read": (cut_image, [], 1, ["test/tumour/3.png"]),
    "a size that is no number": (None, ["--data.img_size", "big"], 2, ["data.img_size", "big"]),
    "a size without a value": (None, ["--data.img_size"], 2, ["--data"]),
    "an unknown setting": (None, ["--data.nope", "1"], 2, ["data.nope"]),
    "another kind of data": (
        *(None, ["--data", "lit_vision.data.AnnotatedDataModule"]),
        *(1, ["data.class_path", "ImageFolderDataModule"]),
    ),
    "names for a folder's classes": (None, ["--class_names", "a", "b"], 1, ["--class_names"]),
    "a positive class that does not exist": (None, ["--positive", "cyst"], 1, ["--positive", "healthy", "tumour"]),
    "a sensitivity of none": (None, ["--sensitivity", "0"], 1, ["--sensitivity"]),
}


@pytest.mark.parametrize(("damage", "arguments", "code", "named"), BROKEN.values(), ids=BROKEN)
def test_it_is_refused_in_one_line_before_the_training(
    medical, damage, arguments: list[str], code: int, named: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lit_vision.cli.main.main", lambda arguments: pytest.fail(f"trained: {arguments}"))
    root = folder_of(tmp_path / "scans")
    if damage:
        damage(root)
    assert medical.main([str(root), *arguments]) == code
    printed = capsys.readouterr()
    assert all(text in printed.err for text in named)
    assert (printed.err.count("\n"), printed.out) == (1, "")


def test_a_training_without_a_checkpoint_is_one_line(medical, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("lit_vision.cli.main.main", lambda arguments: 0)
    arguments = [str(folder_of(tmp_path / "scans")), "--run_dir", str(tmp_path / "run")]
    assert medical.main([*arguments, "--trainer.max_epochs", "0"]) == 1
    assert "best.ckpt" in capsys.readouterr().err


def test_what_it_refuses(medical, file: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert medical.main([str(file), "--positive", "tumour", "--dry"]) == 1
    error = capsys.readouterr().err
    assert all(text in error for text in ("--positive", "class-0", "class-1"))
    assert medical.main([str(file), "--dry"]) == 0
    assert medical.main([str(file), "--sensitivity", "2"]) == 1
    assert medical.main([str(tmp_path / "none"), "--dry"]) == 1
    assert not Path("runs").exists()
    assert "medical" not in sys.modules
