"""Exports for timm, the Hub and transformers: other libraries load them to equal outputs, and they import back."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lit_vision.cli import main as cli
from lit_vision.methods import MAE, Classifier
from lit_vision.predict.models import load_method
from lit_vision.results.schema import write_result
from lit_vision.weights.model_metadata import METADATA_KEY

NAME = "vit_base_patch16_224"
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
CNN = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NAMES = [f"class {i}" for i in range(7)]


def scrambled(module: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for p in module.parameters():
        nn.init.normal_(p, std=0.2)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return module.eval()


def run_of(folder: Path, method: nn.Module) -> Path:
    """A run's folder with this method in it, as training leaves it."""
    card = {"task": "classification", "class_names": NAMES, "size": 32, "crop_pct": 1.0}
    content = {"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}
    if isinstance(method, Classifier):
        content["card"] = card
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(content, folder / "checkpoints/best.ckpt")
    return folder


def export(*arguments: object) -> int:
    return cli.main(["export", *map(str, arguments)])


@pytest.mark.parametrize("kind", ["vit", "vit-avg", "resnet-probe"])
def test_timm__loads_it_strictly_to_the_same_logits(kind: str, tmp_path: Path, capsys) -> None:
    if kind == "resnet-probe":  # the affine-free batch norm before the head is folded in
        method = scrambled(Classifier("resnet18", 7, CNN, head_norm=True, mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5]))
        method.head_norm.running_mean.normal_()
    else:
        method = scrambled(Classifier(NAME, 7, {**VIT, "pool": "avg" if kind == "vit-avg" else "token"}))
    run = run_of(tmp_path / "run", method)
    assert export(run, "--format", "timm", "--license", "mit") == 0
    out = run / "export/timm.safetensors"
    text = capsys.readouterr().out
    call = next(line for line in text.splitlines() if line.startswith("timm.create_model"))
    model = eval(call, {"timm": timm})  # what is printed is what works
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(IMAGES), method(IMAGES), atol=1e-5, rtol=1e-5)
    with safe_open(out, "pt") as file:
        about = file.metadata()
    assert json.loads(about["class_names"]) == NAMES
    assert json.loads(about["size"]) == 32
    assert json.loads(about["mean"]) == pytest.approx(method.mean.tolist())
    assert json.loads(about["std"]) == pytest.approx(method.std.tolist())
    assert about["license"] == "mit"
    assert json.loads(about[METADATA_KEY])["task"] == "classification"
    again = tmp_path / "again.safetensors"  # and back: import knows it from its metadata
    assert cli.main(["import", str(out), "--out", str(again)]) == 0
    back, card = load_method(again)
    with torch.no_grad():
        torch.testing.assert_close(back(IMAGES), method(IMAGES), atol=1e-5, rtol=1e-5)
    assert (card.class_names, card.license, card.crop_pct, card.size) == (NAMES, "mit", 1.0, 32)
    torch.testing.assert_close(back.mean, method.mean)


def test_hub__timm_loads_the_folder_and_the_card_is_made_of_results(tmp_path: Path) -> None:
    method = scrambled(Classifier(NAME, 7, {**VIT, "pool": "token"}, mean=[0.1, 0.2, 0.3]))
    run = run_of(tmp_path / "run", method)
    common = {"recipe": "experiments/debug/classifier.yaml", "seed": 4, "commit": "0123456789", "dirty": True}
    metric = {"name": "val/top1", "value": 0.8125}
    numbers = {
        "samples": 64,
        "seconds": 7200.0,
        "images_seen": 5000,
        "epochs": 2,
        "steps": 40,
        "data_fingerprint": "ab" * 32,
    }
    write_result(
        run / "results.json",
        metric=metric,
        metrics={"val/top1": 0.8125, "val/loss": 0.5, "train/loss": 0.4},
        **numbers,
        **common,
    )
    assert export(run, "--format", "hub", "--out", tmp_path / "toy-model", "--license", "Apache-2.0") == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'toy-model'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), method(IMAGES), atol=1e-5, rtol=1e-5)
    config = timm.data.resolve_model_data_config(model)
    assert config["mean"] == pytest.approx((0.1, 0.2, 0.3))
    assert config["input_size"] == (3, 32, 32)
    card = (tmp_path / "toy-model/README.md").read_text()
    for text in (
        "license: apache-2.0",
        "library_name: timm",
        "| val/top1 | 0.8125 | 64 |",
        "01234567+ changes",
        "abababababab",
    ):
        assert text in card
    assert "2 epochs, 40 steps, 5000 images, 2.00 h" in card
    assert "train/loss" not in card
    assert "class 6" in card
    compiled = card.split("```python")[1].split("```")[0]
    compile(compiled, "card", "exec")
    assert export(run, "--format", "hub", "--out", tmp_path / "toy-model") == 1  # not over what is there
    (tmp_path / "toy-model/mine.txt").write_text("keep")
    assert export(run, "--format", "hub", "--out", tmp_path / "toy-model", "--overwrite") == 1
    assert (tmp_path / "toy-model/mine.txt").is_file()


