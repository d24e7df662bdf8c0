"""make scale-inference at a hundredth of its size: two nodes, a killed worker, each image once."""

import importlib
import json
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    yield importlib.import_module("scale_inference")
    sys.modules.pop("scale_inference", None)


def test_the_committed_numbers_make_the_table(script) -> None:
    found = json.loads(script.RESULT.read_text())
    assert found["images"] == 200_000
    assert found["each_image_once_and_the_same_bytes"]
    assert found["ray"]["nodes"] == 2
    assert found["ray"]["workers_killed"] == 1
    page = script.to_markdown(found)
    assert page.count("\n| ") == 3
    assert "200,000 images of 16 pixels, 8 shards, batches of 256;" in page


@pytest.mark.slow
def test_shards_and_two_nodes_with_a_killed_worker(script, tmp_path, monkeypatch) -> None:
    pytest.importorskip("ray", reason="needs the ray extra")
    monkeypatch.setattr(script, "BATCH", 64)
    found = script.measure(tmp_path, 2_000, 4)
    assert found["each_image_once_and_the_same_bytes"]
    assert found["ray"]["workers_killed"] == 1
    assert found["ray"]["nodes"] == 2
    assert found["shards"]["largest_process_mb"] > 50
