"""`lit-vision import` refuses files that lack a key or have one of another shape or name, with the table of keys."""

import functools
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor
from toy_foreign import BACKBONE_FLAGS, NAME, SIZES, VIT, foreign_states

from lit_vision.cli import main as cli
from lit_vision.weights.compatibility import (
    CLIP,
    DINOV2,
    EFFICIENTNET_LITE,
    FACEBOOK_MAE,
    LIGHTLY_MAE,
    LIGHTLY_SIMCLR,
    MOBILENET,
    TORCHVISION,
    TRANSFORMERS,
)

# layout: a key of each kind that layouts are recognised by, of a block, of norms, of the head or the decoder
_CNN = ("conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "layer2.1.conv1.weight")
_VIT = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight")
_HUGGING = ("embeddings.cls_token", "embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight")
_HEAD, _NORM = ("head.weight", "head.bias"), ("norm.weight", "norm.bias")
_DECODER = ("decoder_pos_embed", "decoder_embed.weight", "decoder_embed.bias", "decoder_norm.weight")
_DECODER += ("decoder_pred.weight", "decoder_pred.bias")
_IN_DECODER = tuple(f"decoder.{key}" for key in ("mask_token", *_DECODER))
KEYS = {
    "timm": (*_VIT, *_NORM, *_HEAD),
    "torchvision ResNet": (*_CNN, "fc.weight", "fc.bias"),
    "torchvision DenseNet": (
        *("features.conv0.weight", "features.denseblock2.denselayer1.conv1.weight", "features.norm5.bias"),
        *("classifier.weight", "classifier.bias"),
    ),
    TORCHVISION: (
        *("class_token", "encoder.pos_embedding", "conv_proj.weight", "conv_proj.bias", "encoder.ln.weight"),
        *(
            "encoder.layers.encoder_layer_0.self_attention.in_proj_weight",
            "encoder.layers.encoder_layer_1.mlp.0.weight",
        ),
        *("heads.head.weight", "heads.head.bias"),
    ),
    TRANSFORMERS: (
        *(f"vit.{key}" for key in (*_HUGGING, "layers.0.attention.q_proj.weight", "layernorm.weight")),
        *("vit.layers.1.mlp.fc1.weight", "decoder.decoder_layers.1.mlp.fc1.weight", *_IN_DECODER),
    ),
    f"{TRANSFORMERS}, hub": (
        *(f"vit.{key}" for key in (*_HUGGING, "encoder.layer.0.attention.attention.key.weight", "layernorm.weight")),
        *("vit.encoder.layer.1.intermediate.dense.weight", "decoder.decoder_layers.1.output.dense.bias", *_IN_DECODER),
    ),
    f"{TRANSFORMERS}, encoder": (*_HUGGING, "layers.0.attention.v_proj.bias", "layernorm.weight"),
    f"{FACEBOOK_MAE} (encoder)": (*_VIT, *_NORM),
    f"{FACEBOOK_MAE} (full)": (*_VIT, *_NORM, "mask_token", *_DECODER, "decoder_blocks.0.attn.qkv.weight"),
    f"{FACEBOOK_MAE} (fine-tuned)": (*_VIT, "fc_norm.weight", "fc_norm.bias", *_HEAD),
    DINOV2: (
        *(*_HUGGING, "embeddings.register_tokens", "encoder.layer.0.attention.q_proj.weight", "layernorm.weight"),
        *("encoder.layer.1.layer_scale2.lambda1", "encoder.layer.1.mlp.fc2.bias"),
    ),
    CLIP: (
        *("embeddings.class_embedding", "embeddings.position_embedding.weight", "embeddings.patch_embedding.weight"),
        *("encoder.layers.0.self_attn.v_proj.weight", "encoder.layers.1.mlp.fc1.weight", "pre_layrnorm.weight"),
    ),
    f"{CLIP}, OpenAI's names": (
        *("visual.class_embedding", "visual.positional_embedding", "visual.conv1.weight", "visual.ln_pre.bias"),
        *("visual.transformer.resblocks.0.attn.in_proj_weight", "visual.ln_post.weight"),
    ),
    MOBILENET: (
        *("features.0.0.weight", "features.1.conv.1.weight", "features.17.conv.3.running_mean", "features.18.1.bias"),
        "classifier.1.weight",
    ),
    EFFICIENTNET_LITE: (
        *("_conv_stem.weight", "_blocks.0._bn2.bias", "_blocks.15._bn2.weight", "_blocks.8._expand_conv.weight"),
        *("_blocks.3._project_conv.weight", "_fc.weight"),
    ),
    LIGHTLY_SIMCLR: tuple(f"backbone.{key}" for key in _CNN),  # its projection head is not imported
    LIGHTLY_MAE: (*(f"backbone.vit.{key}" for key in (*_VIT, *_NORM)), *_IN_DECODER),  # its ViT's own head is unused
}
# layout: prefixes of a block's keys, of the encoder and, if it has one, the decoder; each has two blocks or more
BLOCKS = {
    "timm": ("blocks.1.",),
    "torchvision ResNet": ("layer2.1.",),
    "torchvision DenseNet": ("features.denseblock2.denselayer1.",),
    TORCHVISION: ("encoder.layers.encoder_layer_1.",),
    TRANSFORMERS: ("vit.layers.1.", "decoder.decoder_layers.1."),
    f"{TRANSFORMERS}, hub": ("vit.encoder.layer.1.", "decoder.decoder_layers.1."),
    f"{TRANSFORMERS}, encoder": ("layers.1.",),
    f"{FACEBOOK_MAE} (encoder)": ("blocks.1.",),
    f"{FACEBOOK_MAE} (full)": ("blocks.1.", "decoder_blocks.1."),
    f"{FACEBOOK_MAE} (fine-tuned)": ("blocks.1.",),
    DINOV2: ("encoder.layer.1.",),
    CLIP: ("encoder.layers.1.",),
    f"{CLIP}, OpenAI's names": ("visual.transformer.resblocks.1.",),
    MOBILENET: ("features.17.conv.1.",),
    EFFICIENTNET_LITE: ("_blocks.15.",),
    LIGHTLY_SIMCLR: ("backbone.layer2.1.",),
    LIGHTLY_MAE: ("backbone.vit.blocks.1.", "decoder.decoder_blocks.1."),
}
_MAES = (TRANSFORMERS, f"{TRANSFORMERS}, hub", f"{FACEBOOK_MAE} (full)", LIGHTLY_MAE)


@functools.cache
def states() -> dict[str, dict[str, Tensor]]:
    """Keys, shapes and types of each layout; one value each, so that a ResNet-18's file has kilobytes, not 45 MB."""
    pytest.importorskip("lightly")
    return {
        layout: {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}
        for layout, state in foreign_states().items()
    }


def arguments_of(layout: str) -> list[str]:
    if "DenseNet" in layout:
        return ["--backbone", "densenet121", "--backbone_args", '{"growth_rate": 8, "block_config": [2, 2, 2, 2]}']
    if "ResNet" in layout or layout in (LIGHTLY_SIMCLR, MOBILENET, EFFICIENTNET_LITE):
        return []
    if layout == DINOV2 or layout.startswith(CLIP):
        name = "vit_base_patch14_reg4_dinov2" if layout == DINOV2 else "vit_base_patch16_clip_224"
        return ["--backbone", name, *BACKBONE_FLAGS[2:]]
    return [*BACKBONE_FLAGS, *(SIZES if layout in _MAES else [])]


def output_of(state: dict[str, Tensor], layout: str, arguments: list[str], folder: Path, capsys) -> tuple[int, str]:
    """Return exit code and standard error of an import; check that a refused one leaves no file."""
    torch.save({"model" if layout.startswith(FACEBOOK_MAE) else "state_dict": state}, folder / "w.pth")
    out = folder / "out.safetensors"
    code = cli.main(["import", str(folder / "w.pth"), "--out", str(out), *arguments])
    assert out.exists() is (code == 0)
    return code, capsys.readouterr().err


def is_refused(result: tuple[int, str], kinds: set[str]) -> bool:
    """True if an import exited with 1 and its table has a row of one of these kinds."""
    code, output = result
    return code == 1 and "w.pth" in output and any(f"  {kind}" in output for kind in kinds)


def test_every_layout_has_its_keys() -> None:
    assert set(states()) == set(KEYS) == set(BLOCKS)
    for layout, keys in KEYS.items():
        assert set(keys) <= set(states()[layout]), layout


def marks_of(layout: str, key: str) -> list[pytest.MarkDecorator]:
    """Of layouts whose networks have millions of weights, which takes a second a key, all but two keys are slow."""
    large = not arguments_of(layout) or "DenseNet" in layout
    return [pytest.mark.slow] if large and key not in (KEYS[layout][0], KEYS[layout][-1]) else []


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
@pytest.mark.parametrize(
    ("layout", "key"),
    [pytest.param(layout, key, marks=marks_of(layout, key)) for layout, keys in KEYS.items() for key in keys],
)
def test_one_key(layout: str, key: str, tmp_path: Path, capsys) -> None:
    whole, arguments = states()[layout], arguments_of(layout)
    missing = {k: v for k, v in whole.items() if k != key}
    assert is_refused(output_of(missing, layout, arguments, tmp_path, capsys), {"missing"})
    reshaped = {**whole, key: whole[key][..., :-1].clone()}
    third = any(
        name in key for name in (*(f".{name}_proj." for name in "qkv"), ".key.")
    )  # is not joined with the others
    kinds = {"reshaped", "unexpected"} if third else {"reshaped"}
    assert is_refused(output_of(reshaped, layout, arguments, tmp_path, capsys), kinds)
    renamed = {f"{k}_x" if k == key else k: v for k, v in whole.items()}
    code, error = output_of(renamed, layout, arguments, tmp_path, capsys)
    assert is_refused((code, error), {"missing"})
    assert is_refused((code, error), {"unexpected"})


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
@pytest.mark.parametrize(
    ("layout", "start"), [(layout, start) for layout, starts in BLOCKS.items() for start in starts]
)
def test_one_block_under_a_number_that_does_not_exist(layout: str, start: str, tmp_path: Path, capsys) -> None:
    state = {
        k.replace(start, f"{start[:-2]}7.", 1) if k.startswith(start) else k: v for k, v in states()[layout].items()
    }
    assert state.keys() != states()[layout].keys()
    code, error = output_of(state, layout, arguments_of(layout), tmp_path, capsys)
    assert is_refused((code, error), {"missing"})
    assert is_refused((code, error), {"unexpected"})


def test_a_complete_file_is_imported_and_backbone_only_leaves_out_what_does_not_fit(tmp_path: Path, capsys) -> None:
    """`--backbone_only` is how a file whose head or decoder fits nothing still gives its encoder."""
    for layout in ("timm", f"{FACEBOOK_MAE} (full)"):
        state = dict(states()[layout])
        assert output_of(state, layout, arguments_of(layout), tmp_path, capsys)[0] == 0
        (tmp_path / "out.safetensors").unlink()
        del state["head.weight" if layout == "timm" else "decoder_embed.weight"]
        code, error = output_of(state, layout, arguments_of(layout), tmp_path, capsys)
        assert (code, "--backbone_only" in error) == (1, True)
        assert output_of(state, layout, [*BACKBONE_FLAGS, "--backbone_only"], tmp_path, capsys)[0] == 0
        (tmp_path / "out.safetensors").unlink()


@pytest.mark.parametrize("key", ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.11.norm1.bias"])
def test_the_model_is_found_from_the_remaining_shapes(key: str, tmp_path: Path, capsys) -> None:
    """Without --backbone the table comes too, not the question which model it is."""
    with torch.device("meta"):
        keys = {k: v.shape for k, v in timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict().items()}
    state = {k: torch.zeros(1).expand(shape) for k, shape in keys.items() if k != key}
    assert is_refused(output_of(state, "timm", [], tmp_path, capsys), {"missing"})


def test_a_classifier_that_is_not_linear_is_one_line(tmp_path: Path, capsys) -> None:
    state = timm.create_model(NAME, num_classes=7, **VIT).state_dict()
    for weight in (torch.zeros(1, 32), torch.zeros(7, 32, 1, 1)):
        state["head.weight"] = weight
        code, error = output_of(state, "timm", BACKBONE_FLAGS, tmp_path, capsys)
        assert (code, "--backbone_only" in error, error.count("\n")) == (1, True, 1)


@pytest.mark.parametrize(
    ("key", "project"),
    [
        ("module.base_encoder.conv1.weight", "MoCo"),
        ("student.backbone.cls_token", "DINO"),
        ("backbone.bottom_up.res2.weight", "detectron2"),
        ("backbone.layers.0.ln1.weight", "mmpretrain"),
        ("projector.0.weight", "solo-learn"),
        ("visual.conv1.weight", "CLIP"),
    ],
)
def test_other_layouts_are_not_supported_yet(key: str, project: str, tmp_path: Path, capsys) -> None:
    torch.save({"state_dict": {key: torch.zeros(2, 2)}}, tmp_path / "w.pth")
    assert cli.main(["import", str(tmp_path / "w.pth"), "--out", str(tmp_path / "o.safetensors")]) == 1
    error = capsys.readouterr().err
    assert project in error
    assert str(tmp_path / "w.pth") in error
    assert error.count("\n") == 1
