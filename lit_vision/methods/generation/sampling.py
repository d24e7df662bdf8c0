"""Pixels of the images that a generator makes, by their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_vision.methods.generation.flow_matching_network import FlowMatchingNetwork
from lit_vision.methods.generation.gan_network import GANNetwork

AnyGenerator = FlowMatchingNetwork | GANNetwork


def class_of_index(network: AnyGenerator, index: Tensor) -> Tensor | None:
    """Return the classes of images without a list of classes: each in turn, None for a generator without classes."""
    return index % network.num_classes if network.num_classes else None


def sample_images(network: AnyGenerator, index: Tensor, labels: Tensor | None, seed: int, **options: Any) -> Tensor:
    """Return the images with these numbers.

    Args:
        network: in evaluation mode.
        index: (B,) int64; (seed, index) determines the noise.
        labels: (B,) int64, None for any class.
        seed: of the noise.
        options: of the network's `sample`: some of its `sampling_options`.

    Returns:
        (B, C, H, W) float32, from 0 to 1, not clipped.

    Raises:
        UserError: an option that cannot work.
    """
    device = network.mean.device
    keys, labels = index[:, None].to(device), None if labels is None else labels.to(device)
    images = network.sample(keys, labels, seed, **options).float()
    return images * network.std[:, None, None] + network.mean[:, None, None]


def to_levels(images: Tensor) -> np.ndarray:
    """Return (B, H, W, 3) uint8 of images (B, C, H, W) from 0 to 1; gray images have three equal channels."""
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    found: np.ndarray = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return found


def sample_pixels(network: AnyGenerator, index: Tensor, labels: Tensor | None, seed: int, **options: Any) -> np.ndarray:
    """Return the images with these numbers as (B, H, W, 3) uint8; arguments and errors as `sample_images`."""
    return to_levels(sample_images(network, index, labels, seed, **options))
