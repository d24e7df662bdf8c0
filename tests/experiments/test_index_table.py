"""make table-index at toy size: vectors as documented, every row measured, and the page from the committed numbers."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    module = importlib.import_module("table_index")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    yield module
    sys.modules.pop("table_index", None)


def test_vectors_are_real_ones_with_noise_of_the_median_nearest_distance(script) -> None:
    real = np.random.default_rng(0).normal(size=(40, 24)).astype(np.float32)
    distances = np.linalg.norm(real[:, None] - real, axis=2) + np.diag([np.inf] * 40)
    wanted = np.median(distances.min(1))
    assert script.median_nearest(real) == pytest.approx(wanted, rel=1e-5)
    made = script.noisy(real, wanted, 20_000, 4_000)
    lengths = np.linalg.norm(made - real[np.arange(20_000, 24_000) % 40], axis=1)
    assert np.sqrt((lengths**2).mean()) == pytest.approx(wanted, rel=0.02)
    np.testing.assert_array_equal(made, script.noisy(real, wanted, 20_000, 4_000))
    assert not np.array_equal(made[:10], script.noisy(real, wanted, 0, 10))


def test_a_row_is_measured_and_shown(script, monkeypatch) -> None:
    pytest.importorskip("faiss", reason="needs the search extra")
    real = np.random.default_rng(0).normal(size=(40, 24)).astype(np.float32)
    for name, value in (("WIDTH", 24), ("AT_ONCE", 500), ("QUERIES", 20), ("real_vectors", lambda: real)):
        monkeypatch.setattr(script, name, value)
    rows = [
        {**script.measure_building(kind, 1_000), **script.measure_search(kind, 1_000)} for kind in ("exact", "hnsw")
    ]
    assert rows[0]["recall"] == 1.0
    assert rows[1]["recall"] > 0.9
    assert rows[0]["bytes_per_vector"] == 96
    page = script.to_markdown({"rows": rows, "multiply_adds": 10**12})
    assert "| hnsw | 1,000 | " in page
    assert script.limits([{"type": "ivfpq", "file_mb": 151.0, "build_mb": 10.0, "search_mb": 10.0}])[0].endswith(
        "not hold"
    )


def test_the_committed_page_is_that_of_the_committed_numbers(script) -> None:
    found = json.loads(script.RESULT.read_text())
    assert script.PAGE.read_text() == script.to_markdown(found) + "\n"
    assert [line for line in script.limits(found["rows"]) if "does not" in line] == []
    assert [(row["type"], row["vectors"]) for row in found["rows"]] == list(script.ROWS)
