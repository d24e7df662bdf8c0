"""Time of a study on machines that change their speed, with a clock of the test's own: nothing is trained."""

import numpy as np
import pytest

from lit_vision.study import encoders, runner, training
from lit_vision.study.cells import Measurement
from lit_vision.study.encoders import Encoder
from lit_vision.study.images import StudyImages
from lit_vision.study.label_training import LabelTrainer
from lit_vision.study.planner import Planner
from lit_vision.study.presets import preset_for
from lit_vision.study.progress import Reporter
from lit_vision.study.runner import Study
from lit_vision.study.settings import Settings

SECONDS_PER_IMAGE = {"scratch-cnn": 0.004, "scratch-vit": 0.01, "simclr": 0.004, "mae": 0.01}
PRETRAIN_SECONDS_PER_IMAGE = {"simclr": 0.012, "mae": 0.006}
FROZEN_SECONDS = 0.05  # of one probe


class Machine:
    """A clock that work moves; the machine has the speed of a timetable, (seconds, speed) ascending."""

    def __init__(self, *timetable: tuple[float, float]) -> None:
        self.now, self.timetable = 0.0, timetable

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        speed = next(speed for begin, speed in reversed(self.timetable) if begin <= self.now)
        self.now += seconds / speed


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Return a function that runs a study of a folder of 2,000 images on a machine, and returns it."""
    rng = np.random.default_rng(0)
    pool, test = (rng.integers(0, 255, (n, 32, 32, 1), np.uint8) for n in (2000, 100))
    labels, test_labels = np.arange(2000) % 5, np.arange(100) % 5
    images = StudyImages(
        pool, labels, [f"{i}" for i in range(2000)], test, test_labels, [f"t{i}" for i in range(100)], list("abcde"),
        "0" * 64, 32,
    )  # fmt: skip
    answer = np.eye(5, dtype=np.float32)[test_labels]

    def run(machine: Machine, budget: float, name: str = "run", replay=None, stop_at: float | None = None) -> Study:
        def trained(seconds_per_image, steps, batch, cool_down):
            machine.work(0.5)
            last, step = steps - round(0.2 * steps), 0
            while step < last:
                machine.work(batch * seconds_per_image)
                step += 1
                if stop_at is not None and machine.now > stop_at:
                    raise KeyboardInterrupt
                if cool_down and cool_down(step):
                    break
            decay = steps - last if step == last else max(1, round(step / 4))
            machine.work(decay * batch * seconds_per_image)
            return step + decay

        def fake_classifier(self, unit, key, encoder, steps, deadline, rows, judge=None):
            begin = machine.now
            cool_down = self.pace.cool_down(f"{key.name}{judge is None}", deadline, unit)
            done = trained(SECONDS_PER_IMAGE[key.init], steps, unit.batch, cool_down)
            self.pace.compare(machine.now - begin, unit.cost.seconds(done * unit.batch))
            known = answer if judge is None else np.eye(5, dtype=np.float32)[images.labels[judge]]
            return Measurement(known, done, seconds=machine.now - begin)

        def fake_pretrain(self, init, steps, cool_down, plan_id):
            begin, batch = machine.now, preset.pretraining_options(init)["batch_size"]
            done = trained(PRETRAIN_SECONDS_PER_IMAGE[init], steps, batch, cool_down)
            features = np.zeros((2000, 4), np.float32), np.zeros((100, 4), np.float32)
            return Encoder(tmp_path, "0" * 64, machine.now - begin, done * batch, *features, found=False)

        def fake_costs(self):
            speed = next(speed for begin, speed in reversed(machine.timetable) if begin <= machine.now)
            costs = {init: (0.5 / speed, s / speed) for init, s in SECONDS_PER_IMAGE.items()}
            costs |= {f"pretrain {init}": (0.5 / speed, s / speed) for init, s in PRETRAIN_SECONDS_PER_IMAGE.items()}
            return costs | {"probe": (2 * 5 * len(self.frozen_labels) * FROZEN_SECONDS / speed, 0.0)}

        def fake_frozen(*_):
            machine.work(FROZEN_SECONDS)
            return Measurement(answer)

        monkeypatch.setattr(LabelTrainer, "_train_classifier", fake_classifier)
        monkeypatch.setattr(Planner, "measure_costs", fake_costs)
        monkeypatch.setattr(Planner, "count_multiply_adds", lambda self: {})
        monkeypatch.setattr(encoders.EncoderStore, "pretrain", fake_pretrain)
        monkeypatch.setattr(runner, "measure_frozen", fake_frozen)
        monkeypatch.setattr(training, "train", None)
        preset = preset_for(32)
        settings = Settings([20, 200], {20: 5, 200: 5})
        found = Study(
            images,
            preset,
            ["simclr", "mae"],
            settings,
            budget,
            tmp_path / name,
            Reporter(),
            clock=machine,
            replay=replay,
        )
        (tmp_path / name).mkdir(exist_ok=True)
        found.run()
        return found

    return run


@pytest.mark.parametrize(
    "minutes", [10, pytest.param(20, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("speeds", [(1, 1), (1, 1 / 3), (1 / 3, 1), (0.2, 0.2)])
def test_study__keeps_its_budget_where_the_machine_changes_its_speed(study, minutes, speeds) -> None:
    budget = 60.0 * minutes
    machine = Machine((0, speeds[0]), (budget / 2, speeds[1]))
    done = study(machine, budget)
    assert machine.now <= 1.15 * budget
    tried = {(result.key.init, result.key.protocol) for result in done.results}
    assert {("pixels", "logreg"), ("pixels", "knn")} <= tried
    seeds: dict[tuple[str, str, int], list[int]] = {}
    for key in (result.key for result in done.results):
        seeds.setdefault((key.init, key.protocol, key.labels), []).append(key.seed)
    assert all(found == list(range(5)) for found in seeds.values())  # all paired seeds or none
    if speeds == (1, 1):
        assert machine.now > 0.8 * budget  # the time is used


def test_study__with_enough_time_tries_everything_and_stops_early(study) -> None:
    machine = Machine((0, 1))
    assert not study(machine, 60.0 * 60 * 24).not_tried
    assert machine.now < 60.0 * 60 * 12


def test_study__a_stopped_study_keeps_its_decisions_and_a_replay_asks_nothing(study, tmp_path) -> None:
    machine = Machine((0, 1), (200, 0.5))
    for stop_at in (100, 250, 400):
        with pytest.raises(KeyboardInterrupt):
            study(machine, 600.0, stop_at=stop_at)
        before = (tmp_path / "run" / "plan.jsonl").read_bytes()
        machine.now += 1000  # the machine was off, or something else ran on it
    whole = study(machine, 600.0)
    lines = (tmp_path / "run" / "plan.jsonl").read_bytes()
    assert lines.startswith(before)
    again = study(Machine((0, 17.0)), 1.0, "again", tmp_path / "run" / "plan.jsonl")
    assert (tmp_path / "again" / "plan.jsonl").read_bytes() == lines
    assert [(r.key, r.steps) for r in again.results] == [(r.key, r.steps) for r in whole.results]
    assert again.steps == whole.steps
    assert again.not_tried == whole.not_tried
