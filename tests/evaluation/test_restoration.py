"""PSNR, SSIM and luma against closed forms and scikit-image."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from lit_vision.evaluation.restoration import luma, psnr, psnr_of, restoration_values, ssim


def pair(channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(2, channels, 23, 37, generator=generator).cumsum(3) * 7 % 256
    noisy = (truth + 20 * torch.randn(truth.shape, generator=generator)).round().clamp(0, 255)
    return noisy, truth.round()


def test_psnr__one_gray_level_is_48_1308_decibels() -> None:
    _, truth = pair()
    one = torch.where(truth < 255, truth + 1, truth - 1)
    assert psnr(one, truth).tolist() == pytest.approx([48.1308036] * 2, abs=1e-6)
    assert psnr(truth, truth).isinf().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim__equals_scikit_image(channels: int) -> None:
    noisy, truth = pair(channels)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    theirs = [
        structural_similarity(a.astype(np.float64), b.astype(np.float64), channel_axis=0, **options)
        for a, b in zip(noisy.numpy(), truth.numpy())
    ]
    assert ssim(noisy, truth).tolist() == pytest.approx(theirs, abs=1e-6)
    assert ssim(truth, truth).tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(noisy[..., :10], truth[..., :10])


def test_luma__is_that_of_bt_601() -> None:
    colors = torch.tensor([[255, 255, 255], [0, 0, 0], [255, 0, 0]])[:, :, None, None]
    assert luma(colors).flatten().tolist() == pytest.approx([235.0, 16.0, 81.481])


def test_values__rgb_and_y_apart_without_the_border() -> None:
    noisy, truth = pair()
    noisy[..., :2] = noisy[..., -2:] = 0
    values = restoration_values(noisy / 255, truth / 255, border=2)
    assert set(values) == {"psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y"}
    inner = [x[:, :, 2:-2, 2:-2] for x in (noisy, truth)]
    torch.testing.assert_close(values["psnr_rgb"], psnr(*inner))
    torch.testing.assert_close(values["ssim_y"], ssim(luma(inner[0]), luma(inner[1])))
    assert torch.equal(psnr_of(noisy / 255, truth / 255, 2), values["psnr_rgb"])
    assert restoration_values(truth / 255, truth / 255)["psnr_y"].tolist() == [100, 100]
