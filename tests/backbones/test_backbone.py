"""Backbone: features, maps with the right strides and layer groups of seven families; tokens; error messages."""

import importlib

import pytest
import torch
import yaml

from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UserError

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
# name, arguments, image side, width, layer groups
FAMILIES = [
    ("vit_tiny_patch16_224", VIT, 32, 32, 5),
    ("resnet18", {}, 64, 512, 10),
    ("vgg11", {"stem": "small"}, 32, 512, 9),
    ("inception_v3", {}, 299, 2048, 14),
    ("densenet121", {}, 64, 1024, 60),
    ("mobilenetv3_small_050", {}, 64, 1024, 14),
    ("convnext_atto", {}, 64, 320, 14),
]
SMALL = ("resnet18", "resnet18d", "densenet121", "mobilenetv2_050", "convnext_atto")


@pytest.mark.parametrize(("name", "arguments", "side", "width", "groups"), FAMILIES)
def test_backbone__features_maps_and_groups_of_each_family(name, arguments, side, width, groups) -> None:
    backbone = Backbone(name, **arguments).eval()
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        features, maps = backbone(images), backbone.forward_maps(images)
    assert features.shape == (1, backbone.width) == (1, width)
    assert len(maps) == len(backbone.strides) >= 1
    for stride, m in zip(backbone.strides, maps):
        assert m.shape[0] == 1
        lost = (
            4 if name == "inception_v3" else 0
        )  # rows that its unpadded convolutions lose: 149.5, 74.75, ... are 147, 71, 35, 17, 8
        assert side / stride - lost <= m.shape[-1] <= side / stride
    layers = backbone.layer_groups()
    assert len(layers) == groups
    names = [n for group in layers for n in group]
    assert sorted(names) == sorted(n for n, _ in backbone.named_parameters())
    assert all(layers[:-1])
    assert len(backbone.data_config["mean"]) == 3


@pytest.mark.parametrize("name", SMALL)
def test_small_stem__keeps_resolution(name: str) -> None:
    with torch.device("meta"):
        backbone = Backbone(name, stem="small").eval()
        maps = backbone.forward_maps(torch.zeros(1, 3, 32, 32))
    assert [32 // m.shape[-1] for m in maps] == backbone.strides
    assert backbone.strides[0] == (2 if name == "resnet18d" else 1)  # a deep stem keeps its first stride


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_168_832), ("resnet50", 23_500_352)])
def test_small_stem__has_the_published_parameter_count(name: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in Backbone(name, stem="small").parameters()) == count


def test_small_backbones_from_yaml_lists() -> None:
    text = "{stem: small, layers: [1, 1, 1, 1], channels: [16, 32, 64, 128]}"
    cnn = Backbone("resnet18", **yaml.safe_load(text)).eval()
    assert cnn(torch.zeros(2, 3, 32, 32)).shape == (2, 128)
    assert sum(p.numel() for p in cnn.parameters()) == 316_896
    vit = Backbone("vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=96, depth=6, num_heads=3)
    assert vit(torch.zeros(2, 3, 32, 32)).shape == (2, 96)
    assert sum(p.numel() for p in vit.parameters()) == 682_272


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_layer_groups__vit_base_has_the_papers_layer_decay(pool: str) -> None:
    """Scale 0.65^(13 - id): patch embedding 0.003697, block 0 0.005688, last block 0.65, norm 1 (BEiT, MAE)."""
    with torch.device("meta"):
        layers = Backbone("vit_base_patch16_224", pool=pool).layer_groups()
    assert len(layers) == 14
    scale = {name: 0.65 ** (13 - i) for i, group in enumerate(layers) for name in group}
    final = "norm" if pool == "token" else "fc_norm"
    expected = {
        "cls_token": 0.003697,
        "pos_embed": 0.003697,
        "patch_embed.proj.weight": 0.003697,
        "blocks.0.norm1.weight": 0.005688,
        "blocks.11.mlp.fc2.bias": 0.65,
        f"{final}.weight": 1.0,
    }
    for name, value in expected.items():
        assert scale[f"model.{name}"] == pytest.approx(value, rel=2e-4)


def test_forward_tokens__all_patches_are_timms_features() -> None:
    vit = Backbone("vit_tiny_patch16_224", **VIT).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit.forward_tokens(images), vit.model.forward_features(images))
    deit = Backbone("deit3_small_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2).eval()
    torch.testing.assert_close(deit.forward_tokens(images), deit.model.forward_features(images))


def test_forward_tokens__each_patch_keeps_its_position() -> None:
    """Attention does not depend on order: a permutation of ids_keep permutes the tokens; without blocks too."""
    vit = Backbone("vit_tiny_patch16_224", **VIT).eval()
    images, ids = torch.randn(2, 3, 32, 32), torch.tensor([[3, 0, 9], [1, 2, 15]])
    tokens, swapped = vit.forward_tokens(images, ids), vit.forward_tokens(images, ids[:, [2, 0, 1]])
    torch.testing.assert_close(tokens[:, 1:][:, [2, 0, 1]], swapped[:, 1:])
    torch.testing.assert_close(tokens[:, 0], swapped[:, 0])
    vit.model.blocks = torch.nn.Identity()
    some, everything = vit.forward_tokens(images, ids), vit.forward_tokens(images)
    for row in range(2):
        torch.testing.assert_close(some[row, 1:], everything[row, 1:][ids[row]])


def test_pool__average_leaves_cls_out_and_norms_after() -> None:
    vit = Backbone("vit_tiny_patch16_224", pool="avg", **VIT).eval()
    images = torch.randn(2, 3, 32, 32)
    tokens = vit.forward_tokens(images)  # no norm yet: it comes after the mean
    torch.testing.assert_close(vit(images), vit.model.fc_norm(tokens[:, 1:].mean(dim=1)))


def test_data_config__notes_the_image_size_for_cnns_too() -> None:
    with torch.device("meta"):
        assert Backbone("resnet18", img_size=96).data_config["input_size"] == (3, 96, 96)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("vit_tiny_patch16_244", {}, "vit_tiny_patch16_224"),
        ("resnet18", {"patch_size": 4}, "backbone_args.patch_size"),
        ("vgg11", {"drop_path_rate": 0.1}, "backbone_args.drop_path_rate"),
        ("vit_tiny_patch16_224", {"bogus": 1}, "backbone_args.bogus"),
        ("vit_tiny_patch16_224", {"img_size": 30, "patch_size": 4}, "img_size: 30"),
        ("vit_tiny_patch16_224", {"stem": "small"}, "patch_size"),
        ("inception_v3", {"stem": "small"}, "stem: inception_v3"),
        ("resnet18", {"stem": "wide"}, "stem: resnet18"),
        ("convnext_atto_ols", {"stem": "small"}, "stem: convnext_atto_ols"),
        ("resnet18", {"stem": "small", "pretrained": True}, "pretrained=False"),
        ("resnet18", {"stem": "tiny"}, "'small'"),
        ("resnet18", {"pool": "max"}, "'avg' or 'token'"),
        ("resnet18", {"pool": "token"}, "pool"),
        ("vit_tiny_patch16_224.nope", {"pretrained": True}, "vit_tiny_patch16_224.augreg_in21k"),
    ],
)
def test_errors__one_line_that_names_the_key(name, arguments, expected) -> None:
    with torch.device("meta"), pytest.raises(UserError) as caught:
        Backbone(name, **arguments)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pretrained__without_network_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"pretrained: .*resnet10t"):
        Backbone("resnet10t", pretrained=True)


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_weight_tag_that_timm_does_not_know_is_one_line_with_those_that_it_has(pretrained: bool) -> None:
    with pytest.raises(UserError, match=r"backbone: .*resnet10t\.nope|backbone: .*nope.*resnet10t\.c3_in1k") as caught:
        Backbone("resnet10t.nope", pretrained=pretrained)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reachable", [True, False])
