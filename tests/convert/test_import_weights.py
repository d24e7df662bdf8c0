"""`lit-vision import`: each layout, built with the other project's code, gives the same outputs to 1e-5."""

import argparse
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toy_foreign import (
    BACKBONE_FLAGS,
    LITE,
    NAME,
    SIZES,
    VIT,
    LightlyMAE,
    LightlySimCLR,
    efficientnet_lite_names,
    fb_keys,
    foreign_states,
    hub_names,
    openai_names,
    scrambled,
    transformers_clip,
    transformers_dinov2,
    transformers_mae,
)

from lit_vision.backbones.backbone import Backbone
from lit_vision.cli import main as cli
from lit_vision.methods import MAE, Classifier
from lit_vision.methods.classifier.network import ClassifierNetwork
from lit_vision.predict.models import load_method
from lit_vision.weights.compatibility import (
    CLIP,
    DINOV2,
    EFFICIENTNET_LITE,
    FACEBOOK_MAE,
    LAYOUTS,
    LIGHTLY_SIMCLR,
    MOBILENET,
    known_targets,
)
from lit_vision.weights.detect_architecture import detect_architecture
from lit_vision.weights.key_maps import IMAGENET_PIXELS, PIXELS
from lit_vision.weights.load import load_into

MOBILE = {MOBILENET: "mobilenetv2_100", EFFICIENTNET_LITE: LITE}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(3, 16, generator=torch.Generator().manual_seed(1))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def imported(tmp_path: Path, source: Path, *flags: str) -> Path:
    out = tmp_path / "out.safetensors"
    assert cli.main(["import", str(source), "--out", str(out), "--overwrite", *flags]) == 0
    return out


def our_mae(path: Path) -> MAE:
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert about["lit_vision"] == "MAE"
    mae = MAE(**json.loads(about["hyper_parameters"]))
    assert load_into(mae, path).new == []
    return mae.eval()


def logits(path: Path) -> Tensor:
    method, _ = load_method(path)
    assert isinstance(method, ClassifierNetwork)
    with torch.no_grad():
        return method(IMAGES)


# ---- timm and torchvision


@pytest.mark.parametrize("name", ["vit", "vit-avg", "convnext_atto"])
def test_timm__the_same_logits(name: str, tmp_path: Path, capsys) -> None:
    flags, model = [], None
    if name.startswith("vit"):
        pool = {"global_pool": "avg"} if name == "vit-avg" else {}
        model, flags = timm.create_model(NAME, num_classes=7, **VIT, **pool), BACKBONE_FLAGS
    else:
        model = timm.create_model(name, num_classes=7)
        flags = ["--backbone", name]
    torch.save(scrambled(model).state_dict(), tmp_path / "w.pth")
    (tmp_path / "names.txt").write_text("\n".join("abcdefg"))
    out = imported(tmp_path, tmp_path / "w.pth", *flags, "--class_names", str(tmp_path / "names.txt"))
    with torch.no_grad():
        close(logits(out), model(IMAGES))
    card = load_method(out)[1]
    assert card.class_names == list("abcdefg")
    assert card.crop_pct == timm.get_pretrained_cfg(NAME if name.startswith("vit") else name).crop_pct
    assert "license not stated" in capsys.readouterr().out


