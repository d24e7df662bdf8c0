"""Segmenter: every head overfits one batch; losses against loops and closed forms; checkpoints."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lit_vision import distributed
from lit_vision.backbones.backbone import Backbone
from lit_vision.data import AnnotatedDataModule
from lit_vision.data.make.scenes import GARMENT_CLASSES, make_scenes
from lit_vision.errors import UserError
from lit_vision.evaluation.segmentation import pixel_counts, segmentation_values
from lit_vision.methods import Segmenter
from lit_vision.methods.segmentation.losses import dice_loss, pixel_cross_entropy, segmentation_loss, subsample_targets
from lit_vision.weights.load import save_backbone

CNN = {"stem": "small", "stem_type": "deep", "stem_width": 8, "layers": [1, 1, 1, 1], "channels": [16, 32, 32, 32]}
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def _segmenter(head: str = "upernet", vit: bool = False, **changes) -> Segmenter:
    torch.manual_seed(0)
    settings = {
        "strides": ([4, 8, 16] if vit else [2, 4, 8]) if head == "upernet" else None,
        "width": 32,
        "dropout": 0.0,
    }
    settings |= {"img_size": 32, "num_classes": 4, "lr": 2e-3, "warmup_epochs": 0, "backbone_args": VIT if vit else CNN}
    return Segmenter("vit_tiny_patch16_224" if vit else "resnet18", head=head, **settings | changes)


def _batch():
    g = torch.Generator().manual_seed(0)
    images, truth = torch.rand(2, 3, 32, 32, generator=g) * 0.3, torch.zeros(2, 32, 32, dtype=torch.int64)
    for image, mask, things in zip(images, truth, ([(0, 0, 0, 16, 16), (1, 16, 8, 32, 24)], [(2, 8, 8, 24, 32)])):
        for name, x1, y1, x2, y2 in things:
            image[name, y1:y2, x1:x2] += 2
            mask[y1:y2, x1:x2] = name + 1
    truth[:, :, :2] = 255
    return images, truth


@pytest.mark.parametrize(
    ("head", "vit", "loss"),
    [("linear", True, "ce"), ("fcn", False, "dice"), ("upernet", False, "ce+dice"), ("upernet", True, "dice")],
)
def test_every_head_and_loss_overfits_one_batch(head: str, vit: bool, loss: str) -> None:
    model = _segmenter(head, vit, loss=loss, **({"strides": [2]} if head == "fcn" else {}))
    images, truth = _batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(50 if head != "linear" else 80):
        optimizer.zero_grad()
        model.losses(images, truth).backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.train()
    with torch.no_grad():
        scores = model(images)
    assert scores.shape == (2, 4, 32, 32)
    dice = segmentation_values(pixel_counts(scores.argmax(1), truth, 4), 0)["dice"]
    assert dice > (0.85 if head == "linear" else 0.93)  # a linear head scores patches of 8 pixels


def _slow_dice(p: torch.Tensor, truth: torch.Tensor, smooth: float) -> float:
    losses = []
    for k in range(p.shape[1]):
        both = total = true = 0.0
        for b in range(len(p)):
            for y in range(p.shape[2]):
                for x in range(p.shape[3]):
                    if truth[b, y, x] != 255:
                        g = float(truth[b, y, x] == k)
                        both, total, true = both + g * p[b, k, y, x].item(), total + g + p[b, k, y, x].item(), true + g
        if true:
            losses.append(1 - (2 * both + smooth) / (total + smooth))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_dice_loss_equals_a_slow_loop(smooth: float) -> None:
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 4, 3, generator=g, dtype=torch.float64)
    truth = torch.randint(0, 4, (2, 4, 3), generator=g)  # class 4 is absent
    truth[0, 1] = 255
    expected = _slow_dice(logits.softmax(1), truth, smooth)
    assert dice_loss(logits, truth, smooth=smooth).item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda z: dice_loss(z, truth), logits.requires_grad_())


def test_closed_forms() -> None:
    truth = torch.tensor([[[0, 1], [1, 255]]])
    right = torch.full((1, 3, 2, 2), -50.0).scatter(1, truth.clamp(max=2)[:, None], 50.0)
    assert dice_loss(right, truth).item() == pytest.approx(0, abs=1e-6)
    wrong = right.roll(1, 1)  # class 2 where 1 is true, 1 where 0 is true
    assert dice_loss(wrong, truth).item() == pytest.approx(1, abs=1e-6)
    assert pixel_cross_entropy(torch.zeros(1, 3, 2, 2), truth).item() == pytest.approx(math.log(3), abs=1e-6)
    both = segmentation_loss(wrong, truth, "ce+dice")
    torch.testing.assert_close(both, pixel_cross_entropy(wrong, truth) + dice_loss(wrong, truth))
    nothing = torch.full_like(truth, 255)
    for loss in (pixel_cross_entropy, dice_loss):
        assert loss(torch.randn(1, 3, 2, 2), nothing).item() == 0
    assert dice_loss(torch.randn(1, 3, 2, 2).bfloat16(), truth).dtype == torch.float32


@pytest.mark.parametrize("name", ["ce", "dice", "ce+dice"])
def test_losses_across_processes_are_those_of_the_joined_batch(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Two processes simulated one after the other; in the second one pixel of six counts."""
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 2, 3, generator=g, dtype=torch.float64)
    truth = torch.randint(0, 3, (2, 2, 3), generator=g)
    truth[0, 0, 0], truth[1] = 255, 255
    truth[1, 1, 2] = 1
    wanted, alone = segmentation_loss(logits, truth, name), segmentation_loss(logits[1:], truth[1:], name)
    assert torch.equal(segmentation_loss(logits, truth, name, across_processes=True), wanted)
    sums: list[torch.Tensor] = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda x: sums.append(x) or x)
    assert torch.equal(segmentation_loss(logits[1:], truth[1:], name), alone)
    assert not sums  # nothing is exchanged unless asked for: processes may validate unequally many batches
    segmentation_loss(logits[1:], truth[1:], name, across_processes=True)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda x: x + sums.pop(0))
    torch.testing.assert_close(segmentation_loss(logits[:1], truth[:1], name, across_processes=True), wanted)
    assert not sums


