"""Channels and range of values: a model of one channel from training to predictions; others are refused in one line."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from lit_vision.cli.main import main
from lit_vision.data.datamodule import ImageFolderDataModule
from lit_vision.errors import UserError
from lit_vision.methods import MAE, Classifier, LeJEPA, SimCLR
from lit_vision.methods.pixels import channel_values
from lit_vision.predict.models import load_model

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
RATE = {"warmup_epochs": 0, "base_lr": None, "lr": 0.01}
METHODS = {
    "Classifier": lambda args: Classifier("vit_tiny_patch16_224", 2, args, **RATE),
    "MAE": lambda args: MAE("vit_tiny_patch16_224", args, decoder_width=16, decoder_depth=1, decoder_heads=2, **RATE),
    "SimCLR": lambda args: SimCLR("vit_tiny_patch16_224", args, **RATE),
    "LeJEPA": lambda args: LeJEPA("vit_tiny_patch16_224", args, **RATE),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Images of 12 bits in 16, one class brighter."""
    folder = tmp_path_factory.mktemp("deep")
    for i in range(16):
        path = folder / ("train", "test")[i % 2] / ("cat", "dog")[i // 8] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).integers(1200 * (i // 8), 2800 + 1200 * (i // 8), (16, 16))
        Image.fromarray(values.astype(np.uint16)).save(path)
    return folder


def fit(model: L.LightningModule, root: Path, folder: Path, **options) -> tuple[Path, ImageFolderDataModule]:
    data = ImageFolderDataModule(str(root), img_size=16, batch_size=8, num_workers=0, in_memory=True, **options)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, enable_checkpointing=False, limit_val_batches=0, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt", data


def test_one_channel__predict_and_exports_see_the_pixels_of_training(root, tmp_path, capsys) -> None:
    model = METHODS["Classifier"]({**TINY, "in_chans": 1})
    torch.testing.assert_close(model.mean, torch.tensor([(0.5 + 0.5 + 0.5) / 3]))
    checkpoint, data = fit(model, root, tmp_path, channels=1)
    values = [batch["images"][:, 0].float() / 255 for batch in data.eval_loader("test")]
    assert values[0].shape[-1] == 1
    with torch.no_grad():
        images = (torch.cat(values).permute(0, 3, 1, 2) - model.mean) / model.std
        wanted = model.eval()(images).softmax(1).numpy()
    export = tmp_path / "model.safetensors"
    assert main(["export", str(checkpoint), "--format", "safetensors", "--out", str(export)]) == 0
    for source in (checkpoint, export):
        metadata = load_model(source, "cpu").metadata
        assert (metadata.value_range, len(metadata.mean), len(metadata.std)) == ([0.0, 4095.0], 1, 1)
        out = tmp_path / f"{source.suffix[1:]}.csv"
        assert main(["predict", str(root / "test"), "--model", str(source), "--device", "cpu", "--out", str(out)]) == 0
        rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
        found = [[float(row[2 * row.index(name)]) if row.index(name) == 1 else float(row[4]) for name in ("cat", "dog")]
                 for row in rows]  # fmt: skip
        np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("name", ["MAE", "SimCLR", "LeJEPA"])
def test_one_channel__trains_self_supervised_and_its_checkpoint_knows_the_range(root, tmp_path, name) -> None:
    model = METHODS[name]({**TINY, "in_chans": 1})
    before = next(model.backbone.parameters()).detach().clone()
    checkpoint, _ = fit(model, root, tmp_path, channels=1, train_view=name.lower())
    assert not torch.equal(next(model.backbone.parameters()), before)
    metadata = load_model(checkpoint, "cpu").metadata
    assert (metadata.task, metadata.value_range, len(metadata.mean)) == ("features", [0.0, 4095.0], 1)


@pytest.mark.parametrize("name", METHODS)
def test_channels__that_do_not_agree_are_refused_in_one_line(root, tmp_path, name) -> None:
    with pytest.raises(UserError, match=r"model\.mean: no value for in_chans 4 of backbone_args; give 4 numbers"):
        METHODS[name]({**TINY, "in_chans": 4})
    with pytest.raises(UserError, match=r"in_chans: 1, the data has 3 channel\(s\); set data\.channels: 1"):
        fit(METHODS[name]({**TINY, "in_chans": 1}), root, tmp_path, train_view="train")
    with pytest.raises(UserError, match=r"in_chans: 3, the data has 1 channel\(s\); set data\.channels: 3"):
        fit(METHODS[name](TINY), root, tmp_path, train_view="train", channels=1)


def test_test_stage__takes_the_range_of_the_model_not_of_the_data(root, tmp_path) -> None:
    model = METHODS["Classifier"](TINY)
    checkpoint, _ = fit(model, root, tmp_path)
    for path in root.rglob("*.png"):  # twice as bright, of 13 bits
        other = tmp_path / "other" / path.relative_to(root)
        other.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(Image.open(path)) * 2).save(other)
    data = ImageFolderDataModule(str(tmp_path / "other"), img_size=16, batch_size=8, num_workers=0)
    assert data.value_range == (0.0, 16383.0)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trained = Classifier.load_from_checkpoint(checkpoint, weights_only=False)
    trainer.test(trained, datamodule=data, verbose=False)
    assert data.value_range == (0.0, 4095.0)


def test_channel_values() -> None:
    assert channel_values("mean", None, [0.4, 0.5, 0.6], 3) == [0.4, 0.5, 0.6]
    assert channel_values("mean", None, [0.4, 0.5, 0.6], 1) == [pytest.approx(0.5)]
    assert channel_values("std", [0.1] * 5, [1, 1, 1], 5) == [0.1] * 5
    with pytest.raises(UserError, match=r"model\.std: 3 values for in_chans 1"):
        channel_values("std", [0.1] * 3, [1, 1, 1], 1)