def test_timm__a_folder_of_the_hub_brings_name_license_and_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    model = scrambled(timm.create_model("resnet18", num_classes=0))
    save_file(model.state_dict(), folder / "model.safetensors")
    pretrained = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "license": "apache-2.0"}
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": pretrained}))
    out = imported(tmp_path, folder, "--source", "https://example.org/weights", "--img_size", "160")
    with safe_open(out, "pt") as file:
        about = file.metadata()
    assert json.loads(about["mean"]) == [0.5, 0.4, 0.3]
    assert (about["license"], about["source"]) == ("apache-2.0", "https://example.org/weights")
    assert len(about["source_sha256"]) == 64
    assert json.loads(about["backbone"])["img_size"] == 160
    method, _ = load_method(out)
    with torch.no_grad():
        close(method.backbone(IMAGES), model(IMAGES))


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow), "densenet", "vit"])
def test_torchvision__the_same_logits(name: str, tmp_path: Path) -> None:
    from torchvision import models

    flags: list[str] = []
    if name == "vit":
        sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 128}
        model, flags = models.VisionTransformer(**sizes, num_classes=7), BACKBONE_FLAGS
    elif name == "densenet":
        model = models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=7)
        flags = ["--backbone", "densenet121", "--backbone_args", '{"growth_rate": 8, "block_config": [2, 2, 2, 2]}']
    else:
        model = getattr(models, name)(num_classes=7)
    torch.save(scrambled(model).state_dict(), tmp_path / "w.pth")
    out = imported(tmp_path, tmp_path / "w.pth", *flags)
    with torch.no_grad():
        theirs = model(IMAGES)
    close(logits(out) / theirs.abs().max(), theirs / theirs.abs().max())


# ---- transformers


@pytest.mark.parametrize("form", ["memory", "saved", "hub"])
@pytest.mark.parametrize("norm_pix", [True, False])
def test_transformers__the_same_loss_and_features(form: str, norm_pix: bool, tmp_path: Path, capsys) -> None:
    model = transformers_mae(norm_pix_loss=norm_pix)
    model.save_pretrained(tmp_path / "hf")
    if form == "memory":
        save_file(model.state_dict(), tmp_path / "hf/model.safetensors")
    if form == "hub":
        state = hub_names(model.state_dict())
        assert "vit.encoder.layer.0.attention.attention.query.weight" in state
        save_file(state, tmp_path / "hf/model.safetensors")
    out = imported(tmp_path, tmp_path / "hf")
    assert "layer_norm_eps 1e-12" in capsys.readouterr().out
    mae = our_mae(out)
    assert mae.hparams.norm_pix_loss is norm_pix
    with torch.no_grad():
        theirs = model(IMAGES, noise=NOISE)
        loss, pred, _ = mae(IMAGES, NOISE)
        close(loss, theirs.loss)
        close(pred, theirs.logits)
        model.vit.config.mask_ratio = model.vit.embeddings.config.mask_ratio = 0.0
        order = torch.arange(16.0).expand(3, -1)
        close(load_method(out)[0].backbone(IMAGES), model.vit(IMAGES, noise=order).last_hidden_state[:, 0])


def test_transformers__encoder_alone(tmp_path: Path) -> None:
    model = transformers_mae().vit
    model.save_pretrained(tmp_path / "hf")
    backbone = load_method(imported(tmp_path, tmp_path / "hf"))[0].backbone
    model.config.mask_ratio = 0.0
    with torch.no_grad():
        close(backbone(IMAGES), model(IMAGES, noise=torch.arange(16.0).expand(3, -1)).last_hidden_state[:, 0])


# ---- DINOv2 and CLIP


@pytest.mark.parametrize(("registers", "form"), [(True, "saved"), (False, "saved"), (True, "memory"), (False, "own")])
def test_dinov2__the_same_features(registers: bool, form: str, tmp_path: Path) -> None:
    model = transformers_dinov2(registers)
    model.save_pretrained(tmp_path / "hf")
    if form == "memory":
        save_file(model.state_dict(), tmp_path / "hf/model.safetensors")
    if form == "own":  # the authors' files have timm's names, but for these
        vit = dict(timm.create_model("vit_base_patch14_dinov2", num_classes=0, **VIT).state_dict())
        method, _ = load_method(imported(tmp_path, tmp_path / "hf"))
        state = {key: method.backbone.model.state_dict()[key] for key in vit}
        torch.save({**state, "mask_token": torch.zeros(1, 32)}, tmp_path / "hf/pytorch_model.pth")
        (tmp_path / "hf/model.safetensors").unlink()
    backbone = load_method(imported(tmp_path, tmp_path / "hf"))[0].backbone
    assert "dinov2" in backbone.config["name"]
    assert ("reg4" in backbone.config["name"]) == registers
    with torch.no_grad():
        theirs = model(IMAGES).last_hidden_state
        close(backbone(IMAGES), theirs[:, 0])
        close(backbone.model.forward_features(IMAGES), theirs)