def test_hub__without_results_or_license_the_card_states_that(tmp_path: Path) -> None:
    method = scrambled(MAE(NAME, VIT, decoder_width=16, decoder_depth=1, decoder_heads=2))
    run = run_of(tmp_path / "run", method)
    assert export(run, "--format", "hub") == 0
    card = (run / "export/hub/README.md").read_text()
    assert "Not measured" in card
    assert "not stated" in card
    model = timm.create_model(f"local-dir:{run / 'export/hub'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), method.backbone(IMAGES), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_transformers__the_same_loss(norm_pix: bool, tmp_path: Path, capsys) -> None:
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEForPreTraining

    method = scrambled(MAE(NAME, VIT, decoder_width=16, decoder_depth=2, decoder_heads=2, norm_pix_loss=norm_pix))
    run = run_of(tmp_path / "run", method)
    assert export(run, "--format", "transformers") == 0
    model, info = ViTMAEForPreTraining.from_pretrained(run / "export/transformers", output_loading_info=True)
    assert not any(info.values())
    noise = torch.rand(3, 16)
    with torch.no_grad():
        loss, pred, _ = method(IMAGES, noise)
        theirs = model.eval()(IMAGES, noise=noise)
    torch.testing.assert_close(loss, theirs.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pred, theirs.logits, atol=1e-5, rtol=1e-5)
    names = set(load_file(run / "export/transformers/model.safetensors"))
    assert (
        "decoder.decoder_layers.0.attention.attention.query.weight" in names
    )  # the Hub's names: transformers 4 reads them too
    processor = json.loads((run / "export/transformers/preprocessor_config.json").read_text())
    assert processor["image_mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_transformers__license_and_source_travel(tmp_path: Path) -> None:
    from lit_vision.convert.to_transformers import transformers_config, transformers_state

    mae, folder = scrambled(MAE(NAME, VIT, decoder_width=16, decoder_depth=2, decoder_heads=2)), tmp_path / "hf"
    folder.mkdir()
    save_file(transformers_state(mae), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(transformers_config(mae)))
    ours, arguments = tmp_path / "mae.safetensors", ["--license", "CC-BY-NC-4.0", "--source", "https://example.org/w"]
    assert cli.main(["import", str(folder), "--out", str(ours), *arguments]) == 0
    for more, license in (((), "CC-BY-NC-4.0"), (("--license", "mit"), "mit")):
        out = tmp_path / license
        assert export(ours, "--format", "transformers", "--out", out, *more) == 0
        with safe_open(out / "model.safetensors", "pt") as file:
            about = file.metadata()
        assert (about["license"], about["source"]) == (license, "https://example.org/w")
        assert f"license: {license.lower()}\n" in (out / "README.md").read_text()


def test_round_trips__the_same_tensors(tmp_path: Path) -> None:
    """Import, then export in the form it came in: every tensor as it was."""
    from torchvision.models import resnet18

    body = ["--backbone", NAME, "--backbone_args", json.dumps(VIT)]
    states = {
        "timm": timm.create_model(NAME, num_classes=7, **VIT).state_dict(),
        "torchvision": resnet18().state_dict(),
    }
    states["encoder"] = timm.create_model(
        NAME, num_classes=0, **VIT
    ).state_dict()  # facebookresearch/mae's encoders have these names
    for name, state in states.items():
        torch.save({"model": state} if name == "encoder" else state, tmp_path / f"{name}.pth")
        ours, out = tmp_path / f"{name}-ours.safetensors", tmp_path / f"{name}.safetensors"
        assert (
            cli.main(
                ["import", str(tmp_path / f"{name}.pth"), "--out", str(ours), *([] if name == "torchvision" else body)]
            )
            == 0
        )
        assert export(ours, "--format", "timm", "--out", out) == 0
        found = load_file(out)
        assert found.keys() == state.keys(), name
        assert all(torch.equal(found[key], value) for key, value in state.items()), name
    from lit_vision.convert.to_transformers import transformers_config, transformers_state

    mae = scrambled(MAE(NAME, VIT, decoder_width=16, decoder_depth=2, decoder_heads=2))
    folder, out = tmp_path / "hf", tmp_path / "hf-again"
    folder.mkdir()
    state = transformers_state(mae)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(transformers_config(mae)))
    assert cli.main(["import", str(folder), "--out", str(tmp_path / "mae.safetensors")]) == 0
    assert export(tmp_path / "mae.safetensors", "--format", "transformers", "--out", out) == 0
    found = load_file(out / "model.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert json.loads((out / "config.json").read_text()) == transformers_config(mae)


def test_what_another_project_cannot_represent_is_refused(tmp_path: Path, capsys) -> None:
    small = run_of(tmp_path / "small", Classifier("resnet18", 7, {**CNN, "stem": "small"}))
    prompts = run_of(tmp_path / "prompts", Classifier(NAME, 7, VIT, tune="prompt-deep", prompt_length=2))
    for arguments, says in (
        ((small, "--format", "timm"), "small stem"),
        ((prompts, "--format", "timm"), "prompts"),
        ((small, "--format", "transformers"), "--format transformers"),
    ):
        assert export(*arguments) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert export(small, "--format", "timm", "--out", "x.pth") == 2
    assert export(small, "--format", "hub", "--int8", "data") == 2
