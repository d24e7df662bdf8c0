"""Counts, costs and values that the papers and their reproductions publish, and that no other test holds.

Held elsewhere: MAE's counts by part, its closed-form losses and invariants (tests/methods/test_mae.py); NT-Xent's
values (test_nt_xent.py, test_distributed.py); smoothing and log K (test_classifier.py); learning rates, layer decay,
LARS (test_optim.py); LoRA and prompts (tests/backbones/test_adapters.py); keys of checkpoints (test_weights_in.py);
small stems and layer groups (test_backbone.py).
"""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lit_vision.backbones.backbone import Backbone
from lit_vision.methods.classifier.classifier import Classifier
from lit_vision.methods.classifier.network import classification_loss, soft_targets
from lit_vision.methods.mae.mae import MAE
from lit_vision.methods.simclr.network import nt_xent

VITS = {  # name: width, depth, patch, patches
    "vit_base_patch16_224": (768, 12, 16, 196),
    "vit_large_patch16_224": (1024, 24, 16, 196),
    "vit_huge_patch14_224": (1280, 32, 14, 256),
}
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- parameters


@pytest.mark.parametrize(
    ("name", "total", "classifier"),
    [
        ("vit_base_patch16_224", 111_907_840, 86_567_656),
        ("vit_large_patch16_224", 329_541_888, 304_326_632),
        ("vit_huge_patch14_224", 657_074_508, 632_045_800),
    ],
)
def test_vit__totals_follow_the_formulas(name: str, total: int, classifier: int) -> None:
    d, depth, patch, patches = VITS[name]

    def block(width: int) -> int:
        return 12 * width**2 + 13 * width

    encoder = 3 * patch**2 * d + d + d + (patches + 1) * d + depth * block(d) + 2 * d
    decoder = d * 512 + 512 + 512 + (patches + 1) * 512 + 8 * block(512) + 2 * 512 + 512 * 3 * patch**2 + 3 * patch**2
    with torch.device("meta"):
        mae, tuned = MAE(name), Classifier(name, 1000, {"pool": "avg"})
    assert count(mae) == total == encoder + decoder
    assert count(tuned) == classifier == encoder + 1000 * d + 1000
    assert all(p.requires_grad for p in tuned.parameters())  # positions too, unlike pre-training


@pytest.mark.parametrize(
    ("name", "args", "parameters"),
    [
        ("vit_huge_patch14_224", {"img_size": 448}, 633_028_840),
        ("vit_tiny_patch16_224", {}, 5_717_416),
        ("vit_small_patch16_224", {}, 22_050_664),
        ("resnet18", {}, 11_689_512),
        ("resnet34", {}, 21_797_672),
        ("resnet50", {}, 25_557_032),
    ],
)
def test_classifiers__published_counts(name: str, args: dict, parameters: int) -> None:
    with torch.device("meta"):
        assert count(Classifier(name, 1000, args)) == parameters


@pytest.mark.parametrize(("times", "backbone", "total"), [(2, 93_907_072, 98_004_072), (4, 375_378_176, 383_571_176)])
def test_wider_resnets__are_simclrs(times: int, backbone: int, total: int) -> None:
    wide = {"channels": [c * times for c in (64, 128, 256, 512)], "stem": "wide"}
    with torch.device("meta"):
        assert count(Backbone("resnet50", **wide)) == backbone
        assert count(Classifier("resnet50", 1000, wide)) == total


def test_mae__cifar_total() -> None:
    with torch.device("meta"):
        assert count(MAE("vit_small_patch16_224", {"img_size": 32, "patch_size": 4})) == 46_814_128


# ---- multiply-adds of one image, in units of 10^9


def gigas(run) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize(
    ("name", "full", "encoder", "decoder", "step", "tokens_in", "ratio"),
    [
        ("vit_base_patch16_224", 17.563, 4.408, 5.373, 9.781, 22.994, 2.35),
        ("vit_large_patch16_224", 61.554, 15.377, 5.379, 20.756, 67.010, 3.23),
        ("vit_huge_patch14_224", 167.294, 41.433, 7.129, 48.562, 174.548, 3.59),
    ],
)
def test_mae__costs(
    name: str, full: float, encoder: float, decoder: float, step: float, tokens_in: float, ratio: float
) -> None:
    d, depth, patch, patches = VITS[name]

    def stack(n: int, width: int, layers: int) -> float:
        return layers * (12 * n * width**2 + 2 * n**2 * width) / 1e9

    visible = patches // 4
    embed = patches * 3 * patch**2 * d / 1e9
    decode = ((visible + 1) * d * 512 + (patches + 1) * 512 * 3 * patch**2) / 1e9 + stack(patches + 1, 512, 8)
    assert stack(patches + 1, d, depth) + embed == pytest.approx(full, abs=6e-4)
    assert stack(visible + 1, d, depth) + embed == pytest.approx(encoder, abs=6e-4)
    assert decode == pytest.approx(decoder, abs=6e-4)
    assert encoder + decoder == pytest.approx(step, abs=2e-3)
    assert 3.975 < full / encoder < 4.045  # a quarter of the patches, and the class token: 3.98 to 4.04 times cheaper
    # with mask tokens in the encoder, the decoder embeds all of them
    more = (patches - visible) * d * 512 / 1e9
    assert full + decode + more == pytest.approx(tokens_in, abs=3e-3)
    assert tokens_in / step == pytest.approx(ratio, abs=6e-3)


