"""Sweeps with a stand-in for the training: each point once, takeover, pruning in the journal, the finish."""

import csv
import json
import os
import signal
import threading
from pathlib import Path

import pytest
import yaml
from toy_fork import parent_objects_kept
from toy_sweep import RECIPE, StandIn, score, sweep_of

from lit_vision.errors import UserError
from lit_vision.sweep.finish import compare_on_test
from lit_vision.sweep.journal import COMPLETE, FAILED, PRUNED, RECIPE_ALONE, RUNNING, Journal, Trial
from lit_vision.sweep.settings import SweepSettings, begin, open_journal, read
from lit_vision.sweep.space import Range, Values, random_point
from lit_vision.sweep.summary import set_key

SPACE = {"model.lr": Range(1e-4, 1e-1, log=True), "model.name": Values(("a", [1, 2], 1, "1", None))}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch, request):
    """Draw no figures, which take longer than all else here, but where the report is read."""
    if "test_split" not in request.node.name:
        monkeypatch.setattr("lit_vision.sweep.report.html_picture", lambda title, path: "")
        monkeypatch.setattr("lit_vision.sweep.report.save_figure", lambda figure, path: path)


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "sweep" / "trials.csv").open()))


def test_two_workers_run_each_grid_point_once(tmp_path):
    one, two = StandIn(), StandIn()
    errors = []

    def work(run):
        try:
            sweep_of(tmp_path, run)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(run,)) for run in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    trained = one.trained + two.trained
    assert len(trained) == len(set(trained)) == 12
    points = {(row["model.lr"], row["model.depth"]) for row in rows(tmp_path)}
    assert points == {(f"{lr / 10}", f"{depth}") for lr in (1, 2, 3, 4) for depth in (2, 3, 4)}
    best = rows(tmp_path)[0]
    assert (best["model.lr"], best["model.depth"], best["state"]) == ("0.3", "3", "complete")
    found = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    assert found["model"]["init_args"] == {"lr": 0.3, "depth": 3}
    assert "http" not in (tmp_path / "sweep" / "report.html").read_text().replace("http-equiv", "")


def test_a_sweep_goes_on_where_it_stopped_and_grows(tmp_path):
    stopped = StandIn(lambda values: 143 if values["model.depth"] == "4" else 0)
    with pytest.raises(SystemExit) as stop:  # as a run that was told to stop does
        sweep_of(tmp_path, stopped, trials=6)
    assert stop.value.code == 143
    again = StandIn()
    sweep_of(tmp_path, again, trials=6)
    assert again.trained[0] == stopped.trained[-1]  # what was interrupted goes on first
    assert len(stopped.trained) + len(again.trained) == 7
    before = rows(tmp_path)
    grown = StandIn()
    sweep_of(tmp_path, grown, trials=12, seeds=3)
    assert len({folder for folder, _ in grown.trained if folder.endswith("seed-5")}) == 6
    assert {seed for _, seed in grown.trained} == {5, 6, 7}
    assert {row["setting"] for row in before} < {row["setting"] for row in rows(tmp_path)}
    with pytest.raises(UserError, match="sampler"):
        sweep_of(tmp_path, StandIn(), sampler="random")


def test_repeats_are_in_pairs_and_bad_settings_are_given_up(tmp_path):
    run = StandIn()
    sweep_of(tmp_path, run, seeds=3)
    table = rows(tmp_path)
    values = [float(value) for value in table[0]["values"].split()]
    assert values == [score({"model.lr": "0.3", "model.depth": "3"}, seed) for seed in (5, 6, 7)]
    states = [row["state"] for row in table]
    assert states[0] == "complete"
    assert "given up" in states
    assert len(run.trained) == sum(int(row["seeds"]) for row in table) < 36


