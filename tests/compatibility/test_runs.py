"""Runs of before the rooms were moved resume to the bits that the code of that time reached, and can be measured."""

import inspect
import json
import os
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

from lit_vision.cli.main import main

HERE = Path(__file__).parent
RUNS = sorted(path.parent.name for path in (HERE / "files" / "fits").glob("*/expected.json"))
EXACT = ("step", "data", "pictures")  # on any machine; the others depend on the last bits of sums


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Summaries of the resumed runs; one process resumes all, with the arithmetic of any x86-64 processor."""
    from run_summary import PORTABLE

    folder = tmp_path_factory.mktemp("resumed")
    out, log = folder.with_suffix(".json"), folder.with_suffix(".log")
    command = [sys.executable, str(HERE / "resume_runs.py"), str(folder), str(out), *RUNS]
    with open(log, "w") as file:
        subprocess.run(command, env=os.environ | PORTABLE, stdout=file, stderr=subprocess.STDOUT, check=False)
    assert out.is_file(), log.read_text()[-3000:]
    return {"runs": json.loads(out.read_text()), "log": log.read_text()}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes_to_the_bits_of_before(resumed, files, name) -> None:
    from run_summary import versions

    found = resumed["runs"][name]
    output = resumed["log"].partition(f"--- {name}\n")[2].partition("\n--- ")[0]
    assert found["code"] == 0, output[-3000:]
    assert "restored step" in output
    run, wanted = found["run"], json.loads((files / "fits" / name / "expected.json").read_text())["run"]
    for key in EXACT:
        assert run[key] == wanted[key], key
    assert run["callbacks"].keys() == wanted["callbacks"].keys()
    assert [row["step"] for row in run["rows"]] == [row["step"] for row in wanted["rows"]]
    metrics = {name for row in wanted["rows"] for name in row}  # a metric that was added since may stand beside them
    run["rows"] = [{name: value for name, value in row.items() if name in metrics} for row in run["rows"]]
    moved = {key: (run[key], wanted[key]) for key in wanted if run[key] != wanted[key]}
    if not moved:
        return
    made = json.loads((files / "made.json").read_text())
    assert versions() != made["packages"], moved
    assert_close(run, wanted)
    warnings.warn(
        f"{name}: {', '.join(moved)} differ in the last bits, with other packages or another processor", stacklevel=1
    )


def assert_close(run: dict, wanted: dict) -> None:
    """The same run but for rounding: without PORTABLE the farthest norm moved by 0.2 %, the farthest loss by 0.01 %."""
    assert run["norms"] == pytest.approx(wanted["norms"], rel=0.02, abs=1e-3)
    for row, other in zip(run["rows"], wanted["rows"], strict=True):
        assert row.keys() == other.keys()
        for key in row:
            if key.endswith(("loss", "lr")):
                assert float(row[key]) == pytest.approx(float(other[key]), rel=1e-2)
    for name, state in wanted["callbacks"].items():
        assert run["callbacks"][name].keys() == state.keys()
        for key in state.keys() & {"spikes", "bad_steps"}:
            assert run["callbacks"][name][key] == state[key]


@pytest.mark.parametrize(("name", "command"), [("mae", "validate"), ("classifier", "test")])
def test_a_checkpoint_is_measured_with_the_settings_beside_it(here, files, tmp_path, name, command) -> None:
    last = files / "fits" / name / "checkpoints" / "last.ckpt"
    assert main([command, "--ckpt_path", str(last), "--run_dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / f"results-{command}.json").read_text())
    wanted = json.loads((here / "answers" / f"{name}-{command}.json").read_text())
    assert found["metrics"] == pytest.approx(wanted["metrics"], abs=1e-4)
    for key in ("samples", "data_fingerprint", "weights_sha256"):
        assert found[key] == wanted[key]


@pytest.mark.parametrize("name", RUNS)
def test_the_settings_of_a_run_are_a_recipe(here, files, name) -> None:
    import yaml

    from lit_vision.cli.config import current_class_paths
    from lit_vision.cli.fit import resolve_config

    path = files / "fits" / name / "config.yaml"
    stored, found = (
        yaml.safe_load(current_class_paths(path.read_text())),
        resolve_config(["fit", "--config", str(path)]),
    )
    for part in ("model", "data"):
        assert found[part]["class_path"] == stored[part]["class_path"]
        assert found[part]["init_args"].items() >= stored[part]["init_args"].items()
    assert found["trainer"].get("callbacks") == stored["trainer"].get("callbacks")
    assert found["seed_everything"] == stored["seed_everything"]


def test_constructors_take_the_arguments_of_before(files) -> None:
    from lit_vision.cli.config import current_class_paths

    for old, names in json.loads((files / "arguments.json").read_text()).items():
        module, _, name = current_class_paths(old).rpartition(".")
        known = inspect.signature(getattr(import_module(module), name)).parameters
        assert set(names) <= set(known), old


def test_each_class_path_of_before_names_a_class_of_today() -> None:
    from lit_vision.cli.config import MOVED_CLASSES, current_class_paths

    for old, new in MOVED_CLASSES.items():
        assert current_class_paths(f"--trainer.callbacks={old}") == f"--trainer.callbacks={new}"
        module, _, name = new.rpartition(".")
        assert isinstance(getattr(import_module(module), name), type)
    kept = "lit_vision.sharding.ShardedModel lit_vision.callbacks.ema.EMA"
    assert current_class_paths(kept) == kept


def test_a_class_path_of_before_is_taken_on_the_command_line(here) -> None:
    from lit_vision.cli.fit import resolve_config
    from lit_vision.runs.fsdp import FSDP2Strategy

    command = ["fit", "--config", "recipes/mae.yaml", "--trainer.strategy", "lit_vision.sharding.Sharded"]
    settings = resolve_config(command)
    assert settings["trainer"]["strategy"].rpartition(".")[2] == FSDP2Strategy.__name__
    assert settings["trainer"]["callbacks"][-1]["class_path"] == "lit_vision.callbacks.checkpoint.LastCheckpoint"
