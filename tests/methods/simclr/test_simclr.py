"""SimCLR: sizes of the projection head, overfitting of one batch, printed number of negatives, refused settings."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn

from lit_vision.errors import UserError
from lit_vision.methods.simclr.network import ProjectionHead
from lit_vision.methods.simclr.simclr import SimCLR

RESNET = {"stem": "small", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}


def test_projection_head__sizes() -> None:
    def count(head: nn.Module) -> int:
        return sum(p.numel() for p in head.parameters())

    assert count(ProjectionHead(2048, 128)) == 4_458_624  # v1, with biases
    assert count(ProjectionHead(2048, 128, batch_norm=True)) == 4_460_800 - 128  # the last norm has no bias
    assert count(ProjectionHead(2048, 128, layers=1)) == 2048 * 128 + 128
    three = ProjectionHead(2048, 128, layers=3, batch_norm=True)
    assert count(three) == 2 * (2048 * 2048 + 2 * 2048) + 2048 * 128 + 128
    assert [type(m).__name__ for m in three] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert three(torch.randn(4, 2048)).shape == (4, 128)
    with pytest.raises(UserError, match="projection_layers: 4"):
        ProjectionHead(8, 4, layers=4)


def test_projection_head__lightlys_has_128_parameters_more() -> None:
    """Published: 4,460,800, where the last batch norm has a bias; the authors' code and ours have none."""
    heads = pytest.importorskip("lightly.models.modules")
    theirs = sum(p.numel() for p in heads.SimCLRProjectionHead(2048, 2048, 128).parameters())
    ours = sum(p.numel() for p in ProjectionHead(2048, 128, batch_norm=True).parameters())
    assert (theirs, ours) == (4_460_800, 4_460_800 - 128)


class Pairs(LightningDataModule):
    """Eight random images, two noisy views each, the same batch at each step."""

    num_classes, batches_per_epoch, global_batch_size, batch_size = 0, 10, 8, 8

    def __init__(self, batch: int = 8, views: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        base = torch.randint(0, 256, (batch, 1, 8, 8, 3), generator=generator)
        noise = torch.randint(-40, 41, (batch, views, 8, 8, 3), generator=generator)
        self.batch = {
            "images": (base + noise).clamp(0, 255).to(torch.uint8),
            "label": torch.full((batch,), -1),
            "key": torch.zeros(batch, 3, dtype=torch.long),
        }
        self.global_batch_size = batch

    def train_dataloader(self):
        return torch.utils.data.DataLoader([self.batch] * self.batches_per_epoch, batch_size=None)


def trainer(**settings) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **{**quiet, "max_epochs": 1, **settings})


def test_simclr__overfits_one_batch_and_prints_its_negatives(capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    method = SimCLR(
        "resnet18",
        RESNET,
        projection_width=8,
        temperature=0.5,
        optimizer="adamw",
        lr=5e-3,
        base_lr=None,
        warmup_epochs=0,
    )
    data = Pairs()
    views = method.on_after_batch_transfer(data.batch, 0)["images"]
    assert views.shape == (8, 2, 3, 8, 8)
    assert 0 <= views.min() <= views.max() <= 1  # not normalised by default
    start = method.loss(views).item()
    run = trainer(max_epochs=6)
    run.fit(method, datamodule=data)
    # the least possible: positives equal, eight classes at a simplex
    floor = math.log(1 + 14 * math.exp((-1 / 7 - 1) / 0.5))
    assert floor < run.callback_metrics["train/loss"].item() < 0.6 * start
    text = capsys.readouterr().out
    assert "each anchor sees 14 negatives" in text
    assert text.count("AdamW: lr 0.005") == 1


def test_simclr__both_views_pass_batch_norm_together() -> None:
    torch.manual_seed(0)
    method = SimCLR("resnet18", RESNET, projection_width=8)
    seen = []
    method.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    views = torch.rand(4, 2, 3, 8, 8)
    loss = method.loss(views)
    assert seen == [(8, 3, 8, 8)]
    swapped = copy.deepcopy(method).loss(views.flip(1))
    torch.testing.assert_close(loss, swapped)  # the loss does not depend on the order of the views
    loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_simclr__errors() -> None:
    with pytest.raises(UserError, match="temperature"):
        SimCLR("resnet18", RESNET, temperature=0.0)
    method = SimCLR("resnet18", RESNET)
    with pytest.raises(UserError, match=r"data\.train_view: .* 1;"):
        method.loss(torch.rand(4, 1, 3, 8, 8))
    with pytest.raises(UserError, match=r"data\.batch_size"):
        trainer().fit(method, datamodule=Pairs(batch=1))


def test_simclr__local_negatives_only_if_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UserError, match="negatives: 'none'"):
        SimCLR("resnet18", RESNET, negatives="none")
    plan = SimpleNamespace(global_batch_size=32)
    monkeypatch.setattr("lit_vision.optim.training_length", lambda module: plan)
    for negatives, expected in (("global", "62 negatives, global"), ("local", "14 negatives, local")):
        method = SimCLR("resnet18", RESNET, negatives=negatives)
        method._trainer = SimpleNamespace(
            world_size=4, strategy=None, accumulate_grad_batches=1, is_global_zero=True, global_step=1
        )
        if negatives == "global":  # four processes, and no process group to exchange vectors with
            with pytest.raises(UserError, match=r"trainer\.strategy: .*model\.negatives=local"):
                method.setup("fit")
        else:
            method.setup("fit")
        method.on_train_start()
        assert expected in capsys.readouterr().out
