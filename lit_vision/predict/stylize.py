"""The content of one photograph in the style of another: style transfer by optimizing the pixels of an image.

With F_i the feature maps of a pre-trained network, G the Gram matrix of a map, x the image, c the content and s the
style, this minimizes over the pixels of x, each term relative to what x would have to reach:

    |F_k(x) - F_k(c)|^2 / |F_k(c)|^2  +  style_weight * mean over i of |G_i(x) - G_i(s)|^2 / |G_i(s)|^2
    +  smoothness * total variation of x

Source: Gatys et al. 2016, CVPR, "Image style transfer using convolutional neural networks", Eq. 1 to 7; luminance only:
Gatys et al. 2016, arXiv:1606.05897, section 4.
Unlike the paper: the maps of any CNN of timm, which are its stages' outputs, not VGG-19's activations; relative terms,
so that the weights mean the same for every network; total variation; the image starts as the content, at half the size
for the first half of the steps; Adam instead of L-BFGS, whose line search fails where pixels meet 0 and 1.

Letters: B images (one), C channels, H W pixels or positions of a map.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lit_vision.backbones.backbone import Backbone
from lit_vision.data.views.color import LUMA
from lit_vision.data.views.decode import ImageDecodeError, decode, decode_values
from lit_vision.errors import UsageError, UserError
from lit_vision.io.atomic import atomic_write
from lit_vision.methods.tuning_modes import feature_maps
from lit_vision.predict.inference import progress_bar
from lit_vision.predict.writers import check_output_path
from lit_vision.weights import public_packages
from lit_vision.weights.load import load_into
from lit_vision.weights.pretrained import create_backbone

BACKBONE = "tf_efficientnet_lite0"  # its weights come with the extra `public`, so that no network is needed
MAX_STRIDE = 16  # maps of more pixels a position have too few positions for a style
CONTENT_STRIDE = 8  # of the map that holds the content, as relu4_2 of VGG-19 has it
MIN_SIDE = 32  # pixels
LEARNING_RATE = 0.03  # of pixels from 0 to 1


def gram_matrix(maps: Tensor) -> Tensor:
    """Return the mean over positions of the products of channels.

        G_ab = 1 / (H W) * sum over positions p of F_ap F_bp

    Source: Gatys et al. 2016, Eq. 3, which leaves out the division by the number of positions.

    Args:
        maps: (B, C, H, W), any scale.

    Returns:
        (B, C, C), symmetric.
    """
    flat = maps.flatten(2)  # (B, C, H W)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of vertical neighbors plus that of horizontal ones; 0 for a flat image.

    Source: Rudin, Osher and Fatemi 1992, Physica D 60, in its anisotropic form.

    Args:
        images: (B, C, H, W) with H and W above 1.

    Returns:
        Scalar, in the images' unit.
    """
    vertical = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return vertical + (images[..., 1:] - images[..., :-1]).abs().mean()


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return |found - wanted|^2 / |wanted|^2, a scalar; 0 where both are equal."""
    return (found - wanted).square().sum() / wanted.square().sum().clamp_min(torch.finfo(wanted.dtype).tiny)


class StyleLoss:
    """Loss of an image against a content and a style, see the top of this file.

    Args:
        backbone: a CNN in evaluation mode, whose parameters get no gradient.
        content: (1, 3, H, W), RGB from 0 to 1.
        style: (1, 3, H', W'), of any other size.
        style_weight: of the style's term, at least 0.
        smoothness: weight of the total variation, at least 0.
    """

    def __init__(
        self, backbone: Backbone, content: Tensor, style: Tensor, style_weight: float, smoothness: float
    ) -> None:
        self.backbone, self.style_weight, self.smoothness = backbone, style_weight, smoothness
        self.chosen = [i for i, stride in enumerate(backbone.strides) if stride <= MAX_STRIDE]
        strides = [backbone.strides[i] for i in self.chosen]
        self.content_map = min(range(len(strides)), key=lambda i: abs(math.log2(strides[i] / CONTENT_STRIDE)))
        like = next(backbone.parameters())
        self.mean, self.std = (like.new_tensor(backbone.data_config[key])[:, None, None] for key in ("mean", "std"))
        with torch.no_grad():
            self.content = self._maps(content)[self.content_map]
            self.styles = [gram_matrix(one) for one in self._maps(style)]

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = feature_maps(self.backbone, (images - self.mean) / self.std)
        return [maps[i] for i in self.chosen]

    def terms(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the errors of content and style, relative, and the total variation, each without its weight.

        Args:
            images: (1, 3, H, W), as the content.
        """
        maps = self._maps(images)
        errors = [relative_error(gram_matrix(one), wanted) for one, wanted in zip(maps, self.styles)]
        content = relative_error(maps[self.content_map], self.content)
        return content, torch.stack(errors).mean(), total_variation(images)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the loss of (1, 3, H, W), a scalar."""
        content, style, variation = self.terms(images)
        return content + self.style_weight * style + self.smoothness * variation


def optimize_pixels(
    backbone: Backbone,
    content: Tensor,
    style: Tensor,
    *,
    steps: int,
    style_weight: float,
    smoothness: float,
    noise: float = 0.0,
    seed: int = 0,
    advance: Callable[[], object] = lambda: None,
) -> Tensor:
    """Return the image that the loss is small for: half of the steps at half the size, the others at the whole size.

    The same arguments give the same bits on the same machine.

    Args:
        backbone: a CNN in evaluation mode, whose parameters get no gradient.
        content: (1, 3, H, W), RGB from 0 to 1; H and W at least 32.
        style: (1, 3, H', W').
        steps: at least 2.
        style_weight: as for `StyleLoss`.
        smoothness: as for `StyleLoss`.
        noise: share of uniform noise in the image that it starts from, 0 to 1; 0 is the content itself.
        seed: of the noise.
        advance: called after each step.

    Returns:
        (1, 3, H, W), from 0 to 1.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(content.shape, generator=generator).to(content)
    image = (1 - noise) * content + noise * start
    half = min(content.shape[-2:]) >= 2 * MIN_SIDE and min(style.shape[-2:]) >= 2 * MIN_SIDE
    for scale, count in ((0.5, steps // 2), (1.0, steps - steps // 2)) if half else ((1.0, steps),):
        wanted, taught = (
            F.interpolate(x, scale_factor=scale, mode="area") if scale < 1 else x for x in (content, style)
        )
        loss = StyleLoss(backbone, wanted, taught, style_weight, smoothness)
        if image.shape != wanted.shape:
            image = F.interpolate(image, wanted.shape[-2:], mode="area" if scale < 1 else "bicubic").clamp(0, 1)
        image = image.clone().requires_grad_()
        image.register_hook(_without_highest_frequency)
        optimizer = torch.optim.Adam([image], lr=LEARNING_RATE, betas=(0.9, 0.99))
        for step in range(count):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (0.05 + 0.5 * (1 + math.cos(math.pi * step / count)))
            optimizer.zero_grad()
            loss(image).backward()
            optimizer.step()
            with torch.no_grad():
                image.clamp_(0, 1)
            advance()
        image = image.detach()
    return image


def _without_highest_frequency(gradient: Tensor) -> Tensor:
    """Blur a gradient by 1 2 1 in both directions, which removes the alternation from pixel to pixel.

    Networks whose first convolution has stride 2 hardly see it, so that it would grow into a net of colored dots.
    """
    line = gradient.new_tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(gradient.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(gradient, (1, 1, 1, 1), mode="replicate"), kernel, groups=gradient.shape[1])


def luminance(images: Tensor) -> Tensor:
    """Return Y of RGB images: (B, 3, H, W) to (B, 1, H, W), in their unit."""
    return (images.new_tensor(LUMA.tolist())[:, None, None] * images).sum(1, keepdim=True)


def luminance_like(style: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
    """Return the luminances of content and style as gray images, the style's with the content's mean and spread.

    Source: Gatys et al. 2016, arXiv:1606.05897, section 4, Eq. 4.

    Args:
        style: (1, 3, H', W'), RGB from 0 to 1.
        content: (1, 3, H, W), likewise.

    Returns:
        (1, 3, H, W) and (1, 3, H', W'), three equal channels; the style's may leave 0 to 1.
    """
    light, other = luminance(content), luminance(style)
    spread = light.std() / other.std().clamp_min(1e-6)
    other = (other - other.mean()) * spread + light.mean()
    return light.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1)


def with_color_of(image: Tensor, content: Tensor) -> Tensor:
    """Return an image with the luminance of `image` and the chroma (Cb, Cr) of `content`.

    Where that color would lie outside 0 to 1, the luminance gives way and the chroma stays.

    Args:
        image: (1, 3, H, W), RGB from 0 to 1.
        content: the same shape.
    """
    chroma = content - luminance(content)  # R - Y, G - Y, B - Y: Cb and Cr are multiples of the first and last
    lowest, highest = -chroma.amin(1, keepdim=True), 1 - chroma.amax(1, keepdim=True)
    return (luminance(image).clamp(lowest, highest) + chroma).clamp(0, 1)


@dataclass(frozen=True)
class Stylized:
    """Result of `stylize`: the file and its size in pixels."""

    path: Path
    height: int
    width: int


def stylize(
    content: str | os.PathLike[str],
    style: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    backbone: str | Backbone = BACKBONE,
    size: int = 384,
    steps: int = 200,
    style_weight: float = 10.0,
    smoothness: float = 3.0,
    keep_color: bool = False,
    noise: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> Stylized:
    """Run `lit-vision stylize`: write the content of a photograph in the style of another image as PNG.

    Args:
        content: an image file of 8 bits a channel without transparency; an EXIF orientation is applied.
        style: likewise.
        out: the PNG to write.
        backbone: a CNN of timm by name, with its weights; or one that is built already.
        size: longer side of the result, pixels; smaller images keep their size.
        steps: of the optimization, at least 2; half of them at half the size.
        style_weight: of the style against the content.
        smoothness: weight of the total variation.
        keep_color: take the style's luminance only, and keep the content's colors.
        noise: share of noise in the image that the optimization starts from, 0 to 1.
        seed: of that noise.
        device: "auto", "cpu" or "cuda".
        overwrite: replace an existing file.

    Raises:
        UserError: one line that names the file or flag and what to do. UsageError (a UserError): a value is wrong.
    """
    from lit_vision.predict.models import torch_device

    _check(size, steps, seed, {"style_weight": style_weight, "smoothness": smoothness, "noise": noise})
    if Path(out).suffix.lower() != ".png":
        raise UsageError(f"--out {out}: is written as PNG; give a name that ends in .png")
    path = check_output_path(out, overwrite)
    files = ((content, "CONTENT"), (style, "--style"))
    pictures = [_read(*file) for file in files]
    pictures = [_shrunk(pixels, size, *file) for pixels, file in zip(pictures, files)]
    place = torch_device(device)
    network = (backbone if isinstance(backbone, Backbone) else pretrained_cnn(backbone)).to(place)
    wanted, model = (torch.from_numpy(x).to(place).permute(2, 0, 1)[None].float() / 255 for x in pictures)
    given, taught = luminance_like(model, wanted) if keep_color else (wanted, model)
    weights = {"style_weight": style_weight, "smoothness": smoothness}
    with progress_bar(steps, 0, "steps") as advance:
        image = optimize_pixels(
            network, given, taught, steps=steps, **weights, noise=noise, seed=seed, advance=lambda: advance(1)
        )
    image = with_color_of(image, wanted) if keep_color else image
    pixels = (image[0].permute(1, 2, 0).cpu() * 255).round().to(torch.uint8).numpy()
    atomic_write(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))
    return Stylized(path, *pixels.shape[:2])


def pretrained_cnn(name: str) -> Backbone:
    """Return a CNN of timm with its weights, in evaluation mode and without gradients for them.

    Weights of an installed package are taken first, without a look at the network.

    Raises:
        UserError: there is no such network, it has no feature maps of several sizes, or its weights cannot be had.
    """
    if public_packages.is_installed(name):
        backbone = Backbone(name)
        print(f"{name}: weights of {load_into(backbone, name).origin}", flush=True)
    else:
        try:
            backbone, _ = create_backbone(name, pretrained=True)
        except UserError as error:
            if not str(error).startswith("pretrained:"):
                raise
            raise UserError(
                f"--backbone {name}: its weights are not on this machine and cannot be fetched (no network?); connect "
                f"once, or take {BACKBONE}, which the extra `public` brings"
            ) from error
    if len(backbone.strides) < 2:
        raise UserError(f"--backbone {name}: has no feature maps of several sizes; choose a CNN, such as {BACKBONE}")
    backbone.eval().requires_grad_(False)
    return backbone


def _check(size: int, steps: int, seed: int, numbers: Mapping[str, float]) -> None:
    for name, value, low, high in (("size", size, MIN_SIDE, 4096), ("steps", steps, 2, 100_000)):
        if not low <= value <= high:
            raise UsageError(f"--{name} {value}: give a whole number from {low} to {high}")
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed}: give a whole number from 0 to {2**63 - 1}")
    for name, number in numbers.items():
        most = 1.0 if name == "noise" else 1e6
        if not 0 <= number <= most:  # also for NaN
            raise UsageError(f"--{name} {number}: give a number from 0 to {most:g}")


def _read(path: str | os.PathLike[str], flag: str) -> np.ndarray:
    """Return the upright pixels of an image, (H, W, 3) uint8."""
    try:
        data = Path(path).read_bytes()
        pixels = decode(data)
        if decode_values(data) is not None:
            raise ImageDecodeError("has more than 8 bits a channel; save it with 8")
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}; name an image file") from None
    except ImageDecodeError as error:
        raise UserError(f"{flag} {path}: {error}") from None
    image = Image.open(io.BytesIO(data))
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if has_alpha and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise UserError(f"{flag} {path}: has transparent pixels, which have no style; save it without an alpha channel")
    return pixels


def _shrunk(pixels: np.ndarray, size: int, path: str | os.PathLike[str], flag: str) -> np.ndarray:
    """Return pixels, (H, W, 3), made smaller until the longer side is `size`."""
    shrink = min(1.0, size / max(pixels.shape[:2]))
    height, width = (round(side * shrink) for side in pixels.shape[:2])
    if min(height, width) < MIN_SIDE:
        raise UserError(f"{flag} {path}: is {width} x {height} pixels at --size {size}; give {MIN_SIDE} a side or more")
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA) if shrink < 1 else pixels