def test_dinov2__the_gated_mlp_of_the_giant(tmp_path: Path) -> None:
    """Transformers has two names for it: joined in files, gate and up in memory; timm's has the gate first."""
    model = transformers_dinov2(True, use_swiglu_ffn=True)
    hidden = {"mlp_ratio": 176 / 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
    flags = ["--backbone", "vit_giant_patch14_reg4_dinov2", "--backbone_args", json.dumps(hidden)]
    model.save_pretrained(tmp_path / "hf")
    torch.save(model.state_dict(), tmp_path / "memory.pth")
    for source in (tmp_path / "hf", tmp_path / "memory.pth"):
        backbone = load_method(imported(tmp_path, source, *flags))[0].backbone
        with torch.no_grad():
            close(backbone(IMAGES), model(IMAGES).pooler_output)


def test_dinov2__another_image_size_resizes_the_positions_of_patches(tmp_path: Path, capsys) -> None:
    transformers_dinov2(True).save_pretrained(tmp_path / "hf")
    out = imported(tmp_path, tmp_path / "hf", "--img_size", "48")
    assert "1 resized" in capsys.readouterr().out
    assert load_file(out)["pos_embed"].shape == (1, 36, 32)


@pytest.mark.parametrize("form", ["alone", "in CLIPModel", "OpenAI"])
def test_clip__the_same_features(form: str, tmp_path: Path, capsys) -> None:
    act = "gelu" if form == "OpenAI" else "quick_gelu"
    model, flags = transformers_clip(hidden_act=act), []
    model.save_pretrained(tmp_path / "hf")
    if form == "in CLIPModel":
        config = json.loads((tmp_path / "hf/config.json").read_text())
        del config["hidden_act"]  # the Hub's older files leave out what is transformers' default
        (tmp_path / "hf/config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config}))
        text = {"text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(4, 2), "logit_scale": torch.tensor(1.0)}
        tower = {f"vision_model.{key}": value for key, value in model.state_dict().items()}
        projection = {"visual_projection.weight": torch.ones(8, 32), "text_projection.weight": torch.ones(8, 2)}
        save_file({**tower, **text, **projection}, tmp_path / "hf/model.safetensors")
    elif form == "OpenAI":
        text = {"transformer.resblocks.0.ln_1.weight": torch.ones(2), "positional_embedding": torch.ones(7, 2)}
        state = {**openai_names(model.state_dict()), "visual.proj": torch.ones(32, 8), **text}
        flags = ["--backbone", "vit_base_patch16_clip_224", *BACKBONE_FLAGS[2:]]
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pt")
    out = imported(tmp_path, tmp_path / ("w.pt" if form == "OpenAI" else "hf"), *flags)
    backbone = load_method(out)[0].backbone
    assert ("quickgelu" in backbone.config["name"]) == (form != "OpenAI")
    with torch.no_grad():
        close(backbone(IMAGES), model(IMAGES).pooler_output)
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["mean"]) == pytest.approx([0.48145466, 0.4578275, 0.40821073], abs=1e-6)
    assert "layer_norm_eps" not in capsys.readouterr().out  # 1e-5 in both


_SOME = ("vit_small_patch14_dinov2", "vit_base_patch14_reg4_dinov2", "vit_base_patch32_clip_224")
_SIZES = [name for name in timm.list_models(["vit_*_dinov2", "vit_*_clip_224"]) if "quickgelu" not in name]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in _SOME else pytest.mark.slow) for n in _SIZES])
def test_clip_and_dinov2__names_follow_from_the_shapes(name: str) -> None:
    with torch.device("meta"):
        shapes = {f"backbone.{k}": v for k, v in timm.create_model(name, num_classes=0).state_dict().items()}
    assert detect_architecture(shapes, {})[0] == name


