"""Distances between real and made images in the features of a network, and the training images nearest to made ones.

"FID" is only what `inception_network` gives; with any other network the numbers are Frechet and kernel distances of
that network's features, and compare with no published one.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_vision.errors import UserError

LARGEST_WIDTH = 128  # of features, for so few images: a covariance of D x D numbers needs many more than D images
LEAST_IMAGES = 5000
SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance
INCEPTION_WIDTH = 2048


class _Float64(nn.Module):
    """A network whose features torchmetrics gets in float64, and so computes with in float64."""

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network, self.num_features = network, width

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            features: Tensor = self.network(images)
        return features.double()


def generation_distances(
    real: Tensor,
    made: Tensor,
    network: nn.Module,
    width: int,
    seed: int = 0,
    *,
    batch_size: int = 500,
    least: int = LEAST_IMAGES,
    subsets: int = SUBSETS,
) -> dict[str, float]:
    """Return the Frechet and the kernel distance of two sets of images in the features of a network.

    Frechet: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the features' means and covariances (Heusel et al. 2017,
    arXiv:1706.08500). Kernel: the unbiased squared maximum mean discrepancy with (x . y / D + 1)^3, mean over 100
    seeded subsets of 1,000 images (Binkowski et al. 2018, arXiv:1801.01401); it may be negative. Both by torchmetrics,
    in float64.

    Args:
        real, made: (N, ...) and (M, ...), what the network takes.
        network: images (B, ...) to features (B, D); in evaluation mode.
        width: D, at most 128, or Inception's 2048.
        seed: of the subsets.
        batch_size: images that the network sees at once.
        least: images a side that are asked for.
        subsets: number of the kernel distance's subsets.

    Returns:
        {frechet, kernel, kernel_std: standard deviation over the subsets}.

    Raises:
        ValueError: too few images, or too wide features.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    if min(len(real), len(made)) < least:
        raise ValueError(f"{len(real)} and {len(made)} images; at least {least} a side are needed")
    if width > LARGEST_WIDTH and width != INCEPTION_WIDTH:
        raise ValueError(f"features of {width} dimensions; at most {LARGEST_WIDTH} for so few images")
    subset = min(SUBSET_SIZE, len(real), len(made))
    feature = _Float64(network, width)
    frechet = FrechetInceptionDistance(feature=feature).set_dtype(torch.float64)
    kernel = KernelInceptionDistance(feature=feature, subsets=subsets, subset_size=subset)
    for images, is_real in ((real, True), (made, False)):
        for part in images.split(batch_size):
            features = feature(part)  # once for both
            for metric in (frechet, kernel):
                metric.inception = nn.Identity()
                metric.update(features, real=is_real)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, std = kernel.compute()
    return {"frechet": float(frechet.compute()), "kernel": float(mean), "kernel_std": float(std)}


def inception_network(weights: str | os.PathLike[str]) -> nn.Module:
    """Return Inception as torch-fidelity has it, for uint8 (B, 3, H, W): with it `frechet` is the FID.

    Args:
        weights: its file pt_inception-2015-12-05-6726825d.pth.

    Raises:
        UserError: torch-fidelity is not installed, or there is no such file.
    """
    if not Path(weights).is_file():
        raise UserError(f"{weights}: no such file; the FID needs torch-fidelity's Inception weights")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError("the FID needs torch-fidelity; pip install torch-fidelity") from error

    class Inception(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            name = str(INCEPTION_WIDTH)
            self.extractor = FeatureExtractorInceptionV3(
                "inception", [name], feature_extractor_weights_path=str(weights)
            )

        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = self.extractor(images)[0]
            return features

    return Inception().eval()


def nearest_images(made: Tensor, others: Tensor, chunk: int = 500) -> tuple[Tensor, Tensor]:
    """Return, for each made image, the number of the nearest of the others and its distance.

    Args:
        made: (N, ...) uint8.
        others: (M, ...) uint8, of the same shape.
        chunk: made images at a time.

    Returns:
        (N,) int64; (N,) float32, root mean square difference of a pixel, in grey levels of 255.
    """
    a, b = made.flatten(1).float(), others.flatten(1).float()
    found = [torch.cdist(part, b).min(1) for part in a.split(chunk)]
    distances = torch.cat([one.values for one in found]) / a.shape[1] ** 0.5
    return torch.cat([one.indices for one in found]), distances
