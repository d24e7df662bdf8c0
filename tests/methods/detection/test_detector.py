"""Detector: every head overfits one batch, at the size of the images; losses against slow references; checkpoints."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lit_vision.backbones.backbone import Backbone
from lit_vision.backbones.pyramid import freeze_unused, make_feature_levels, make_pyramid
from lit_vision.data import AnnotatedDataModule
from lit_vision.data.make.scenes import make_scenes
from lit_vision.errors import UserError
from lit_vision.evaluation.detection import coco_metric, coco_values
from lit_vision.methods import Detector
from lit_vision.weights.load import save_backbone

CNN = {"stem": "small", "stem_type": "deep", "stem_width": 8, "layers": [1, 1, 1, 1], "channels": [16, 32, 64, 64]}
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def _detector(head: str = "fcos", backbone: str = "resnet18", args: dict | None = None, **changes) -> Detector:
    torch.manual_seed(0)
    settings = {
        "strides": [8, 16, 32] if head in ("fcos", "retinanet") else [4, 8, 16],
        "pyramid_width": 32,
        "head_convs": 1,
    }
    settings |= {"head_width": 32, "rois": 32, "img_size": 64, "num_classes": 3, "lr": 2e-3, "warmup_epochs": 0}
    return Detector(backbone, head=head, backbone_args=CNN if args is None else args, **settings | changes)


def _batch(empty: bool = True):
    """Images with bright boxes on dark noise, each class a channel; the last image has no box."""
    g = torch.Generator().manual_seed(0)
    boxes = [[[4, 4, 28, 30], [34, 30, 60, 58]], [[10, 20, 44, 40]], []]
    labels = [[0, 1], [2], []]
    images, targets = torch.rand(3, 3, 64, 64, generator=g) * 0.3, []
    for image, image_boxes, names in zip(images, boxes, labels):
        masks = torch.zeros(len(image_boxes), 64, 64, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2), name in zip(masks, image_boxes, names):
            image[name, y1:y2, x1:x2] += 2
            mask[y1:y2, x1:x2] = 1
        box = torch.tensor(image_boxes, dtype=torch.float32).reshape(-1, 4)
        targets.append({"boxes": box, "labels": torch.tensor(names, dtype=torch.int64), "masks": masks})
    return (images, targets) if empty else (images[:2], targets[:2])


@pytest.mark.parametrize(
    ("head", "backbone"),
    [
        pytest.param("fcos", "cnn", marks=pytest.mark.slow),
        pytest.param("retinanet", "cnn", marks=pytest.mark.slow),
        pytest.param("faster_rcnn", "cnn", marks=pytest.mark.slow),
        ("mask_rcnn", "cnn"),
        ("fcos", "vit"),
    ],
)
def test_every_head_overfits_one_batch(head: str, backbone: str) -> None:
    vit = backbone == "vit"
    model = _detector(head, "vit_tiny_patch16_224" if vit else "resnet18", VIT if vit else CNN)
    images, targets = _batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    model.train()
    first = None
    for _ in range({"mask_rcnn": 45, "retinanet": 50}.get(head, 90 if vit else 60)):
        loss = sum(model.losses(images, targets).values())
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    with torch.no_grad():
        found = model(images)
    metric = coco_metric(masks=head == "mask_rcnn")
    truth = [{**t, "masks": t["masks"].bool()} for t in targets]
    metric.update(found, truth)
    values = coco_values(metric)
    assert values["map50"] > 0.9, values
    if head == "mask_rcnn":
        assert found[0]["masks"].shape[1:] == (64, 64)
        assert values["mask_map50"] > 0.9
    for one in found:
        assert torch.equal(one["boxes"], one["boxes"].clamp(0, 64))
        assert (one["scores"].diff() <= 0).all()


def test_losses_equal_slow_references() -> None:
    """Losses of FCOS by a slow loop: focal loss, 1 - GIoU and centre-ness over the paper's positive positions."""
    model = _detector()
    images, targets = _batch()
    model.eval()  # fixed batch-norm statistics
    raw = model.raw(images)
    ours = model.losses(images, targets)
    points = model.decoder.anchors((64, 64), images)  # (A, 4) squares of one stride around each position
    positives, focal, giou, ctr = 0, 0.0, 0.0, 0.0
    for b, target in enumerate(targets):
        for a, point in enumerate(points.tolist()):
            stride = point[2] - point[0]
            x, y = (point[0] + point[2]) / 2, (point[1] + point[3]) / 2
            low, high = {8: (0, 64), 16: (64, 128), 32: (128, math.inf)}[stride]
            best = None
            for box, name in zip(target["boxes"].tolist(), target["labels"].tolist()):
                w, t, r, d = x - box[0], y - box[1], box[2] - x, box[3] - y
                near = max(abs(x - (box[0] + box[2]) / 2), abs(y - (box[1] + box[3]) / 2)) < 1.5 * stride
                area = (box[2] - box[0]) * (box[3] - box[1])
                if min(w, t, r, d) > 0 and near and low < max(w, t, r, d) < high and (best is None or area < best[0]):
                    best = (area, name, (w, t, r, d), box)
            p = raw["cls_logits"][b, a].sigmoid()
            for k in range(3):
                hit = best is not None and best[1] == k
                q, alpha = (p[k], 0.25) if hit else (1 - p[k], 0.75)
                focal += -alpha * (1 - q) ** 2 * q.log()
            if best is not None:
                positives += 1
                w, t, r, d = best[2]
                o = raw["bbox_regression"][b, a] * stride
                box = torch.stack([x - o[0], y - o[1], x + o[2], y + o[3]])
                giou += 1 - _giou(box, torch.tensor(best[3]))
                wanted = math.sqrt(min(w, r) / max(w, r) * min(t, d) / max(t, d))
                ctr += nn.functional.binary_cross_entropy_with_logits(
                    raw["bbox_ctrness"][b, a, 0], torch.tensor(wanted)
                )
    assert positives > 5
    for name, value in (("classification", focal), ("bbox_regression", giou), ("bbox_ctrness", ctr)):
        torch.testing.assert_close(ours[name], value / positives, rtol=1e-4, atol=1e-5)