# ---- EfficientNet-Lite and MobileNetV2


@pytest.mark.parametrize("name", ["mobilenet_v2", LITE])
def test_mobile_networks__the_same_logits(name: str, tmp_path: Path, capsys) -> None:
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2(num_classes=7) if name == "mobilenet_v2" else timm.create_model(name, num_classes=7)
    nn.init.normal_([*model.parameters()][-2], std=0.1)
    for module_name, buffer in model.eval().named_buffers():
        if module_name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    torch.save(model.state_dict() if name != LITE else efficientnet_lite_names(model.state_dict()), tmp_path / "w.pth")
    out = imported(tmp_path, tmp_path / "w.pth")
    with torch.no_grad():
        theirs = model(IMAGES)
    close(logits(out) / theirs.abs().max(), theirs / theirs.abs().max())
    card = load_method(out)[1]
    assert list(card.mean) == ([0.5] * 3 if name == LITE else pytest.approx([0.485, 0.456, 0.406]))
    assert card.crop_pct == 0.875
    assert (LITE if name == LITE else "mobilenetv2_100") in capsys.readouterr().out


def test_mobile_networks__names_follow_from_the_shapes() -> None:
    with torch.device("meta"):
        for layout, names in (
            (EFFICIENTNET_LITE, [f"tf_efficientnet_lite{i}" for i in range(3)]),
            (MOBILENET, ["mobilenetv2_050", "mobilenetv2_140"]),
        ):
            for name in names:
                state = {f"backbone.{k}": v for k, v in timm.create_model(name).state_dict().items()}
                assert detect_architecture(state, {}, layout=layout)[0] == name


# ---- lightly


@pytest.mark.parametrize("whole", [True, False])
def test_lightly__simclrs_features(whole: bool, tmp_path: Path) -> None:
    pytest.importorskip("lightly")
    model = scrambled(LightlySimCLR(whole))
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "last.ckpt")
    backbone = load_method(imported(tmp_path, tmp_path / "last.ckpt"))[0].backbone
    with torch.no_grad():
        theirs = model.backbone(IMAGES).flatten(1)
        close(backbone(IMAGES) / theirs.abs().max(), theirs / theirs.abs().max())


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_lightly__maes_features_and_prediction(tmp_path: Path) -> None:
    pytest.importorskip("lightly")
    from lightly.models import utils

    from lit_vision.methods.mae.network import random_masking

    model = scrambled(LightlyMAE())
    torch.save({"state_dict": model.state_dict()}, tmp_path / "last.ckpt")
    mae = our_mae(imported(tmp_path, tmp_path / "last.ckpt", *BACKBONE_FLAGS, *SIZES))
    assert mae.hparams.norm_pix_loss is False
    keep, restore, _, _ = random_masking(NOISE, 4)
    hide = restore.argsort(1)[:, 4:]
    with torch.no_grad():
        tokens = model.backbone.encode(IMAGES, idx_keep=torch.cat([torch.zeros(3, 1, dtype=torch.long), keep + 1], 1))
        close(mae.backbone.forward_tokens(IMAGES, keep), tokens)
        x = utils.repeat_token(model.decoder.mask_token, (3, 17))
        x = utils.set_at_index(
            x, torch.cat([torch.zeros(3, 1, dtype=torch.long), keep + 1], 1), model.decoder.embed(tokens)
        )
        theirs = utils.get_at_index(model.decoder.predict(model.decoder.decode(x)), hide + 1)
        target = utils.get_at_index(utils.patchify(IMAGES, 8), hide)
        loss, pred, _ = mae(IMAGES, NOISE)
        close(utils.get_at_index(pred, hide), theirs)
        close(loss, nn.functional.mse_loss(theirs, target))


