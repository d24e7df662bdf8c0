"""load_into: listed pairs of source and target load; other mismatches are refused with a table; nothing is run."""

import argparse
import inspect
import json
import os
import pickle

import pytest
import timm
import torch
import toy_models
from lightning.pytorch import __version__
from safetensors.torch import save_file
from torch import nn

from lit_vision import methods
from lit_vision.backbones.backbone import Backbone
from lit_vision.backbones.pos_embed import resize_pos_embed
from lit_vision.cli.main import main
from lit_vision.errors import UserError
from lit_vision.methods import Captioner, Detector, ImageText, LeJEPA, Restorer, Segmenter
from lit_vision.methods.classifier.classifier import Classifier
from lit_vision.methods.mae.mae import MAE
from lit_vision.methods.multilabel.multilabel import MultiLabelClassifier
from lit_vision.methods.simclr.simclr import SimCLR
from lit_vision.methods.video_classifier.video_classifier import VideoClassifier
from lit_vision.predict.models import load_model
from lit_vision.weights.checkpoint_layouts import read_common
from lit_vision.weights.compatibility import FACEBOOK_MAE, METHODS, known_targets
from lit_vision.weights.load import (
    PartialMatchError,
    load_backbone,
    load_into,
    save_backbone,
)

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
NAME = "vit_tiny_patch16_224"
DECODER = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


def mae(**body) -> MAE:
    return MAE(NAME, {**VIT, **body}, **DECODER)


def make(kind: str, **body):
    """A module with its own random weights."""
    options = {**VIT, **body}
    if kind == "Backbone":
        return Backbone(NAME, **options)
    if kind == "MAE":
        return mae(**body)
    if kind == "SimCLR":
        return SimCLR(NAME, options, projection_width=8)
    if kind == "LeJEPA":
        return LeJEPA(NAME, options, projection_width=8, projection_hidden=16)
    if kind == "Segmenter":
        return Segmenter(NAME, 3, img_size=32, head="fcn", width=8, backbone_args=options)
    if kind == "Detector":
        return Detector(NAME, 3, img_size=32, pyramid_width=32, head_convs=1, strides=[8, 16], backbone_args=options)
    if kind == "ImageText":
        return ImageText(NAME, options, **toy_models.TEXT)
    if kind == "Restorer":
        return Restorer(["gaussian_noise 25"], NAME, options, decoder_width=4)
    if kind == "Captioner":
        return Captioner(NAME, options, **toy_models.CAPTIONER)
    if kind == "VideoClassifier":
        return VideoClassifier(NAME, 5, "attention", temporal_width=8, backbone_args=options)
    if kind == "MultiLabelClassifier":
        return MultiLabelClassifier(NAME, 5, options)
    return Classifier(NAME, 5, options)


def body_of(module) -> nn.Module:
    return (module if isinstance(module, Backbone) else module.backbone).model


def mae_layout(module: MAE) -> dict[str, torch.Tensor]:
    """The state of our MAE under facebookresearch/mae's names."""
    state = body_of(module).state_dict()
    for key, value in module.decoder.state_dict().items():
        state["mask_token" if key == "mask_token" else f"decoder_{key}"] = value
    return state


def write(path, layout: str):
    """A file in this layout; returns the module whose body is in it."""
    if layout in ("MAE", "SimCLR", "LeJEPA", "Classifier", "ImageText", "Captioner", "VideoClassifier"):
        module = make(layout)
        torch.save({"state_dict": module.state_dict(), "pytorch-lightning_version": __version__}, path)
    elif layout == "Backbone":
        module = make(layout)
        torch.save(module.state_dict(), path)
    elif layout == "timm":
        module = make("Backbone")
        module.model = timm.create_model(NAME, num_classes=7, **VIT)
        torch.save(module.model.state_dict(), path)
    else:
        module = make("MAE") if "fine-tuned" not in layout else make("Backbone", pool="avg")
        state = mae_layout(module) if "full" in layout else dict(body_of(module).state_dict())
        if "fine-tuned" in layout:
            state.update({"head.weight": torch.randn(5, 32), "head.bias": torch.randn(5)})
        torch.save({"model": state, "epoch": 1, "args": argparse.Namespace(blr=1.5e-4, norm_pix_loss=True)}, path)
    return module


# tests/convert/test_import_weights.py builds the layouts of other projects with their code
HERE = (
    "MAE",
    "SimCLR",
    "LeJEPA",
    "Classifier",
    "ImageText",
    "Captioner",
    "VideoClassifier",
    "Backbone",
    "timm",
    f"{FACEBOOK_MAE} (encoder)",
    f"{FACEBOOK_MAE} (full)",
    f"{FACEBOOK_MAE} (fine-tuned)",
)


