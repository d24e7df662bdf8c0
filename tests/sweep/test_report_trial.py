"""The first process decides about pruning, and all processes end together."""

import queue
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_vision.errors import UserError
from lit_vision.sweep.report_trial import VARIABLE, ReportTrial, trial_callbacks
from lit_vision.sweep.settings import SweepSettings, write


class Broadcast:
    """Stands for the strategy of one of two processes: rank 1 gets what rank 0 sends."""

    def __init__(self, rank: int, line: queue.Queue) -> None:
        self.rank, self.line = rank, line

    def broadcast(self, value: object, src: int) -> object:
        if self.rank != src:
            return self.line.get(timeout=60)
        self.line.put(value)
        return value


def trainer_of(folder: Path, rank: int, line: queue.Queue, **measured: float) -> SimpleNamespace:
    return SimpleNamespace(
        sanity_checking=False,
        is_global_zero=rank == 0,
        strategy=Broadcast(rank, line),
        callback_metrics={name.replace("_", "/"): value for name, value in measured.items()},
        current_epoch=0,
        should_stop=False,
        default_root_dir=str(folder),
    )


def test_both_processes_stop_at_the_epoch_that_the_first_decides(tmp_path):
    write(tmp_path, SweepSettings("val/top1", 3))
    line: queue.Queue = queue.Queue()
    stopped, reported = {}, []

    def open_report():
        return lambda step, value: reported.append((step, value)) or step == 3

    def train(rank):
        callback = ReportTrial(tmp_path, 0, open_report)
        # rank 1 measures otherwise, and would never be asked
        trainer = trainer_of(tmp_path / "run", rank, line, val_top1=0.5 + rank)
        while not trainer.should_stop and trainer.current_epoch < 9:
            callback.on_validation_end(trainer, None)
            trainer.current_epoch += 1
        stopped[rank] = trainer.current_epoch

    threads = [threading.Thread(target=train, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stopped == {0: 3, 1: 3}
    assert reported == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert '"epoch": 3' in (tmp_path / "run" / "pruned.json").read_text()


def test_a_metric_that_is_not_measured_is_named_and_nan_decides_nothing(tmp_path):
    write(tmp_path, SweepSettings("val/top1", 3))
    callback = ReportTrial(tmp_path, 0, lambda: pytest.fail("asked the journal"))
    callback.on_validation_end(trainer_of(tmp_path, 0, queue.Queue(), val_top1=float("nan")), None)
    with pytest.raises(UserError, match=r"--metric val/top1.*val/loss"):
        callback.on_validation_end(trainer_of(tmp_path, 0, queue.Queue(), val_loss=1.0), None)


def test_the_environment_says_which_trial_a_process_trains(tmp_path, monkeypatch):
    assert trial_callbacks() == []
    write(tmp_path, SweepSettings("val/top1", 3))
    monkeypatch.setenv(VARIABLE, f"{tmp_path}:4")
    (callback,) = trial_callbacks()
    assert callback.metric == "val/top1"
