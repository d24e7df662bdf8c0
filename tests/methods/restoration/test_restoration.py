"""Restoration: degradations by key, views, networks, training."""

import io
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from PIL import Image
from scipy.ndimage import gaussian_filter
from toy_restorer import make_restorer

from lit_vision.data.datasets import ImageFileDataset, ImageReader, InMemoryDataset
from lit_vision.data.views.batch_views import make_batch_views
from lit_vision.data.views.degraded import DegradedViews, jpeg_artifacts
from lit_vision.data.views.views import make_views
from lit_vision.errors import UserError
from lit_vision.methods.restoration.degradations import FILL, degrade, device_degradations
from lit_vision.methods.restoration.network import RestorerNetwork, pixel_loss

ALL = [
    "gaussian_blur 0.5 1.5",
    "poisson_noise 20 60",
    "gaussian_noise 5 50",
    "stroke_holes 0.1 0.2",
    "rectangle_holes 0.1",
]


def images(count: int = 5, size: tuple[int, int] = (31, 27)) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


def keys(count: int = 5) -> torch.Tensor:
    return torch.stack([torch.full((count,), 3), torch.arange(count), torch.zeros(count)], 1).long()


def changed(setting: str, pixels: torch.Tensor) -> torch.Tensor:
    return degrade(pixels, keys(len(pixels)), device_degradations([setting]), seed=1)[0]


def test_degradations__same_bits_on_any_split_of_the_batch_and_other_bits_for_another_key() -> None:
    pixels, rows = images(), keys()
    whole, holes = degrade(pixels, rows, device_degradations([*ALL, "gray"]), seed=1)
    for part in (slice(0, 1), slice(1, 3), slice(3, 5)):
        again, same_holes = degrade(pixels[part], rows[part], device_degradations([*ALL, "gray"]), seed=1)
        assert torch.equal(again, whole[part])
        assert torch.equal(same_holes, holes[part])
    for setting in ALL:
        same = images(1).expand(2, -1, -1, -1)
        two, _ = degrade(same, keys(2), device_degradations([setting]), seed=1)
        assert not torch.equal(two[0], two[1])
        assert not torch.equal(two, degrade(same, keys(2), device_degradations([setting]), seed=2)[0])


def test_degradations__moments_of_noise() -> None:
    flat = torch.full((4, 3, 64, 64), 0.5)
    gaussian = (changed("gaussian_noise 10", flat) - flat) * 255
    assert gaussian.mean().abs() < 0.3  # 0.5 is no level
    assert float(gaussian.std()) == pytest.approx(10, rel=0.02)
    poisson = changed("poisson_noise 20", flat)
    assert float(poisson.mean()) == pytest.approx(0.5, abs=0.002)
    assert float(poisson.var()) == pytest.approx(0.5 / 20, rel=0.05)
    assert not changed("poisson_noise 20", torch.zeros(1, 3, 8, 8)).any()


def test_degradations__blur_is_scipys_and_gray_is_the_luma() -> None:
    pixels = images()
    blurred = np.stack([[gaussian_filter(c, 1.2, mode="mirror", radius=4) for c in x] for x in pixels.double().numpy()])
    assert np.abs(changed("gaussian_blur 1.2", pixels).numpy() - blurred).max() < 0.5 / 255 + 1e-5
    luma = 0.299 * pixels[:, 0] + 0.587 * pixels[:, 1] + 0.114 * pixels[:, 2]
    gray = changed("gray", pixels)
    assert torch.equal(gray[:, 0], gray[:, 2])
    assert (gray[:, 1] - luma).abs().max() < 0.5 / 255 + 1e-6


@pytest.mark.parametrize("kind", ["rectangle_holes", "stroke_holes"])
def test_degradations__holes_cover_their_share(kind: str) -> None:
    pixels = images(16, (64, 48))
    degraded, holes = degrade(pixels, keys(16), device_degradations([f"{kind} 0.25"]), seed=1)
    shares = holes.mean((1, 2, 3))
    assert float(shares.min()) >= 0.25
    assert float(shares.mean()) < 0.33  # the last shape may go beyond
    assert bool((degraded[holes.expand_as(degraded) > 0] == FILL).all())
    assert (degraded - pixels)[holes.expand_as(degraded) == 0].abs().max() < 0.5 / 255 + 1e-6


