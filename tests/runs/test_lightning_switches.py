"""Lightning's switches, row by row: each works, to the same bits after a resume, or is refused in one line."""

import csv
import inspect
import re
from pathlib import Path

import lightning.pytorch.callbacks as lightning_callbacks
import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateFinder, Timer, WeightAveraging
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_vision.cli.library_errors import from_library_error, from_trainer_error
from lit_vision.cli.main import main
from lit_vision.data import ImageFolderDataModule
from lit_vision.errors import UsageError
from lit_vision.runs import lightning_switches as switches
from lit_vision.runs.lightning_switches import CALLBACKS, PLUGINS, REFUSED, STRATEGIES, TRAINER

RECIPE = {
    "seed_everything": 3,
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1, "enable_progress_bar": False},
    "model": {"class_path": "toy_run.ToyNet"},
    "data": {"class_path": "toy_run.ToyData", "init_args": {"n": 32}},
}
P = "lightning.pytorch.callbacks."
WORKING_STRATEGIES = "auto|ddp|ddp_find_unused_parameters_(true|false)|single_device"
WATCHERS = [
    {"class_path": P + "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 9}},
    {"class_path": P + "ModelCheckpoint", "init_args": {"filename": "{step}", "every_n_train_steps": 3}},
    *({"class_path": P + name} for name in ("DeviceStatsMonitor", "LearningRateMonitor", "ModelSummary")),
]


def run(folder: str, trainer: dict, *words: str) -> int:
    recipe = {**RECIPE, "trainer": {**RECIPE["trainer"], "enable_model_summary": False, **trainer}}
    Path("toy.yaml").write_text(yaml.safe_dump(recipe))
    return main(["fit", "--config", "toy.yaml", "--run_dir", folder, *words])


def equal(a, b) -> bool:
    """Return True if two nested values are the same, tensors bit by bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def rows(folder: str) -> list[dict[str, str]]:
    """Return the rows of a run without the numbers of DeviceStatsMonitor, which are those of the machine."""
    with open(f"{folder}/metrics.csv") as file:
        kept = [{k: v for k, v in row.items() if v and "Stats" not in k} for row in csv.DictReader(file)]
    return [row for row in kept if row.keys() - {"step", "epoch"}]


def refused(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-vision: error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_tables_name_everything_that_this_lightning_has() -> None:
    assert list(TRAINER) == list(inspect.signature(Trainer).parameters)
    assert set(CALLBACKS) == set(lightning_callbacks.__all__)
    for name in StrategyRegistry.available_strategies():
        assert any(name.startswith(begin) for begin in STRATEGIES), name


def test_the_readme_shows_the_tables() -> None:
    text = (Path(__file__).parents[2] / "experiments/README.md").read_text()
    print(switches.switches_as_markdown())  # what belongs there
    assert switches.switches_as_markdown() in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("accelerator", "tpu"),
        ("precision", "transformer-engine"),
        ("limit_predict_batches", 2),
        ("val_check_interval", "00:00:01:00"),
        ("check_val_every_n_epoch", 0),
        ("accumulate_grad_batches", 0),
        ("gradient_clip_val", -1.0),
        ("gradient_clip_val", float("nan")),
        ("use_distributed_sampler", True),
        ("profiler", "xla"),
        ("barebones", True),
        ("default_root_dir", "elsewhere"),
        ("model_registry", "a/b"),
        *(
            ("strategy", name)
            for name in StrategyRegistry.available_strategies()
            if not re.fullmatch(WORKING_STRATEGIES, name)
        ),
        *(
            ("strategy", Namespace(class_path=f"lightning.pytorch.strategies.{name}"))
            for name in STRATEGIES
            if name.endswith("Strategy") and STRATEGIES[name].here == REFUSED
        ),
        *(("callbacks", [Namespace(class_path=P + name)]) for name, row in CALLBACKS.items() if row.here == REFUSED),
        ("callbacks", {"class_path": P + "ModelCheckpoint", "init_args": {"save_last": True}}),
        ("plugins", Namespace(class_path="lightning.pytorch.plugins.io.AsyncCheckpointIO")),
    ],
)
def test_refused_before_anything_is_built(key: str, value) -> None:
    with pytest.raises(UsageError, match=rf"^trainer\.{key}: .* cannot be used here; .+") as caught:
        switches.check_settings({"use_distributed_sampler": False, key: value})
    assert "\n" not in str(caught.value)


def test_settings_that_work_are_not_refused() -> None:
    defaults = {name: p.default for name, p in inspect.signature(Trainer).parameters.items()}
    fsdp = Namespace(class_path="lit_vision.runs.fsdp.FSDP2Strategy")
    for strategy in ("auto", "ddp", "ddp_find_unused_parameters_true", fsdp):
        for plugin in (None, Namespace(class_path="lightning.pytorch.plugins.precision.MixedPrecision")):
            settings = {"use_distributed_sampler": False, "strategy": strategy, "plugins": plugin}
            switches.check_settings(
                {**defaults, **settings, "check_val_every_n_epoch": None, "precision": "bf16-mixed"}
            )
    assert PLUGINS["CheckpointIO"].here == REFUSED


def test_callbacks_of_a_trainer_that_was_built_in_python() -> None:
    switches.check_callbacks([Timer("00:00:01:00")])  # Trainer(max_time=...) makes one
    for callback in (LearningRateFinder(), WeightAveraging()):
        with pytest.raises(UsageError, match=f"trainer.callbacks: {type(callback).__name__} "):
            switches.check_callbacks([callback])


# ---- what works: stopped and resumed to the same bits


@pytest.mark.parametrize(
    ("trainer", "stop"),
    [
        ({"overfit_batches": 3, "detect_anomaly": True, "min_epochs": 2}, "saved:2"),
        (
            {
                "callbacks": WATCHERS,
                "gradient_clip_val": 0.1,
                "gradient_clip_algorithm": "norm",
                "profiler": "simple",
                "reload_dataloaders_every_n_epochs": 1,
                "deterministic": True,
                "inference_mode": False,
                "min_steps": 2,
                "num_sanity_val_steps": -1,
                "log_every_n_steps": 2,
                "enable_autolog_hparams": False,
            },
            "saved:5",
        ),
        pytest.param(
            {"limit_train_batches": 5, "limit_val_batches": 0.5, "val_check_interval": 2},
            "val:9",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"limit_train_batches": 0.7, "limit_val_batches": 0, "accumulate_grad_batches": 2},
            "saved:7",
            marks=pytest.mark.slow,
        ),
        pytest.param({"check_val_every_n_epoch": None, "val_check_interval": 6}, "saved:11", marks=pytest.mark.slow),
        pytest.param(
            {"precision": "bf16-mixed", "gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
            "saved:12",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"max_steps": 13, "sync_batchnorm": True, "check_val_every_n_epoch": 2}, "saved:6", marks=pytest.mark.slow
        ),
    ],
)
def test_works_and_resumes_to_the_same_bits(trainer: dict, stop: str, monkeypatch) -> None:
    assert run("whole", trainer) == 0
    monkeypatch.setenv("TOY_STOP", f"SIGTERM:{stop}")
    assert run("parts", trainer) == 143
    monkeypatch.delenv("TOY_STOP")
    assert run("parts", trainer, "--resume", "auto") == 0
    whole, parts = (torch.load(f"{f}/checkpoints/last.ckpt", weights_only=True) for f in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] > 0
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(parts[key], whole[key]), key
    assert rows("whole") == rows("parts")


@pytest.mark.parametrize(
    "early", [{"max_steps": 5}, pytest.param({"max_steps": 10, "val_check_interval": 3}, marks=pytest.mark.slow)]
)
def test_a_run_that_ends_inside_an_epoch_keeps_its_weights_and_can_go_on(early: dict) -> None:
    interval = {key: early[key] for key in early if key != "max_steps"}
    assert run("whole", interval) == 0
    assert run("short", early) == 0
    last = Path("short/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == early["max_steps"]
    assert run("on", interval, "--resume", str(last)) == 0
    whole, on = (torch.load(f"{f}/checkpoints/last.ckpt", weights_only=True) for f in ("whole", "on"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(on[key], whole[key]), key


def test_early_stopping_inside_an_epoch_keeps_the_last_weights() -> None:
    stop = {"monitor": "val/loss", "patience": 1, "min_delta": 9.0}
    early = {"callbacks": [{"class_path": P + "EarlyStopping", "init_args": stop}], "val_check_interval": 3}
    assert run("r", early) == 0
    kept = torch.load("r/checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == 6
    assert Path("r/results.json").exists()


def test_fast_dev_run_keeps_nothing(capsys) -> None:
    assert run("r", {"fast_dev_run": 3}) == 0
    assert "r: " in capsys.readouterr().out
    assert not Path("r/checkpoints").exists()


def test_without_checkpoints_and_loggers() -> None:
    assert run("r", {"enable_checkpointing": False, "logger": False, "max_epochs": 1}) == 0
    assert not Path("r/checkpoints").exists()


# ---- refused by Lightning or torch: one line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("limit_train_batches", 2.5),
        ("overfit_batches", 2.5),
        ("gradient_clip_algorithm", "nope"),
        ("strategy", "nope"),
        ("strategy", "deepspeed"),
        ("accelerator", "nope"),
        ("accelerator", "tpu"),
        ("devices", 0),
        ("profiler", "nope"),
        ("profiler", "xla"),
        ("reload_dataloaders_every_n_epochs", -1),
    ],
)
def test_what_the_constructor_of_trainer_refuses_is_one_line(key: str, value) -> None:
    with pytest.raises((ValueError, ImportError, MisconfigurationException)) as caught:
        Trainer(**{"accelerator": "cpu", key: value})
    text = str(from_trainer_error(caught.value))
    assert text.startswith("trainer")
    assert key in text or "install" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        ({"limit_val_batches": 0.01}, "trainer.limit_val_batches: "),
        ({"val_check_interval": 100}, "trainer.val_check_interval: "),
        ({"devices": 0}, "trainer.devices: "),
        ({"callbacks": [{"class_path": P + "LearningRateMonitor"}], "logger": False}, "trainer.logger: "),
        ({"callbacks": [{"class_path": P + "LearningRateFinder"}]}, "trainer.callbacks: LearningRateFinder "),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_key(trainer: dict, says: str, capsys) -> None:
    assert run("r", trainer) == 2
    assert says in refused(capsys)
    assert not Path("r/checkpoints").exists()


@pytest.mark.parametrize(
    ("callback", "trainer"), [("EarlyStopping", {}), ("ModelCheckpoint", {"limit_val_batches": 0})]
)
def test_a_metric_that_is_not_there_is_found_before_the_first_step(callback, trainer, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TOY_STOP", "SIGTERM:batch:1")  # would end in 143
    watcher = {"class_path": P + callback, "init_args": {"monitor": "val_loss"}}
    assert run("r", {**trainer, "callbacks": [watcher]}) == 2
    assert f"trainer.callbacks: {callback} waits for 'val_loss'" in refused(capsys)


def test_a_metric_of_training_that_is_not_there_is_one_line(capsys) -> None:
    stop = {"monitor": "train/nope", "check_on_train_epoch_end": True}
    assert run("r", {"callbacks": [{"class_path": P + "EarlyStopping", "init_args": stop}]}) == 2
    assert "trainer.callbacks: " in refused(capsys)


def test_nan_of_the_backward_pass_is_one_line(capsys) -> None:
    assert run("r", {"detect_anomaly": True}, "--model.poison_step", "2") == 1
    assert "trainer.detect_anomaly: " in refused(capsys)


def test_workers_without_memory_are_one_line(capsys, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit."
        )

    monkeypatch.setattr("toy_run.ToyNet.training_step", fail)
    assert run("r", {"limit_val_batches": 0}) == 1
    assert "data.num_workers" in refused(capsys)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("unable to allocate shared memory(shm) for file </torch_7_1_0>: No space left on device (28)", "/dev/shm"),
        ("unable to open shared memory object </torch_7_1_0> in read-write mode: Too many open files (24)", "/dev/shm"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "data.num_workers"),
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "data.num_workers"),
        ("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee documentation", "data.batch_size"),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_errors_of_torch(message: str, says: str | None) -> None:
    known = from_library_error(RuntimeError(message))
    assert known is None if says is None else says in str(known)
    assert "\n" not in str(known)


def test_another_error_keeps_its_traceback(monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("toy_run.ToyNet.training_step", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run("r", {"limit_val_batches": 0})


# ---- overfit_batches


def test_overfit_batches_trains_on_the_same_images_with_new_views(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "val"):
        for i in range(24):
            path = tmp_path / "set" / split / f"class{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 12), (10 * i, 0, 0)).save(path)

    def keys(overfit: int) -> list:
        data = ImageFolderDataModule(str(tmp_path / "set"), img_size=12, batch_size=4, num_workers=0)
        data.trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, overfit_batches=overfit,
            use_distributed_sampler=False, enable_progress_bar=False, max_epochs=1,
        )  # fmt: skip
        data.setup("fit")
        sampler = data.train_dataloader().batch_sampler
        epochs = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            epochs.append([[key[:2] for key in batch] for batch in sampler][:2])
        return epochs

    same, other = keys(2), keys(0)
    images = [[[index for _, index in batch] for batch in epoch] for epoch in same]
    assert images[0] == images[1] == images[2]
    assert [epoch[0][0][0] for epoch in same] == [0, 1, 2]  # the keys' epochs: new views
    assert other[0] == same[0]
    assert [[i for _, i in b] for b in other[1]] != images[0]
