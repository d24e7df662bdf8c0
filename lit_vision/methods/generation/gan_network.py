"""GAN: hinge loss, R1 penalty, and both networks with what they draw from keys.

Lim and Ye 2017, arXiv:1705.02894 (hinge); Mescheder et al. 2018, arXiv:1801.04406 (R1). B images, C channels, H W
pixels, K classes, Z numbers of noise.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_vision.errors import UserError
from lit_vision.methods.generation.augment import KINDS, NUMBERS, augment
from lit_vision.methods.generation.discriminator import Discriminator
from lit_vision.methods.generation.generator import Generator
from lit_vision.methods.keyed_noise import AUGMENTATION, LATENTS, keyed_noise, keyed_normal

PARTS = frozenset({"generator", "discriminator"})  # the modules in a checkpoint of this method
TRAIN_VIEW = "train"
# defaults of the hyper-parameters that the network reads
DEFAULTS: Mapping[str, Any] = {
    "img_size": 32,
    "channels": 3,
    "num_classes": 0,
    "noise_width": 64,
    "width": 64,
    "discriminator_width": 64,
    "multipliers": (1, 2, 4),
    "patch_size": 1,
    "r1_gamma": 0.1,
    "augmentation": KINDS,
    "seed": 0,
}
_DISCRIMINATOR, _GENERATOR = 0, 1  # whose step random numbers are for


def hinge_discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """Return mean max(0, 1 - real) + mean max(0, 1 + made) of the discriminator's numbers, both (B,).

    Where real and made images have one distribution, no discriminator has less than 2, and D = 0 has 2.
    """
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def hinge_generator_loss(made: Tensor) -> Tensor:
    """Return -mean of the discriminator's numbers (B,) for made images."""
    return -made.mean()


def r1_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """Return half the mean over images of |dD/dx|^2; it can be differentiated itself.

    Args:
        scores: (B,), the discriminator's numbers for these images.
        images: (B, C, H, W), with requires_grad.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean() / 2


class GANNetwork(nn.Module):
    """Generator and discriminator.

    Args:
        h: hyper-parameters of `lit_vision.methods.generation.gan.GAN`, as its checkpoints hold them.

    Raises:
        UserError: a value that cannot work; the message names it.
    """

    method_name, parts, train_view = "GAN", PARTS, TRAIN_VIEW
    sampling_options: Mapping[str, Any] = {}

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams: Any = {**h, **DEFAULTS, **h}  # in the order of h; a LightningModule has its own
        self.build(self.hparams)

    def build(self, h: Mapping[str, Any]) -> None:
        """Make the parts."""
        if unknown := [kind for kind in h["augmentation"] if kind not in KINDS]:
            raise UserError(
                f"model.augmentation: {unknown[0]!r} is not one of {', '.join(KINDS)}; choose some of these"
            )
        for name, least in (("num_classes", 0), ("noise_width", 1), ("r1_gamma", 0)):
            if h[name] < least:
                raise UserError(f"model.{name}: {h[name]} is less than {least}")
        self.num_classes, self.shape = h["num_classes"], (h["channels"], h["img_size"], h["img_size"])
        sizes = (h["multipliers"], h["patch_size"])
        self.generator = Generator(h["img_size"], h["channels"], h["width"], *sizes, h["noise_width"], self.num_classes)
        self.discriminator = Discriminator(
            h["img_size"], h["channels"], h["discriminator_width"], *sizes, self.num_classes
        )
        for name in ("mean", "std"):  # images in [-1, 1], the range of the generator's tanh
            self.register_buffer(name, torch.full((h["channels"],), 0.5))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the discriminator's numbers (B,) for images (B, C, H, W) in [-1, 1]; labels None: class 0."""
        scores: Tensor = self.discriminator(images, self._known(labels, images))
        return scores

    def make_images(self, keys: Tensor, labels: Tensor | None, seed: int) -> Tensor:
        """Return (B, C, H, W) in [-1, 1] from the noise of (seed, key), differentiable in the generator's weights."""
        noise = keyed_normal(keys, self.hparams["noise_width"], seed, LATENTS).to(self.mean)
        images: Tensor = self.generator(noise, self._known(labels, noise))
        return images

    def discriminator_loss(
        self, images: Tensor, labels: Tensor, keys: Tensor, r1_weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return the hinge loss of the discriminator, and r1_weight x R1 to be added to it.

        Args:
            images: (B, C, H, W) float in [-1, 1], real.
            labels: (B,) int64.
            keys: (B, any) int64; noise and augmentation follow from them.
            r1_weight: 0 leaves the penalty out.
        """
        with torch.no_grad():
            made = self.make_images(self._of(keys, _DISCRIMINATOR), labels, self.hparams["seed"])
        seen = self._augment(images, keys, 0).detach().requires_grad_(r1_weight > 0)
        real = self(seen, labels)
        penalty = r1_weight * r1_penalty(real, seen) if r1_weight > 0 else real.new_zeros(())
        return hinge_discriminator_loss(real, self(self._augment(made, keys, 1), labels)), penalty

    def generator_loss(self, labels: Tensor, keys: Tensor) -> Tensor:
        """Return the hinge loss of the generator; arguments as `discriminator_loss`."""
        made = self.make_images(self._of(keys, _GENERATOR), labels, self.hparams["seed"])
        return hinge_generator_loss(self(self._augment(made, keys, 2), labels))

    @torch.no_grad()
    def sample(self, keys: Tensor, labels: Tensor | None, seed: int) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1] from the noise of (seed, key).

        Args:
            keys: (B, any) int64.
            labels: (B,) int64, the classes; not used without classes.
            seed: of the noise.
        """
        return self.make_images(keys, labels, seed)

    def _augment(self, images: Tensor, keys: Tensor, use: int) -> Tensor:
        kinds = tuple(self.hparams["augmentation"])
        if not kinds:
            return images
        return augment(images, keyed_noise(self._of(keys, use), NUMBERS, self.hparams["seed"], AUGMENTATION), kinds)

    def _known(self, labels: Tensor | None, like: Tensor) -> Tensor | None:
        """Return labels for the class embeddings: class 0 where there is none."""
        if not self.num_classes:
            return None
        return torch.zeros(len(like), dtype=torch.int64, device=like.device) if labels is None else labels.clamp(min=0)

    @staticmethod
    def _of(keys: Tensor, use: int) -> Tensor:
        return torch.cat((keys, torch.full_like(keys[:, :1], use)), dim=1)
