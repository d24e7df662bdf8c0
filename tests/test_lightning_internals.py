"""Private names of Lightning exist and have the meaning that lightning_internals.py relies on.

When these fail after an upgrade of Lightning, only lit_vision/lightning_internals.py has to change.
"""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities import optimizer as fabric_optimizer
from lightning.pytorch import Callback, LightningModule, Trainer, __version__
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.optimization.manual import _ManualOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch.utils.data import DataLoader

from lit_vision import lightning_internals

STEPS, ACCUMULATE = 2, 2  # optimizer steps in an epoch, batches in a step


class Net(LightningModule):
    """One weight; a batch is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        loss = (self.weight * batch).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", batch.mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.arange(1.0, STEPS * ACCUMULATE + 1), batch_size=1)

    def val_dataloader(self):
        return DataLoader(torch.ones(3), batch_size=1)


class Rows(Logger):
    """Keep the rows that are logged, with their step."""

    name, version = "rows", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs) -> None: ...


class Watch(Callback):
    """Call the functions where the package calls them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.batches, self.epochs, self.checkpoints, self.registered = folder, [], [], [], []

    def setup(self, trainer, pl_module, stage) -> None:
        lightning_internals.replace_signal_handlers(trainer, lambda: self.registered.append(stage))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.batches.append(
            (
                lightning_internals.is_accumulating(trainer),
                lightning_internals.validation_follows_batch(trainer),
                lightning_internals.last_logged_step(trainer),
                lightning_internals.pending_metrics(trainer),
            )
        )
        lightning_internals.log_at_optimizer_step(trainer, {"in_batch": float(batch_idx)})
        trainer.save_checkpoint(self.folder / "batch.ckpt", weights_only=False)
        self.checkpoints.append(torch.load(self.folder / "batch.ckpt", weights_only=True))

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        steps = lightning_internals.finished_steps(trainer), lightning_internals.last_logged_step(trainer)
        self.epochs.append(steps)
        lightning_internals.log_at_optimizer_step(trainer, {"at_end": 1.0})
        trainer.save_checkpoint(self.folder / "epoch.ckpt", weights_only=False)


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> SimpleNamespace:
    """Two epochs of two optimizer steps of two batches, validation at the end of each."""
    watch, rows = Watch(tmp_path_factory.mktemp("run")), Rows()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=ACCUMULATE,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        logger=rows,
        callbacks=[watch],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=watch.folder,
    )
    trainer.fit(Net())
    return SimpleNamespace(trainer=trainer, watch=watch, rows=rows.rows)


@pytest.mark.parametrize(
    ("holder", "name"),
    [
        (_FitLoop, "_should_accumulate"),
        (_TrainingEpochLoop, "_should_check_val_fx"),
        (_SignalConnector, "register_signal_handlers"),
        (fabric_optimizer, "_optimizers_to_device"),
        (LightningOptimizer, "optimizer"),
    ],
)
def test_the_private_name_exists(holder: object, name: str) -> None:
    assert hasattr(holder, name), f"Lightning {__version__} has no {holder}.{name}: see lightning_internals.py"


def test_a_trainer_has_the_private_attributes(watched: SimpleNamespace) -> None:
    trainer = watched.trainer
    for holder, name in (
        (trainer, "_signal_connector"),
        (trainer, "_logger_connector"),
        (trainer.fit_loop, "_data_fetcher"),
        (trainer.fit_loop.epoch_loop, "_batches_that_stepped"),
    ):
        assert hasattr(holder, name), f"Lightning {__version__}: {type(holder).__name__} has no {name}"


def test_accumulation_and_validation_are_those_of_the_batch(watched: SimpleNamespace) -> None:
    accumulating = [batch[0] for batch in watched.watch.batches]
    validation = [batch[1] for batch in watched.watch.batches]
    assert accumulating == [True, False, True, False] * 2
    assert validation == [False, False, False, True] * 2


def test_steps_count_from_0_in_a_batch_and_at_the_end_of_an_epoch(watched: SimpleNamespace) -> None:
    assert [batch[2] for batch in watched.watch.batches] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert watched.watch.epochs == [(2, 1), (4, 3)]
    assert watched.trainer.global_step == 4


def test_rows_have_the_step_that_lightning_gives_its_own(watched: SimpleNamespace) -> None:
    def steps(name: str) -> list[int]:
        return [step for step, row in watched.rows if name in row]

    assert steps("at_end") == [1, 3] == steps("val/loss")
    assert set(steps("in_batch")) == set(steps("train/loss")) == {0, 1, 2, 3}
    assert [row["epoch"] for _, row in watched.rows if "at_end" in row] == [0, 1]


def test_pending_metrics_are_those_that_lightning_logs_after_the_hook(watched: SimpleNamespace) -> None:
    pending = [batch[3]["train/loss"] for batch in watched.watch.batches if not batch[0]]  # at optimizer steps
    logged = [row["train/loss"] for _, row in watched.rows if "train/loss" in row]
    assert pending == logged


