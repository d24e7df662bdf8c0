"""Detectors and segmenters from pre-trained weights: all backbone weights load, the rest is reported or refused."""

from pathlib import Path

import pytest
import torch

from lit_vision.errors import UserError
from lit_vision.methods import MAE, Classifier, Detector, Segmenter, SimCLR
from lit_vision.weights.load import PartialMatchError, load_into

CNN = {"stem": "small", "stem_type": "deep", "stem_width": 8, "layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
TINY, RESNET = "vit_tiny_patch16_224", "resnet18"


def _saved(method, path: Path) -> Path:
    torch.save({"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}, path)
    return path


def _dense(task: str, vit: bool, checkpoint: Path | None = None, **more):
    name, args = (TINY, VIT) if vit else (RESNET, CNN)
    common = {"backbone_args": args, "backbone_checkpoint": checkpoint and str(checkpoint), **more}
    if task == "detector":
        return Detector(name, 3, 32, strides=[8, 16], pyramid_width=32, head_convs=1, **common)
    return Segmenter(name, 4, 32, strides=[8, 16], width=16, **common)


def _same(a, b) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in a.state_dict().items() if "running" not in key)


@pytest.mark.parametrize("task", ["detector", "segmenter"])
def test_from_mae__positions_are_resized_to_the_new_grid(task: str, tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    mae = MAE(TINY, {**VIT, "img_size": 16}, decoder_width=32, decoder_depth=1, decoder_heads=2)
    file = _saved(mae, tmp_path / "mae.ckpt")
    model = _dense(task, True, file)
    output = capsys.readouterr().out
    assert "(MAE) into Backbone" in output
    assert "dropped (decoder.*)" in output
    assert "1 resized (backbone.pos_embed)" in output
    assert model.backbone.model.pos_embed.shape[1] == 17
    for key, value in mae.backbone.model.blocks.state_dict().items():
        assert torch.equal(value, model.backbone.model.blocks.state_dict()[key])
    assert torch.equal(model.mean, mae.mean)


@pytest.mark.parametrize("task", ["detector", "segmenter"])
def test_from_simclr__same_backbone_weights(task: str, tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    simclr = SimCLR(RESNET, CNN, projection_width=8)
    model = _dense(task, False, _saved(simclr, tmp_path / "s.ckpt"))
    assert "(SimCLR) into Backbone" in (output := capsys.readouterr().out)
    assert "dropped (projection.*)" in output
    assert _same(model.backbone, simclr.backbone)
    assert torch.equal(model.mean, torch.zeros(3))


@pytest.mark.parametrize("source", ["detector", "segmenter"])
@pytest.mark.parametrize("target", ["detector", "segmenter"])
def test_from_another_dense_model__same_backbone_weights(source: str, target: str, tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    first = _dense(source, False)
    model = _dense(target, False, _saved(first, tmp_path / "d.ckpt"))
    assert "into Backbone" in (output := capsys.readouterr().out)
    assert "dropped" in output
    assert _same(model.backbone, first.backbone)


def test_into_a_classifier__only_its_head_is_new(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = _dense("detector", False)
    classifier = Classifier(RESNET, 5, CNN)
    report = load_into(classifier, _saved(detector, tmp_path / "d.ckpt"))
    assert report.source == "Dense"
    assert sorted(report.new) == ["head.bias", "head.weight"]
    assert all(key.startswith(("pyramid.", "head.")) for key in report.dropped)


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    other = SimCLR(RESNET, {**CNN, "channels": [8, 16, 16, 32]}, projection_width=8)
    with pytest.raises(PartialMatchError, match=r"o\.ckpt"):
        _dense("detector", False, _saved(other, tmp_path / "o.ckpt"))
    with pytest.raises(UserError, match=r"none\.ckpt"):
        _dense("segmenter", False, tmp_path / "none.ckpt")