@pytest.mark.parametrize("setting", ["snow", "gray 3", "gaussian_noise", "gaussian_noise 300", "gaussian_noise 9 3"])
def test_degradations__a_wrong_setting_is_refused(setting: str) -> None:
    with pytest.raises(UserError, match=r"model\.degradations"):
        device_degradations([setting])
    with pytest.raises(UserError, match=r"data\.degraded"):
        DegradedViews(["downsample 5" if setting == "snow" else setting], 0)


def test_degraded_views__jpeg_and_bicubic_are_pillows() -> None:
    picture = np.array(Image.fromarray((images(1)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).resize((48, 64)))
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=30, subsampling="4:2:0")
    theirs = np.asarray(Image.open(file)).astype(int)
    assert np.abs(jpeg_artifacts(picture, 30) - theirs).mean() < 1
    half = DegradedViews(["downsample 2"], 0)(picture[None], 0, 0)[0]
    pillow = np.asarray(Image.fromarray(picture).resize((24, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(half - pillow).max() <= 1
    drawn = DegradedViews(["jpeg 10 90"], 5)
    assert np.array_equal(drawn(picture[None], 1, 2), drawn(picture[None], 1, 2))
    assert not np.array_equal(drawn(picture[None], 1, 2), drawn(picture[None], 2, 2))


def test_crop_view__is_a_part_of_the_file_and_its_degraded_version_the_same_from_memory(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    labels, wanted = np.full(2, -1), [(0, 0, 0), (7, 1, 0)]
    worse = DegradedViews(["downsample 2", "jpeg 20 60"], 3)
    files = ImageReader(tmp_path, ["0.png", "1.png"], "error", 0)
    one = ImageFileDataset(files, labels, make_views("crop", 24, 3), degraded=worse).__getitems__(wanted)
    other = InMemoryDataset(pixels, labels, make_batch_views("crop", 24, 3), degraded=worse).__getitems__(wanted)
    assert one["images"].shape == (2, 1, 24, 24, 3)
    assert one["degraded"].shape == (2, 1, 12, 12, 3)
    for name in ("images", "degraded"):
        assert torch.equal(one[name], other[name])
    windows = np.lib.stride_tricks.sliding_window_view(pixels[0], (24, 24, 3))[:, :, 0]
    crop = one["images"][0, 0].numpy()
    assert any((windows == side).all((2, 3, 4)).any() for side in (crop, crop[:, ::-1]))


def test_restoration_losses__closed_forms() -> None:
    clean = torch.zeros(2, 3, 4, 4)
    assert float(pixel_loss(clean + 0.3, clean, "l1")) == pytest.approx(0.3)
    assert float(pixel_loss(clean + 0.3, clean, "mse")) == pytest.approx(0.09)
    assert float(pixel_loss(clean + 0.3, clean, "charbonnier")) == pytest.approx(math.sqrt(0.09 + 1e-6))
    assert float(pixel_loss(clean, clean, "charbonnier")) == pytest.approx(1e-3)


@pytest.mark.parametrize("kind", ["dncnn", "resnet"])
def test_restorer__untrained_returns_its_input_and_holes_leave_the_rest(kind: str) -> None:
    method = make_restorer(kind, degradations=["rectangle_holes 0.2"])
    pixels, holes = images(2, (19, 21)), torch.zeros(2, 1, 19, 21)
    holes[:, :, 5:9, 5:9] = 1
    restored = method(pixels, holes)
    known = (holes == 0).expand_as(pixels)
    assert torch.equal(restored[known], pixels[known])
    assert not torch.equal(restored, pixels)
    torch.nn.init.zeros_(method.pixels.last.weight)
    assert torch.equal(method(pixels, holes), pixels)


def test_restorer__parameters_and_reach_of_dncnn() -> None:
    network = RestorerNetwork({"degradations": ["gaussian_noise 25"]})
    assert sum(p.numel() for p in network.parameters()) == 3 * 48 * 9 + 48 + 6 * (48 * 48 * 9 + 48) + 48 * 3 * 9 + 3
    assert network.reach() == 8  # a pixel each side for each of 8 convolutions
    assert RestorerNetwork({"degradations": [], "scale": 2}).reach() == 6  # of them 4 small pixels, and bicubic's 2
    assert make_restorer("resnet").reach() > 8


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": 5},
        {"loss": "ssim"},
        {"scale": 2, "degradations": ["stroke_holes 0.2"]},
        {"backbone_args": {"layers": 3}},
        {"backbone_args": {"depth": 1}},
        {"backbone_checkpoint": "x.ckpt"},
    ],
)
def test_restorer__what_cannot_work_is_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match=r"model\.(scale|loss|backbone)"):
        RestorerNetwork({"degradations": ["gaussian_noise 25"], **wrong})


class Crops(LightningDataModule):
    """Eight smooth images, the same batch at each step."""

    num_classes, batches_per_epoch, global_batch_size, batch_size, channels = 0, 20, 8, 8, 3

    def __init__(self, factor: int = 1) -> None:
        super().__init__()
        self.factor, self.degraded = factor, ["downsample 2"] if factor > 1 else []
        rows = torch.arange(16)[:, None] * torch.arange(1, 9)[:, None, None]
        pixels = (rows[..., None] * torch.tensor([3, 5, 7])).expand(-1, -1, 16, -1) % 256
        self.batch = {"images": pixels[:, None].to(torch.uint8), "label": torch.full((8,), -1)}
        self.batch["key"] = torch.stack([torch.zeros(8), torch.arange(8), torch.zeros(8)], 1).long()
        if factor > 1:
            self.batch["degraded"] = self.batch["images"][:, :, ::factor, ::factor]

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader([self.batch] * self.batches_per_epoch, batch_size=None)

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader([self.batch], batch_size=None)


class StopAfter(Callback):
    """End the training after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def trainer(tmp_path, epochs: int) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path, use_distributed_sampler=False, **quiet
    )


def test_restorer__overfits_a_batch_and_a_resumed_run_has_the_same_bits(tmp_path) -> None:
    whole, data = make_restorer(lr=3e-3, schedule="warmup-stable-decay"), Crops()
    one = trainer(tmp_path, 3)
    one.fit(whole, data)
    noise_alone = 20 * math.log10(255 / 25)
    assert float(one.callback_metrics["val/psnr_rgb"]) > noise_alone + 1.0
    assert float(one.callback_metrics["val/gain_rgb"]) > 0.5
    assert {"val/psnr_y", "val/ssim_rgb", "val/ssim_y", "val/loss"} <= set(one.callback_metrics)

    begun = trainer(tmp_path, 3)
    part = make_restorer(lr=3e-3, schedule="warmup-stable-decay")
    begun.callbacks.append(StopAfter(1))
    begun.fit(part, data)
    begun.save_checkpoint(tmp_path / "half.ckpt")
    resumed = make_restorer(lr=3e-3, schedule="warmup-stable-decay")
    trainer(tmp_path, 3).fit(resumed, data, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert resumed.metadata["task"] == "restoration"


def test_restorer__lpips_without_its_weights_and_data_of_another_factor_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for network, wanted in (("alex", "alexnet-owt"), ("resnet", "squeeze")):
        with pytest.raises(UserError, match=rf"model\.lpips: .*{wanted}"):
            trainer(tmp_path, 1).fit(make_restorer(lpips=network), Crops())
    with pytest.raises(UserError, match=r"model\.scale: 1.*2"):
        trainer(tmp_path, 1).fit(make_restorer(), Crops(2))
    module = make_restorer(scale=2, degradations=[])
    trainer(tmp_path, 1).fit(module, Crops(2))  # and takes data of its own
