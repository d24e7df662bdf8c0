"""Scripts of experiments/: no abbreviated flags, and wrong usage is one line with exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("table_few_label.py", ["--dr"]),
        ("table_few_label.py", ["--scale", "huge"]),
        ("compare_losses.py", ["--keep"]),
        ("house.py", ["--verb"]),
        ("own_folders.py", ["emojis"]),
        ("paper_tables.py", []),
        ("predict_many.py", ["nothing"]),
        ("screenshot.py", ["a.html", "b", "--heig", "3"]),
        ("s3_check.py", ["--wor", "x"]),
        ("transfer.py", ["--pretrain_on", "A"]),
        ("transfer_linear.py", ["--roo", "x"]),
        ("benchmark.py", ["--rep", "1"]),
        ("classify/medical.py", []),
    ],
)
def test_wrong_usage_of_a_script_is_one_line_and_exit_code_2(script: str, arguments: list[str]) -> None:
    command = [sys.executable, str(EXPERIMENTS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"{Path(script).name}: error: ")


def test_no_script_has_a_parser_that_takes_abbreviations() -> None:
    raw = {f.name for f in EXPERIMENTS.rglob("*.py") if "ArgumentParser(" in f.read_text(encoding="utf-8")}
    assert raw == {"throttle.py"}  # which runs without the package
    assert "allow_abbrev=False" in (EXPERIMENTS / "throttle.py").read_text(encoding="utf-8")
