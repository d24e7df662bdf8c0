"""Plan of a run: bytes against a trained run and torch's own FSDP2 parts, activations against torch's allocator."""

import gc
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch.distributed.device_mesh import init_device_mesh
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from toy_models import CNN, VIT, write_images

from lit_vision.cli.main import main
from lit_vision.data.datamodule import ImageFolderDataModule
from lit_vision.errors import UserError
from lit_vision.runs.checkpoint_io import AtomicCheckpointIO
from lit_vision.runs.fsdp import shard
from lit_vision.runs.multiply_adds import MultiplyAddCounter
from lit_vision.runs.plan import Machines, build_object, plan_run
from lit_vision.runs.step_sizes import measure_training_step, total

VIT_ARGS = {"backbone": "vit_tiny_patch16_224", "backbone_args": VIT}
CLASSIFIER = {"class_path": "lit_vision.methods.Classifier", "init_args": {**VIT_ARGS, "num_classes": 3}}
MAE = {
    "class_path": "lit_vision.methods.MAE",
    "init_args": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": {**{k: v for k, v in VIT.items() if k != "pool"}, "img_size": 32},
        "decoder_width": 32,
        "decoder_depth": 2,
        "decoder_heads": 2,
    },
}
SIMCLR = {
    "class_path": "lit_vision.methods.SimCLR",
    "init_args": {"backbone": "resnet18", "backbone_args": CNN, "projection_width": 16},
}


def config_of(model: dict, **changed) -> dict:
    model = {**model, "init_args": {**model["init_args"], **changed}}
    return {"model": model, "trainer": {"max_epochs": 1, "num_nodes": 1}}


def bytes_of(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def state_tensors(optimizer) -> list[torch.Tensor]:
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]


def made_on(trainer: Trainer, config: dict) -> object:
    module = build_object(config["model"])
    module.trainer = trainer
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module


def stand_in(data: ImageFolderDataModule) -> Trainer:
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.datamodule = data
    return trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("plan")
    write_images(place / "set")
    return place / "set"


@pytest.mark.parametrize("settings", [{"optimizer": "adamw"}, {"optimizer": "sgd", "lr": 0.1}, {"optimizer": "lars"}])
def test_bytes_are_those_of_a_trained_run(settings: dict, folder: Path, tmp_path: Path) -> None:
    config = config_of(CLASSIFIER, tune="last-1", **settings)  # a part is frozen
    data = ImageFolderDataModule(str(folder), img_size=16, batch_size=4)
    plan = plan_run(config, Machines(1, 1, 12), data)
    module = build_object(config["model"])
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    files = {"default_root_dir": tmp_path, "plugins": [AtomicCheckpointIO()]}
    trainer = Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, **quiet, **files)
    trainer.fit(module, data)
    found = plan["bytes"]["ddp"]
    assert plan["steps"] == trainer.global_step == 3
    assert found["parameters"] == bytes_of(module.parameters())
    assert found["gradients"] == bytes_of(p for p in module.parameters() if p.requires_grad) < found["parameters"]
    assert found["optimizer"] == bytes_of(state_tensors(trainer.optimizers[0])) > 0
    assert found["buckets"] == 0  # one process exchanges nothing
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=False)
    on_disk = (tmp_path / "x.ckpt").stat().st_size
    tensors = len(module.state_dict()) + len(state_tensors(trainer.optimizers[0]))
    assert plan["checkpoint_bytes"] < on_disk < plan["checkpoint_bytes"] + 20_000 + 500 * tensors


