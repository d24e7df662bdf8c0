"""Frechet and kernel distance against closed forms and a slow loop; nearest images."""

import pytest
import torch
from torch import Tensor, nn

from lit_vision.errors import UserError
from lit_vision.evaluation.generation import generation_distances, inception_network, nearest_images


def exact_normal(n: int, mean: list[float], scale: float, seed: int) -> Tensor:
    """Samples whose mean and covariance are exactly these: (mean, scale^2 I)."""
    x = torch.randn(n, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T
    return x * scale + torch.tensor(mean, dtype=torch.float64)


@pytest.mark.parametrize(
    ("mean", "scale", "value"), [([1.0, 2.0], 1.0, 5.0), ([0.0, 0.0], 2.0, 2.0), ([0.0, 0.0], 1.0, 0.0)]
)
def test_generation_frechet__closed_form(mean: list[float], scale: float, value: float) -> None:
    real, made = exact_normal(120, [0.0, 0.0], 1.0, 0), exact_normal(150, mean, scale, 1)
    found = generation_distances(real, made, nn.Identity(), 2, least=100, subsets=2)
    assert found["frechet"] == pytest.approx(value, abs=1e-9)


def test_generation_kernel__slow_loop_without_the_diagonal() -> None:
    """With subsets as large as the sets every subset is the whole, and the value is the U-statistic."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, 4, dtype=torch.float64, generator=g) + shift for shift in (0.0, 0.5))
    found = generation_distances(x, y, nn.Identity(), 4, least=1, subsets=3)

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 4 + 1) ** 3

    same = sum(kernel(z[i], z[j]) for z in (x, y) for i in range(12) for j in range(12) if i != j) / (12 * 11)
    cross = sum(kernel(a, b) for a in x for b in y) / 144
    assert found["kernel"] == pytest.approx(same - 2 * cross, rel=1e-9)
    assert found["kernel_std"] == pytest.approx(0, abs=1e-9)


def test_generation_distances__follow_from_the_seed_and_refuse_too_little() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1200, 3, dtype=torch.float64, generator=g) for _ in range(2))
    first = generation_distances(x, y, nn.Identity(), 3, seed=1, least=1000, subsets=3)
    torch.rand(3)  # another state of the global generator
    assert generation_distances(x, y, nn.Identity(), 3, seed=1, least=1000, subsets=3) == first
    other = generation_distances(x, y, nn.Identity(), 3, seed=2, least=1000, subsets=3)
    assert other["frechet"] == first["frechet"]
    assert other["kernel"] != first["kernel"]
    with pytest.raises(ValueError, match="1200 and 1200 images; at least 5000"):
        generation_distances(x, y, nn.Identity(), 3)
    with pytest.raises(ValueError, match="129 dimensions"):
        generation_distances(x, y, nn.Identity(), 129, least=1)
    with pytest.raises(UserError, match=r"none\.pth"):
        inception_network("none.pth")


def test_generation_nearest__slow_loop() -> None:
    g = torch.Generator().manual_seed(0)
    made, others = (torch.randint(0, 256, (n, 1, 4, 4), generator=g, dtype=torch.uint8) for n in (5, 9))
    index, distance = nearest_images(made, others, chunk=2)
    for i in range(5):
        all_of = [float((made[i].double() - o.double()).square().mean().sqrt()) for o in others]
        assert int(index[i]) == all_of.index(min(all_of))
        assert float(distance[i]) == pytest.approx(min(all_of), rel=1e-5)
