"""NT-Xent against the paper's loop, closed forms and invariances; the head's sizes; SimCLR learns one batch."""

import copy
import math

import lightning as L
import pytest
import torch
from torch import nn

from lit_vision.errors import UserError
from lit_vision.methods.simclr import ProjectionHead, SimCLR, nt_xent

RESNET = {"stem": "small", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}


def loop_nt_xent(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> float:
    """Algorithm 1 of arXiv:2002.05709 line by line: views 2k - 1 and 2k are a pair."""
    z = [row.tolist() for pair in zip(z1, z2) for row in pair]
    n = len(z)
    norm = [math.sqrt(sum(x * x for x in row)) for row in z]
    s = [[sum(a * b for a, b in zip(z[i], z[j])) / (norm[i] * norm[j]) for j in range(n)] for i in range(n)]

    def pair(i: int, j: int) -> float:
        denominator = sum(math.exp(s[i][k] / temperature) for k in range(n) if k != i)
        return -math.log(math.exp(s[i][j] / temperature) / denominator)

    return sum(pair(2 * k, 2 * k + 1) + pair(2 * k + 1, 2 * k) for k in range(n // 2)) / n


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_nt_xent__is_the_papers_loop(batch: int, temperature: float) -> None:
    torch.manual_seed(batch)
    z1, z2 = 3 * torch.randn(2, batch, 5, dtype=torch.float64)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(loop_nt_xent(z1, z2, temperature), abs=1e-12)


@pytest.mark.parametrize(
    ("batch", "value"),
    [(2, math.log(3)), (5, math.log(9)), (64, 4.844187), (128, 5.541264), (256, 6.236370), (512, 6.930495)],
)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent__collapsed_embeddings_have_closed_form(batch: int, value: float, temperature: float) -> None:
    z = torch.ones(batch, 8)
    torch.testing.assert_close(nt_xent(z, z, temperature), torch.tensor(value), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("batch", "temperature", "value"), [(2, 0.5, 0.239545), (256, 0.5, 4.248795), (256, 0.1, 0.022890)]
)
def test_nt_xent__equal_pairs_orthogonal_to_all_others(batch: int, temperature: float, value: float) -> None:
    z = torch.eye(batch)
    torch.testing.assert_close(nt_xent(z, z, temperature), torch.tensor(value), rtol=0, atol=2e-6)


def test_nt_xent__gaussian_embeddings() -> None:
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 256, 128)
    assert nt_xent(z1, z2, 0.5).item() == pytest.approx(math.log(511) + 1 / (2 * 128 * 0.25), abs=0.05)


def test_nt_xent__invariances() -> None:
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 6, 4, dtype=torch.float64)
    value = nt_xent(z1, z2)
    order, scale = torch.randperm(6), torch.rand(6, 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(nt_xent(z2, z1), value)
    torch.testing.assert_close(nt_xent(z1[order], z2[order]), value)
    torch.testing.assert_close(nt_xent(z1 * scale, z2 / scale), value)
    assert not torch.isclose(nt_xent(z1, z2.roll(1, 0)), value)  # but which rows are pairs counts


def test_nt_xent__gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    z1, z2 = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (z1, z2))


def test_nt_xent__precision() -> None:
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 32, 16, dtype=torch.float64)
    exact = nt_xent(z1, z2)
    assert exact.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = nt_xent(z1.float(), z2.float())
    assert under_autocast.dtype == torch.float32
    torch.testing.assert_close(under_autocast.double(), exact, rtol=1e-5, atol=0)
    assert nt_xent(z1.bfloat16(), z2.bfloat16()).dtype == torch.float32
    assert nt_xent(torch.zeros(3, 2), torch.zeros(3, 2)).isfinite()


def test_nt_xent__faults() -> None:
    with pytest.raises(ValueError, match=r"must both be \(B, D\)"):
        nt_xent(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="temperature must be positive"):
        nt_xent(torch.ones(2, 3), torch.ones(2, 3), 0.0)


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


class Pairs(L.LightningDataModule):
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


def trainer(**settings) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(accelerator="cpu", **{**quiet, "max_epochs": 1, **settings})


def test_simclr__overfits_one_batch_and_says_its_negatives(capsys: pytest.CaptureFixture) -> None:
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
    floor = math.log(
        1 + 14 * math.exp((-1 / 7 - 1) / 0.5)
    )  # positives equal, eight classes at a simplex: the least possible
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
    torch.testing.assert_close(loss, swapped)  # the loss knows no order of views
    loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_simclr__faults() -> None:
    with pytest.raises(UserError, match="temperature"):
        SimCLR("resnet18", RESNET, temperature=0.0)
    method = SimCLR("resnet18", RESNET)
    with pytest.raises(UserError, match=r"data\.train_view: SimCLR needs two views"):
        method.loss(torch.rand(4, 1, 3, 8, 8))
    with pytest.raises(UserError, match="one image a step leaves no negatives"):
        trainer().fit(method, datamodule=Pairs(batch=1))
