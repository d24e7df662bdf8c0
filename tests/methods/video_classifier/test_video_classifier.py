"""VideoClassifier: shifted channels, order of the frames, one frame against Classifier, metrics by video, training."""

import os
import signal
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_models
from lightning.pytorch import LightningDataModule, Trainer
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from lit_vision.convert.export import exported_program
from lit_vision.convert.export_model import export_model
from lit_vision.errors import UserError
from lit_vision.methods import Classifier, VideoClassifier
from lit_vision.methods.video_classifier.network import video_log_probabilities
from lit_vision.methods.video_classifier.temporal import TEMPORAL_MODES, FrameMean, frame_positions, temporal_shift
from lit_vision.predict.models import load_method, load_model
from lit_vision.predict.tasks import inference_network

BACKBONES = {
    "resnet18": toy_models.CNN,
    "mobilenetv2_035": {},
    "vit_tiny_patch16_224": toy_models.VIT,
}
SMALL = {"temporal_width": 16, "temporal_heads": 2, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}


def make(backbone: str = "resnet18", temporal: str = "tsm", classes: int = 3, **more) -> VideoClassifier:
    torch.manual_seed(0)
    method = VideoClassifier(backbone, classes, temporal, backbone_args=BACKBONES[backbone], **{**SMALL, **more})
    with torch.no_grad():
        method.head.weight.normal_(0, 0.3)  # logits that differ
        for part in method.backbone.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.fill_(1)  # timm starts residual branches at zero, where no shift could be seen
    return method.eval()