def test_pretrained__the_hub_is_asked_only_if_its_host_is_known(monkeypatch, reachable: bool) -> None:
    """Its client would retry for more than a minute."""

    def look_up(*_):
        if not reachable:
            raise OSError("Name or service not known")

    def create(*_, **__):
        raise OSError("offline" if constants.HF_HUB_OFFLINE else "online")

    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", look_up)
    monkeypatch.setattr("timm.create_model", create)
    with pytest.raises(UserError, match="pretrained: ") as caught:
        Backbone("resnet10t", pretrained=True)
    assert str(caught.value.__cause__) == ("online" if reachable else "offline")
    assert constants.HF_HUB_OFFLINE is False


def test_pretrained__weights_of_a_local_file(tmp_path) -> None:
    source = Backbone("vit_tiny_patch16_224", **VIT)
    torch.save(source.model.state_dict(), tmp_path / "w.pth")
    overlay = {"file": str(tmp_path / "w.pth")}
    loaded = Backbone("vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, **VIT)
    torch.testing.assert_close(loaded.model.norm.weight, source.model.norm.weight)
    torch.testing.assert_close(loaded.model.pos_embed, source.model.pos_embed)


def test_wrong_image_size_and_models_without_tokens_are_refused() -> None:
    vit = Backbone("vit_tiny_patch16_224", **VIT)
    for call in (vit, vit.forward_tokens, vit.forward_maps):
        with pytest.raises(UserError, match=r"img_size: .*64x64"):
            call(torch.zeros(1, 3, 64, 64))
    with torch.device("meta"):
        for name in ("resnet18", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"):
            with pytest.raises(UserError, match=f"backbone: {name}"):
                Backbone(name).forward_tokens(torch.zeros(1, 3, 224, 224))


def test_layer_groups__nothing_matched_is_an_error() -> None:
    with torch.device("meta"):
        backbone = Backbone("resnet18")
    backbone.model.group_matcher = lambda coarse=False: {"stem": r"^nothing", "blocks": r"^nobody"}
    with pytest.raises(UserError, match=r"backbone: .*layer_decay"):
        backbone.layer_groups()


def test_wide_stem__learns_and_gives_maps() -> None:
    backbone = Backbone("resnet50", stem="wide", layers=[1, 1, 1, 1], channels=[24, 32, 40, 48])
    images = torch.randn(2, 3, 64, 64)
    assert backbone(images).shape == (2, 192)
    assert [m.shape[1] for m in backbone.forward_maps(images)] == [24, 96, 128, 160, 192]
    backbone(images).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())
