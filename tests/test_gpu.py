"""Tests that need a CUDA device.

Deselected by default (setup.cfg); run them with: python -m pytest -m gpu tests/test_gpu.py
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_vision.methods import MAE, SimCLR
from lit_vision.methods.keyed_noise import TRAIN, keyed_noise
from lit_vision.methods.simclr.network import nt_xent
from lit_vision.optim import build_optimizer, decay_groups

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
RESNET = {"stem": "small", "layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]}


def _mae(**options) -> MAE:
    torch.manual_seed(0)
    settings = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, **options}
    return MAE("vit_tiny_patch16_224", VIT, **settings).to(DEVICE)


def _simclr() -> SimCLR:
    torch.manual_seed(0)
    return SimCLR("resnet18", RESNET, projection_width=16, temperature=0.5).to(DEVICE)


def _batch(method: MAE | SimCLR, n: int = 16) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 2 if isinstance(method, SimCLR) else 1, 32, 32, 3), generator=g).to(torch.uint8)
    labels = torch.full((n,), -1)
    batch = {"images": images, "label": labels, "key": torch.tensor([[0, i, 0] for i in range(n)])}
    return method.on_after_batch_transfer({name: value.to(DEVICE) for name, value in batch.items()}, 0)


def test_compiled_mae_is_the_eager_one() -> None:
    seen = []
    for compiled in (False, True):
        method = _mae(compile=compiled)
        loss = method.batch_loss(_batch(method), TRAIN)
        loss.backward()
        seen.append((loss.detach(), {name: p.grad for name, p in method.named_parameters() if p.grad is not None}))
    assert method._compiled is not None
    torch.testing.assert_close(seen[1][0], seen[0][0], rtol=1e-4, atol=1e-5)
    assert seen[1][1].keys() == seen[0][1].keys()
    for name, expected in seen[0][1].items():
        torch.testing.assert_close(seen[1][1][name], expected, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("temperature", [0.01, 0.1])  # with and without a shift in the sums
@pytest.mark.parametrize("images", [7, 3000])  # in one tile of 4096, and in several that it does not divide
def test_nt_xent_tiles_are_the_dense_formula(images: int, temperature: float) -> None:
    g = torch.Generator().manual_seed(2)
    z = torch.randn(2 * images, 32, generator=g, dtype=torch.float64).to(DEVICE).requires_grad_()
    unit = F.normalize(z, dim=1)
    logits = (unit @ unit.T / temperature).masked_fill(
        torch.eye(2 * images, dtype=torch.bool, device=DEVICE), -torch.inf
    )
    partner = torch.arange(2 * images, device=DEVICE).roll(images)
    dense = F.cross_entropy(logits, partner)
    (wanted,) = torch.autograd.grad(dense, z)
    for dtype, near in ((torch.float64, {"rtol": 1e-9, "atol": 1e-12}), (torch.float32, {"rtol": 1e-3, "atol": 1e-6})):
        leaf = z.detach().to(dtype).requires_grad_()
        loss = nt_xent(leaf[:images], leaf[images:], temperature)
        loss.backward()
        assert loss.dtype == dtype
        torch.testing.assert_close(loss.double(), dense, **near)
        torch.testing.assert_close(leaf.grad.double(), wanted, **near)


def test_keyed_noise_has_the_same_bits_as_on_the_cpu() -> None:
    keys = torch.tensor([[0, 5, 0], [3, 2**40, 1], [-1, 0, 2]])
    for seed in (0, -1, 2**63 - 1):
        on_gpu = keyed_noise(keys.to(DEVICE), 300, seed)
        assert on_gpu.device.type == DEVICE
        assert torch.equal(on_gpu.cpu(), keyed_noise(keys, 300, seed))


@pytest.mark.parametrize(("make", "lr"), [(_mae, 1e-3), (_simclr, 0.3)])
def test_a_bf16_mixed_step_is_finite_and_moves_the_weights(make, lr: float) -> None:
    method = make()
    hparams, batch = method.hparams, _batch(method)
    groups = decay_groups(method.named_parameters(), hparams.weight_decay)
    optimizer = build_optimizer(groups, hparams.optimizer, lr=lr, betas=hparams.betas, momentum=hparams.momentum)
    before = {name: p.detach().clone() for name, p in method.named_parameters() if p.requires_grad}
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16):  # Lightning's bf16-mixed
            loss = method.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
    for name, p in method.named_parameters():
        assert p.dtype == torch.float32
        assert torch.isfinite(p).all(), name
        if name in before and p.ndim > 1:
            assert not torch.equal(p, before[name]), name