def random_clips(n: int = 2, frames: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, frames, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_shift__is_the_papers_loop_with_the_ends_repeated() -> None:
    x = random_clips(2, 5).reshape(10, 24, 8, 4)
    expected = x.clone()
    for clip in range(2):
        for t in range(5):
            expected[5 * clip + t, :3] = x[5 * clip + min(t + 1, 4), :3]
            expected[5 * clip + t, 3:6] = x[5 * clip + max(t - 1, 0), 3:6]
    for memory in (torch.contiguous_format, torch.channels_last):
        found = temporal_shift(x.contiguous(memory_format=memory), 5)
        assert torch.equal(found, expected)
    tokens = temporal_shift(x.flatten(2).transpose(1, 2), 5, channel_dim=-1)
    assert torch.equal(tokens, expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_tsm__is_the_identity_on_a_constant_clip_and_on_one_frame(backbone: str) -> None:
    still = random_clips(2, 1).expand(2, 4, -1, -1, -1)
    x = still.reshape(8, 24, 8, 4)
    assert torch.equal(temporal_shift(x, 4), x)
    video = make(backbone)
    image = Classifier(backbone, 3, BACKBONES[backbone], mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.25])
    image.load_state_dict(video.state_dict(), strict=False)  # the same names; neither has more weights
    assert list(image.state_dict()) == list(video.state_dict())
    with torch.no_grad():
        expected = image.eval()(still[:, 0])
        torch.testing.assert_close(video(still), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(video(still[:, :1]), expected, rtol=1e-6, atol=1e-6)
        moving = random_clips(2, 4)
        mean = make(backbone, "mean")
        mean.load_state_dict(video.state_dict())
        assert (video(moving) - mean(moving)).abs().max() > 1e-3  # the shift is there
        torch.testing.assert_close(mean(moving[:, :1]), image(moving[:, 0]), rtol=1e-6, atol=1e-6)


def test_mean__has_the_same_bits_in_any_order_of_the_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, 64, generator=generator) * 10 ** torch.empty(3, 5, 64).uniform_(-4, 4)
    orders = [list(order) for order in permutations(range(5))]
    expected, plain = FrameMean(64)(features), features.mean(1)
    assert all(torch.equal(FrameMean(64)(features[:, order]), expected) for order in orders)
    assert not all(torch.equal(features[:, order].mean(1), plain) for order in orders)  # a plain mean's are others
    torch.testing.assert_close(expected.double(), features.double().mean(1), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("temporal", TEMPORAL_MODES)
def test_order_of_the_frames__changes_all_but_the_mean(temporal: str) -> None:
    method, clips = make(temporal=temporal), random_clips(2, 5)
    with torch.no_grad():
        forward, backward = method(clips), method(clips.flip(1))
        longer = method(random_clips(1, 7))
    assert longer.shape == (1, 3)  # other lengths than in training
    if temporal == "mean":
        torch.testing.assert_close(forward, backward, rtol=1e-6, atol=1e-6)
    else:
        assert (forward - backward).abs().max() > 1e-4


def test_clips_of_a_batch__do_not_mix() -> None:
    clips = random_clips(3, 4)
    for temporal in TEMPORAL_MODES:
        method = make(temporal=temporal)
        with torch.no_grad():
            torch.testing.assert_close(method(clips)[1:2], method(clips[1:2]), rtol=1e-5, atol=1e-5)


def test_positions__have_the_published_form() -> None:
    table = frame_positions(4, 6)
    assert table.shape == (4, 6)
    for t in range(4):
        for k in range(3):
            angle = t / 10000 ** (2 * k / 6)
            assert table[t, [k, 3 + k]].tolist() == pytest.approx([np.sin(angle), np.cos(angle)], abs=1e-6)


def test_probabilities_of_a_video__are_the_mean_of_its_clips() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)) * 20
    expected = logits.double().softmax(2).mean(1)
    torch.testing.assert_close(video_log_probabilities(logits).double().exp(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(video_log_probabilities(logits[:, :1]), logits[:, 0].log_softmax(1))


class Clips(LightningDataModule):
    """Six videos of two clips; training takes the first clip."""

    def __init__(self, classes: int, clips: int = 2) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.pixels = torch.from_numpy(rng.integers(0, 256, (6, clips, 3, 16, 16, 3), dtype=np.uint8))
        self.labels = torch.arange(6) % classes
        self.class_names, self.num_classes, self.img_size = [f"c{i}" for i in range(classes)], classes, 16
        self.frames_per_clip, self.frame_stride, self.fps = 3, 2, None
        self.batches_per_epoch, self.global_batch_size = 1, 6

    def loader(self, split: slice, clips: slice, batch: int) -> DataLoader:
        keys = torch.stack([torch.zeros(6, dtype=torch.long), torch.arange(6), torch.zeros(6, dtype=torch.long)], 1)
        fields = zip(self.pixels[split, clips], self.labels[split], keys[split])
        return DataLoader([dict(zip(("images", "label", "key"), one)) for one in fields], batch)

    def train_dataloader(self) -> DataLoader:
        return self.loader(slice(0, 6), slice(0, 1), 6)

    def val_dataloader(self) -> DataLoader:
        return self.loader(slice(0, 6), slice(None), 4)  # the last batch is smaller

    test_dataloader = val_dataloader


def trainer(**more) -> Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(accelerator="cpu", **{"max_epochs": 1, **quiet, **more})


def test_metrics__count_videos_whose_clips_are_averaged() -> None:
    method, data = make(temporal="lstm", classes=6), Clips(6)
    found = trainer().test(method, datamodule=data, verbose=False)[0]
    mean, std = method.mean[:, None, None], method.std[:, None, None]
    pixels = (data.pixels.permute(0, 1, 2, 5, 3, 4).float() / 255 - mean) / std
    with torch.no_grad():
        p = torch.stack([method(pixels[:, clip]).double().softmax(1) for clip in range(2)]).mean(0)
    best = p.argsort(1, descending=True)
    assert found["test/top1"] == pytest.approx((best[:, 0] == data.labels).float().mean().item())
    assert found["test/top5"] == pytest.approx((best[:, :5] == data.labels[:, None]).any(1).float().mean().item())
    assert found["test/loss"] == pytest.approx(-p[range(6), data.labels].log().mean().item(), rel=1e-5)
    assert found["test/mean_per_class"] == pytest.approx(found["test/top1"])  # one video a class


@pytest.mark.parametrize("temporal", ["lstm", "attention", "tsm"])
def test_training__learns_the_direction_that_one_frame_does_not_show(temporal: str) -> None:
    method = make(temporal=temporal, classes=2, optimizer="adam", lr=0.01, warmup_epochs=0, weight_decay=0.0)
    row = torch.arange(16)
    frames = torch.stack([(row == 4 + 2 * t).float() for t in range(5)])[:, None, :, None].expand(5, 3, 16, 16)
    clips, labels = torch.stack([frames, frames.flip(0)]), torch.tensor([0, 1])
    optimizer = torch.optim.Adam(method.parameters(), 0.01)
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(method.train()(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_frozen_backbone__stays_as_it_was_and_the_rest_trains(tmp_path: Path) -> None:
    data, method = Clips(3), make(temporal="lstm", tune="linear", lr=0.1, warmup_epochs=0)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    trainer(limit_val_batches=0).fit(method, datamodule=data)
    changed = {
        name.split(".")[0] for name, value in method.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed - {"metrics"} == {"temporal", "head"}
    assert not any(part.training for part in method.train().backbone.modules())
    options = {"frames_per_clip": 3, "frame_stride": 2}
    assert method.metadata == {
        "task": "video", "class_names": ["c0", "c1", "c2"], "size": 16, "crop_pct": 1.0, "options": options
    }  # fmt: skip


def test_checkpoint_of_images__starts_the_backbone(tmp_path: Path, capsys) -> None:
    toy_models.write_run(tmp_path, toy_models.make_classifier("cnn"))
    path = tmp_path / "checkpoints/last.ckpt"
    method = make(temporal="tsm", backbone_checkpoint=str(path))
    weights = torch.load(path, weights_only=True)["state_dict"]
    own = method.state_dict()
    assert all(torch.equal(own[name], value) for name, value in weights.items() if value.dim() == 4)
    assert "Classifier" in capsys.readouterr().out


def test_what_cannot_work__is_one_line() -> None:
    for settings, word in (
        ({"temporal": "max"}, "tsm"),
        ({"temporal": "attention", "temporal_width": 15}, "temporal_heads"),
        ({"temporal": "lstm", "temporal_width": 0}, "temporal_width"),
        ({"dropout": 1.0}, "dropout"),
        ({"classes": 1}, "num_classes"),
    ):
        with pytest.raises(UserError, match=word) as caught:
            make(**settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="ResNet"):
        VideoClassifier("vgg11", 3, "tsm", backbone_args={"stem": "small"})
    batch = {"images": torch.zeros(2, 1, 16, 16, 3, dtype=torch.uint8), "label": torch.zeros(2, dtype=torch.long)}
    batch["key"] = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(UserError, match="VideoFolderDataModule"):
        make().on_after_batch_transfer(batch, 0)
    with pytest.raises(UserError, match="VideoClassifier"):
        toy_models.make_classifier("cnn").on_after_batch_transfer({**batch, "images": batch["images"].unsqueeze(2)}, 0)
    with pytest.raises(UserError, match="video without a label"):
        make().on_before_batch_transfer({**batch, "label": torch.tensor([0, -1])}, 0)


def with_frames(method: VideoClassifier, frames: int) -> VideoClassifier:
    options = {"frames_per_clip": frames}
    method.metadata = {"task": "video", "class_names": ["a", "b", "c"], "size": 16, "crop_pct": 1.0, "options": options}
    return method


def test_exported_program__takes_clips(tmp_path: Path) -> None:
    method, clips = with_frames(make(temporal="tsm"), 3), random_clips(5, 3)
    toy_models.write_run(tmp_path, method)
    network, metadata = load_method(tmp_path / "checkpoints/last.ckpt")
    program = exported_program(inference_network(network, "video"), metadata)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(clips)[0], method(clips), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("temporal", "backbone"), [*((mode, "resnet18") for mode in TEMPORAL_MODES), ("tsm", "vit_tiny_patch16_224")]
)
@pytest.mark.parametrize("file_format", ["onnx", "openvino", "safetensors"])
def test_export__agrees_with_torch(tmp_path: Path, temporal: str, backbone: str, file_format: str) -> None:
    method, clips = with_frames(make(backbone, temporal), 3), random_clips(4, 3)
    toy_models.write_run(tmp_path, method)
    path = export_model(tmp_path, file_format).path  # refuses what differs
    found = load_model(path, "cpu").run(clips)["logits"]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), method(clips), rtol=1e-4, atol=1e-4)


RECIPE = """
seed_everything: 3
trainer:
  max_epochs: 4
  accelerator: cpu
  log_every_n_steps: 1
  enable_model_summary: false
  callbacks: [{class_path: lit_vision.callbacks.checkpoint.LastCheckpoint, init_args: {every_n_steps: 1}}]
model:
  class_path: lit_vision.methods.VideoClassifier
  init_args:
    {backbone: resnet18, num_classes: 2, temporal: tsm, dropout: 0.3, lr: 1.0e-2, warmup_epochs: 1,
     mean: MEAN, std: STD, backbone_args: {stem: small, layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}}
data:
  class_path: lit_vision.data.VideoFolderDataModule
  init_args: {root: set, frames_per_clip: 3, clips_per_video: 2, img_size: 16, batch_size: 2, num_workers: 0}
"""


@pytest.mark.slow
def test_killed_run__resumes_with_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for video in range(12):
        folder = tmp_path / "set" / ("train" if video < 8 else "val") / "ab"[video % 2] / f"v{video}"
        folder.mkdir(parents=True)
        for frame in range(6):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / f"{frame}.png")
    (tmp_path / "r.yaml").write_text(RECIPE.replace("MEAN", "[0.5, 0.5, 0.5]").replace("STD", "[0.3, 0.3, 0.3]"))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3]), "WANDB_MODE": "disabled"}

    def fit(run: str, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "lit_vision", "fit", "--config", "r.yaml", "--run_dir", run, *more]
        return subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert fit("whole").wait() == 0
    killed = fit("killed")
    metrics = tmp_path / "killed" / "metrics.csv"
    while killed.poll() is None and not (metrics.is_file() and len(metrics.read_text().splitlines()) > 5):
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL  # before its end
    assert fit("killed", "--resume", "auto").wait() == 0
    kept = [torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True) for run in ("whole", "killed")]
    assert kept[0]["global_step"] == kept[1]["global_step"] == 16
    assert all(torch.equal(value, kept[1]["state_dict"][name]) for name, value in kept[0]["state_dict"].items())
    assert metrics.read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