@pytest.mark.parametrize(("layout", "kind"), [(one, kind) for one in HERE for kind in known_targets(one)])
def test_every_written_pair_goes_through(tmp_path, layout: str, kind: str) -> None:
    path = tmp_path / "w.pth"
    source = write(path, layout)
    target = make(kind, **({"pool": "avg"} if "fine-tuned" in layout else {}))
    report = load_into(target, path)
    # the bare state dict of a Backbone has the form of any module that holds a timm model as `model`
    assert (report.source, report.target) == ("timm" if layout == "Backbone" else layout, kind)
    expected = body_of(source).state_dict()
    for key, value in body_of(target).state_dict().items():
        assert torch.equal(value, expected[key]), key
    own = {k for k in target.state_dict() if k not in ("mean", "std")}
    assert len(report.matched) + len(report.new) == len(own)
    assert report.resized == []
    if layout == "MAE":
        assert report.mean == pytest.approx([0.485, 0.456, 0.406])
    if layout == kind != "Backbone":
        assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())
    if (layout, kind) == ("facebookresearch/mae (full)", "MAE"):
        assert report.dropped == report.new == []
        assert torch.equal(target.decoder.mask_token, source.decoder.mask_token)


def test_average_pool__norm_goes_and_fc_norm_is_new(tmp_path) -> None:
    write(tmp_path / "mae.ckpt", "MAE")
    target = make("Classifier", pool="avg")
    report = load_into(target, tmp_path / "mae.ckpt")
    assert report.new == ["backbone.fc_norm.weight", "backbone.fc_norm.bias", "head.weight", "head.bias"]
    assert [k for k in report.dropped if not k.startswith("decoder.")] == ["backbone.norm.weight", "backbone.norm.bias"]
    text = str(report)
    assert "decoder.*" in text
    assert "MAE" in text
    assert "\n" not in text
    torch.save(make("Backbone", pool="avg").state_dict(), tmp_path / "avg.pth")
    with pytest.raises(PartialMatchError):  # the other way there is nothing that `norm` could start from
        load_into(make("Backbone"), tmp_path / "avg.pth")


def test_classifier__takes_the_encoder_of_the_stage_before(tmp_path) -> None:
    source = MAE(NAME, VIT, **DECODER, mean=MEAN, std=STD)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "mae.ckpt")
    model = Classifier(NAME, 3, VIT, backbone_checkpoint=str(tmp_path / "mae.ckpt"))
    assert torch.equal(body_of(model).blocks[1].attn.qkv.weight, body_of(source).blocks[1].attn.qkv.weight)
    torch.testing.assert_close(model.mean, torch.tensor(MEAN))
    torch.testing.assert_close(model.std, torch.tensor(STD))


def break_state(state: dict, how: str) -> str:
    key = next(k for k in state if k.endswith("blocks.1.mlp.fc1.weight"))
    if how == "renamed":
        state[key.replace("fc1", "fcA")] = state.pop(key)
    elif how == "missing":
        del state[key]
    elif how == "reshaped":
        state[key] = state[key][:64]
    else:
        state[key.replace("fc1", "fc9")] = state[key]
    return key


@pytest.mark.parametrize("how", ["renamed", "missing", "reshaped", "unexpected"])
@pytest.mark.parametrize("layout", ["MAE", "SimCLR", "timm", "facebookresearch/mae (full)"])
def test_one_key_that_does_not_fit_is_refused_with_the_table(tmp_path, layout: str, how: str) -> None:
    path = tmp_path / "w.pth"
    write(path, layout)
    content = torch.load(path, weights_only=False)
    state = content.get("state_dict") or content.get("model") or content
    break_state(state, how)
    torch.save(content, path)
    target = make("Backbone")
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(PartialMatchError) as caught:
        load_into(target, path)
    problems = {problem for _, problem, _, _ in caught.value.rows}
    assert problems == ({"unexpected", "missing"} if how == "renamed" else {how})
    assert "blocks.1.mlp.fc" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())  # nothing was changed