def test_a_killed_worker_is_relieved_of_its_trial(tmp_path):
    space = {"model.lr": Values((1, 2))}
    journal = Journal(tmp_path, space)
    with journal.lock():
        for value in (1, 2):
            journal.add({"model.lr": value})
    reader, writer = os.pipe()
    with parent_objects_kept():
        child = os.fork()
    if child == 0:
        with Journal(tmp_path, space).lock():
            claimed = Journal(tmp_path, space).claim()
        os.write(writer, str(claimed[0].number).encode())
        signal.pause()
    assert os.read(reader, 1) == b"0"
    with journal.lock():
        mine = journal.claim()
        assert mine[0].number == 1
        assert journal.claim() is None  # the other's owner lives
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with journal.lock():
        taken, held = journal.claim()
        assert (taken.number, taken.state, taken.point) == (0, RUNNING, {"model.lr": 1})
        journal.end(taken, COMPLETE, 0.5)
        journal.end(taken, FAILED)  # recorded once
        held.close()
        assert journal.claim() is None
    assert [trial.state for trial in journal.trials()] == [COMPLETE, RUNNING]
    mine[1].close()


def test_journal_survives_a_torn_line_and_keeps_values_as_they_are(tmp_path):
    journal = Journal(tmp_path, SPACE)
    points = [{"model.lr": 0.01, "model.name": value} for value in ("a", [1, 2], 1, "1", None)]
    with journal.lock():
        for point in points:
            journal.add(point)
    with open(tmp_path / "journal.log", "ab") as file:
        file.write(b'{"op_code": 4, "work')  # a power cut
    again = Journal(tmp_path, SPACE)
    with again.lock():
        again.add(points[1], setting=RECIPE_ALONE, seed=9, finish=True)
    found = Journal(tmp_path, SPACE).trials()
    assert [trial.point for trial in found] == [*points, points[1]]
    assert [trial.setting for trial in found] == [0, 1, 2, 3, 4, RECIPE_ALONE]
    assert found[-1].finish
    assert found[-1].seed == 9
    (tmp_path / "journal.log").write_text("garbage\n" * 3)
    with pytest.raises(UserError, match=r"journal\.log"):
        Journal(tmp_path, SPACE)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_points_follow_from_seed_and_number_in_any_process(tmp_path, sampler):
    tables = []
    for name, trials in (("a", [12]), ("b", [3, 12])):  # the second is stopped and continued
        (tmp_path / name).mkdir()
        for count in trials:
            sweep_of(tmp_path / name, StandIn(), sampler=sampler, trials=count, seed=4)
        tables.append((tmp_path / name / "sweep" / "trials.csv").read_bytes())
    assert tables[0] == tables[1]
    if sampler == "random":
        journal = open_journal(tmp_path / "a" / "sweep", read(tmp_path / "a" / "sweep"))
        assert [t.point for t in journal.trials()] == [random_point(journal.space, 4, n) for n in range(12)]


def test_failures_are_recorded_and_end_a_sweep_in_which_all_fail(tmp_path):
    some = StandIn(lambda values: 1 if values["model.depth"] == "4" else 0)
    (tmp_path / "some").mkdir()
    sweep_of(tmp_path / "some", some, seeds=2)
    failed = [row for row in rows(tmp_path / "some") if row["state"] == "failed"]
    assert {row["model.depth"] for row in failed} == {"4"}
    assert len(failed) == 4
    reason = json.loads(next(tmp_path.rglob("failed.json")).read_text())["reason"]
    assert reason == "exit code 1: the loss is not finite"
    every = StandIn(lambda values: 1)
    with pytest.raises(UserError, match=r"all 3 trials so far failed.*not finite"):
        sweep_of(tmp_path, every)
    assert len(every.trained) == 3