def _giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    side = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    both, hull = side.prod(), (torch.maximum(a[2:], b[2:]) - torch.minimum(a[:2], b[:2])).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both
    return both / union - (hull - union) / hull


def test_class_bias_gives_one_percent_at_the_start() -> None:
    for head in ("fcos", "retinanet"):
        bias = _detector(head).head.head.classification_head.cls_logits.bias
        torch.testing.assert_close(bias, torch.full_like(bias, -4.59512), rtol=0, atol=1e-4)


def test_anchors_scale_with_the_strides_and_images_are_not_resized() -> None:
    model = _detector("retinanet")
    sides = (
        (model.decoder.anchors((64, 64), torch.zeros(1)) @ torch.tensor([[-1.0, 0], [0, -1], [1, 0], [0, 1]]))
        .prod(1)
        .sqrt()
    )
    assert len(sides) == (64 + 16 + 4) * 9
    assert sides.min() == pytest.approx(32, abs=1)
    assert sides.max() == pytest.approx(32 * 4 * 2 ** (2 / 3), abs=3)
    assert [tuple(f.shape[-2:]) for f in model.features(torch.zeros(1, 3, 64, 64))] == [(8, 8), (4, 4), (2, 2)]


STRIDES = {  # by default: one-stage, two-stage
    32: ([8], [4]),
    64: ([8, 16], [4, 8]),
    128: ([8, 16, 32], [4, 8, 16]),
    256: ([8, 16, 32, 64], [4, 8, 16, 32]),
    512: ([8, 16, 32, 64, 128], [4, 8, 16, 32, 64]),
    1024: ([8, 16, 32, 64, 128], [4, 8, 16, 32, 64]),
}