def test_another_model_is_refused_without_changing_the_module(tmp_path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "r.pth")
    target = make("Backbone")
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(PartialMatchError, match=r"r\.pth"):
        load_into(target, tmp_path / "r.pth")
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_weights_that_are_not_finite_are_refused(tmp_path) -> None:
    state = timm.create_model("resnet18").state_dict()
    state["layer2.0.conv1.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=r"nan\.pth: .*layer2\.0\.conv1\.weight is not finite"):
        load_into(Backbone("resnet18"), tmp_path / "nan.pth")


def test_pair_without_a_rule_is_refused(tmp_path) -> None:
    write(tmp_path / "s.ckpt", "SimCLR")
    with pytest.raises(UserError, match=r"s\.ckpt: .*SimCLR.* MAE\b"):
        load_into(make("MAE"), tmp_path / "s.ckpt")


def test_parts_are_those_that_the_methods_declare() -> None:
    assert set(METHODS) == set(methods.__all__)
    for name, layout in METHODS.items():
        network = methods.network_class(name)
        assert layout.parts == network.parts
        hyper = set(inspect.signature(getattr(methods, name)).parameters)
        others = [set(inspect.signature(getattr(methods, other)).parameters) for other in METHODS if other != name]
        assert layout.marks <= hyper
        assert name == "Classifier" or not any(layout.marks <= other for other in others)


@pytest.mark.parametrize("how", ["hyper-parameters", "projection", "name"])
def test_lejepa_is_not_taken_for_simclr(tmp_path, how: str) -> None:
    module = make("LeJEPA")
    if how == "name":
        path = tmp_path / "l.safetensors"
        save_file(module.state_dict(), path, metadata={"lit_vision": "LeJEPA"})
    else:
        path = tmp_path / "l.ckpt"
        content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
        torch.save(content if how == "hyper-parameters" else {"state_dict": module.state_dict()}, path)
    report = load_into(make("Classifier"), path)
    assert (report.source, {key.split(".")[0] for key in report.dropped}) == ("LeJEPA", {"projection"})
    assert load_into(make("LeJEPA"), path).dropped == []
    simclr = make("SimCLR")
    report = load_into(simclr, path)  # both have a part `projection`, and they share none of it
    assert {key.split(".")[0] for key in report.new} == {"projection"}


UNKNOWN_METHODS = {  # what a checkpoint of a method that nobody declared may look like
    "another part": ({"predictor.0.weight": torch.ones(2, 2)}, None),
    "another method's hyper-parameters": ({}, {"backbone": NAME, "backbone_args": VIT, "queue": 65536}),
    "another head": ({"projection.9.weight": torch.ones(2, 2)}, None),
    "another part, a copy of SimCLR's constructor": (
        {"predictor.0.weight": torch.ones(2, 2)},
        {"backbone": NAME, "backbone_args": VIT, "temperature": 0.1, "projection_width": 8},
    ),
    "another part, a copy of Classifier's constructor": (
        {"gate.weight": torch.ones(2, 2)},
        {"backbone": NAME, "backbone_args": VIT, "num_classes": 3, "tune": "full"},
    ),
}


@pytest.mark.parametrize("what", UNKNOWN_METHODS)
def test_unknown_method__offers_its_backbone(tmp_path, what: str, capsys) -> None:
    extra, hyper = UNKNOWN_METHODS[what]
    source, path = make("SimCLR"), tmp_path / "u.ckpt"
    content = {"state_dict": {**source.state_dict(), **extra}}
    torch.save(content if hyper is None else {**content, "hyper_parameters": hyper}, path)
    for target in ("Backbone", "Classifier", "SimCLR"):
        with pytest.raises(UserError, match="--backbone_only") as caught:
            load_into(make(target), path)
        assert "unknown method" in str(caught.value)
        assert "\n" not in str(caught.value)
    if hyper:
        with pytest.raises(UserError, match=r"unknown method .*--backbone_only"):
            load_model(path, "cpu")
    out = tmp_path / "backbone.safetensors"
    flags = [] if hyper else ["--backbone", NAME, "--backbone_args", json.dumps(VIT)]
    assert main(["import", str(path), "--out", str(out), *flags]) == 1
    assert "--backbone_only" in capsys.readouterr().err
    assert main(["import", str(path), "--out", str(out), *flags, "--backbone_only"]) == 0
    backbone, _ = load_backbone(out)
    for key, value in body_of(source).state_dict().items():
        assert torch.equal(backbone.model.state_dict()[key], value)


def test_positions_are_resized_and_reported(tmp_path) -> None:
    source = write(tmp_path / "w.pth", "facebookresearch/mae (full)")
    target = mae(img_size=48)
    report = load_into(target, tmp_path / "w.pth")
    assert report.resized == ["backbone.pos_embed", "decoder.pos_embed"]
    assert "2 resized" in str(report)
    torch.testing.assert_close(body_of(target).pos_embed, resize_pos_embed(body_of(source).pos_embed, (6, 6)))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_timm__each_familys_classifier_is_dropped(tmp_path, name: str) -> None:
    source = timm.create_model(name, num_classes=9)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_into(Backbone(name), tmp_path / "w.pth")
    assert len(report.dropped) == 2
    assert report.new == []


def test_save_backbone__full_and_half_precision_round_trip(tmp_path) -> None:
    cnn = Backbone("resnet18", stem="small", layers=[1, 1, 1, 1], channels=[8, 8, 16, 16]).eval()
    exact = save_backbone(
        tmp_path / "a" / "w.safetensors", cnn, MEAN, torch.tensor(STD), classes=["cat", "dog"], epochs=3
    )
    half = save_backbone(tmp_path / "h.safetensors", cnn, MEAN, STD, half=True)
    assert half.stat().st_size < 0.65 * exact.stat().st_size
    again, report = load_backbone(exact)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(images), cnn(images))
    assert (report.mean, report.std) == (MEAN, STD)
    assert report.metadata["classes"] == '["cat", "dog"]'
    torch.testing.assert_close(read_common(exact)[0]["mean"], torch.tensor(MEAN))
    rough, _ = load_backbone(half)
    assert rough.model.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(rough.eval()(images), cnn(images), atol=1e-2, rtol=1e-2)
    target = Backbone(**cnn.config)
    assert load_into(target, half).new == []
    assert not list(tmp_path.glob("**/*.tmp"))


