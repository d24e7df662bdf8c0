"""A study's trainings: cooled down at any step, stopped at any time, and continued to the same bits."""

import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_fork import parent_objects_kept

from lit_vision.study.images import StudyImages
from lit_vision.study.presets import preset_for
from lit_vision.study.training import classification, pretraining, remove_checkpoint, train

STEPS = 9  # of 3 an epoch
METHODS = ("simclr", "mae", "lejepa", "classifier")


def small_preset(schedule: str = "warmup-stable-decay"):
    """Return a preset of small batches, with stochastic depth so that random draws matter."""
    preset = preset_for(16)
    options = {"batch_size": 16, "schedule": schedule, "decay_share": 0.25}
    methods = {name: {**getattr(preset, name), **options} for name in ("simclr", "mae", "lejepa")}
    tune = {name: {**values, "schedule": schedule, "decay_share": 0.25} for name, values in preset.tune.items()}
    cnn = replace(preset.cnn, args={**preset.cnn.args, "channels": [8, 8, 16, 16], "drop_path_rate": 0.2})
    vit = replace(preset.vit, args={**preset.vit.args, "embed_dim": 32, "depth": 2})
    return replace(preset, batch_size=16, cnn=cnn, vit=vit, tune=tune, **methods)


def build(method: str, images: StudyImages, schedule: str = "warmup-stable-decay"):
    preset = small_preset(schedule)
    if method == "classifier":
        return classification("simclr", images, np.arange(48), preset, 0, None)
    return pretraining(method, images, preset, seed=0)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def train_and_kill(images: StudyImages, method: str, kill_at: int, checkpoint: Path) -> None:
    """Train in a fork that kills itself after a step; a checkpoint follows every step before."""

    def kill(step: int, steps: int, loss: float) -> None:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with parent_objects_kept():
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            options = {"checkpoint": checkpoint, "inputs": method, "checkpoint_seconds": 0}
            train(*build(method, images), None, 0, kill, steps=STEPS, cool_down=lambda step: step == 6, **options)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_train__killed_and_continued_gives_the_same_bits(images, tmp_path) -> None:
    for kill_at, method in enumerate(METHODS, 4):  # inside an epoch, and at its end: 4 to 7 of 3 steps each
        whole = train(*build(method, images), None, 0, steps=STEPS, cool_down=lambda step: step == 6)
        steps: list[int] = []
        checkpoint = tmp_path / f"{method}.ckpt"
        train_and_kill(images, method, kill_at, checkpoint)
        assert checkpoint.is_file()
        resumed = train(
            *build(method, images),
            None,
            0,
            lambda step, *_: steps.append(step),  # noqa: B023
            steps=STEPS,
            cool_down=lambda step: step == 6,
            checkpoint=checkpoint,
            inputs=method,
        )
        assert steps == list(range(kill_at, 9))
        assert resumed.losses == whole.losses
        assert len(whole.losses) == whole.steps == resumed.steps == 8  # cooled down at step 6, then 2 steps
        assert whole.decay_start == resumed.decay_start == 6
        assert same_weights(whole.module, resumed.module)
        checkpoint.with_name(f"{method}.ckpt.tmp").touch()  # of a write that was killed
        remove_checkpoint(checkpoint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", [1, 4])
def test_train__cooled_down_equals_a_training_planned_for_that_length(images, at: int) -> None:
    asked: list[int] = []
    cooled = train(*build("simclr", images), None, 0, steps=50, cool_down=lambda step: asked.append(step) or step == at)
    planned = train(*build("simclr", images), None, 0, steps=cooled.steps)
    assert asked == list(range(1, at + 1))
    assert cooled.steps == at + max(1, round(at * 0.25 / 0.75))
    assert planned.decay_start == cooled.decay_start == at
    assert cooled.losses == planned.losses
    assert same_weights(cooled.module, planned.module)


def test_train__steps_of_a_cosine_end_it_at_zero_and_whole_epochs_are_as_epochs(images) -> None:
    by_epochs = train(*build("mae", images, "cosine"), 2, 0)
    by_steps = train(*build("mae", images, "cosine"), None, 0, steps=6)
    assert same_weights(by_epochs.module, by_steps.module)
    assert by_epochs.decay_start is None
    short = train(*build("mae", images, "cosine"), None, 0, steps=4)
    assert len(short.losses) == short.steps == 4
    assert short.losses[1:] != by_steps.losses[1:4]  # its learning rate falls faster
    with pytest.raises(ValueError, match="either epochs or steps"):
        train(*build("mae", images), 2, 0, steps=4)
    with pytest.raises(ValueError, match="warmup-stable-decay"):
        train(*build("mae", images, "cosine"), 2, 0, cool_down=lambda step: False)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_train__a_signal_writes_the_checkpoint_and_other_inputs_start_anew(images, tmp_path, number, error) -> None:
    def stop(step: int, steps: int, loss: float) -> None:
        if step == 2:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    checkpoint = tmp_path / "simclr.ckpt"
    with pytest.raises(error) as raised:
        train(*build("simclr", images), None, 0, stop, steps=5, checkpoint=checkpoint, inputs="a")
    assert number != signal.SIGTERM or raised.value.code == 143
    assert signal.getsignal(number) is before
    for inputs, first in (("b", 1), ("a", 3)):
        steps: list[int] = []
        report = lambda step, *_: steps.append(step)  # noqa: B023, E731
        train(*build("simclr", images), None, 0, report, steps=5, checkpoint=checkpoint, inputs=inputs)
        assert steps[0] == first
