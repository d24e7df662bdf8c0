"""Results: complete, checked on write and read, written atomically, free of paths; old keys are mapped."""

import errno
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
    ("change", "named"),
    [
        ({"metric": {"name": "top1", "value": 91.5}}, ("metric", "91.5")),
        ({"metric": {"name": "top1", "value": float("nan")}}, ("metric", "nan")),
        ({"metric": {"value": 0.5}}, ("'metric'", "name")),
        ({"metric": {"name": "val/loss", "value": float("inf")}}, ("val/loss", "inf")),
        ({"samples": None}, ("'samples'", "None", "int")),
        ({"seconds": float("inf")}, ("'seconds'", "inf")),
        ({"seconds": True}, ("'seconds'", "True")),
        ({"recipe": "/home/someone/recipe.yaml"}, ("'recipe'", "/home/someone/recipe.yaml")),
        ({"extra": [{"deep": "C:\\Users\\someone"}]}, ("'deep'", "Users")),
        ({"cells": [{}]}, ("cell 0", "'init'")),
        ({"cells": [CELLS[0] | {"mean": 0.9}]}, ("cell 0", "'mean'", "0.9")),
        ({"cells": [CELLS[1] | {"mean": 0.9}]}, ("cell 0", "'mean'", "0.9")),
        ({"cells": [CELLS[0] | {"values": [30, 50]}]}, ("cell 0", "30")),
        ({"cells": {}}, ("'cells'", "dict")),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, change, named):
    with pytest.raises(ResultError) as caught:
        write_result(tmp_path / "results.json", **(RUN | change))
    assert all(word in str(caught.value) for word in ("results.json", *named))
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_schema_1_comes_with_the_keys_of_schema_2_and_is_not_rewritten(tmp_path):
    path = write_result(tmp_path / "results.json", recipe="study", seconds=3, cells=CELLS, license="MIT")
    current = read_result(path)
    assert current["schema"] == schema.SCHEMA == 2
    old = {key: value for key, value in current.items() if key not in ("schema", "license")} | {"licence": "MIT"}
    old["cells"] = [{"start" if key == "init" else key: value for key, value in cell.items()} for cell in CELLS]
    path.write_text(json.dumps(old))
    assert read_result(path) == current
    assert json.loads(path.read_text()) == old
    path.write_text(json.dumps(current | {"schema": 3}))
    with pytest.raises(ResultError, match=r"results\.json.*'schema' is 3"):
        read_result(path)


def test_every_committed_result_is_read_with_the_keys_of_schema_2():
    folder = Path(__file__).parents[2] / "experiments" / "results"
    names = [*folder.glob("*-desk*.json"), *folder.glob("transfer-to-*.json"), *folder.glob("scenes/*.json")]
    assert len(names) > 10
    for path in names:
        result = read_result(path)
        assert all("init" in cell and "start" not in cell for cell in result.get("cells", []))


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "results.json"
    for text in ("{", "[]", '{"recipe": "x"}'):
        path.write_text(text)
        with pytest.raises(ResultError, match=r"results\.json"):
            read_results(tmp_path)
    with pytest.raises(ResultError, match=r"none\.json"):
        read_result(tmp_path / "none.json")


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_result(tmp_path / "results.json", **RUN)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(schema.os, "fsync", full)
    with pytest.raises(UserError, match=os.strerror(errno.ENOSPC)):
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


def test_summarize():
    assert summarize([]) is None
    assert summarize([0.5]).sd is None
    assert summarize(iter([0.2, 0.4])).mean == pytest.approx(0.3)
    assert summarize([0.2, 0.4]).n == 2
