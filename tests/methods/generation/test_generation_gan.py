"""GAN: optimum of the hinge loss, R1 against differences, spectral norm, augmentation, and who gets gradients."""

import pytest
import torch
from torch import Tensor, nn

from lit_vision.errors import UserError
from lit_vision.methods.generation.augment import KINDS, augment
from lit_vision.methods.generation.gan_network import (
    GANNetwork,
    hinge_discriminator_loss,
    hinge_generator_loss,
    r1_penalty,
)

TINY = {"img_size": 8, "channels": 1, "num_classes": 3, "noise_width": 4, "width": 8, "discriminator_width": 8}
TINY |= {"multipliers": (1, 2)}


def keys(n: int) -> Tensor:
    return torch.stack((torch.zeros(n), torch.arange(n), torch.zeros(n)), dim=1).long()


def test_hinge__no_discriminator_has_less_than_2_where_both_distributions_are_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.0, 0.3, 1.0, 3.0):
        scores = scale * torch.randn(1000, generator=generator, dtype=torch.float64)
        loss = float(hinge_discriminator_loss(scores, scores[torch.randperm(1000, generator=generator)]))
        assert loss >= 2 - 1e-12
        slow = sum(max(0.0, 1 - s) + max(0.0, 1 + s) for s in scores.tolist()) / 1000
        assert loss == pytest.approx(slow, rel=1e-12)
    assert float(hinge_discriminator_loss(torch.zeros(4), torch.zeros(4))) == 2
    assert float(hinge_discriminator_loss(torch.ones(4), -torch.ones(4))) == 0  # told apart with a margin
    assert float(hinge_generator_loss(torch.tensor([1.0, 2.0]))) == -1.5


def test_r1__equals_double_differences() -> None:
    """The penalty by central differences in the pixels, its gradient by differences of that in a weight."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 1), nn.Flatten(0)).double()
    images, h = torch.randn(3, 1, 2, 2, dtype=torch.float64), 1e-4

    def slow_penalty() -> float:
        total = 0.0
        with torch.no_grad():
            for i in range(3):
                for pixel in range(4):
                    step = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
                    step.view(-1)[pixel] = h
                    up, down = (network(images[i : i + 1] + s * step) for s in (1, -1))
                    total += float((up - down) / (2 * h)) ** 2
        return total / 3 / 2

    leaf = images.clone().requires_grad_()
    penalty = r1_penalty(network(leaf), leaf)
    assert float(penalty) == pytest.approx(slow_penalty(), rel=1e-6)
    penalty.backward()
    weight = network[1].weight
    for row, column in ((0, 0), (4, 3)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[row, column] += sign * 1e-3
                values.append(slow_penalty())
                weight[row, column] -= sign * 1e-3
        assert float(weight.grad[row, column]) == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-4, abs=1e-8)


def test_discriminator__every_layer_has_spectral_norm_1() -> None:
    torch.manual_seed(0)
    network = GANNetwork(TINY)
    layers = [m for m in network.discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(layers) == 9
    for layer in layers:  # as after steps of training
        with torch.no_grad():
            layer.parametrizations.weight.original.mul_(7)
    network.train()
    for _ in range(100):  # one iteration of the power method each
        for layer in layers:
            value = layer.weight
    for layer in layers:
        largest = float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2))
        assert largest == pytest.approx(1, abs=1e-3)
    assert value.requires_grad


def test_gradients_reach_the_network_whose_step_it_is() -> None:
    torch.manual_seed(0)
    network, labels = GANNetwork(TINY), torch.tensor([0, 2, -1, 1])
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    hinge, penalty = network.discriminator_loss(images, labels, keys(4), r1_weight=1.0)
    assert float(penalty) > 0
    (hinge + penalty).backward()
    assert all(p.grad is None for p in network.generator.parameters())
    assert all(p.grad is not None for p in network.discriminator.parameters())
    network.zero_grad()
    network.generator_loss(labels, keys(4)).backward()
    assert all(p.grad is not None for p in network.generator.parameters())
    assert float(network.discriminator_loss(images, labels, keys(4), 0.0)[1]) == 0


def test_gan__the_generator_follows_the_brightness_of_the_classes() -> None:
    torch.manual_seed(0)
    network = GANNetwork({**TINY, "multipliers": (1,), "augmentation": ()})
    labels = torch.arange(6) % 3
    images = ((labels - 1) * 0.6)[:, None, None, None].expand(6, 1, 8, 8)
    optimizers = [
        torch.optim.Adam(p.parameters(), 2e-2, (0.0, 0.9)) for p in (network.discriminator, network.generator)
    ]
    for step in range(30):
        key = torch.cat((keys(6), torch.full((6, 1), step)), dim=1)
        for optimizer in optimizers:
            network.zero_grad()
            if optimizer is optimizers[0]:
                sum(network.discriminator_loss(images, labels, key, 0.1)).backward()
            else:
                network.generator_loss(labels, key).backward()
            optimizer.step()
    made = network.sample(keys(6), labels, 0).mean((1, 2, 3))
    assert made[labels == 0].max() < made[labels == 1].min()
    assert made[labels == 1].max() < made[labels == 2].min()


def test_augment__slow_loop_of_translation_and_cutout() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 2, 16, 8, generator=generator)
    u = torch.rand(5, 7, generator=generator)
    moved, cut = augment(images, u, ("translation",)), augment(images, u, ("cutout",))
    for i in range(5):
        dy, dx = int(u[i, 3] * 5) - 2, int(u[i, 4] * 3) - 1  # up to 2 of 16 and 1 of 8 pixels
        cy, cx = int(u[i, 5] * 16), int(u[i, 6] * 8)
        for y in range(16):
            for x in range(8):
                inside = 0 <= y + dy < 16 and 0 <= x + dx < 8
                expected = images[i, :, y + dy, x + dx] if inside else torch.zeros(2)
                assert torch.equal(moved[i, :, y, x], expected)
                hidden = -4 <= y - cy < 4 and -2 <= x - cx < 2
                assert torch.equal(cut[i, :, y, x], torch.zeros(2) if hidden else images[i, :, y, x])


def test_augment__color_closed_form_and_gradient() -> None:
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    u = torch.tensor([[0.5, 0.5, 0.5, 0, 0, 0, 0], [0.75, 0.0, 0.0, 0, 0, 0, 0]], dtype=torch.float64)
    out = augment(images, u, ("color",))
    torch.testing.assert_close(out[0], images[0])  # the middle of each range changes nothing
    gray = images[1].mean(0) + 0.25
    expected = gray.mean() + 0.5 * (gray - gray.mean())
    torch.testing.assert_close(out[1], expected.expand(3, 4, 4))
    leaf = images.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, u + 0.1, KINDS), leaf)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"augmentation": ("mixup",)}, "augmentation"),
        ({"r1_gamma": -1.0}, "r1_gamma"),
        ({"noise_width": 0}, "noise_width"),
    ],
)
def test_settings_that_cannot_work_are_named(options: dict, name: str) -> None:
    with pytest.raises(UserError, match=name):
        GANNetwork({**TINY, **options})
