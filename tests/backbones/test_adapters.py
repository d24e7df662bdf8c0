"""LoRA and prompts: published counts, no change at step 0, merging, several on one backbone, small files."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lit_vision.backbones import adapters
from lit_vision.backbones.adapters import add_lora, add_prompts, merge, use_adapter
from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UserError
from lit_vision.weights.adapter_io import load_adapter, save_adapter

VIT_NAME = "vit_tiny_patch16_224"
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


class Method(nn.Module):
    """Backbone and head, from which an adapter is saved."""

    def __init__(self, backbone: Backbone, classes: int = 3) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.width, classes)

    def forward(self, x):
        return self.head(self.backbone(x))


def vit(**more) -> Backbone:
    torch.manual_seed(0)
    return Backbone(VIT_NAME, **{**VIT, **more}).eval()


def images(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def trained(backbone: nn.Module) -> int:
    return adapters.trainable_parameters(backbone)[0]


def randomize(backbone: nn.Module, seed: int = 2) -> None:
    """Set the trainable parameters to random values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in backbone.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)


# counts: Hu et al. 2021 and Jia et al. 2022 on ViT-B/16


@pytest.mark.parametrize(("rank", "count"), [(16, 589_824), (8, 294_912)])
def test_lora__published_counts_on_vit_b(rank: int, count: int) -> None:
    with torch.device("meta"):
        backbone = Backbone("vit_base_patch16_224")
        found = add_lora(backbone, rank=rank)
    assert trained(backbone) == count
    assert len(found) == 12


def test_lora__under_one_per_cent_of_vit_s() -> None:
    with torch.device("meta"):
        method = Method(Backbone("vit_small_patch16_224"), 10)
        add_lora(method.backbone, rank=8)
    trainable, total = adapters.trainable_parameters(method)
    assert trainable == 8 * (384 + 1152) * 12 + 3850
    assert trainable / total < 0.01
    assert f"{trainable:,} of {total:,}" in adapters.describe_trainable(method)


def test_prompts__published_counts_and_range_on_vit_b() -> None:
    for deep, count in ((False, 38_400), (True, 460_800)):
        with torch.device("meta"):
            backbone = Backbone("vit_base_patch16_224")
            add_prompts(backbone, length=50, deep=deep)
        assert trained(backbone) == count
    values = add_prompts(vit(), length=200).sets["default"]
    bound = (6 / (3 * 16 + 32)) ** 0.5
    assert 0.99 * bound < values.abs().max().item() <= bound


# what they compute


@pytest.mark.parametrize("targets", [["qkv"], ["proj"], ["mlp"], ["qkv", "proj", "mlp"]])
def test_lora__no_change_at_the_start_and_none_by_merging(targets: list[str]) -> None:
    backbone, plain = vit(), vit()
    add_lora(backbone, rank=4, alpha=6, targets=targets)
    torch.testing.assert_close(backbone(images()), plain(images()), rtol=0, atol=0)
    randomize(backbone)
    adapted = backbone(images())
    assert (adapted - plain(images())).abs().max() > 1e-2
    assert merge(backbone) == 2 * len(targets) + 2 * ("mlp" in targets)
    torch.testing.assert_close(backbone(images()), adapted, rtol=0, atol=1e-5)
    assert backbone.state_dict().keys() == plain.state_dict().keys()


def test_lora__is_the_formula_of_the_paper() -> None:
    backbone = vit()
    add_lora(backbone, rank=4, alpha=6, targets=["qkv"], layers=[1, 1])
    randomize(backbone)
    layer = backbone.model.blocks[1].attn.qkv
    assert not hasattr(backbone.model.blocks[0].attn.qkv, "lora_A")
    x = torch.randn(5, 32)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    want = layer.base_layer(x) + 6 / 4 * (x @ a.T @ b.T)
    torch.testing.assert_close(layer(x), want)


def test_lora__adapts_a_cnn_by_endings() -> None:
    backbone = Backbone("resnet18", stem="small", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16)).eval()
    x = torch.randn(2, 3, 16, 16)
    before = backbone(x)
    assert add_lora(backbone, rank=2, targets=["conv2"]) == [f"layer{i}.0.conv2" for i in (1, 2, 3, 4)]
    torch.testing.assert_close(backbone(x), before)
    randomize(backbone)
    after = backbone(x)
    merge(backbone)
    torch.testing.assert_close(backbone(x), after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["avg", "token"])
@pytest.mark.parametrize("deep", [False, True])
def test_prompts__equal_a_slow_loop_over_the_blocks(deep: bool, pool: str) -> None:
    backbone = vit(pool=pool)
    prompts = add_prompts(backbone, length=3, deep=deep).sets["default"]
    model = vit(pool=pool).model  # without hooks
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(images()))
        for i, block in enumerate(model.blocks):
            if i == 0 or deep:
                rest = x[:, 1:] if i == 0 else x[:, 4:]
                x = torch.cat([x[:, :1], prompts[i].expand(3, -1, -1), rest], dim=1)
            assert x.shape[1] == 1 + 3 + 16
            x = block(x)
        x = model.norm(x)
        want = x[:, 0] if pool == "token" else model.fc_norm(x[:, 4:].mean(1))
        torch.testing.assert_close(backbone(images()), want)
        assert backbone.forward_tokens(images()).shape == (3, 17, 32)
        assert backbone.forward_maps(images())[0].shape == (3, 32, 4, 4)
    use_adapter(backbone, None)
    torch.testing.assert_close(backbone(images()), vit(pool=pool)(images()))