def test_pruner_stops_what_lags_behind_and_only_first_runs_report(tmp_path):
    settings = SweepSettings("val/loss", 8, pruner="median", seeds=2)
    recipe, space = tmp_path / "r.yaml", tmp_path / "s.yaml"
    recipe.write_text(RECIPE)
    space.write_text("model.lr: {values: [1, 2, 3, 4, 5, 6, 7, 8]}")
    begin(tmp_path / "sweep", recipe, space, settings)
    journal = open_journal(tmp_path / "sweep", settings)
    decisions = []
    for number in range(7):
        with journal.lock():
            journal.add({"model.lr": number + 1})
            trial, held = journal.claim()
        report = open_journal(tmp_path / "sweep", settings).reporter(number)  # in the run's own process
        prune = [report(step, {5: 9.0}.get(number, 1.0) / step) for step in (1, 2, 2, 3)]
        decisions.append(prune[-1])
        with journal.lock():
            journal.end(trial, PRUNED if prune[-1] else COMPLETE, 1.0)
        held.close()
    assert decisions == [False] * 5 + [True, False]
    (tmp_path / "w").mkdir()
    run = StandIn()
    sweep_of(tmp_path / "w", run, pruner="median", seeds=2)
    reports = [bool(environment) for environment in run.environments]
    assert reports == [True] * 12 + [False] * (len(reports) - 12)
    assert len(reports) > 12


def test_only_finish_reads_the_test_split_and_reads_it_once(tmp_path):
    run = StandIn()
    sweep_of(tmp_path, run, seeds=2)
    assert run.tested == []
    sweep_of(tmp_path, run, finish_seeds=3, seeds=2)
    folder = tmp_path / "sweep"
    assert len(run.tested) == len(set(run.tested)) == 6
    result = json.loads((folder / "finish.json").read_text())
    assert result["seeds"] == [7, 8, 9]  # 5 and 6 have chosen the setting
    best = [score({"model.lr": "0.3", "model.depth": "3"}, seed) - 0.01 for seed in (7, 8, 9)]
    assert result["best"] == pytest.approx(best)
    assert result["recipe"] == pytest.approx([score({}, seed) - 0.01 for seed in (7, 8, 9)])
    gain = result["gain"]
    assert gain["low"] < gain["mean"] < gain["high"]
    assert gain["mean"] == pytest.approx(0.09, abs=0.004)
    assert result["luck"]["arms"] == 12
    assert 0 < result["luck"]["mean"] < 0.01
    page = (folder / "report.html").read_text()
    assert "Better than the recipe on the test split" in page
    assert "By luck alone the best of 12" in page
    trained = len(run.trained)
    sweep_of(tmp_path, run, finish_seeds=3, seeds=2)
    assert (len(run.tested), len(run.trained)) == (6, trained)
    with pytest.raises(UserError, match="new folder"):
        sweep_of(tmp_path, run, seeds=4)


def test_a_finish_that_was_killed_reads_only_what_is_left(tmp_path):
    run = StandIn()
    sweep_of(tmp_path, run, finish_seeds=2)
    folder = tmp_path / "sweep"
    whole = (folder / "finish.json").read_bytes()
    (folder / "finish.json").unlink()
    (folder / "trials" / "recipe" / "seed-7" / "results-test.json").unlink()
    del run.tested[:]
    compare_on_test(folder, open_journal(folder, read(folder)), run)
    assert [Path(name).parts[-2:] for name in run.tested] == [("recipe", "seed-7")]
    assert (folder / "finish.json").read_bytes() == whole


def test_keys_are_set_as_the_command_line_does():
    recipe = yaml.safe_load(RECIPE)
    set_key(recipe, "model.lr", 1)
    set_key(recipe, "model.init_args.depth", 2)
    set_key(recipe, "trainer.max_epochs", 3)
    assert recipe["model"] == {"class_path": "a.B", "init_args": {"lr": 1, "depth": 2}}
    assert recipe["trainer"] == {"max_epochs": 3}
    with pytest.raises(UserError, match=r"model\.lr\.x"):
        set_key(recipe, "model.lr.x", 1)


def test_trials_say_whether_they_have_ended():
    states = {state: Trial(0, 0, 0, False, {}, state, None).ended for state in (RUNNING, COMPLETE, PRUNED, FAILED)}
    assert states == {RUNNING: False, COMPLETE: True, PRUNED: True, FAILED: True}