def test_parts_of_fsdp2_are_those_that_torch_makes(folder: Path) -> None:
    """4 processes divide neither 33 rows nor the 3 of the head: torch pads the parts."""
    config = config_of(CLASSIFIER, backbone_args={**VIT, "embed_dim": 33, "num_heads": 3})
    data = ImageFolderDataModule(str(folder), img_size=16, batch_size=2)
    trainer, processes = stand_in(data), 4
    plan = plan_run(config, Machines(processes, 1, 12), data)["bytes"]["fsdp2"]
    module = made_on(trainer, config)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        shard(module, init_device_mesh("cpu", (processes,)))
        local = [p.to_local() for p in module.parameters()]
        assert plan["parameters"] == sum(part.untyped_storage().nbytes() for part in local)
        optimizer = module.configure_optimizers()["optimizer"]
        batch = data.example_batch()
        loss = module.training_step(module.on_after_batch_transfer(batch, 0), 0)
        loss.backward()
        optimizer.step()
        gradients = [p.grad.to_local() for p in module.parameters() if p.grad is not None]
        assert plan["gradients"] == bytes_of(gradients)  # process 0 has the largest parts
        states = [v.to_local() if hasattr(v, "to_local") else v for v in state_tensors(optimizer)]
        assert plan["optimizer"] == bytes_of(states)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("model", "view", "size", "batch_size"),
    [
        (CLASSIFIER, "train", 16, 6),
        pytest.param(CLASSIFIER, "train", 32, 3, marks=pytest.mark.slow),
        pytest.param(CLASSIFIER, "train", 48, 12, marks=pytest.mark.slow),
        pytest.param(MAE, "mae", 32, 4, marks=pytest.mark.slow),
        pytest.param(SIMCLR, "simclr", 24, 8, marks=pytest.mark.slow),
        pytest.param(SIMCLR, "simclr", 40, 12, marks=pytest.mark.slow),
    ],
)
def test_activations_are_what_torch_has_allocated_after_forward(model, view, size, batch_size, folder) -> None:
    """The profiler of torch's allocator counts what forward allots and does not free."""
    arguments = model["init_args"]["backbone_args"]
    config = config_of(model, backbone_args={**arguments, "img_size": size} if "img_size" in arguments else arguments)
    data = ImageFolderDataModule(str(folder), img_size=size, batch_size=batch_size, train_view=view)
    trainer = stand_in(data)
    sizes = measure_training_step(lambda: made_on(trainer, config), data.example_batch(), batch_size, "32-true")
    assert sizes.measured_at == (batch_size,)  # on fake tensors
    real = measure_training_step(
        lambda: made_on(trainer, config), data.example_batch(), batch_size, "32-true", fake=False
    )
    assert sizes.activations == pytest.approx(real.activations, rel=0.03)
    assert sizes.multiply_adds == pytest.approx(real.multiply_adds, rel=0.01)
    assert total(sizes.optimizer) == total(real.optimizer)

    module = made_on(trainer, config).train()
    batch = data.example_batch()
    batch = {name: torch.cat([value] * batch_size) for name, value in batch.items()}
    module.training_step(module.on_after_batch_transfer(batch, 0), 0)  # what is made once and kept
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = module.training_step(module.on_after_batch_transfer(batch, 0), 0)
    allotted = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    assert loss.isfinite()
    assert sizes.activations == pytest.approx(allotted, rel=0.1)


def test_multiply_adds_of_a_step_of_attention() -> None:
    """Forward has two products of the sequence with itself, backward five: torch's formula for its kernels on GPUs."""
    x = torch.randn(2, 3, 10, 4, requires_grad=True)
    with MultiplyAddCounter() as counter:
        torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()
    assert counter.multiply_adds == (2 + 5) * 2 * 3 * 10 * 10 * 4


def test_several_optimizers_a_teacher_and_foreign_data_are_refused(folder: Path) -> None:
    gan = {"class_path": "lit_vision.methods.GAN", "init_args": {"img_size": 8, "width": 8, "multipliers": [1, 2]}}
    data = ImageFolderDataModule(str(folder), img_size=8, batch_size=4)
    with pytest.raises(UserError, match="several optimizers"):
        plan_run(config_of(gan), Machines(1, 1, 12), data)
    with pytest.raises(UserError, match="no second model"):
        plan_run(config_of(CLASSIFIER, teacher="last.ckpt"), Machines(1, 1, 12), data)
    with pytest.raises(UserError, match="example_batch"):
        plan_run(config_of(CLASSIFIER), Machines(1, 1, 12), object())


def test_the_command_needs_no_data(tmp_path: Path, capsys, monkeypatch) -> None:
    recipe = Path(__file__).parents[2] / "experiments/debug/classifier.yaml"
    monkeypatch.chdir(tmp_path)
    call = ["plan", str(recipe), "--nodes", "2", "--devices_per_node", "2"]
    assert main([*call, "--images", "60000", "--json", "--trainer.accumulate_grad_batches", "2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["global_batch_size"] == 128 * 4 * 2
    assert plan["steps"] == 2 * (60000 // 1024)
    assert plan["bytes"]["ddp"]["buckets"] == plan["bytes"]["ddp"]["gradients"] > plan["bytes"]["fsdp2"]["gradients"]
    assert plan["multiply_adds"]["run"] == pytest.approx(plan["images"] * plan["multiply_adds"]["image"], rel=1e-6)
    assert main(call) == 1  # the data are not there
    assert "data/fashion" in capsys.readouterr().err


RECIPES = sorted(Path(__file__).parents[2].glob("experiments/*/*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_has_a_plan(recipe: Path, capsys) -> None:
    code = main(["plan", str(recipe), "--images", "10000000", "--nodes", "2", "--json"])
    output = capsys.readouterr()
    if code:
        assert len(output.err.strip().splitlines()) == 1
        assert any(text in output.err for text in ("several optimizers", "model.teacher", "model.text_model"))
    else:
        plan = json.loads(output.out)
        assert min(plan["steps"], plan["multiply_adds"]["image"], plan["bytes"]["ddp"]["activations"]) > 0
