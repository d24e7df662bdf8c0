"""Results: complete, checked on both sides, written whole, free of paths."""

import getpass
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lit_vision
from lit_vision.errors import UserError
from lit_vision.io.hashing import sha256_of_file
from lit_vision.results import schema
from lit_vision.results.environment import collect_environment, peak_memory_mb
from lit_vision.results.schema import ResultError, make_cell, read_result, read_results, summarize, write_result

RUN = {"recipe": "debug/mae", "seed": 1, "metric": {"name": "top1", "value": 0.5}, "samples": 10, "seconds": 1.5}
CELLS = [make_cell("mae", "linear", 80, [0.3, 0.5], seconds=2.0), make_cell("pixels", "logreg", 80, [])]


def test_a_run_and_a_study_come_back_as_written(tmp_path):
    run = read_result(write_result(tmp_path / "a" / "results.json", **RUN, weights_sha256="ab", note="kept"))
    assert run["metric"] == RUN["metric"]
    assert run["note"] == "kept"
    assert run["peak_memory_mb"] > 10
    assert run["versions"]["torch"]
    write_result(tmp_path / "b" / "results.json", recipe="study", seconds=3, cells=CELLS)
    found = read_results(tmp_path)
    assert [path.parent.name for path, _ in found] == ["a", "b"]
    assert found[1][1]["cells"][0]["std"] == pytest.approx(0.02**0.5)
    assert found[1][1]["cells"][1]["mean"] is None
    assert read_results(tmp_path / "nowhere") == []
    (tmp_path / "a" / "environment.json").write_text("{}")
    assert len(read_results(tmp_path / "a")) == 1  # other JSON of a run's folder is no result


def test_recipe_hash_is_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_bytes(b"seed: 1\n" * 300000)
    run = read_result(write_result("results.json", **(RUN | {"recipe": "r.yaml"})))
    assert run["recipe_sha256"] == hashlib.sha256(b"seed: 1\n" * 300000).hexdigest() == sha256_of_file("r.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": {"name": "top1", "value": 91.5}}, "write 0.915, not 91.5"),
        ({"metric": {"name": "top1", "value": float("nan")}}, "fraction"),
        ({"metric": {"value": 0.5}}, "expected {name"),
        ({"metric": {"name": "val/loss", "value": float("inf")}}, "finite"),
        ({"samples": None}, "'samples' is None; expected int"),
        ({"seconds": float("inf")}, "finite"),
        ({"seconds": True}, "'seconds' is True"),
        ({"recipe": "/home/someone/recipe.yaml"}, "absolute path"),
        ({"extra": [{"deep": "C:\\Users\\someone"}]}, "absolute path"),
        ({"cells": [{}]}, "cell 0: key 'init' is missing"),
        ({"cells": [CELLS[0] | {"mean": 0.9}]}, "never type one in"),
        ({"cells": [CELLS[1] | {"mean": 0.9}]}, "never type one in"),
        ({"cells": [CELLS[0] | {"values": [30, 50]}]}, "not 91.5"),
        ({"cells": {}}, "expected a list"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, change, message):
    with pytest.raises(ResultError) as caught:
        write_result(tmp_path / "results.json", **(RUN | change))
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "results.json"
    for text in ("{", "[]", '{"recipe": "x"}'):
        path.write_text(text)
        with pytest.raises(ResultError, match=r"results\.json"):
            read_results(tmp_path)
    with pytest.raises(ResultError, match="no such"):
        read_result(tmp_path / "none.json")


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_result(tmp_path / "results.json", **RUN)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(schema.os, "fsync", full)
    with pytest.raises(UserError, match="No space"):
        write_result(path, **RUN)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_environment_names_no_person_and_no_place():
    text = json.dumps(collect_environment(seed=3))
    assert f'"{Path.home()}' not in text
    assert os.getcwd() not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text
    assert collect_environment(seed=3)["seed"] == 3
    assert 10 < peak_memory_mb() < 1e6


def test_commit_and_dirty_flag_in_a_checkout_and_outside_one(tmp_path):
    source = Path(lit_vision.__file__).parent
    shutil.copytree(source, tmp_path / "lit_vision", ignore=shutil.ignore_patterns("__pycache__"))
    ask = "from lit_vision.results.environment import commit; print(*commit())"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]

    def answer():
        env = dict(os.environ, PYTHONPATH=str(tmp_path))
        return subprocess.run(
            [sys.executable, "-S", "-c", ask], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        ).stdout.split()

    assert answer() == ["None", "None"]
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "other").touch()
    subprocess.run([*git, "add", "other"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "x"], cwd=tmp_path, check=True)
    assert answer() == ["None", "None"]  # someone else's checkout, in which this copy happens to lie
    subprocess.run([*git, "add", "lit_vision"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "x"], cwd=tmp_path, check=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert answer() == [head, "False"]
    (tmp_path / "other").write_text("changed")
    assert answer() == [head, "True"]


def test_summarise():
    assert summarize([]) is None
    assert summarize([0.5]).sd is None
    assert summarize(iter([0.2, 0.4])).mean == pytest.approx(0.3)
    assert summarize([0.2, 0.4]).n == 2