@pytest.mark.parametrize(
    ("name", "full", "encoder", "step"),
    [
        ("vit_base_patch16_224", 17.563, 4.408, 9.781),
        pytest.param("vit_large_patch16_224", 61.554, 15.377, 20.756, marks=pytest.mark.slow),
        pytest.param("vit_huge_patch14_224", 167.294, 41.433, 48.562, marks=pytest.mark.slow),
    ],
)
def test_mae__costs_as_counted_while_it_runs(name: str, full: float, encoder: float, step: float) -> None:
    d, _, patch, patches = VITS[name]
    with torch.device("meta"):
        mae, images = MAE(name), torch.empty(1, 3, 224, 224)
        ids_keep = torch.arange(mae.num_keep)[None]
        assert gigas(lambda: mae.backbone(images)) == pytest.approx(full, abs=6e-4)
        hidden = (patches - mae.num_keep) * 3 * patch**2 * d / 1e9  # ours embeds visible patches only
        assert gigas(lambda: mae.backbone.forward_tokens(images, ids_keep)) == pytest.approx(encoder - hidden, abs=6e-4)
        assert 0.98 * step < gigas(lambda: mae(images, torch.rand(1, patches))) <= step


# ---- values of losses


@pytest.mark.parametrize(("pairs", "value"), [(1024, 7.624131), (4096, 9.010791)])
def test_nt_xent__collapsed_at_the_papers_batch_sizes(pairs: int, value: float) -> None:
    z = torch.ones(pairs, 4)
    assert nt_xent(z, z, 0.5).item() == pytest.approx(value, abs=1e-5)
    assert math.log(2 * pairs - 1) == pytest.approx(value, abs=1e-6)


def test_mae__initial_loss_of_14_pixel_patches() -> None:
    """About 1 + 2d / (d + 3 P^2): 1.93 for d = 512, P = 14."""
    torch.manual_seed(0)
    mae = MAE("vit_tiny_patch16_224", {"patch_size": 14})
    with torch.no_grad():
        loss = mae(torch.randn(1, 3, 224, 224), torch.rand(1, 256))[0].item()
    assert loss == pytest.approx(1 + 2 * 512 / (512 + 3 * 14**2), abs=0.08)


def test_mae__initial_loss_of_4_pixel_patches() -> None:
    """Between 2.5 and 2.8: so small a patch has few values, and the decoder's width weighs more."""
    torch.manual_seed(0)
    mae = MAE("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4})
    with torch.no_grad():
        loss = mae(torch.randn(8, 3, 32, 32), torch.rand(8, 64))[0].item()
    assert 2.5 < loss < 2.8


def test_focal_loss_of_background_at_the_prior() -> None:
    from torchvision.ops import sigmoid_focal_loss

    logit = torch.tensor([-math.log(99.0)], dtype=torch.float64)  # the classes' bias: probability 0.01
    value = sigmoid_focal_loss(logit, torch.zeros(1, dtype=torch.float64), alpha=0.25, gamma=2.0)
    assert value.item() == pytest.approx(7.54e-7, abs=5e-10)


# ---- accumulation


def gradients(module: nn.Module, losses: list) -> list[torch.Tensor]:
    module.zero_grad()
    for loss in losses:
        (loss() / len(losses)).backward()  # as Lightning divides
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def test_accumulated_halves_equal_the_full_batch_for_mean_losses_and_not_for_nt_xent() -> None:
    torch.manual_seed(0)
    images, noise, labels = torch.randn(8, 3, 32, 32), torch.rand(8, 16), torch.randint(0, 5, (8,))
    mae = MAE("vit_tiny_patch16_224", TINY, decoder_width=16, decoder_depth=1, decoder_heads=2).double()
    tuned = Classifier("vit_tiny_patch16_224", 5, TINY, head_init_std=0.1).double()
    images, halves = images.double(), (slice(0, 4), slice(4, 8))
    targets = soft_targets(labels, 5, 0.1)
    cases = {
        "mae": (mae, lambda part: mae(images[part], noise[part])[0]),
        "classifier": (tuned, lambda part: classification_loss(tuned(images[part]), targets[part])),
        "nt-xent": (
            tuned,
            lambda part: nt_xent(tuned.backbone(images[part]), tuned.backbone(images[part].flip(-1)), 0.5),
        ),
    }
    for name, (module, loss) in cases.items():
        joined = gradients(module, [lambda loss=loss: loss(slice(None))])
        parts = gradients(module, [lambda loss=loss, part=part: loss(part) for part in halves])
        same = all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(joined, parts))
        assert same is (name != "nt-xent"), name
