"""The workflows name what exists, cover the Python versions we promise, and test the dependency bounds of setup.cfg."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def commands(workflow: dict[str, Any]) -> list[str]:
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


def test_workflows__are_those_for_lint_and_tests() -> None:
    assert [path.name for path in WORKFLOWS] == ["lint.yml", "tests.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow__has_limited_jobs_that_run_existing_targets(path: Path) -> None:
    workflow = read(path)
    assert workflow["jobs"]
    assert workflow["concurrency"]["cancel-in-progress"] is True
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        setups = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
        assert [setup["cache"] for setup in setups] == ["pip"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = [word for command in commands(workflow) for word in re.findall(r"\bmake ([a-z-]+)", command)]
    assert called
    assert set(called) <= targets


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow__covers_the_oldest_and_the_newest_python(path: Path) -> None:
    assert {"3.10", "3.13"} <= set(re.findall(r"3\.\d+", path.read_text()))
    assert "python_requires = >=3.10" in (ROOT / "setup.cfg").read_text()


def test_tests_workflow__has_lowest_and_newest_dependencies() -> None:
    cells = read(ROOT / ".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["include"]
    assert {("3.10", "lowest"), ("3.13", "newest")} <= {(cell["python"], cell["dependencies"]) for cell in cells}
    for cell in cells:
        assert cell["constraints"] == "/dev/null" or (ROOT / cell["constraints"]).is_file()


def test_constraints_lowest__holds_the_lower_bounds_of_setup_cfg() -> None:
    module = runpy.run_path(str(ROOT / ".github" / "lowest_versions.py"))
    assert (ROOT / "constraints-lowest.txt").read_text() == module["lowest_versions"]()


def test_lowest_versions__refuses_a_requirement_without_a_lower_bound(tmp_path: Path) -> None:
    config = tmp_path / "setup.cfg"
    config.write_text("[options]\ninstall_requires =\n    numpy < 3\n[options.extras_require]\n")
    module = runpy.run_path(str(ROOT / ".github" / "lowest_versions.py"))
    with pytest.raises(ValueError, match="numpy"):
        module["lowest_versions"](config)


def test_constraints__pin_what_lint_runs() -> None:
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert {"ruff", "mypy", "codespell", "pre-commit", "pre-commit-hooks"} <= pinned