@pytest.mark.parametrize("add", [add_lora, lambda backbone: add_prompts(backbone, length=3, deep=True)])
def test_only_the_adapter_has_gradients(add) -> None:
    backbone = vit()
    add(backbone)
    randomize(backbone)
    backbone(images()).square().sum().backward()
    with_gradient = {name for name, p in backbone.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient == {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("prompts.") for name in with_gradient)


def test_copies_do_not_share_prompts() -> None:
    backbone = vit()
    add_prompts(backbone, length=2)
    twin = copy.deepcopy(backbone)
    before = backbone(images())
    randomize(twin)
    torch.testing.assert_close(backbone(images()), before, rtol=0, atol=0)
    assert (twin(images()) - before).abs().max() > 1e-3


# files


@pytest.mark.parametrize("kind", ["lora", "prompts"])
def test_file__several_adapters_on_one_backbone(kind: str, tmp_path) -> None:
    want, paths = {}, {}
    for number, name in enumerate(("cats", "dogs")):
        method = Method(vit(), classes=3 + number)
        if kind == "lora":
            add_lora(method.backbone, rank=2 + number, targets=["qkv", "mlp"])
        else:
            add_prompts(method.backbone, length=2 + number, deep=bool(number))
        randomize(method, seed=number)
        paths[name] = save_adapter(tmp_path / f"{name}.safetensors", method, class_names=[name, "other"])
        want[name] = method(images())
    one = vit()
    found = {name: load_adapter(one, path, name) for name, path in paths.items()}
    assert found["dogs"].notes == {"class_names": ["dogs", "other"]}
    for name, adapter in found.items():
        use_adapter(one, name)
        head = adapter.rest
        got = one(images()) @ head["head.weight"].T + head["head.bias"]
        torch.testing.assert_close(got, want[name])
    use_adapter(one, None)
    torch.testing.assert_close(one(images()), vit()(images()), rtol=0, atol=0)
    if kind == "lora":
        use_adapter(one, "cats")
        assert adapters.base_weights_sha256(one) == adapters.base_weights_sha256(vit())
        merge(one, "dogs")
        got = one(images()) @ found["dogs"].rest["head.weight"].T + found["dogs"].rest["head.bias"]
        torch.testing.assert_close(got, want["dogs"], rtol=0, atol=1e-5)


def test_file__is_under_five_per_cent_for_vit_s(tmp_path) -> None:
    method = Method(Backbone("vit_small_patch16_224"), 10)
    add_lora(method.backbone, rank=8)
    path = save_adapter(tmp_path / "a.safetensors", method)
    save_file({k: v.contiguous() for k, v in method.state_dict().items()}, tmp_path / "full.safetensors")
    assert path.stat().st_size < 0.05 * (tmp_path / "full.safetensors").stat().st_size


def test_file__errors(tmp_path) -> None:
    method = Method(vit())
    with pytest.raises(UserError, match="adapter"):
        save_adapter(tmp_path / "a.safetensors", method)
    add_lora(method.backbone)
    with pytest.raises(UserError, match=r"a\.pt.*\.safetensors"):
        save_adapter(tmp_path / "a.pt", method)
    path = save_adapter(tmp_path / "a.safetensors", method)
    torch.manual_seed(5)
    with pytest.raises(UserError, match=r"a\.safetensors"):
        load_adapter(Backbone(VIT_NAME, **VIT), path)
    backbone = vit()
    load_adapter(backbone, path)
    with pytest.raises(UserError, match="adapter 'default'"):
        load_adapter(backbone, path)
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"b\.safetensors"):
        load_adapter(vit(), tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"rank": 0}, "lora_rank"),
        ({"alpha": 0}, "lora_alpha"),
        ({"dropout": 1.0}, "lora_dropout"),
        ({"targets": "qkv"}, "lora_targets: 'qkv'"),
        ({"targets": ["query"]}, "lora_targets: 'query'"),
        ({"layers": [0, 2]}, r"lora_layers: \[0, 2\].*0 to 1"),
        ({"layers": [1, 0]}, r"lora_layers: \[1, 0\].*0 to 1"),
        ({"name": "a.b"}, r"adapter 'a\.b'"),
    ],
)
def test_lora__errors(arguments: dict, text: str) -> None:
    with pytest.raises(UserError, match=text):
        add_lora(vit(), **arguments)


def test_prompts__errors() -> None:
    with pytest.raises(UserError, match="prompt_length: 0"):
        add_prompts(vit(), length=0)
    with pytest.raises(UserError, match=r"tune: .*resnet18"):
        add_prompts(Backbone("resnet18", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)))
    with pytest.raises(UserError, match="adapter 'cats'"):
        use_adapter(vit(), "cats")
