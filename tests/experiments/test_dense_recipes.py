"""Detection and segmentation through the command line, and resumed in the middle of an epoch to the same bits."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_vision.callbacks.checkpoint import AtomicCheckpointIO, LastCheckpoint, SeedEachBatch
from lit_vision.cli import main as cli
from lit_vision.data import AnnotatedDataModule
from lit_vision.data.make.scenes import GARMENT_CLASSES, make_scenes
from lit_vision.methods import Detector, Segmenter

ROOT = Path(__file__).parents[2] / "experiments"
CNN = {"stem_type": "deep", "stem_width": 8, "layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "set"
    make_scenes(out, {"train": 12, "val": 2, "test": 2})
    return out


@pytest.mark.parametrize("recipe", ["detect/resnet10_scenes_20ep", "segment/resnet10_scenes_16ep"])
def test_two_batches_through_the_command_line(recipe: str, root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--data.root", str(root), "--data.batch_size", "4", "--data.num_workers", "0"]
    fit = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.logger", "false"]
    fit += ["--trainer.check_val_every_n_epoch", "1", "--run_dir", "run"]
    config = ["--config", str(ROOT / f"{recipe}.yaml")]
    assert cli.main(["fit", *config, *fit, *arguments]) == 0
    result = json.loads(Path("run/results.json").read_text())
    metric = "val/map" if "detect" in recipe else "val/dice"
    assert result["metric"]["name"] == metric
    assert cli.main(["test", *config, "--ckpt_path", "run/checkpoints/last.ckpt", *arguments]) == 0
    measured = json.loads(Path("run/results-test.json").read_text())
    assert measured["metric"]["name"] == metric.replace("val", "test")
    assert measured["samples"] == 2
    capsys.readouterr()
    assert cli.main(["fit", *config, *fit, *arguments, "--data.root", str(tmp_path), "--run_dir", "no"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(tmp_path) in error
    assert cli.main(["fit", *config, *fit, *arguments, "--model.head", "none", "--run_dir", "no"]) == 1
    error = capsys.readouterr().err
    assert "model.head" in error
    assert "'none'" in error


class _CopyCheckpoint(Callback):
    """Copy the checkpoint of the fourth step, the first of the second epoch."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if trainer.global_step == 4 and (self.folder / "last.ckpt").exists():
            shutil.copy(self.folder / "last.ckpt", self.folder / "copy.ckpt")


def _fit(model: LightningModule, data: AnnotatedDataModule, folder: Path, resume: Path | None = None) -> dict:
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        plugins=[AtomicCheckpointIO()],
        callbacks=[SeedEachBatch(0), LastCheckpoint(every_n_steps=1, folder=str(folder)), _CopyCheckpoint(folder)],
    )
    trainer.fit(model, datamodule=data, ckpt_path=resume)
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("task", ["faster_rcnn", "upernet"])
def test_resumed_in_the_middle_of_an_epoch_to_the_same_bits(task: str, root: Path, tmp_path: Path) -> None:
    def make() -> tuple[LightningModule, AnnotatedDataModule]:
        torch.manual_seed(0)
        common = {"img_size": 64, "batch_size": 4, "num_workers": 0, "train_view": "lsj", "brightness": 0.2}
        if task == "upernet":
            data = AnnotatedDataModule(
                str(root), format="masks", class_names=["background", *GARMENT_CLASSES], **common
            )
            model = Segmenter("resnet18", 11, 64, strides=[4, 8, 16], width=16, dropout=0.3, backbone_args=CNN)
        else:
            data = AnnotatedDataModule(str(root), **common)
            settings = {"strides": [4, 8, 16], "pyramid_width": 32, "head_width": 16, "rois": 16}
            model = Detector("resnet18", 10, 64, head=task, backbone_args=CNN, **settings)
        return model, data

    uninterrupted = _fit(*make(), tmp_path)
    model, data = make()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()  # shows what is not restored
    resumed = _fit(model, data, tmp_path / "again", tmp_path / "copy.ckpt")
    assert set(uninterrupted) == set(resumed)
    assert all(torch.equal(uninterrupted[k], resumed[k]) for k in uninterrupted)
