"""Pruning: a file is rebuilt as torch-pruning made the network, wherever models are opened; broken ones are refused."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from toy_models import CNN, NAMES, VIT, make_classifier, write_images, write_run

import lit_vision
from lit_vision.backbones.backbone import Backbone
from lit_vision.backbones.pruned import keep_channels, parse_ranges, ranges_text
from lit_vision.cli.main import main
from lit_vision.convert.prune import kept_count, multiply_adds, prune_model, prune_network
from lit_vision.errors import UserError
from lit_vision.methods.classifier.classifier import Classifier
from lit_vision.methods.classifier.network import ClassifierNetwork
from lit_vision.predict.models import load_method

tp = pytest.importorskip("torch_pruning")

NETWORKS = {  # name, arguments, side of the images
    "resnet18": ("resnet18", CNN, 16),
    "efficientnet": ("tinynet_e", {}, 32),  # timm's class of EfficientNets
    "vit": ("vit_tiny_patch16_224", {**VIT, "embed_dim": 48, "num_heads": 4}, 16),
}
SLOW = {
    "resnet50": ("resnet50", {}, 64),
    "seresnet50": ("seresnet50", {}, 64),
    "resnet26t": ("resnet26t", {}, 64),
    "lite0": ("tf_efficientnet_lite0", {}, 96),
    "efficientnet_b0": ("efficientnet_b0", {}, 64),
    "mobilenetv3": ("mobilenetv3_small_050", {}, 32),
    "mobilenetv2": ("mobilenetv2_050", {}, 64),
    "vit_token": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, 32),
    "deit3": ("deit3_small_patch16_224", {}, 224),
}


def network_of(name: str, args: dict) -> ClassifierNetwork:
    """Return a classifier with random weights and statistics, whose channels differ."""
    torch.manual_seed(0)
    network = ClassifierNetwork({"backbone": name, "num_classes": 5, "backbone_args": args, "head_init_std": 1.0})
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prune")
    write_run(folder / "run", make_classifier("cnn"))
    write_images(folder / "images", 3)
    assert main(["prune", str(folder / "run"), "--keep", "0.5", "--out", str(folder / "pruned.safetensors")]) == 0
    return folder


@pytest.mark.parametrize("case", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_replay_is_torch_prunings_own_network(case: str) -> None:
    """Its network is compared after the hyper-parameters went through JSON, and after a second pruning of the first."""
    name, args, side = (NETWORKS | SLOW)[case]
    images, network = torch.randn(2, 3, side, side), network_of(name, args)
    for keep in (0.5, 0.7):
        before = copy.deepcopy(network.state_dict())
        rebuilt, by_torch_pruning = prune_network(network, keep, images[:1])
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        again = ClassifierNetwork(json.loads(json.dumps(dict(rebuilt.hparams)))).eval()
        again.load_state_dict(rebuilt.state_dict())
        with torch.inference_mode():
            wanted = by_torch_pruning(images)
            assert wanted.std() > 1e-3
            torch.testing.assert_close(again(images), wanted, atol=1e-6, rtol=1e-6)
        assert multiply_adds(again, images[:1]) < 0.85 * multiply_adds(network, images[:1])
        assert again.backbone(images).shape == (2, again.backbone.width)
        network = again


def test_channels_with_the_largest_weights_stay() -> None:
    """Against a loop over one group, the middle of a residual block: its filters, batch norm, and the next one's."""
    network = network_of("resnet18", CNN)
    network.requires_grad_(False)
    block = network.backbone.model.layer3[0]
    rebuilt, _ = prune_network(network, 0.5, torch.randn(1, 3, 16, 16))
    scores = []
    for channel in range(16):
        filters = float((block.conv1.weight[channel] ** 2).sum())
        read_by = float((block.conv2.weight[:, channel] ** 2).sum())
        scores.append((filters + float(block.bn1.weight[channel] ** 2) + read_by) / 3)
    best = sorted(np.argsort(scores)[8:].tolist())
    assert parse_ranges(rebuilt.backbone.config["pruned"]["layer3.0.conv1"]["out"], 16, "") == best
    assert torch.equal(rebuilt.backbone.model.layer3[0].bn1.bias, block.bn1.bias[best])


