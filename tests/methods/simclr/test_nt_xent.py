"""NT-Xent in tiles against the paper's loop, the matrix formula, closed forms and invariances; its memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_vision.methods.simclr import network as module
from lit_vision.methods.simclr.network import nt_xent


def dense_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Loss by the full matrix: cross entropy of the partner among all other views."""
    z = F.normalize(torch.cat((z1, z2)), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(z1)))


@pytest.fixture(params=[(3, 5), (4, 4), (7, 2), (256, 1024)])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tile sizes: some that do not divide the number of views, and the real ones."""
    monkeypatch.setattr(module, "_tile_size", lambda views: request.param)


def loop_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> float:
    """Loss by Algorithm 1 of arXiv:2002.05709, line by line: views 2k - 1 and 2k are a pair."""
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
def test_nt_xent__equals_the_papers_loop(batch: int, temperature: float) -> None:
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
    torch.testing.assert_close(
        nt_xent(z, z, temperature), torch.tensor(value), rtol=0, atol=5e-6
    )  # logits of 10 have an ulp of 1e-6


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


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.02, 1e-3])  # below 1/40 sums are shifted
@pytest.mark.parametrize("batch", [1, 6, 11])
def test_nt_xent__tiles_give_the_value_and_gradients_of_the_matrix(batch: int, temperature: float) -> None:
    torch.manual_seed(batch)
    z = [torch.randn(batch, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    value, expected = nt_xent(*z, temperature), dense_nt_xent(*z, temperature)
    torch.testing.assert_close(value, expected)
    weight = 3.0  # of a sum of losses
    # s / t is rounded to eps / t, which changes a probability by as much, and the gradient is weight / t times it:
    # the sums of two CPUs differ by that
    atol = max(1e-10, torch.finfo(torch.float64).eps * weight / temperature**2)
    for got, reference in zip(torch.autograd.grad(weight * value, z), torch.autograd.grad(weight * expected, z)):
        torch.testing.assert_close(got, reference, rtol=1e-7, atol=atol)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("temperature", [0.5, 0.02])
def test_nt_xent__rows_of_one_process_among_many_give_their_part_of_the_gradient(temperature: float) -> None:
    """The result of one process (its rows against all columns) equals those rows of the single-process result."""
    torch.manual_seed(0)
    views = F.normalize(torch.randn(24, 5, dtype=torch.float64), dim=1)
    weights = torch.rand(24, dtype=torch.float64)
    sums = module._tiled_logsumexp(views, 0, 24, 1 / temperature)
    pulls = module._tiled_gradient(views, sums, weights, 0, 24, 1 / temperature)
    for start, rows in ((0, 8), (8, 8), (16, 8), (2, 14)):
        local = slice(start, start + rows)
        torch.testing.assert_close(module._tiled_logsumexp(views, start, rows, 1 / temperature), sums[local])
        torch.testing.assert_close(
            module._tiled_gradient(views, sums, weights, start, rows, 1 / temperature), pulls[local]
        )


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("temperature", [0.5, 0.02])
def test_nt_xent__gradient_is_that_of_finite_differences(temperature: float) -> None:
    torch.manual_seed(0)
    z1, z2 = (torch.randn(6, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature), (z1, z2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nt_xent__half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    half = [torch.randn(40, 16).to(dtype).requires_grad_() for _ in range(2)]
    wide = [z.detach().float().requires_grad_() for z in half]
    with torch.autocast("cpu", torch.bfloat16):
        nt_xent(*half).backward()  # backward under autocast, too, is float32 inside
    nt_xent(*wide).backward()
    for z, reference in zip(half, wide):
        assert z.grad.dtype == dtype
        assert torch.equal(z.grad, reference.grad.to(dtype))


def test_nt_xent__no_tensor_is_larger_than_a_tile_or_the_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of all tensors that operations return, forward and backward: the full matrix would have 800 x 800."""

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                self.numbers = max(self.numbers, x.numel() if isinstance(x, Tensor) else 0)
            return out

    monkeypatch.setattr(module, "_tile_size", lambda views: (32, 64))
    z = [torch.randn(400, 8, requires_grad=True) for _ in range(2)]
    for temperature in (0.1, 0.02):
        with Largest() as largest:
            nt_xent(*z, temperature).backward()
        assert largest.numbers == 800 * 8


def test_nt_xent__errors() -> None:
    with pytest.raises(ValueError, match="z1 and z2"):
        nt_xent(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="temperature"):
        nt_xent(torch.ones(2, 3), torch.ones(2, 3), 0.0)
    with pytest.raises(ValueError, match="negatives"):
        nt_xent(torch.ones(2, 3), torch.ones(2, 3), negatives="all")