def test_the_signal_handlers_are_replaced(watched: SimpleNamespace) -> None:
    assert watched.watch.registered == ["fit"]


def test_a_checkpoint_inside_a_batch_lacks_that_batch_until_it_is_completed(watched: SimpleNamespace) -> None:
    """The reason for `complete_loop_counters`: with Lightning's own counters a resume repeats the batch."""
    first_step = watched.watch.checkpoints[1]  # after batches 0 and 1
    loop = first_step["loops"]["fit_loop"]
    assert lightning_internals.next_position(first_step) == (0, 1)
    assert loop["epoch_loop.state_dict"]["_batches_that_stepped"] == 0
    lightning_internals.complete_loop_counters(first_step, validation_follows=False, epoch_over=False)
    assert lightning_internals.next_position(first_step) == (0, 2)
    assert loop["epoch_loop.state_dict"]["_batches_that_stepped"] == 1
    counters = lightning_internals.training_batch_counters(first_step)
    assert counters["total"]["completed"] == counters["current"]["completed"] == 2


def test_a_checkpoint_before_validation_resumes_with_it(watched: SimpleNamespace) -> None:
    last_batch = watched.watch.checkpoints[3]
    lightning_internals.complete_loop_counters(last_batch, validation_follows=True, epoch_over=False)
    loop = last_batch["loops"]["fit_loop"]
    assert loop["epoch_loop.state_dict"]["_batches_that_stepped"] == 1  # Lightning counts the step after the validation
    assert loop["epoch_loop.val_loop.batch_progress"]["total"]["ready"] == 1


def test_a_checkpoint_at_the_end_of_an_epoch_goes_on_with_the_next(watched: SimpleNamespace) -> None:
    checkpoint = torch.load(watched.watch.folder / "epoch.ckpt", weights_only=True)
    assert lightning_internals.next_position(checkpoint)[0] == 1
    lightning_internals.complete_loop_counters(checkpoint, validation_follows=False, epoch_over=True)
    assert lightning_internals.next_position(checkpoint) == (2, 0)


def test_batch_norm_plugin_is_that_of_the_trainer() -> None:
    plugin = TorchSyncBatchNorm()
    assert hasattr(DDPStrategy(), "_layer_sync"), f"Lightning {__version__}: strategies have no _layer_sync"
    trainer = Trainer(strategy="ddp", accelerator="cpu", devices=2, plugins=[plugin], logger=False)
    assert lightning_internals.batch_norm_plugin(trainer.strategy) is plugin
    assert lightning_internals.batch_norm_plugin(SingleDeviceStrategy("cpu")) is None


def test_ddp_says_whether_it_finds_unused_parameters() -> None:
    assert hasattr(DDPStrategy(), "_ddp_kwargs"), f"Lightning {__version__}: strategies have no _ddp_kwargs"
    assert lightning_internals.ddp_finds_unused_parameters(DDPStrategy(find_unused_parameters=True))
    assert not lightning_internals.ddp_finds_unused_parameters(DDPStrategy())
    assert not lightning_internals.ddp_finds_unused_parameters(SingleDeviceStrategy("cpu"))


def test_the_steps_of_an_optimizer_are_counted_where_they_can_be_left_out() -> None:
    text = inspect.getsource(_ManualOptimization.on_run_start)
    optimizer = LightningOptimizer(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))
    for name in ("_on_before_step", "_on_after_step"):
        assert f"lightning_optimizer.{name} = " in text
        assert callable(getattr(optimizer, name))
    lightning_internals.leave_uncounted(optimizer)
    assert optimizer._on_before_step() is optimizer._on_after_step() is None


def test_the_sizes_of_the_mesh_are_those_that_setup_environment_reads() -> None:
    strategy = ModelParallelStrategy()
    assert strategy._data_parallel_size == strategy._tensor_parallel_size == "auto"
    strategy.parallel_devices = [torch.device("cpu")] * 3
    lightning_internals.shard_data_only(strategy)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (3, 1)
    text = inspect.getsource(ModelParallelStrategy.setup_environment)
    assert "self._data_parallel_size" in text
    assert "self._tensor_parallel_size" in text


def test_the_copied_setup_calls_what_lightnings_own_calls() -> None:
    """A new step in `ModelParallelStrategy.setup` must come into `setup_model_parallel` too."""
    calls = ("accelerator.setup(", "model_to_device(", "convert_module(", "barrier(", "setup_optimizers(")
    calls += ("setup_precision_plugin(", "_optimizers_to_device(")
    for function in (ModelParallelStrategy.setup, lightning_internals.setup_model_parallel):
        text = inspect.getsource(function)
        assert [call for call in calls if call not in text] == []
    lines = [line for line in inspect.getsource(ModelParallelStrategy.setup).splitlines() if line.strip()]
    assert len(lines) == 25, f"ModelParallelStrategy.setup of Lightning {__version__} has changed: compare the copy"


def test_optimizers_are_unwrapped() -> None:
    plain = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    assert lightning_internals.unwrap_optimizer(LightningOptimizer(plain)) is plain
    assert lightning_internals.unwrap_optimizer(plain) is plain
