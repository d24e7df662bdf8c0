"""Rollout against a slow loop, Grad-CAM against its closed form for average-pooled nets and against finite steps."""

import numpy as np
import pytest
import torch
from toy_models import make_classifier

from lit_vision.backbones.adapters import add_lora, add_prompts
from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UserError
from lit_vision.predict.explain import attention_rollout, explain, grad_cam, overlay

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_rollout__is_the_product_of_unfused_attention(pool: str) -> None:
    torch.manual_seed(0)
    body = Backbone("vit_tiny_patch16_224", **VIT, pool=pool).eval()
    for block in body.model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.5)
    seen = []
    for block in body.model.blocks:
        block.attn.fused_attn = False  # timm then has the attention as a tensor, which its dropout layer sees
        block.attn.attn_drop.register_forward_hook(lambda m, x, y: seen.append(y.detach()))
    body(images())
    want = []
    for i in range(2):
        total = np.eye(17)
        for attention in seen:
            mean = sum(attention[i, head].numpy().astype(np.float64) for head in range(2)) / 2
            total = (0.5 * mean + 0.5 * np.eye(17)) @ total
        row = total[0] if pool == "token" else total[1:].mean(0)
        want.append(row[1:].reshape(4, 4))
    got = attention_rollout(body, images())
    np.testing.assert_allclose(got.numpy(), want, atol=1e-6)
    assert (got.sum((1, 2)) <= 1).all()


def test_rollout__sees_through_lora_and_prompts() -> None:
    torch.manual_seed(0)
    body = Backbone("vit_tiny_patch16_224", **VIT).eval()
    plain = attention_rollout(body, images())
    add_lora(body, targets=["qkv"])
    torch.testing.assert_close(attention_rollout(body, images()), plain)
    for deep in (False, True):
        body = Backbone("vit_tiny_patch16_224", **VIT).eval()
        add_prompts(body, length=3, deep=deep)
        heat = attention_rollout(body, images())
        assert heat.shape == (2, 4, 4)
        assert (heat.sum((1, 2)) < 1).all()


def test_grad_cam__is_the_class_activation_map_of_an_average_pooled_net() -> None:
    method = make_classifier("cnn")
    x, classes = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1])
    with torch.no_grad():
        maps = method.backbone.model.forward_features(x)  # (3, 16, 4, 4): the last stage
    weight = method.head.weight[classes] / maps[0, 0].numel()  # d logit / d map, for a mean and a linear layer
    want = torch.einsum("bc,bchw->bhw", weight, maps).relu().detach()
    torch.testing.assert_close(grad_cam(method.backbone, method.head, x, classes), want)
    assert all(p.grad is None for p in method.parameters())


def test_grad_cam__of_small_images_reads_a_stage_that_still_has_positions() -> None:
    """The stage before the last, by hand: its maps weighted by their mean slope."""
    torch.manual_seed(0)
    small = {"stem": "small", "stem_type": "deep", "stem_width": 8, "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
    body, head = Backbone("resnet18", **small).eval(), torch.nn.Linear(16, 3)
    x, classes = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0])
    m = body.model
    with torch.no_grad():
        maps = m.layer3(m.layer2(m.layer1(m.maxpool(m.act1(m.bn1(m.conv1(x)))))))
        assert m.layer4(maps).shape[-1] == 2
    maps.requires_grad_()
    head(m.layer4(maps).mean((2, 3))).gather(1, classes[:, None]).sum().backward()
    want = torch.einsum("bc,bchw->bhw", maps.grad.mean((2, 3)), maps).relu().detach()
    for p in [*body.parameters(), *head.parameters()]:
        p.grad = None
    got = grad_cam(body, head, x, classes)
    assert got.shape == (2, 4, 4)
    assert got.max() > 0
    torch.testing.assert_close(got, want)
    assert all(p.grad is None for p in [*body.parameters(), *head.parameters()])
    assert not any(module._forward_hooks for module in body.modules())


@pytest.mark.parametrize(("side", "places"), [(100, 4), (112, 4), (96, 6), (224, 7)])
def test_grad_cam__reads_the_last_stage_where_it_has_four_positions(side: int, places: int) -> None:
    """A map has as many positions as the side holds strides, rounded up."""
    torch.manual_seed(0)
    body = Backbone("resnet18", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)).eval()
    heat = grad_cam(body, torch.nn.Linear(8, 3), torch.randn(1, 3, side, side), torch.tensor([1]))
    assert heat.shape == (1, places, places)


def test_explain__is_scaled_and_draws() -> None:
    for kind in ("vit", "cnn"):
        heat = explain(make_classifier(kind), images(), torch.tensor([0, 1]))
        assert heat.min() >= 0
        assert set(heat.amax((1, 2)).tolist()) <= {0.0, 1.0}
        picture = overlay(np.zeros((16, 16, 3), np.uint8), heat[0].numpy(), side=56)
        assert picture.shape == (56, 114, 3)
        assert not picture[:, :56].any()
    with pytest.raises(UserError, match="resnet18"):
        attention_rollout(make_classifier("cnn").backbone, images())
    vit = make_classifier()
    with pytest.raises(UserError, match="vit_tiny_patch16_224"):
        grad_cam(vit.backbone, vit.head, images(), torch.tensor([0, 1]))