# ---- facebookresearch/mae, by its published keys


SIZES_OF_MAE = {"base": (768, 12, 16, 14), "large": (1024, 24, 16, 14), "huge": (1280, 32, 14, 16)}
COUNTS = {"encoder": (150, 294, 390), "full": (254, 398, 494), "fine-tuned": (152, 296, 392)}


@pytest.mark.parametrize("part", list(COUNTS))
@pytest.mark.parametrize("size", list(SIZES_OF_MAE))
def test_facebookresearch__published_counts_fit_without_rest(size: str, part: str) -> None:
    keys = fb_keys(*SIZES_OF_MAE[size], part)
    assert len(keys) == COUNTS[part][list(SIZES_OF_MAE).index(size)]
    with torch.device("meta"):
        state = {f"backbone.{key}": torch.empty(shape) for key, shape in keys.items()}
        name, body = detect_architecture(state, {})
        assert name == f"vit_{size}_patch{SIZES_OF_MAE[size][2]}_224"
        module = Classifier(name, 1000, body) if part == "fine-tuned" else MAE(name, body)
    own = {key.removeprefix("backbone.model.") for key in module.state_dict() if key not in ("mean", "std")}
    theirs = {key.replace("decoder_", "decoder.").replace("mask_token", "decoder.mask_token") for key in keys}
    assert theirs <= own
    assert own - theirs == ({key for key in own if key.startswith("decoder.")} if part == "encoder" else set())


@pytest.mark.parametrize("part", ["encoder", "full", "fine-tuned"])
def test_facebookresearch__is_imported_with_its_arguments_and_license(part: str, tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    state = {key: torch.randn(shape) * 0.1 for key, shape in fb_keys(32, 2, 8, 4, part, (16, 1)).items()}
    arguments = argparse.Namespace(blr=1.5e-4, norm_pix_loss=False, mask_ratio=0.5)  # neither is MAE's own default here
    torch.save({"model": state, "epoch": 1599, "args": arguments}, tmp_path / "w.pth")
    out = imported(tmp_path, tmp_path / "w.pth", *BACKBONE_FLAGS, *SIZES if part == "full" else ())
    assert "CC-BY-NC-4.0" in capsys.readouterr().out
    found = load_file(out)
    assert torch.equal(
        found["blocks.1.attn.qkv.weight" if part == "encoder" else "backbone.model.blocks.1.attn.qkv.weight"],
        state["blocks.1.attn.qkv.weight"],
    )
    if part == "full":
        assert torch.equal(our_mae(out).decoder.mask_token.detach(), state["mask_token"])
        assert (our_mae(out).hparams.norm_pix_loss, our_mae(out).hparams.mask_ratio) == (False, 0.5)
    reference = timm.create_model(
        NAME,
        num_classes=1000 if part == "fine-tuned" else 0,
        global_pool="avg" if part == "fine-tuned" else "token",
        **VIT,
    )
    reference.load_state_dict({k: v for k, v in state.items() if not k.startswith(("decoder", "mask"))})
    with torch.no_grad():
        ours = logits(out) if part == "fine-tuned" else load_method(out)[0].backbone(IMAGES)
        close(ours, reference.eval()(IMAGES))


def test_facebookresearch__a_missing_norm_pix_loss_is_reported(tmp_path: Path, capsys) -> None:
    """Without the script's arguments the loss is unknown: the import prints what it assumes; --args overrides it."""
    state = {key: torch.randn(shape) * 0.1 for key, shape in fb_keys(32, 2, 8, 4, "full", (16, 1)).items()}
    torch.save({"model": state}, tmp_path / "w.pth")
    imported(tmp_path, tmp_path / "w.pth", *BACKBONE_FLAGS, *SIZES)
    assert "norm_pix_loss" in capsys.readouterr().out
    sizes = json.dumps(json.loads(SIZES[1]) | {"norm_pix_loss": False})
    out = imported(tmp_path, tmp_path / "w.pth", *BACKBONE_FLAGS, "--args", sizes, "--overwrite")
    assert "norm_pix_loss" not in capsys.readouterr().out
    assert our_mae(out).hparams.norm_pix_loss is False


def test_timm__pixels_are_named_with_their_source(tmp_path: Path, capsys) -> None:
    """Of a bare state dict mean and std are timm's default for the name, reported as a guess."""
    torch.save(timm.create_model(NAME, num_classes=0, **VIT).state_dict(), tmp_path / "w.pth")
    imported(tmp_path, tmp_path / "w.pth", *BACKBONE_FLAGS)
    text = capsys.readouterr().out
    assert "pixels: mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5]" in text
    assert "GUESS" in text
    pixels = '{"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}'
    out = imported(tmp_path, tmp_path / "w.pth", *BACKBONE_FLAGS, "--args", pixels, "--overwrite")
    assert "std [1.0, 1.0, 1.0]: --args" in capsys.readouterr().out
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["mean"]) == [0.1, 0.2, 0.3]


