"""The generation table: equal multiply-adds, and its counter against a closed form."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
from studies import generation_cells


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # recipes are named from there


def test_multiply_adds__of_a_product_and_of_its_second_derivative() -> None:
    x, w = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7, requires_grad=True)
    assert generation_cells.multiply_adds(lambda: x @ w) == 3 * 5 * 7
    assert generation_cells.multiply_adds(lambda: (x @ w).sum().backward()) == 3 * 3 * 5 * 7

    def twice() -> None:
        (grad,) = torch.autograd.grad((x @ w).square().sum(), x, create_graph=True)
        grad.sum().backward()

    assert generation_cells.multiply_adds(twice) > 3 * 3 * 5 * 7


def test_both_generators_train_with_equal_multiply_adds() -> None:
    flow, gan = (generation_cells.multiply_adds_of_training(name) for name in generation_cells.RECIPES)
    assert flow == pytest.approx(gan, rel=0.02)


def test_the_halves_have_each_image_once_and_each_class_equally() -> None:
    halves = generation_cells.read_halves()
    assert [len(images) for images, _ in halves.values()] == [5000, 5000]
    counts = [labels.bincount() for _, labels in halves.values()]
    assert int((counts[0] - counts[1]).abs().max()) <= 1