def test_numbers_of_channels_that_stay() -> None:
    counts = {keep: [kept_count(channels, keep) for channels in (1, 8, 16, 24, 64)] for keep in (0.01, 0.6, 0.9)}
    assert counts == {0.01: [1, 1, 8, 8, 8], 0.6: [1, 5, 8, 16, 40], 0.9: [1, 7, 16, 24, 56]}
    assert ranges_text([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert parse_ranges("0-2,5,7-8", 9, "") == [0, 1, 2, 5, 7, 8]


def test_the_file_opens_everywhere(place, tmp_path, capsys) -> None:
    """Sealed and in plain; a network that is trained further keeps the pruning in its own checkpoint."""
    pruned = place / "pruned.safetensors"
    method, metadata = load_method(pruned)
    assert metadata.class_names == NAMES
    sizes = [sum(p.numel() for p in network.parameters()) for network in (method, make_classifier("cnn"))]
    assert sizes[0] < 0.35 * sizes[1]
    assert main(["protect", "keygen", str(tmp_path / "k.key")]) == 0
    assert (
        main(["protect", "seal", str(pruned), "--key", str(tmp_path / "k.key"), "--out", str(tmp_path / "s.sealed")])
        == 0
    )
    keys = {pruned: {}, tmp_path / "s.sealed": {"key": tmp_path / "k.key"}}
    plain, sealed = (
        [found.probabilities for found in lit_vision.load(path, "cpu", **key).predict(place / "images")]
        for path, key in keys.items()
    )
    assert np.array_equal(plain, sealed)
    assert np.std(plain) > 1e-3

    tuned = Classifier("resnet18", 2, CNN, backbone_checkpoint=str(pruned))
    assert "matched" in capsys.readouterr().out
    assert torch.equal(tuned.backbone.model.conv1.weight, method.backbone.model.conv1.weight)
    again, _ = load_method(write_run(tmp_path / "run", tuned) / "checkpoints" / "last.ckpt")
    assert again.backbone.config["pruned"] == method.backbone.config["pruned"]
    with pytest.raises(UserError, match="timm"):
        lit_vision.export_model(pruned, "timm", out=tmp_path / "timm.safetensors")


@pytest.mark.slow
def test_a_pruned_file_is_trained_measured_and_resumed(place, tmp_path, monkeypatch) -> None:
    """The recipe names the file alone; what was removed follows from it, and later from the run's checkpoint."""
    monkeypatch.chdir(tmp_path)
    for seed, (split, n) in enumerate((("train", 12), ("val", 6))):
        write_images(tmp_path / "set" / split, n, seed)
    recipe = {
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {
            "class_path": "lit_vision.methods.Classifier",
            "init_args": {
                "backbone": "resnet18",
                "backbone_args": CNN,
                "num_classes": 3,
                "backbone_checkpoint": str(place / "pruned.safetensors"),
            },
        },
        "data": {
            "class_path": "lit_vision.data.ImageFolderDataModule",
            "init_args": {"root": "set", "img_size": 16, "batch_size": 6, "num_workers": 0},
        },
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert main(["fit", "--config", "r.yaml", "--run_dir", "run"]) == 0
    assert main(["validate", "--ckpt_path", "run/checkpoints/last.ckpt"]) == 0
    longer = ["--resume", "auto", "--resume_anyway", "true", "--trainer.max_epochs", "2"]
    assert main(["fit", "--config", "r.yaml", "--run_dir", "run", *longer]) == 0
    method, _ = load_method(tmp_path / "run/checkpoints/last.ckpt")
    assert method.backbone.config["pruned"] == load_method(place / "pruned.safetensors")[0].backbone.config["pruned"]


@pytest.mark.slow
@pytest.mark.parametrize("case", NETWORKS)
def test_exports(case: str, tmp_path) -> None:
    """ONNX Runtime and OpenVINO give torch's probabilities; the export refuses a difference above 1e-4 by itself."""
    name, args, side = NETWORKS[case]
    method = Classifier(name, 3, args, mean=[0.5] * 3, std=[0.2] * 3, head_init_std=1.0)
    method.metadata = {"task": "classification", "class_names": NAMES, "size": side, "crop_pct": 1.0}
    prune_model(write_run(tmp_path / "run", method), 0.5, tmp_path / "p.safetensors")
    write_images(tmp_path / "images", 3)
    paths = {"safetensors": tmp_path / "e.safetensors", "onnx": tmp_path / "e.onnx", "openvino": tmp_path / "e.xml"}
    found = []
    for file_format, path in paths.items():
        lit_vision.export_model(tmp_path / "p.safetensors", file_format, out=path)
        found.append([image.probabilities for image in lit_vision.load(path, "cpu").predict(tmp_path / "images")])
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    np.testing.assert_allclose(found[2], found[0], atol=1e-4)


def test_the_mark_of_before_is_read(tmp_path, capsys) -> None:
    """A mark that was made by hand in the largest convolution: half of its channels still give most bits."""
    from lit_vision.convert.protect import check_watermark
    from lit_vision.io.sealed import read_key_file
    from lit_vision.methods.watermark import mean_filter, watermark_layer, watermark_secret

    assert main(["protect", "keygen", str(tmp_path / "k.key")]) == 0
    key = read_key_file(tmp_path / "k.key")
    method = Classifier("resnet18", 3, {**CNN, "channels": [8, 16, 32, 64]})
    _, weight = watermark_layer(method.backbone)
    matrix, bits = watermark_secret(key.secret, weight[0].numel())
    with torch.no_grad():
        mark = torch.linalg.lstsq(matrix, 2 * bits[:, None] - 1).solution.reshape(weight[0].shape)
        weight += 3 * mark - mean_filter(weight).reshape(weight[0].shape)
    write_run(tmp_path / "run", method)
    assert check_watermark(tmp_path / "run", key).errors == 0
    prune_model(tmp_path / "run", 0.75, tmp_path / "p.safetensors")
    reading = check_watermark(tmp_path / "p.safetensors", key)
    assert reading.errors < 60
    assert reading.p_value < 1e-10


BROKEN = [  # what a file may say of a layer, and a word of the error
    ("layer1", "layer1"),
    ([], "mapping"),
    ({"layer9.0.conv1": {"out": "0"}}, "layer9"),
    ({"layer1.0.conv1": "0-3"}, "layer1.0.conv1"),
    ({"layer1.0.conv1": {"heads": "0"}}, "heads"),
    ({"layer1.0.bn1": {"in": "0"}}, "in"),
    ({"layer1": {"out": "0"}}, "layer1"),
    ({"layer1.0.conv1": {"out": "0-8"}}, "below 8"),
    ({"layer1.0.conv1": {"out": "0-99999999"}}, "below 8"),
    ({"layer1.0.conv1": {"out": "0-999999999999999999999"}}, "numbers"),
    ({"layer1.0.conv1": {"out": "3,1"}}, "rise"),
    ({"layer1.0.conv1": {"out": "1,1"}}, "rise"),
    ({"layer1.0.conv1": {"out": "5-2"}}, "rise"),
    ({"layer1.0.conv1": {"out": "-1"}}, "numbers"),
    ({"layer1.0.conv1": {"out": ""}}, "numbers"),
    ({"layer1.0.conv1": {"out": [0, 1]}}, "numbers"),
    ({"layer1.0.conv1": {"out": "0-3"}}, "fit together"),
]


@pytest.mark.parametrize(("pruned", "word"), BROKEN)
def test_broken_channels_are_refused(pruned: object, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        Backbone("resnet18", pruned=pruned, **CNN)
    assert "backbone_args.pruned" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_changed_file_is_refused(place, tmp_path, capsys) -> None:
    """Other channels than the weights have: one line, and no network."""
    from safetensors import safe_open

    with safe_open(place / "pruned.safetensors", "pt") as file:
        header = file.metadata()
    hyper = json.loads(header["hyper_parameters"])
    for axes in hyper["backbone_args"]["pruned"].values():
        axes.update({axis: text.split(",")[0].split("-")[0] for axis, text in axes.items()})  # one channel a layer
    broken = tmp_path / "broken.safetensors"
    save_file(load_file(place / "pruned.safetensors"), broken, {**header, "hyper_parameters": json.dumps(hyper)})
    assert main(["predict", "--model", str(broken), str(place / "images"), "--out", str(tmp_path / "p.csv")]) == 1
    assert str(broken) in capsys.readouterr().err


def test_what_cannot_be_pruned(place, tmp_path, monkeypatch, capsys) -> None:
    def refused(*words: object) -> str:
        assert main(["prune", *map(str, words), "--out", str(tmp_path / "o.safetensors")]) in (1, 2)
        return capsys.readouterr().err

    for keep in ("0", "1", "-1", "nan"):
        assert "--keep" in refused(place / "run", "--keep", keep)
    assert "--keep 0.999: rounds to all channels" in refused(place / "run", "--keep", "0.999")
    write_run(tmp_path / "resnext", Classifier("resnext50_32x4d", 3, {"layers": [1, 1, 1, 1]}))
    assert "ResNets" in refused(tmp_path / "resnext", "--keep", "0.5")
    write_run(tmp_path / "convnext", Classifier("convnext_atto", 3, {"depths": [1, 1, 1, 1]}))
    assert "ResNets" in refused(tmp_path / "convnext", "--keep", "0.5")
    write_run(tmp_path / "blur", Classifier("resnetblur18", 3, {"layers": [1, 1, 1, 1]}))
    assert "ResNets" in refused(tmp_path / "blur", "--keep", "0.5")
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    assert "lit-vision[prune]" in refused(place / "run", "--keep", "0.5")
    assert not (tmp_path / "o.safetensors").exists()


def test_features_alone(place, tmp_path) -> None:
    """A backbone without a head: its features become fewer, and the index of images names the new model."""
    from lit_vision.weights.load import save_backbone

    torch.manual_seed(0)
    backbone = Backbone("resnet18", img_size=16, **CNN)
    path = save_backbone(tmp_path / "b.safetensors", backbone, [0.5] * 3, [0.2] * 3)
    prune_model(path, 0.5, tmp_path / "p.safetensors")
    method, metadata = load_method(tmp_path / "p.safetensors")
    assert (backbone.width, method.backbone.width, metadata.task) == (16, 8, "features")
    kept = parse_ranges(method.backbone.config["pruned"]["layer4.0.conv2"]["out"], 16, "")
    smaller = copy.deepcopy(backbone.model)
    keep_channels(smaller, method.backbone.config["pruned"], (3, 16, 16))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(smaller.eval()(images), method.backbone(images))
    assert torch.equal(method.backbone.model.layer4[0].bn2.weight, backbone.model.layer4[0].bn2.weight[kept])
