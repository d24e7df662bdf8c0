"""A real study by time, killed ten times and continued, and replayed by --plan: the same table and weights."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file

from lit_vision.results.schema import read_result

KILLS = 10
OPTIONS = ["--labels", "8,40", "--seeds", "2", "--inits", "simclr,lejepa", "--pretrained", "off", "--budget", "1.5"]


def _write_bars(root: Path) -> Path:
    """Write 200 bars to learn from, upright or lying, and 40 to test, 16 pixels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 100), ("test", 20)):
        for name in ("lying", "upright"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 150, (16, 16, 3), np.uint8)
                at = rng.integers(2, 13)
                image[at : at + 2] = 230
                image = image.transpose(1, 0, 2) if name == "upright" else image
                cv2.imwrite(str(root / split / name / f"{i}.png"), image)
    return root


def _table(run: Path) -> list[tuple]:
    cells = read_result(run / "results.json")["cells"]
    keys = ("init", "protocol", "labels", "seeds", "values", "judged_values", "held_out_values", "steps")
    return [tuple(cell.get(key) for key in keys) for cell in cells]


@pytest.mark.slow
def test_study__killed_ten_times_and_replayed_gives_the_same_table_and_weights(tmp_path) -> None:
    folder, cut, again = _write_bars(tmp_path / "bars"), tmp_path / "cut", tmp_path / "again"
    command = [sys.executable, "-m", "lit_vision", "study", str(folder), *OPTIONS]
    rng, killed = np.random.default_rng(0), 0
    plan, decided = cut / "plan.jsonl", ""
    while killed < KILLS:
        child = subprocess.Popen([*command, "--run_dir", str(cut)], stdout=subprocess.DEVNULL)
        begin, lines = time.monotonic(), decided.count("\n")
        # a kill after a new decision, or some time into a long piece
        while child.poll() is None and time.monotonic() - begin < 40:
            time.sleep(rng.uniform(0.2, 3.0))
            if plan.exists() and plan.read_text().count("\n") > lines:
                break
        if child.poll() is not None:
            break  # it came to its end before so many kills
        child.send_signal(signal.SIGKILL)
        child.wait()
        killed += 1
        if plan.exists():  # decisions that were made stand
            text = plan.read_text()
            assert text.startswith(decided)
            decided = text[: text.rfind("\n") + 1]
    assert killed >= 5
    subprocess.run([*command, "--run_dir", str(cut)], check=True, stdout=subprocess.DEVNULL)
    assert plan.read_text().startswith(decided)
    subprocess.run([*command, "--run_dir", str(again), "--plan", str(plan)], check=True, stdout=subprocess.DEVNULL)
    assert (again / "plan.jsonl").read_text() == plan.read_text()
    assert _table(again) == _table(cut)
    assert any(line["decision"].endswith("pre-training: steps") for line in map(json.loads, decided.splitlines()[1:]))
    for path in [*cut.glob("weights/*.safetensors"), *cut.glob("cells/*.safetensors"), cut / "model.safetensors"]:
        first, second = load_file(path), load_file(again / path.relative_to(cut))
        assert first.keys() == second.keys()
        assert all(first[name].equal(second[name]) for name in first), path.name
    for path in cut.glob("cells/**/*.npy"):
        np.testing.assert_array_equal(np.load(path), np.load(again / path.relative_to(cut)))
