"""Weights that inits begin with: this project's files and runs, other people's, and what starts from them."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import timm
import torch
from toy_models import make_classifier, write_run

from lit_vision.backbones.backbone import Backbone
from lit_vision.backbones.create import WeightsUnavailableError
from lit_vision.cli.main import main
from lit_vision.errors import UsageError, UserError
from lit_vision.io.hashing import sha256_of_file
from lit_vision.predict.api import load
from lit_vision.results.schema import read_result
from lit_vision.study import weight_files
from lit_vision.study.encoders import EncoderStore
from lit_vision.study.init_weights import open_inits
from lit_vision.study.inits import parse_inits
from lit_vision.study.presets import preset_for
from lit_vision.study.progress import Reporter
from lit_vision.weights.licenses import is_non_commercial, with_note
from lit_vision.weights.load import load_backbone, save_backbone

SMALL_VIT = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_CNN = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}


@pytest.fixture
def store(tmp_path):
    (tmp_path / "study").mkdir()
    return EncoderStore(None, preset_for(96, frozen=224), tmp_path / "study", Reporter())


def _features(backbone, side: int) -> torch.Tensor:
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return backbone.eval()(images)


def test_open__a_run_a_file_of_this_project_and_one_of_timm_have_the_features_of_their_networks(
    store, tmp_path
) -> None:
    classifier = make_classifier("vit")
    run = write_run(tmp_path / "my run", classifier)
    own = Backbone("resnet18", stem="small", **SMALL_CNN)
    save_backbone(tmp_path / "own.safetensors", own, [0.4] * 3, [0.3] * 3, license="CC-BY-NC-4.0", size="32")
    theirs = timm.create_model("mobilenetv3_small_050", num_classes=7)
    (tmp_path / "hub").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "hub" / "pytorch_model.bin")
    config = {"architecture": "mobilenetv3_small_050", "pretrained_cfg": {"license": "mit", "mean": [0.1, 0.2, 0.3]}}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))

    given = [str(run), f"simclr@{tmp_path / 'own.safetensors'}", str(tmp_path / "hub")]
    opened = open_inits(parse_inits(given), store)
    by_name = {init.name: init for init in opened.inits}
    assert list(by_name) == ["my_run", "own", "simclr@own", "hub"]
    headless = timm.create_model("mobilenetv3_small_050", num_classes=0)
    headless.load_state_dict({key: value for key, value in theirs.state_dict().items() if "classifier" not in key})
    for name, network, mean in (
        ("my_run", classifier.backbone, [0.5, 0.4, 0.3]),
        ("own", own, [0.4] * 3),
        ("hub", headless, [0.1, 0.2, 0.3]),
    ):
        backbone, report = load_backbone(store.path(name), 16)
        torch.testing.assert_close(_features(backbone, 16), _features(network, 16), rtol=1e-4, atol=1e-6)
        assert report.mean == pytest.approx(mean)
        built = opened.preset.network(name)  # as trainings build it
        assert Backbone(built.backbone, **built.args).width == backbone.width
    # no image is larger than those that the weights have seen
    sides = {name: (opened.preset.side(name), opened.preset.frozen_side(name)) for name in by_name}
    assert sides == {"my_run": (16, 16), "own": (32, 32), "simclr@own": (32, 32), "hub": (96, 224)}
    assert [by_name[name].license for name in by_name] == ["not stated", "CC-BY-NC-4.0", "CC-BY-NC-4.0", "mit"]
    assert [init.non_commercial for init in opened.inits] == [False, True, True, False]
    assert by_name["own"].sha256 == by_name["simclr@own"].sha256 == sha256_of_file(tmp_path / "own.safetensors")


def test_open__a_plain_vit_is_built_for_the_sides_of_the_study_in_complete_patches(store, tmp_path) -> None:
    vit = Backbone("vit_tiny_patch16_224", img_size=224, **{**SMALL_VIT, "patch_size": 14})
    save_backbone(tmp_path / "vit.safetensors", vit, [0.5] * 3, [0.5] * 3)
    preset = open_inits(parse_inits(f"mae@{tmp_path / 'vit.safetensors'}"), store).preset
    assert (preset.side("vit"), preset.side("mae@vit"), preset.frozen_side("vit")) == (98, 98, 224)
    assert preset.network("vit").args["img_size"] == 98
    assert preset.as_frozen("vit").network("vit").args["img_size"] == 224
    frozen, _ = load_backbone(store.path("vit"), 224)
    assert torch.equal(_features(frozen, 224), _features(vit, 224))
    assert _features(load_backbone(store.path("vit"), 98)[0], 98).shape == (2, 32)


def test_open__what_a_study_cannot_begin_with_is_named(store, tmp_path) -> None:
    cnn = Backbone("resnet18", stem="small", **SMALL_CNN)
    save_backbone(tmp_path / "cnn.safetensors", cnn, [0.5] * 3, [0.5] * 3)
    with pytest.raises(UsageError, match=r"mae@cnn; MAE needs a plain ViT, and resnet18"):
        open_inits(parse_inits(f"mae@{tmp_path / 'cnn.safetensors'}"), store)
    save_backbone(tmp_path / "gray.safetensors", Backbone("resnet18", in_chans=1, **SMALL_CNN), [0.5], [0.5])
    with pytest.raises(UserError, match=r"gray.safetensors is for images of 1 channel"):
        open_inits(parse_inits(str(tmp_path / "gray.safetensors")), store)
    (tmp_path / "text.ckpt").write_text("no weights")
    with pytest.raises(UserError, match=r"text.ckpt: "):
        open_inits(parse_inits(str(tmp_path / "text.ckpt")), store)


def test_open__weights_that_cannot_be_had_are_said_in_words_of_a_study(store, monkeypatch) -> None:
    def fail(*_, **__):
        raise WeightsUnavailableError("pretrained: no network; connect once, or use pretrained=false")

    monkeypatch.setattr(weight_files, "create_backbone", fail)
    with pytest.raises(UserError, match=r"connect once, or leave them out$"):
        open_inits(parse_inits("timm:resnet18"), store)


def test_open__what_starts_from_optional_weights_is_left_out_with_them(store, monkeypatch) -> None:
    def fail(*_):
        raise UserError("no network")

    monkeypatch.setattr(store, "download_or_packaged", fail)
    inits = parse_inits("simclr,lejepa@public,timm:none", "timm:none")
    opened = open_inits(inits, store, {"timm:none"})
    assert [init.name for init in opened.inits] == ["simclr"]
    assert opened.not_tried == {"timm:none": "no network", "lejepa@timm:none": "no network"}
    packaged = replace(preset_for(96), size=96)
    backbone = Backbone("resnet18", **SMALL_CNN)
    save_backbone(store.path("timm:resnet18"), backbone, [0.5] * 3, [0.5] * 3, license="MIT")
    monkeypatch.setattr(store, "download_or_packaged", lambda _: ("timm:resnet18", store.download("timm:resnet18")))
    store.preset = packaged
    opened = open_inits(inits, store, {"timm:none"})
    assert [init.name for init in opened.inits] == ["simclr", "timm:resnet18", "lejepa@timm:resnet18"]
    assert opened.renamed == {"timm:none": "timm:resnet18", "lejepa@timm:none": "lejepa@timm:resnet18"}


def test_study__of_a_file_measures_its_features_and_names_its_license(tmp_path, capsys) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("dark", "light"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for i in range(6):
                image = rng.integers(0, 90, (16, 16, 3), np.uint8) + (100 if label == "light" else 0)
                cv2.imwrite(str(tmp_path / "set" / split / label / f"{i}.png"), image)
    own = Backbone("resnet18", stem="small", **SMALL_CNN)
    save_backbone(tmp_path / "nc.safetensors", own, [0.5] * 3, [0.5] * 3, license="CC-BY-NC-4.0", size="16")
    arguments = ["--inits", f"simclr@{tmp_path / 'nc.safetensors'}", "--inits", "pixels", "--pretrained", "off"]
    arguments += ["--labels", "4", "--seeds", "1", "--epochs", "4=1,simclr@nc=1", "--max_seeds", "scratch-vit=1"]
    run = tmp_path / "run"
    assert main(["study", str(tmp_path / "set"), "--run_dir", str(run), *arguments]) == 0
    result = read_result(run / "results.json")
    cells = {(cell["init"], cell["protocol"]) for cell in result["cells"]}
    assert {(init, protocol) for init in ("nc", "simclr@nc") for protocol in ("linear", "knn", "finetune")} <= cells
    assert result["inits"]["nc"]["sha256"] == sha256_of_file(tmp_path / "nc.safetensors")
    assert result["inits"]["simclr@nc"]["non_commercial"] is True
    assert "CC-BY-NC-4.0" in (run / "report.md").read_text()
    assert load(run / "model.safetensors").metadata.license == "CC-BY-NC-4.0 (non-commercial)"
    # a plan is not replayed on other weights of the same name
    save_backbone(tmp_path / "nc.safetensors", own, [0.5] * 3, [0.6] * 3, license="CC-BY-NC-4.0", size="16")
    arguments += ["--plan", str(run / "plan.jsonl"), "--run_dir", str(tmp_path / "again")]
    assert main(["study", str(tmp_path / "set"), *arguments]) == 1
    assert "was made for other images or settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("license", "non_commercial"),
    [
        ("Apache-2.0", False),
        ("MIT (package), BSD-3-Clause (torchvision)", False),
        ("cc-by-nc-4.0", True),
        ("CC-BY-NC-SA-4.0", True),
        ("FAIR Noncommercial Research License", True),
        ("GPL-3.0", False),
        ("not stated", False),
        ("", False),
        ("MIT, GPL-3.0", False),
    ],
)
def test_licenses(license: str, non_commercial: bool) -> None:
    assert is_non_commercial(license) == non_commercial
    assert ("non-commercial" in with_note(license)) == (non_commercial and "Noncommercial" not in license)