def test_save_backbone__timm_reads_it_and_bad_targets_are_refused(tmp_path) -> None:
    body = make("Backbone")
    path = save_backbone(tmp_path / "w.safetensors", body, MEAN, STD)
    model = timm.create_model(NAME, num_classes=0, checkpoint_path=str(path), **VIT)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model.eval()(images), body.eval()(images))
    with pytest.raises(UserError, match="safetensors"):
        save_backbone(tmp_path / "w.pth", body, MEAN, STD)
    nn.init.constant_(body.model.norm.weight, 1e6)
    with pytest.raises(UserError, match="half=False"):
        save_backbone(tmp_path / "w.safetensors", body, MEAN, STD, half=True)


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["LIT_VISION_TEST_MARK"],)


def test_files_that_are_no_checkpoints(tmp_path, monkeypatch) -> None:
    mark = tmp_path / "executed"
    monkeypatch.setenv("LIT_VISION_TEST_MARK", str(mark))
    torch.save({"state_dict": Malicious()}, tmp_path / "bad.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"a": torch.zeros(3)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:300])
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    expected = {
        "none.pth": "no such file",
        "bad.ckpt": "could run code",
        "plain.ckpt": "could run code",
        "text.pth": "not a",
        "empty.pth": "not a",
        "cut.pth": "not a",
        "text.safetensors": "safetensors",
        "list.pth": "no named tensors",
    }
    for name, says in expected.items():
        with pytest.raises(UserError, match=says) as caught:
            load_into(make("Backbone"), tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_flipped_bit__is_seen_by_the_sidecar(tmp_path) -> None:
    from lit_vision.runs.checkpoint_io import AtomicCheckpointIO

    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": make("SimCLR").state_dict()}, path)
    assert load_into(make("Backbone"), path).source == "SimCLR"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"last\.ckpt\.sha256"):
        load_into(make("Backbone"), path)


def test_positions__of_a_grid_that_is_not_square_follow_the_size_in_the_file(tmp_path) -> None:
    """2 x 8 patches are as many as 4 x 4: only the stored image size tells them apart."""
    wide, square = {"img_size": [16, 64]}, {"img_size": 32}
    method = mae(**wide)
    with torch.no_grad():
        method.backbone.model.pos_embed.normal_()
    table = method.backbone.model.pos_embed
    run = tmp_path / "mae.ckpt"
    torch.save({"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}, run)
    body = save_backbone(tmp_path / "body.safetensors", method.backbone, MEAN, STD)
    for path in (run, body):
        same, other = make("Backbone", **wide), make("Backbone", **square)
        assert load_into(same, path).resized == []
        assert torch.equal(same.model.pos_embed, table)
        assert load_into(other, path).resized == ["backbone.pos_embed"]
        assert torch.equal(other.model.pos_embed, resize_pos_embed(table, (4, 4), source=(2, 8)))
        assert not torch.equal(other.model.pos_embed, table)
    assert torch.equal(load_backbone(body)[0].model.pos_embed, table)

    # of a file that does not tell, a square is assumed, as published weights have it
    start = make("Backbone", **square)
    torch.nn.init.normal_(start.model.pos_embed)
    torch.save(start.model.state_dict(), tmp_path / "bare.pt")
    for size, grid in (([16, 64], (2, 8)), ([16, 48], (2, 6)), ([64, 16], (8, 2))):
        target = make("Backbone", img_size=size)
        assert load_into(target, tmp_path / "bare.pt").resized == ["backbone.pos_embed"]
        assert torch.equal(target.model.pos_embed, resize_pos_embed(start.model.pos_embed, grid))
    # or the wanted grid, where it has the number of positions and that is no square
    torch.save(make("Backbone", img_size=[16, 48]).model.state_dict(), tmp_path / "flat.pt")
    assert load_into(make("Backbone", img_size=[16, 48]), tmp_path / "flat.pt").resized == []
    with pytest.raises(PartialMatchError, match="reshaped"):
        load_into(make("Backbone", img_size=[16, 80]), tmp_path / "flat.pt")
