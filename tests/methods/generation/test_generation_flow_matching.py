"""Flow matching of Gaussian data in closed form, orders of the samplers, guidance, and a U-Net that learns."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from lit_vision.errors import UserError
from lit_vision.methods.generation.flow_matching_network import FlowMatchingNetwork, interpolate
from lit_vision.methods.generation.samplers import euler, heun
from lit_vision.methods.generation.unet import UNet
from lit_vision.methods.keyed_noise import LATENTS, keyed_normal

TINY = {"img_size": 8, "channels": 1, "num_classes": 3, "width": 8, "multipliers": (1, 2), "blocks": 1}
M, S = 0.7, 0.4  # of the Gaussian data


def gaussian_velocity(x: Tensor, t: Tensor | float) -> Tensor:
    """The velocity whose mean squared error is least, for data N(M, S^2)."""
    return M + (t * S**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * S**2) * (x - t * M)


def keys(n: int, epoch: int = 0) -> Tensor:
    return torch.stack((torch.full((n,), epoch), torch.arange(n), torch.zeros(n, dtype=torch.int64)), dim=1)


class Gaussian(FlowMatchingNetwork):
    """Gives the closed form, shifted and scaled."""

    factor, shift = 1.0, 0.0

    def forward(self, images: Tensor, times: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        assert times is not None
        return self.factor * gaussian_velocity(images, times[:, None, None, None]) + self.shift


def test_loss__of_the_analytic_field_is_its_closed_form_and_no_other_field_has_less() -> None:
    """The least loss is the integral of S^2 / ((1 - t)^2 + t^2 S^2), which is S pi / 2."""
    network, n = Gaussian({**TINY, "num_classes": 0}), 1000
    generator = torch.Generator().manual_seed(0)
    images = M + S * torch.randn(n, 1, 8, 8, generator=generator)
    least = float(network.loss(images, torch.full((n,), -1), keys(n)))
    assert least == pytest.approx(S * math.pi / 2, rel=0.03)
    for factor, shift in ((0.9, 0.0), (1.1, 0.0), (1.0, 0.1), (1.0, -0.1)):
        network.factor, network.shift = factor, shift
        assert float(network.loss(images, torch.full((n,), -1), keys(n))) > least


def test_interpolate__begins_at_the_noise_and_ends_at_the_image() -> None:
    noise, images = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    between = interpolate(noise, images, torch.tensor([0.0, 0.25, 1.0]))
    assert between[:, 0, 0, 0].tolist() == [0.0, 0.25, 1.0]


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_samplers__converge_to_the_data_with_their_order(sampler, order: int) -> None:
    """The flow of the analytic field takes x0 to M + S x0."""
    x0 = torch.linspace(-2, 2, 9, dtype=torch.float64)
    errors = [float((sampler(gaussian_velocity, x0, n) - (M + S * x0)).abs().max()) for n in (20, 40, 80, 160)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_sample__of_the_analytic_field_has_the_moments_of_the_data() -> None:
    network = Gaussian({**TINY, "num_classes": 0})
    images = network.sample(keys(500), None, seed=3, steps=20)
    assert float(images.mean()) == pytest.approx(M, abs=0.01)
    assert float(images.std()) == pytest.approx(S, abs=0.01)
    assert torch.equal(images[7:9], network.sample(keys(500)[7:9], None, seed=3, steps=20))
    assert not torch.equal(images, network.sample(keys(500), None, seed=4, steps=20))


def test_sample__guidance_goes_on_from_any_class_to_the_class() -> None:
    class Constant(FlowMatchingNetwork):
        def forward(self, images: Tensor, times: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
            return torch.full_like(images, 1.0 if labels is None else 3.0)

    network, labels = Constant(TINY), torch.zeros(2, dtype=torch.int64)
    start = network.sample(keys(2), None, 0, "euler", 4)  # noise + 1
    for guidance, value in ((1.0, 3.0), (0.0, 1.0), (2.5, 6.0)):
        images = network.sample(keys(2), labels, 0, "euler", 4, guidance)
        torch.testing.assert_close(images - start, torch.full_like(start, value - 1))
    for options in ({"sampler": "rk4"}, {"steps": 0}, {"guidance": -1.0}):
        with pytest.raises(UserError, match=next(iter(options))):
            network.sample(keys(2), labels, 0, **options)


def test_unet__learns_classes_and_is_told_the_time() -> None:
    torch.manual_seed(0)
    network = FlowMatchingNetwork({**TINY, "multipliers": (1,), "class_dropout": 0.0})
    labels = torch.arange(6) % 3
    images = ((labels - 1.0)[:, None, None, None]).expand(6, 1, 8, 8)  # the class is the brightness
    assert not network(images).any()  # zeros before training
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for step in range(40):
        loss = network.loss(images, labels, keys(6, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    made = network.sample(keys(6), labels, 0, steps=8).mean((1, 2, 3))
    assert made[labels == 0].max() < made[labels == 1].min()
    assert made[labels == 1].max() < made[labels == 2].min()
    at = [network(images, torch.full((6,), t), labels) for t in (0.1, 0.9)]
    assert not torch.allclose(at[0], at[1])


def test_loss__hides_the_class_of_a_share_of_the_samples_and_of_unlabeled_ones() -> None:
    seen = []

    class Recording(FlowMatchingNetwork):
        def forward(self, images: Tensor, times: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
            seen.append(labels)
            return torch.zeros_like(images)

    network = Recording({**TINY, "class_dropout": 0.25})
    network.loss(torch.zeros(2000, 1, 8, 8), torch.arange(2000) % 2 * 2 - 1, keys(2000))
    assert bool((seen[0][0::2] == 3).all())  # -1, without a label, is "any"
    assert float((seen[0][1::2] == 3).float().mean()) == pytest.approx(0.25, abs=0.05)
    assert set(seen[0][1::2].tolist()) == {1, 3}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"img_size": 10, "multipliers": (1, 2, 2)}, "img_size"),
        ({"width": 12}, "width"),
        ({"multipliers": ()}, "multipliers"),
        ({"patch_size": 0}, "patch_size"),
        ({"class_dropout": 1.0}, "class_dropout"),
        ({"num_classes": -1}, "num_classes"),
        ({"blocks": 0}, "blocks"),
    ],
)
def test_settings_that_cannot_work_are_named(options: dict, name: str) -> None:
    with pytest.raises(UserError, match=name):
        FlowMatchingNetwork({**TINY, **options})


def test_unet__levels_patches_and_attention_keep_the_shape() -> None:
    for multipliers, patch, attention in (((1,), 4, False), ((1, 1, 2), 2, True)):
        net = UNet(16, 3, 8, multipliers, 2, patch, attention, num_classes=0)
        assert net(torch.zeros(2, 3, 16, 16), torch.zeros(2)).shape == (2, 3, 16, 16)


def test_keyed_normal__is_standard_normal_and_a_function_of_the_key() -> None:
    noise = keyed_normal(keys(200), 501, 0, LATENTS)
    assert noise.shape == (200, 501)
    assert torch.equal(noise[5:9], keyed_normal(keys(200)[5:9], 501, 0, LATENTS))
    flat = noise.double().flatten().sort().values
    quantiles = torch.special.ndtri((torch.arange(len(flat), dtype=torch.float64) + 0.5) / len(flat))
    assert float((flat - quantiles).abs()[1000:-1000].max()) < 0.03
    assert abs(float((noise[:, 0::2][:, :250] * noise[:, 1::2][:, :250]).mean())) < 0.02  # the two of a pair


def test_ema_with_warm_up_forgets_the_first_weights() -> None:
    """Slow loop of the callback's rule; without the warm-up, the average of a short run is still the first weights."""
    from timm.utils import ModelEmaV3

    module = torch.nn.Linear(1, 1, bias=False)
    averages = {warmup: ModelEmaV3(module, decay=0.9999, use_warmup=warmup) for warmup in (False, True)}
    by_hand = 0.0
    for step in range(1, 101):
        torch.nn.init.constant_(module.weight, float(step))
        for average in averages.values():
            average.update(module, step=step)
        decay = min(0.9999, 1 - (1 + step) ** (-2 / 3))
        by_hand = decay * by_hand + (1 - decay) * step if step > 1 else float(step)
    slow, fast = (float(averages[warmup].module.weight.detach()) for warmup in (False, True))
    assert slow < 2
    assert fast > 70
    assert fast == pytest.approx(by_hand, rel=0.02)