@pytest.mark.parametrize("size", STRIDES)
def test_default_anchors_fit_the_image(size: int) -> None:
    backbone = CNN | {"stem": "imagenet"}  # maps of strides 2 to 32
    for head in ("fcos", "retinanet", "faster_rcnn", "mask_rcnn"):
        model = _detector(head, args=backbone, strides=None, img_size=size)
        assert model.pyramid.strides == STRIDES[size][not model.one_stage]
        assert model.hparams.strides == model.pyramid.strides  # so a checkpoint keeps them
        makes = model.head.anchor_generator if model.one_stage else model.head.rpn.anchor_generator
        assert len(makes.sizes) == len(model.pyramid.strides)
        assert max(map(max, makes.sizes)) <= 1.6 * size
        if head == "retinanet":
            x1, y1, x2, y2 = model.decoder.anchors((size, size), torch.zeros(1)).unbind(1)
            assert ((x2 - x1) * (y2 - y1)).sqrt().max() <= 1.6 * size


@pytest.mark.parametrize("head", ["fcos", "retinanet", "faster_rcnn", "mask_rcnn"])
@pytest.mark.parametrize("vit", [False, True])
def test_default_strides_train_at_64_pixels(head: str, vit: bool) -> None:
    model = _detector(head, *(("vit_tiny_patch16_224", VIT) if vit else ("resnet18", None)), strides=None)
    images, targets = _batch()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        losses = model.losses(images, targets, torch.arange(9).reshape(3, 3))
        assert all(loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        assert len(model.eval()(images)) == 3


def test_raw_and_decode_equal_forward() -> None:
    model = _detector(score_threshold=0.001).eval()
    images, _ = _batch()
    with torch.no_grad():
        raw, found = model.raw(images), model(images)
    assert raw["cls_logits"].shape == (3, 84, 3)
    for a, b in zip(model.decode(raw, (64, 64)), found):
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert len(found[0]["labels"]) > 0
    with pytest.raises(UserError, match=r"model\.head"):
        _detector("faster_rcnn").raw(images)


@pytest.mark.parametrize("head", ["fcos", "retinanet", "faster_rcnn"])
def test_mixed_precision_keeps_boxes_exact(head: str) -> None:
    model = _detector(head, score_threshold=0.0)
    images, targets = _batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(images, targets)
        model.eval()
        with torch.no_grad():
            found = model(images)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert all(value.dtype == torch.float32 for one in found for name, value in one.items() if name != "labels")
    assert any((one["boxes"] != one["boxes"].bfloat16().float()).any() for one in found)


def test_pyramids_have_the_papers_parts() -> None:
    backbone = Backbone("vit_tiny_patch16_224", img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2)
    pyramid = make_pyramid(backbone, 64, 48, [4, 8, 16, 32, 64])
    kinds = [[type(m).__name__ for m in level] for level in pyramid.levels]
    tail = ["Conv2d", "ChannelNorm", "Conv2d", "ChannelNorm"]
    assert kinds[0] == ["ConvTranspose2d", "ChannelNorm", "GELU", "ConvTranspose2d", *tail]
    assert kinds[1:] == [["ConvTranspose2d", *tail], tail, ["MaxPool2d", *tail]]
    assert pyramid.levels[0][3].out_channels == 8  # a quarter of the width
    levels = pyramid(backbone.forward_maps(torch.randn(2, 3, 64, 64)))
    assert [tuple(m.shape) for m in levels] == [(2, 48, s, s) for s in (16, 8, 4, 2, 1)]
    assert torch.equal(levels[4], levels[3][..., ::2, ::2])
    assert freeze_unused(backbone, pyramid, 64) == ["model.norm.weight", "model.norm.bias"]
    for m in (pyramid.levels[0][1],):  # layer norm over channels
        x = torch.randn(2, 16, 3, 3)
        torch.testing.assert_close(m(x)[0, :, 1, 2], nn.functional.layer_norm(x[0, :, 1, 2], (16,)))
    backbone = Backbone("resnet18", **CNN)
    pyramid = make_pyramid(backbone, 64, 32, [4, 8, 16, 32])
    assert [m.shape[-1] for m in pyramid(backbone.forward_maps(torch.zeros(1, 3, 64, 64)))] == [16, 8, 4, 2]
    assert freeze_unused(backbone, pyramid, 64) == []
    short = make_feature_levels(backbone, 64, 32, [4, 8])[0]
    assert {name.split(".")[1] for name in freeze_unused(backbone, short, 64)} == {"layer4"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"head": "yolo"}, "model.head: 'yolo'"),
        ({"num_classes": 0}, "model.num_classes"),
        ({"pyramid_width": 48}, "model.pyramid_width: 48"),
        ({"strides": [8, 24]}, "model.strides: .*24"),
        ({"strides": [8, 16, 32, 64, 128]}, "model.img_size: .* 128"),
        ({"strides": [1, 2]}, "model.strides: "),
        (
            {
                "strides": [4, 8, 16, 32],
                "backbone": "vit_tiny_patch16_224",
                "args": VIT | {"patch_size": 12, "img_size": 60},
            },
            "img_size",
        ),
        ({"tune": "some"}, "tune: 'some'"),
        ({"tune": "lora"}, "lora_targets: 'qkv' .*resnet18"),
        ({"tune": "prompt-deep"}, "tune: .*resnet18"),
    ],
)
def test_wrong_settings_are_named(changes: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        _detector(**changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "set"
    make_scenes(out, {"train": 8, "val": 3, "test": 2})
    return out


def _trainer(folder: Path, **changes) -> Trainer:
    settings = {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"use_distributed_sampler": False, "accelerator": "cpu", "enable_checkpointing": False}
    return Trainer(default_root_dir=folder, **settings | changes)


def test_a_run__metrics_and_checkpoint(root: Path, tmp_path: Path) -> None:
    backbone = Backbone("resnet18", **CNN)
    save_backbone(tmp_path / "backbone.safetensors", backbone, [0.5] * 3, [0.25] * 3)
    data = AnnotatedDataModule(str(root), img_size=64, batch_size=4, num_workers=0)
    model = _detector(num_classes=10, backbone_checkpoint=str(tmp_path / "backbone.safetensors"), tune="linear")
    torch.testing.assert_close(model.mean, torch.full((3,), 0.5))
    assert all(torch.equal(a, b) for a, b in zip(model.backbone.state_dict().values(), backbone.state_dict().values()))
    trainer = _trainer(tmp_path)
    trainer.fit(model, datamodule=data)
    assert 0 <= trainer.callback_metrics["val/map"] <= 1
    assert {"train/loss", "train/classification_loss", "train/bbox_ctrness_loss", "val/map50"} <= set(
        trainer.callback_metrics
    )
    assert all(torch.equal(a, b) for a, b in zip(model.backbone.state_dict().values(), backbone.state_dict().values()))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["card"]["task"] == "detection"
    assert len(saved["card"]["class_names"]) == 10
    assert saved["hyper_parameters"]["backbone_checkpoint"] is None
    assert saved["AnnotatedDataModule"]["epoch"] == 1
    keys = list(saved["state_dict"])
    assert {k.split(".")[0] for k in keys} == {"backbone", "pyramid", "head", "mean", "std"}
    (tmp_path / "backbone.safetensors").unlink()
    again = Detector.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True).eval()
    images, _ = _batch()
    with torch.no_grad():
        assert torch.equal(again.raw(images)["cls_logits"], model.eval().raw(images)["cls_logits"])
    measured = trainer.test(again, datamodule=data, verbose=False)[0]
    assert 0 <= measured["test/map"] <= 1


@pytest.mark.parametrize(
    ("changes", "settings", "expected"),
    [
        ({"num_classes": 4}, {}, "model.num_classes: 4.* 10"),
        ({"num_classes": 10}, {"img_size": 96}, "model.img_size: 64.* 96"),
        ({"num_classes": 10, "head": "mask_rcnn"}, {}, "data.with_masks"),
        ({"num_classes": 11}, {"format": "masks", "class_names": list("0123456789a")}, "data: Detector"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_a_step(
    root: Path, tmp_path: Path, changes, settings, expected
) -> None:
    data = AnnotatedDataModule(str(root), **{"img_size": 64, "batch_size": 4, "num_workers": 0} | settings)
    with pytest.raises(UserError, match=expected):
        _trainer(tmp_path).fit(_detector(**changes), datamodule=data)