# ---- rules, sizes and errors; test_import_refused.py has the files that are refused


def test_every_rule_of_a_foreign_layout_goes_through(tmp_path: Path) -> None:
    pytest.importorskip("lightly")
    states = foreign_states()
    targets = {
        "MAE": lambda pool, name=NAME: MAE(name, VIT, decoder_width=16, decoder_depth=2, decoder_heads=2),
        "Classifier": lambda pool, name=NAME: Classifier(name, 1000, {**VIT, "pool": pool}),
        "Backbone": lambda pool: Backbone(NAME, **VIT, pool=pool),
    }
    done = 0
    for layout, kind in ((one, target) for one in LAYOUTS for target in known_targets(one)):
        if layout not in states or layout == "timm" or kind not in targets or (layout, kind) == (DINOV2, "MAE"):
            continue  # MAE takes no registers, which this state has
        torch.save({"model" if layout.startswith(FACEBOOK_MAE) else "state_dict": states[layout]}, tmp_path / "w.pth")
        if layout in MOBILE:
            module = Backbone(MOBILE[layout]) if kind == "Backbone" else Classifier(MOBILE[layout], 7)
        elif layout in (DINOV2, CLIP):
            name = "vit_base_patch14_reg4_dinov2" if layout == DINOV2 else "vit_base_patch16_clip_224"
            module = Backbone(name, **VIT) if kind == "Backbone" else targets[kind]("token", name)
        elif layout == LIGHTLY_SIMCLR:
            module = Backbone("resnet18") if kind == "Backbone" else Classifier("resnet18", 5)
        else:
            module = targets[kind]("avg" if "fine-tuned" in layout else "token")
        report = load_into(module, tmp_path / "w.pth")
        assert (report.source, report.target) == (layout, kind)
        assert report.mean == pytest.approx(PIXELS.get(layout, IMAGENET_PIXELS)[0], abs=1e-6)
        done += 1
    assert done == 28


def test_positions_are_resized_and_reported(tmp_path: Path, capsys) -> None:
    torch.save(timm.create_model(NAME, num_classes=0, **VIT).state_dict(), tmp_path / "w.pth")
    out = imported(tmp_path, tmp_path / "w.pth", *BACKBONE_FLAGS, "--img_size", "48")
    assert re.search(r"backbone\.pos_embed.*\b48\b", capsys.readouterr().out)
    assert load_file(out)["pos_embed"].shape == (1, 37, 32)


