"""A real study by time, killed ten times and continued, and replayed by --plan: the same table and weights.

The scenario is one of experiments/soak.
"""

import json
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
from soak.studies import keep_decisions

KILLS = 10


@pytest.mark.slow
def test_study__killed_ten_times_and_replayed_gives_the_same_table_and_weights(tmp_path) -> None:
    assert keep_decisions(tmp_path, KILLS, random.Random(0)) == KILLS
    lines = map(json.loads, (tmp_path / "killed" / "plan.jsonl").read_text().splitlines()[1:])
    assert any(line["decision"].endswith("pre-training: steps") for line in lines)
