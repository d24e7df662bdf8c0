"""Images that a caller of `lit_vision.load(...)` gives: paths, Pillow images, arrays and tensors, one or many."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from lit_vision.data.open_images import is_packed
from lit_vision.data.views.decode import decode, from_pillow
from lit_vision.data.views.pixel_values import DEFAULT_FORMAT, PixelFormat, to_gray
from lit_vision.errors import UserError
from lit_vision.predict.inputs import Inputs, find_images

ACCEPTED = (
    "a path, a folder, shards, a Pillow image, a numpy array (H, W, 3) or (N, H, W, 3) uint8 RGB, a tensor (3, H, W) "
    "or (N, 3, H, W) uint8 or float from 0 to 1; with 1 channel instead of 3 for gray, or (H, W) as an array; or a "
    "list of single images"
)


@dataclass
class ImageList:
    """List of images: what `inputs.batches` reads.

    Attributes:
        images: each a path, a Pillow image, an array or a tensor.
        names: paths as they were given; "" for pixels.
    """

    images: Sequence[Any]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, i: int, pixel_format: PixelFormat = DEFAULT_FORMAT) -> np.ndarray:
        """Return image i, (H, W, 3) uint8, converted as `decode` does; arrays and tensors are 8-bit pixels already.

        Raises:
            ImageDecodeError: it is no complete image. OSError: it cannot be read. UserError: values out of range.
        """
        image = self.images[i]
        if isinstance(image, Image.Image):
            return from_pillow(image, pixel_format)
        if isinstance(image, torch.Tensor):
            pixels = _tensor_pixels(image, i)
        elif isinstance(image, np.ndarray):
            pixels = image if image.ndim == 3 else image[:, :, None]
        else:
            with open(os.path.expanduser(image), "rb") as file:
                return decode(file.read(), pixel_format)
        rgb = np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))  # writable, as torch wants it
        return to_gray(rgb) if pixel_format.gray else rgb


def list_images(images: Any) -> Inputs | ImageList:
    """Return the images of any accepted kind as a list to read, in their order; those of a folder sorted by name.

    Args:
        images: see `ACCEPTED`; `~/` in a path is the home folder.

    Raises:
        UserError: another kind, shape or type, no image, or a folder among several.
    """
    if isinstance(images, str | os.PathLike) and _is_folder_or_shards(images):
        return find_images([os.path.expanduser(os.fspath(images))])
    if isinstance(images, np.ndarray | torch.Tensor):
        found = list(images) if images.ndim == 4 else [images]
    elif isinstance(images, Iterable) and not isinstance(images, str | bytes | os.PathLike | Image.Image):
        found = list(images)
    else:
        found = [images]
    if not found:
        raise UserError(f"images: none given; give {ACCEPTED}")
    for i, image in enumerate(found):
        _check(image, f"images[{i}]" if len(found) > 1 else "images")
    return ImageList(found, [os.fspath(x) if isinstance(x, str | os.PathLike) else "" for x in found])


def _is_folder_or_shards(path: str | os.PathLike[str]) -> bool:
    path = os.path.expanduser(os.fspath(path))
    return os.path.isdir(path) or is_packed(path)


def _check(image: Any, name: str) -> None:
    """Refuse what is not a single image of an accepted kind, by its type and shape."""
    if isinstance(image, str | os.PathLike):
        if "\0" in os.fspath(image):
            raise UserError(f"{name}: {os.fspath(image)!r} is no path, it contains a zero byte; give {ACCEPTED}")
        if _is_folder_or_shards(image):
            raise UserError(f"{name}: {image} is a folder or shards; give one alone, or files only")
        return
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise UserError(f"{name}: has size {image.size} and no pixels; give {ACCEPTED}")
        return
    if isinstance(image, np.ndarray):
        good = image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3)))
    elif isinstance(image, torch.Tensor):
        kind = image.dtype == torch.uint8 or image.is_floating_point()
        good = kind and image.ndim == 3 and image.shape[0] in (1, 3)
    else:
        raise UserError(f"{name}: is a {type(image).__name__}; give {ACCEPTED}")
    if not good or 0 in image.shape:
        raise UserError(f"{name}: has shape {tuple(image.shape)} and type {image.dtype}; give {ACCEPTED}")


def _tensor_pixels(image: torch.Tensor, i: int) -> np.ndarray:
    """Return (H, W, 1 or 3) uint8 of a tensor with the channels first; floats are rounded to 255 levels."""
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        if not bool(((image >= 0) & (image <= 1)).all()):  # NaN fails too
            raise UserError(f"images[{i}]: floats must lie from 0 to 1, not normalized; give pixels / 255")
        image = (image.float() * 255).round().to(torch.uint8)
    pixels: np.ndarray = image.permute(1, 2, 0).numpy()
    return pixels