def test_ignored_pixels_get_no_gradient() -> None:
    truth = torch.tensor([[[0, 255], [1, 2]]])
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    segmentation_loss(logits, truth, "ce+dice").backward()
    assert (logits.grad[0, :, 0, 1] == 0).all()
    assert (logits.grad[0, :, 1] != 0).any()


def test_the_auxiliary_loss_is_used_in_training_only() -> None:
    model = _segmenter(aux_weight=0.4)
    images, truth = _batch()
    plain = _segmenter(aux_weight=0.0)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("auxiliary")})
    for m in (model, plain):
        m.backbone.eval()  # fixed statistics: the two losses differ by the auxiliary one alone
    levels = model.pyramid(model.backbone.forward_maps(images))
    extra = torch.nn.functional.interpolate(model.auxiliary(levels[:-1]), size=(32, 32), mode="bilinear")
    torch.testing.assert_close(
        model.losses(images, truth), plain.losses(images, truth) + 0.4 * pixel_cross_entropy(extra, truth)
    )
    torch.testing.assert_close(model.eval()(images), plain.eval()(images))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"head": "unet"}, "model.head: 'unet'"),
        ({"loss": "focal"}, "model.loss: 'focal'"),
        ({"num_classes": 1}, "model.num_classes"),
        ({"background": 4}, "model.background"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"strides": [2, 4, 8, 16, 32]}, "model.strides: .* 32"),
        ({"strides": [4, 8, 24]}, "model.strides: .*24"),
    ],
)
def test_wrong_settings_are_named(changes: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        _segmenter(**changes)


def test_a_run__metrics_and_checkpoint(tmp_path: Path) -> None:
    make_scenes(tmp_path / "set", {"train": 8, "val": 3, "test": 2})
    data = AnnotatedDataModule(
        str(tmp_path / "set"),
        format="masks",
        class_names=["background", *GARMENT_CLASSES],
        img_size=32,
        batch_size=4,
        num_workers=0,
    )
    backbone = Backbone("resnet18", **CNN)
    save_backbone(tmp_path / "backbone.safetensors", backbone, [0.5] * 3, [0.25] * 3)
    model = _segmenter("fcn", num_classes=11, tune="linear", backbone_checkpoint=str(tmp_path / "backbone.safetensors"))
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    trainer.fit(model, datamodule=data)
    assert all(torch.equal(a, b) for a, b in zip(model.backbone.state_dict().values(), backbone.state_dict().values()))
    measured = trainer.callback_metrics
    assert {"val/dice", "val/miou", "val/miou_objects", "val/pixel_accuracy", "val/dice_background", "val/loss"} <= set(
        measured
    )
    counts = torch.zeros(11, 11, dtype=torch.int64)
    model.eval()
    with torch.no_grad():
        for batch in data.eval_loader("val"):
            batch = model.on_after_batch_transfer(batch, 0)
            counts += pixel_counts(model(batch["images"][:, 0]).argmax(1), batch["mask"], 11)
    for name, value in segmentation_values(counts, 0).items():
        assert float(measured[f"val/{name}"]) == pytest.approx(value, abs=1e-6)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["card"]["task"] == "segmentation"
    assert not any(k.startswith(("counts", "mean_loss")) for k in saved["state_dict"])
    (tmp_path / "backbone.safetensors").unlink()
    again = Segmenter.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True).eval()
    images, _ = _batch()
    assert torch.equal(again(images), model(images))
    with pytest.raises(UserError, match="data: Segmenter"):
        trainer.fit(model, datamodule=AnnotatedDataModule(str(tmp_path / "set"), img_size=32, num_workers=0))


def test_subsampled_targets_are_the_middle_of_their_blocks_on_average() -> None:
    ramp = torch.arange(16.0).expand(1, 16, 16)
    for stride in (1, 2, 4):
        taken = subsample_targets(ramp, stride)
        assert taken.shape == (1, 16 // stride, 16 // stride)
        assert taken.mean().item() == ramp.mean().item()
        assert subsample_targets(ramp.mT, stride).mean().item() == ramp.mean().item()
    assert subsample_targets(torch.zeros(2, 5, 7), 2).shape == (2, 3, 4)


def test_loss_stride_is_the_loss_at_the_selected_pixels() -> None:
    images, truth = _batch()
    model, full = _segmenter(loss_stride=2, aux_weight=0.0), _segmenter(aux_weight=0.0)
    full.load_state_dict(model.state_dict())
    scores = torch.nn.functional.interpolate(full._scores(images)[0], size=(16, 16), mode="bilinear")
    expected = pixel_cross_entropy(scores, subsample_targets(truth, 2))
    torch.testing.assert_close(model.losses(images, truth), expected)
    assert model(images).shape == full(images).shape
