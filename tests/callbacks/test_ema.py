"""EMA equals a slow loop, is measured and saved, leaves training unchanged, and is exact after a resume."""

import shutil
from pathlib import Path

import pytest
import torch
import toy_run
from lightning.pytorch import Callback, Trainer
from torch import nn

from lit_vision.callbacks.checkpoint import AtomicCheckpointIO, LastCheckpoint, SeedEachBatch
from lit_vision.callbacks.ema import EMA, KEY
from lit_vision.errors import UserError


class Watch(Callback):
    """Record the head's weight in validation, at the end of the epoch and after each step; keep a checkpoint."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep, self.steps, self.validated, self.at_end = folder, keep, [], [], []

    def on_train_batch_end(self, trainer, module, *args) -> None:
        self.steps.append(module.head.weight.detach().clone())

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        last = self.folder / "last.ckpt"
        if trainer.global_step == self.keep and last.exists() and batch_idx % trainer.accumulate_grad_batches == 0:
            shutil.copy(last, self.folder / "kept.ckpt")

    def on_validation_batch_end(self, trainer, module, *args) -> None:
        self.validated.append(module.head.weight.detach().clone())

    def on_train_epoch_end(self, trainer, module) -> None:
        self.at_end.append(module.head.weight.detach().clone())


def fit(folder: Path, average: bool = True, resume: Path | None = None, accumulate: int = 1, **ema):
    torch.manual_seed(0)
    model, watch = toy_run.ToyNet(), Watch(folder, keep=9 // accumulate)
    own = [EMA(**ema)] if average else []
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        accumulate_grad_batches=accumulate,
        plugins=[AtomicCheckpointIO()],
        callbacks=[SeedEachBatch(0), *own, watch, LastCheckpoint(every_n_steps=1, folder=str(folder))],
    )
    trainer.fit(model, datamodule=toy_run.ToyData(n=32), ckpt_path=resume)
    return model, watch, torch.load(folder / "last.ckpt", weights_only=True), trainer


def test_the_average_is_the_hand_made_one_and_is_what_is_measured_and_saved(tmp_path: Path) -> None:
    plain, seen, _, _ = fit(tmp_path / "plain", average=False)
    model, watch, saved, trainer = fit(tmp_path / "ema", decay=0.8)
    assert len(watch.steps) == 16
    assert all(torch.equal(a, b) for a, b in zip(watch.steps, seen.steps))  # training does not see it
    average, after = watch.steps[0], []
    for weights in watch.steps:  # 0 at the first step, then 0.8
        average = weights if not after else 0.8 * average + 0.2 * weights
        after.append(average)
    for shown, step in (
        (watch.validated[0], 7),
        (watch.at_end[0], 7),
        (watch.validated[-1], 15),
        (watch.at_end[1], 15),
    ):
        torch.testing.assert_close(shown, after[step])
    torch.testing.assert_close(saved["state_dict"]["head.weight"], after[15])
    assert torch.equal(saved[KEY]["head.weight"], watch.steps[15])
    assert torch.equal(model.head.weight, saved["state_dict"]["head.weight"])  # the module holds it after fit
    assert not torch.equal(plain.head.weight, model.head.weight)
    assert not any(
        isinstance(p, nn.Parameter) and p.grad is not None for p in trainer.callbacks[1].average.parameters()
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_in_the_middle_of_an_epoch_to_the_same_bits(accumulate: int, tmp_path: Path) -> None:
    _, _, whole, _ = fit(tmp_path / "whole", decay=0.7, accumulate=accumulate)
    kept = tmp_path / "whole/kept.ckpt"
    _, _, rest, _ = fit(tmp_path / "rest", decay=0.7, accumulate=accumulate, resume=kept)
    for part in ("state_dict", KEY):
        assert whole[part].keys() == rest[part].keys()
        assert all(torch.equal(whole[part][k], rest[part][k]) for k in whole[part]), part


def test_average_of_batch_norm_statistics_and_steps_not_batches(tmp_path: Path) -> None:
    _, watch, saved, _ = fit(tmp_path, decay=0.5, accumulate=2)
    steps = watch.steps[1::2]  # the weights move at every second batch only
    average = steps[0]
    for weights in steps[1:]:
        average = 0.5 * average + 0.5 * weights
    torch.testing.assert_close(saved["state_dict"]["head.weight"], average)
    running = "backbone.1.running_mean"
    assert not torch.equal(saved["state_dict"][running], saved[KEY][running])


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="decay"):
        EMA(decay=1.0)
    fit(tmp_path / "plain", average=False)
    with pytest.raises(UserError, match="written without EMA"):
        fit(tmp_path / "ema", resume=tmp_path / "plain/last.ckpt")
    fit(tmp_path / "averaged")
    with pytest.raises(UserError, match="has no EMA"):
        fit(tmp_path / "none", average=False, resume=tmp_path / "averaged/last.ckpt")
    trainer = Trainer(accelerator="cpu", precision="bf16-true", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="bf16-mixed"):
        EMA().setup(trainer, toy_run.ToyNet(), "fit")
