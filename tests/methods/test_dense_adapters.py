"""LoRA and prompts in detectors and segmenters: trainable parameters, step 0, merging, checkpoints, adapter files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from toy_models import write_run

from lit_vision.cli.main import main
from lit_vision.data import AnnotatedDataModule
from lit_vision.data.make.scenes import GARMENT_CLASSES, make_scenes
from lit_vision.errors import UserError
from lit_vision.methods import Detector, Segmenter
from lit_vision.methods.segmentation.network import SegmenterNetwork
from lit_vision.predict.models import load_method, load_model
from lit_vision.weights.load import save_backbone

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
CNN = {"stem_type": "deep", "stem_width": 8, "layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}
TASKS, TUNES = ("detector", "segmenter"), ("lora", "prompt-shallow", "prompt-deep")


def _dense(task: str, tune: str, name: str = "vit_tiny_patch16_224", args: dict | None = None, **more):
    torch.manual_seed(0)
    common = {"backbone_args": args or VIT, "tune": tune, "lr": 1e-2, "warmup_epochs": 0, "lora_rank": 2, **more}
    common |= {"prompt_length": 3}
    if task == "detector":
        method = Detector(name, len(GARMENT_CLASSES), 64, strides=[8, 16], pyramid_width=32, head_convs=1, **common)
    else:
        method = Segmenter(name, 1 + len(GARMENT_CLASSES), 64, strides=[4, 8, 16], width=16, dropout=0.0, **common)
    names = list(GARMENT_CLASSES) if task == "detector" else ["background", *GARMENT_CLASSES]
    kind = "detection" if task == "detector" else "segmentation"
    method.metadata = {"task": kind, "class_names": names, "size": 64, "crop_pct": 1.0, "options": {}}
    return method


def _randomized(method):
    """Set the parameters that were added to the backbone to random values, as training would."""
    with torch.no_grad():
        for p in method.backbone.parameters():
            if p.requires_grad:
                p.normal_(std=0.3)
    return method.eval()


def _outputs(method, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        if isinstance(method, SegmenterNetwork):
            return method.eval()(images)
        return torch.cat([value.flatten(1) for value in method.eval().raw(images).values()], dim=1)


def _images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "set"
    make_scenes(out, {"train": 4, "val": 2, "test": 2})
    return out


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tune", TUNES)
def test_only_adapter_pyramid_and_head_train_and_the_checkpoint_is_complete(task, tune, root, tmp_path) -> None:
    masks = {"format": "masks", "class_names": ["background", *GARMENT_CLASSES]} if task == "segmenter" else {}
    data = AnnotatedDataModule(str(root), img_size=64, batch_size=2, num_workers=0, **masks)
    method = _dense(task, tune)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    trainer.fit(method, datamodule=data)
    parameters = dict(method.named_parameters())
    assert all(p.grad is not None for p in parameters.values() if p.requires_grad)  # or DDP would stop
    changed = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    mark = "lora_" if tune == "lora" else "backbone.prompts."
    added = {key for key in before if mark in key}
    assert added
    assert {key for key in changed if key.startswith("backbone.")} == added
    outside = {key for key in parameters if not key.startswith("backbone.")}
    assert {key for key, p in parameters.items() if p.requires_grad} == added | outside
    assert {key.split(".")[0] for key in changed} >= {"pyramid", "head"}
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = type(method).load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    torch.testing.assert_close(_outputs(again, _images()), _outputs(method, _images()), rtol=0, atol=0)


@pytest.mark.parametrize("task", TASKS)
def test_lora_does_not_change_the_initial_output_and_merging_does_not_either(task: str, tmp_path: Path) -> None:
    base, method = _dense(task, "linear"), _dense(task, "lora", lora_targets=["qkv", "mlp"])
    heads = {key: value for key, value in method.state_dict().items() if not key.startswith("backbone.")}
    base.load_state_dict({**base.state_dict(), **heads})  # its heads were drawn after the adapters
    want = _outputs(base, _images())
    torch.testing.assert_close(_outputs(method, _images()), want, rtol=0, atol=0)
    unmerged = _outputs(_randomized(method), _images())
    assert (unmerged - want).abs().max() > 1e-3  # the maps see the adapters
    path = write_run(tmp_path / "run", method) / "checkpoints" / "last.ckpt"
    merged, _ = load_method(path)
    assert not any("lora" in key for key in merged.state_dict())
    torch.testing.assert_close(_outputs(merged, _images()), unmerged, rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tune", ["prompt-shallow", "prompt-deep"])
def test_maps_do_not_include_the_prompts_but_depend_on_them(task: str, tune: str) -> None:
    method = _dense(task, tune)
    model = _dense(task, "linear").backbone.model  # the same weights, without hooks
    prompts = _randomized(method).backbone.prompts.sets["default"]
    (found,) = method.backbone.forward_maps(_images())
    assert found.shape == (2, 32, 8, 8)
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(_images())))
        for i, block in enumerate(model.blocks):
            rest = x[:, 1:] if i == 0 or tune == "prompt-shallow" else x[:, 4:]
            new = [prompts[i].expand(2, -1, -1)] if i == 0 or tune == "prompt-deep" else []
            x = block(torch.cat([x[:, :1], *new, rest], dim=1))
        want = x[:, 4:].transpose(1, 2).reshape(2, 32, 8, 8)
    torch.testing.assert_close(found, want)
    assert (found - _dense(task, "linear").backbone.forward_maps(_images())[0]).abs().max() > 1e-4


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tune", ["lora", "prompt-deep"])
def test_adapter_file_has_no_backbone_and_loads(task: str, tune: str, tmp_path: Path) -> None:
    base = _dense(task, "linear")
    start = save_backbone(tmp_path / "base.safetensors", base.backbone, base.mean, base.std)
    run = write_run(tmp_path / "run", _randomized(_dense(task, tune)))
    out = tmp_path / "a.safetensors"
    assert main(["export", str(run), "--format", "adapter", "--out", str(out)]) == 0
    assert out.stat().st_size < (run / "checkpoints" / "last.ckpt").stat().st_size - start.stat().st_size / 2
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    got, want = load_model(out, "cpu", base=str(start)), load_model(run, "cpu")
    assert got.metadata == want.metadata
    for name, value in want(pixels).items():
        np.testing.assert_allclose(got(pixels)[name], value, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_cnn_is_refused_in_one_line(task: str) -> None:
    for tune, expected in (("lora", "lora_targets: 'qkv'.*resnet18"), ("prompt-deep", "tune: .*resnet18")):
        with pytest.raises(UserError, match=expected) as caught:
            _dense(task, tune, "resnet18", CNN)
        assert len(str(caught.value).splitlines()) == 1


def test_options_reach_the_model_from_the_command_line(root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Path(__file__).parents[2] / "experiments" / "detect" / "resnet10_scenes_20ep.yaml"
    arguments = ["--model.backbone", "vit_tiny_patch16_224", "--model.backbone_args", str(VIT).replace("'", '"')]
    arguments += ["--model.tune", "lora", "--model.lora_rank", "3", "--model.lora_targets", "[qkv, mlp]"]
    arguments += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.logger", "false"]
    arguments += ["--data.root", str(root), "--data.batch_size", "2", "--data.num_workers", "0", "--run_dir", "run"]
    assert main(["fit", "--config", str(recipe), *arguments, "--trainer.check_val_every_n_epoch", "1"]) == 0
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    ranks = {key: value.shape[0] for key, value in state.items() if "lora_A" in key}
    assert set(ranks.values()) == {3}
    assert len(ranks) == 2 * 3