def test_which_model_it_is_follows_from_shapes() -> None:
    with torch.device("meta"):
        for name in ("vit_tiny_patch16_224", "vit_small_patch16_224", "resnet18", "resnet50"):
            state = {f"backbone.{k}": v for k, v in timm.create_model(name).state_dict().items()}
            assert detect_architecture(state, {})[0] == name
        for name in ("wide_resnet50_2", "resnet26d"):
            state = {f"backbone.{k}": v for k, v in timm.create_model(name).state_dict().items()}
            assert detect_architecture(state, {})[0] is None


def test_errors_are_one_line(tmp_path: Path, capsys) -> None:
    torch.save(Backbone(NAME, **VIT).state_dict(), tmp_path / "own.ckpt")
    torch.save(timm.create_model(NAME, **VIT).state_dict(), tmp_path / "t.pth")
    (tmp_path / "empty").mkdir()
    out = str(tmp_path / "o.safetensors")
    torch.save(timm.create_model("convnext_atto").state_dict(), tmp_path / "c.pth")
    for flags, code, named in (
        ([str(tmp_path / "c.pth"), "--out", out], 1, "--backbone"),
        ([str(tmp_path / "own.ckpt"), "--out", out], 1, "own.ckpt"),
        ([str(tmp_path / "none"), "--out", out], 1, "/none"),
        ([str(tmp_path / "empty"), "--out", out], 1, "model.safetensors"),
        ([str(tmp_path / "own.ckpt"), "--out", "o.pth"], 2, "safetensors"),
        ([str(tmp_path / "own.ckpt"), "--out", out, "--backbone_args", "[1]"], 2, "--backbone_args"),
        ([str(tmp_path / "t.pth"), "--out", out, *BACKBONE_FLAGS, "--args", '{"no": 1}'], 2, "--args: "),
        ([str(tmp_path / "t.pth"), "--out", out, *BACKBONE_FLAGS, "--backbone_only", *SIZES], 2, "decoder_heads"),
        *(
            ([str(tmp_path / "t.pth"), "--out", out, *BACKBONE_FLAGS, "--args", given], 2, f"--args: {key}")
            for key, given in (
                ("mean", '{"mean": 5}'),
                ("mean", '{"mean": [0.5]}'),
                ("std", '{"std": [0.5, 0.5, 0]}'),
                ("mean", '{"mean": [NaN, 0, 0]}'),
                ("decoder_heads", '{"decoder_heads": "x"}'),
                ("decoder_heads", '{"decoder_heads": 0}'),
                ("norm_pix_loss", '{"norm_pix_loss": "no"}'),
                ("mask_ratio", '{"mask_ratio": 2}'),
                ("backbone", '{"backbone": "resnet18"}'),
            )
        ),
        *(
            (
                [str(tmp_path / "t.pth"), "--out", out, "--backbone", name, "--backbone_args", given],
                2,
                "--backbone_args",
            )
            for name, given in (
                (NAME, '{"depth": "a"}'),
                (NAME, '{"act_layer": "foo"}'),
                ("resnet18", '{"block": "basic"}'),
            )
        ),
    ):
        assert cli.main(["import", *flags]) == code
        error = capsys.readouterr().err
        assert named in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("norm_pix_loss", "no"),
        ("mask_ratio", "x"),
        ("decoder_num_attention_heads", 0),
        ("layer_norm_eps", "x"),
        ("label_names", 3),
        ("pretrained_cfg", 5),
        ("pretrained_cfg", {"mean": 1}),
    ],
)
def test_a_config_of_the_wrong_kinds_is_one_line_that_names_it(key: str, value, tmp_path: Path, capsys) -> None:
    save_file(timm.create_model(NAME, **VIT).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({key: value}))
    assert cli.main(["import", str(tmp_path), "--out", str(tmp_path / "o.safetensors"), *BACKBONE_FLAGS]) == 1
    error = capsys.readouterr().err
    assert "config.json" in error
    assert ("mean" if isinstance(value, dict) else key) in error
    assert error.count("\n") == 1
