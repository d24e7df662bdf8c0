"""Supervised methods in a Trainer compare classes by name: measuring, resuming, new training; and the commands."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from toy_dense import make_segmenter

from lit_vision.cli.main import main
from lit_vision.data import AnnotatedDataModule, ImageFolderDataModule
from lit_vision.errors import UserError
from lit_vision.methods import Classifier

ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
NAME = "vit_tiny_patch16_224"


def write_folder(root: Path, names: list[str], n: int = 4) -> None:
    """Write train, val and test of n noisy images for each class; the i-th class is brighter than the one before."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for i, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for j in range(n):
                pixels = rng.integers(0, 60, (16, 16, 3)) + 60 * i
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{j}.png")


def folder(root: Path, **more) -> ImageFolderDataModule:
    return ImageFolderDataModule(str(root), img_size=16, batch_size=4, num_workers=0, **more)


def classifier(classes: int = 3) -> Classifier:
    torch.manual_seed(0)
    return Classifier(NAME, classes, backbone_args=ARGS, head_init_std=0.5, mean=[0.5] * 3, std=[0.25] * 3)


def trainer(**more) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    return Trainer(accelerator="cpu", **{"enable_checkpointing": False, **quiet, **more})


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    write_folder(tmp_path / "set", ["ant", "bee", "cow"])
    return tmp_path


def test_measuring__a_head_in_another_order_gives_the_same_values(roots: Path, capsys) -> None:
    model = classifier()
    expected = trainer().test(model, datamodule=folder(roots / "set"), verbose=False)[0]
    order = [2, 0, 1]
    with torch.no_grad():
        for part in model.head.parameters():
            part.copy_(part[order].clone())
    wrong = trainer().test(model, datamodule=folder(roots / "set"), verbose=False)[0]
    assert wrong["test/top1"] != expected["test/top1"]  # a checkpoint without names: nothing can be compared
    model.metadata = {"class_names": ["cow", "ant", "bee"]}
    found = trainer().test(model, datamodule=folder(roots / "set"), verbose=False)[0]
    assert found == pytest.approx(expected, rel=1e-6)
    assert "matched by name" in capsys.readouterr().out


def test_measuring__some_of_the_models_classes_are_enough(roots: Path, capsys) -> None:
    model = classifier()
    model.metadata = {"class_names": ["ant", "bee", "cow"]}
    write_folder(roots / "part", ["bee", "cow"])
    data = folder(roots / "part")
    found = trainer().test(model, datamodule=data, verbose=False)[0]
    assert "2 of the model's 3 classes" in capsys.readouterr().out
    hits = []
    for batch in data.eval_loader("test"):
        logits = model.eval()(model.on_after_batch_transfer(dict(batch), 0)["images"][:, 0])
        hits += (logits.argmax(1) == batch["label"]).tolist()  # among all three
    assert found["test/top1"] == pytest.approx(np.mean(hits))


def test_other_classes__are_refused_before_any_step_and_forced_by_number(roots: Path) -> None:
    model, data = classifier(), folder(roots / "set")
    model.metadata = {"class_names": ["ant", "bee", "crow"]}
    for measure in (Trainer.test, Trainer.validate):
        with pytest.raises(UserError, match=r"cow.*crow"):
            measure(trainer(), model, datamodule=data, verbose=False)
    data.classes_by_number = True
    forced = trainer().test(model, datamodule=data, verbose=False)[0]
    model.metadata = None
    assert forced == trainer().test(model, datamodule=folder(roots / "set"), verbose=False)[0]


def test_resuming__with_other_classes_is_refused_even_if_changed_data_is_allowed(roots: Path, tmp_path) -> None:
    first = trainer(limit_val_batches=0, enable_checkpointing=True, default_root_dir=tmp_path / "run")
    first.fit(classifier(), datamodule=folder(roots / "set"))
    first.save_checkpoint(tmp_path / "last.ckpt")
    write_folder(roots / "other", ["ant", "bee", "crow"])
    data = folder(roots / "other")
    data.resume_anyway = True
    more = {"limit_val_batches": 0, "max_epochs": 2}
    with pytest.raises(UserError, match=r"crow.*cow"):
        trainer(**more).fit(classifier(), datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    data.classes_by_number = True
    resumed = trainer(**more)
    resumed.fit(classifier(), datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert resumed.current_epoch == 2


def test_new_training__of_a_loaded_classifier_may_have_other_classes(roots: Path, capsys) -> None:
    model = classifier()
    model.metadata = {"class_names": ["x", "y", "z"]}
    trainer(limit_val_batches=0).fit(model, datamodule=folder(roots / "set"))
    assert model.metadata["class_names"] == ["ant", "bee", "cow"]
    assert "other classes" in capsys.readouterr().out


def test_segmenter__masks_numbered_in_another_order_give_the_same_dice(tmp_path: Path) -> None:
    model, names = make_segmenter("linear"), ["background", "cup", "pan", "pot"]
    rng, turned = np.random.default_rng(1), np.array([2, 0, 3, 1])  # class i is turned[i] in the other set
    for i in range(4):
        pixels, mask = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), rng.integers(0, 4, (32, 32))
        for root, values in (("a", mask), ("b", turned[mask])):
            for kind, array in (("images", pixels), ("semantic", values.astype(np.uint8))):
                (tmp_path / root / "train" / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / root / "train" / kind / f"{i}.png")
    (tmp_path / "a/classes.txt").write_text("\n".join(names))
    (tmp_path / "b/classes.txt").write_text("\n".join(names[list(turned).index(i)] for i in range(4)))
    values = []
    for root in ("a", "b"):
        (tmp_path / root / "test").symlink_to("train")
        data = AnnotatedDataModule(str(tmp_path / root), format="masks", img_size=32, batch_size=4, num_workers=0)
        values.append(trainer().test(model, datamodule=data, verbose=False)[0])
    assert "test/dice/cup" in values[0]
    assert values[1] == pytest.approx(values[0], rel=1e-6)


RECIPE = f"""
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false, logger: false}}
model:
  class_path: lit_vision.methods.Classifier
  init_args: {{backbone: {NAME}, num_classes: 2, backbone_args: {ARGS}, mean: [0.5, 0.5, 0.5], std: [0.3, 0.3, 0.3]}}
data: {{class_path: lit_vision.data.ImageFolderDataModule, init_args: {{root: set, img_size: 16, batch_size: 4}}}}
"""


def test_commands__test_and_validate_refuse_a_renamed_class_and_a_flag_forces_it(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    write_folder(Path("set"), ["cat", "dog"])
    write_folder(Path("other"), ["dog", "zz-cat"])
    assert main(["fit", "--config", "r.yaml", "--run_dir", "run"]) == 0
    for command in ("test", "validate"):
        words = [command, "--ckpt_path", "run/checkpoints/best.ckpt", "--data.root", "other"]
        assert main(words) == 1
        error = capsys.readouterr().err
        assert re.search(r"data.root other: .*zz-cat.*cat", error)
        assert error.count("\n") == 1
        assert main([*words, "--classes_by_number", "true"]) == 0
        assert "dog as cat" in capsys.readouterr().out
    assert "classes_by_number" not in Path("run/config.yaml").read_text()
