"""The table of compression: its lines for given values, and the committed text beside the committed values."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import table_compression as table
from studies import compression_networks as networks


def test_lines_of_given_values(tmp_path, monkeypatch, capsys) -> None:
    """Twice as fast in each round is 2.00x, whatever the machine did meanwhile; int8 shows OpenVINO's accuracy."""
    cells = []
    for row in table.ROWS:
        slow = [10.0, 20.0, 30.0]
        times = slow if row == "full" else [value / 2 for value in slow]
        cell = {"init": "x", "protocol": row, "labels": 1, "values": [0.5, 0.7], "mean": 0.6, "std": 0.1, "seconds": 0}
        cell |= {
            "pretrain_seconds": 0,
            "chosen_on": "",
            "bytes": 2_000_000,
            "multiply_adds": 3_000_000,
            "parameters": 4,
        }
        cell |= {"milliseconds": {"onnx": times, "openvino": slow}}
        cell |= {"onnx_top1": 0.49} if row.endswith("int8") else {}
        cell |= {"untrained_top1": 0.2} if row.removeprefix("pruned-") in ("30", "50", "70") else {}
        cells.append(cell)
    facts = {cell["protocol"]: cell for cell in cells}
    result = {"seconds": 120, "training_multiply_adds": table.training_multiply_adds(facts), "cells": cells}
    result |= {"runtimes": {"onnxruntime": "1", "openvino": "2"}}
    monkeypatch.setattr("lit_vision.results.schema.read_result", lambda path: result)
    monkeypatch.setattr(table, "RESULT", tmp_path / "compression.json")
    table.show()
    text = capsys.readouterr().out
    assert (tmp_path / "compression.md").read_text() in text
    line = next(line for line in text.splitlines() if "30 % of its channels pruned" in line)
    for part in ("60.0 ± 10.0", "2.00", "3.0", "10.00: 2.00x (2.00 to 2.00)", "20.00: 1.00x (1.00 to 1.00)"):
        assert part in line
    assert "20.0 %, 20.0 %, 20.0 %" in text
    assert "by -1.0 to -1.0 points" in text
    images = networks.SEEDS * networks.SHOTS * networks.CLASSES
    epochs = sum(epochs for _, epochs, _ in networks.NETWORKS.values())
    taught = sum(epochs for name, (_, epochs, _) in networks.NETWORKS.items() if name.endswith("taught"))
    assert result["training_multiply_adds"] == images * 3_000_000 * (3 * epochs + taught)


def test_the_committed_table_is_that_of_the_committed_values(tmp_path, monkeypatch) -> None:
    copy = tmp_path / "compression.json"
    copy.write_text(table.RESULT.read_text())
    cells = {cell["protocol"]: cell for cell in json.loads(copy.read_text())["cells"]}
    assert list(cells) == list(table.ROWS)
    assert all(len(cell["values"]) == networks.SEEDS for cell in cells.values())
    monkeypatch.setattr(table, "RESULT", copy)
    table.show()
    assert copy.with_suffix(".md").read_text() == (table.RESULTS / "compression.md").read_text()
