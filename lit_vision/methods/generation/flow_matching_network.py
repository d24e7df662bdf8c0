"""Flow matching: a network learns the velocity of straight paths from noise to images. Loss, guidance and sampling.

Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003. B images, C channels, H W pixels, K classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_vision.errors import UserError
from lit_vision.methods.generation.samplers import SAMPLERS
from lit_vision.methods.generation.unet import UNet
from lit_vision.methods.keyed_noise import LATENTS, TIMES, keyed_noise, keyed_normal
from lit_vision.methods.pixels import channel_values

PARTS = frozenset({"unet"})  # the modules in a checkpoint of this method
TRAIN_VIEW = "train"
MONITOR = ("val/loss", False)  # the metric that chooses best.ckpt; False: smaller is better
# defaults of the hyper-parameters that the network reads
DEFAULTS: Mapping[str, Any] = {
    "img_size": 32,
    "channels": 3,
    "num_classes": 0,
    "class_dropout": 0.1,
    "width": 64,
    "multipliers": (1, 2, 2),
    "blocks": 2,
    "patch_size": 1,
    "attention": True,
    "mean": None,
    "std": None,
    "seed": 0,
}


def interpolate(noise: Tensor, images: Tensor, times: Tensor) -> Tensor:
    """Return the points (1 - t) x0 + t x1 of the paths from noise x0 to images x1.

    Args:
        noise, images: (B, C, H, W).
        times: (B,), t in [0, 1].
    """
    t = times.to(images.dtype)[:, None, None, None]
    return (1 - t) * noise + t * images


def check_sampling(sampler: str, steps: int, guidance: float) -> None:
    """Refuse options of sampling that cannot work.

    Raises:
        UserError: names the option.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"sampler: {sampler!r} is not one of {', '.join(SAMPLERS)}; choose one of these")
    if not 1 <= steps <= 10_000:
        raise UserError(f"steps: {steps}; give 1 to 10000")
    if not 0 <= guidance <= 100:
        raise UserError(f"guidance: {guidance}; give 0 to 100 (1: as trained)")


class FlowMatchingNetwork(nn.Module):
    """U-Net for the velocity x1 - x0 at the points (1 - t) x0 + t x1 of straight paths from noise to images.

    Args:
        h: hyper-parameters of `lit_vision.methods.generation.flow_matching.FlowMatching`, as its checkpoints hold them.

    Raises:
        UserError: a value that cannot work; the message names it.
    """

    method_name, parts, train_view, monitor = "FlowMatching", PARTS, TRAIN_VIEW, MONITOR
    sampling_options: Mapping[str, Any] = {"sampler": "heun", "steps": 25, "guidance": 1.0}

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams: Any = {**h, **DEFAULTS, **h}  # in the order of h; a LightningModule has its own
        self.build(self.hparams)

    def build(self, h: Mapping[str, Any]) -> None:
        """Make the parts."""
        if not 0 <= h["class_dropout"] < 1:
            raise UserError(f"model.class_dropout: {h['class_dropout']} is not from 0 to below 1; 0.1 is usual")
        if h["num_classes"] < 0:
            raise UserError(f"model.num_classes: {h['num_classes']}; give the data's number of classes, or 0")
        self.num_classes, self.shape = h["num_classes"], (h["channels"], h["img_size"], h["img_size"])
        size = (h["img_size"], h["channels"], h["width"], h["multipliers"], h["blocks"], h["patch_size"])
        self.unet = UNet(*size, attention=h["attention"], num_classes=self.num_classes)
        for name in ("mean", "std"):
            values = channel_values(name, h[name], [0.5] * h["channels"], h["channels"])
            self.register_buffer(name, torch.tensor(values))

    def forward(self, images: Tensor, times: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return the velocity at points of the paths.

        Args:
            images: (B, C, H, W) float, points x_t; images are normalised by `mean` and `std`, noise is standard normal.
            times: (B,), t in [0, 1]; None draws from torch's global generator.
            labels: (B,) int64, 0 to K - 1, and K for any class; None is any.

        Returns:
            (B, C, H, W).
        """
        times = torch.rand(len(images), device=images.device) if times is None else times
        velocity: Tensor = self.unet(images, times, labels)
        return velocity

    def loss(self, images: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
        """Return the mean squared error of the velocity; noise, times and dropped classes follow from the keys.

        Args:
            images: (B, C, H, W) float, normalised.
            labels: (B,) int64; -1 without a label.
            keys: (B, any) int64, different for every sample and use.
        """
        seed = self.hparams["seed"]
        noise = keyed_normal(keys, images[0].numel(), seed, LATENTS).to(images.dtype).view_as(images)
        times, drop = keyed_noise(keys, 2, seed, TIMES).to(images.dtype).unbind(1)
        predicted = self(interpolate(noise, images, times), times, self._labels(labels, drop))
        return (predicted - (images - noise)).square().mean()

    def _labels(self, labels: Tensor, drop: Tensor) -> Tensor | None:
        """Return the classes that the network is told: K (any) for a share of the samples, and without a label."""
        if not self.num_classes:
            return None
        hidden = (drop < self.hparams["class_dropout"]) | (labels < 0)
        return labels.masked_fill(hidden, self.num_classes)

    @torch.no_grad()
    def sample(
        self,
        keys: Tensor,
        labels: Tensor | None,
        seed: int,
        sampler: str = "heun",
        steps: int = 25,
        guidance: float = 1.0,
    ) -> Tensor:
        """Return images made from the noise of (seed, key).

        Args:
            keys: (B, any) int64.
            labels: (B,) int64, the classes; None is any class.
            seed: of the noise.
            sampler: euler (one velocity a step) or heun (two).
            steps: equal steps from t = 0 to 1.
            guidance: g in v(any) + g (v(class) - v(any)): 1 is the class as trained, more is stronger, without effect
                where no class is given (classifier-free guidance, Ho and Salimans 2022, arXiv:2207.12598).

        Returns:
            (B, C, H, W) float, normalised; values may lie a little outside of the images' range.

        Raises:
            UserError: an option that cannot work.
        """
        check_sampling(sampler, steps, guidance)
        noise = keyed_normal(keys, self.mean.new_empty(self.shape).numel(), seed, LATENTS)

        def velocity(x: Tensor, t: float) -> Tensor:
            times = x.new_full((len(x),), t)
            if labels is None or guidance == 1:
                return self(x, times, labels)
            of_class, of_any = self(x, times, labels), self(x, times)
            return of_any + guidance * (of_class - of_any)

        return SAMPLERS[sampler](velocity, noise.to(self.mean).view(-1, *self.shape), steps)
