"""The benchmark script: sections are found, rows are complete, a missed target is an exit code.

No speed is judged here.
"""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "experiments" / "benchmark.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_startup_section_measures_whole_processes_and_writes_json(benchmark, tmp_path, capsys, monkeypatch):
    from benchmarks import startup

    slow = {
        "lit-vision --help": 0.0,
        "lit-vision fit --help": 0.0,
        "lit-vision fit --help_all": 0.3,
        "import lightning, timm": 0.1,
    }
    commands = {name: ["-S", "-c", f"import time; time.sleep({wait})"] for name, wait in slow.items()}
    monkeypatch.setattr(startup, "COMMANDS", commands)
    cpu = {startup.IMPORTS: 200_000, "lit-vision predict": 4_000_000}  # steps of a loop
    loops = {name: ["-S", "-c", f"for i in range({steps}): pass"] for name, steps in cpu.items()}
    monkeypatch.setattr(startup, "one_image_commands", lambda folder: loops)
    assert (
        benchmark.main(["startup", "--repeats", "1", "--out", str(tmp_path / "b.json")]) == 1
    )  # 0.3 s is over 1.15 x 0.1 s
    written = json.loads((tmp_path / "b.json").read_text())
    predict = written["sections"]["startup"][2]
    assert (predict["against"], predict["met"]) == ("import torch, timm", False)
    ratio = written["sections"]["startup"][-1]
    assert ratio["met"] is False
    assert ratio["value"] > 1.15
    assert {"what", "value", "unit", "against", "target", "met"} == set(ratio)
    assert written["cores"] >= 1
    assert "| NO " in capsys.readouterr().out


def test_a_command_that_fails_is_not_a_fast_one(benchmark):
    from benchmarks import startup

    with pytest.raises(RuntimeError, match="code 3"):
        startup.seconds(["-S", "-c", "raise SystemExit(3)"])


def test_memory_section_compares_a_command_with_and_without(benchmark, monkeypatch):
    from benchmarks import memory

    touch = "import os; bytearray((40 << 20) * (os.environ['LIT_VISION_MALLOC'] == 'on'))"
    monkeypatch.setattr(memory, "commands", lambda folder: {"predict": ["OUT"]})
    run = memory.run_python
    monkeypatch.setattr(memory, "run_python", lambda arguments, variables: run(["-S", "-c", touch], variables))
    rows = {row["what"]: row for row in memory.measure(1)}
    assert rows["predict: peak memory, more if kept"]["value"] == pytest.approx(42, abs=8)
    assert rows["predict: minor page faults, memory kept"]["value"] > 2
    assert {"predict: user CPU, memory kept", "predict: wall time, memory kept"} <= set(rows)


def test_unknown_section_is_wrong_usage(benchmark, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["nothing"])
    error = capsys.readouterr().err
    assert "'nothing'" in error
    assert all(name in error for name in benchmark.sections())


def test_every_section_has_a_measure(benchmark):
    for name in benchmark.sections():
        assert "def measure(repeats: int)" in (SCRIPT.parent / "benchmarks" / f"{name}.py").read_text()


@pytest.mark.parametrize("name", ["masks", pytest.param("boxes", marks=pytest.mark.slow)])
def test_latency_section_runs_every_runtime_that_is_there(benchmark, monkeypatch, name: str):
    from benchmarks import latency

    tiny = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    monkeypatch.setattr(latency, "MODELS", {"tiny": ("vit_tiny_patch16_224", tiny, 16)})
    small = {"num_classes": 2, "img_size": 32, "strides": [8], "backbone_args": {"layers": (1, 1, 1, 1)}}
    dense = {"boxes": ("Detector", {**small, "pyramid_width": 32}), "masks": ("Segmenter", {**small, "width": 16})}
    monkeypatch.setattr(latency, "DENSE", {name: dense[name]})
    monkeypatch.setattr(latency, "FORMATS", {"pt2": ".pt2"})
    rows = latency.measure(1)
    assert f"{name}, pt2, batch 8" in {row["what"] for row in rows}
    assert [row["what"] for row in rows[:2]] == ["tiny, eager, batch 1", "tiny, pt2, batch 1"]
    assert {row["unit"] for row in rows} == {"ms/image", "x"}
    assert all(row["value"] > 0 and row["met"] is None for row in rows)


@pytest.mark.slow
def test_compute_section_compares_steps_losses_and_products(benchmark, monkeypatch, tmp_path):
    from benchmarks import compute

    tiny = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    small = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
    sizes = {
        "PAIRS": (8, 16384 // 64),
        "MEMORY": {8: 200},
        "WIDTH": 4,
        "BATCH": 2,
        "VIT": ("vit_tiny_patch16_224", tiny),
        "DECODER": {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2},
        "IMAGE_PAIRS": 2,
        "SIDE": 32,
        "RESNET": ("resnet18", small),
        "COMPILED": False,
        "PROFILE": tmp_path / "profile.txt",
    }
    for name, value in sizes.items():
        monkeypatch.setattr(compute, name, value)
    rows = compute.measure(1)
    assert all({"what", "value", "unit", "against", "target", "met"} == set(row) and row["value"] >= 0 for row in rows)
    what = [row["what"] for row in rows]
    for text in (
        "NT-Xent, 8 pairs: ours",
        "fp32, batch 2: share of the matrix rate",
        "bf16, batch 2: speed, checkpointing",
        "SimCLR ResNet-50, bf16, 2 pairs: share of the matrix rate",
    ):
        assert any(text in one for one in what), text
    assert "aten::" in (tmp_path / "profile.txt").read_text()


def test_products_are_those_of_the_layers_forward_and_backward(benchmark):
    from benchmarks._matrix_products import MatrixProductCounter

    layer, x = torch.nn.Linear(3, 5), torch.randn(7, 3, requires_grad=True)
    with MatrixProductCounter() as counter:
        layer(x).sum().backward()
    shapes = Counter({(a[0], b[0]): count for (a, b), count in counter.layers.items()})
    assert shapes == Counter({((7, 3), (3, 5)): 1, ((7, 5), (5, 3)): 1, ((5, 7), (7, 3)): 1})
    assert counter.attention == 0
    q = torch.randn(1, 2, 4, 8, requires_grad=True)
    with MatrixProductCounter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert counter.attention in (3 * 2 * 2 * 4 * 4 * 8, 6 * 2 * 4 * 4 * 8)
    convolution, images = torch.nn.Conv2d(4, 6, 3, stride=2, groups=2), torch.randn(2, 4, 9, 9, requires_grad=True)
    with MatrixProductCounter() as counter:
        convolution(images).sum().backward()
    rows, inner, outer = 2 * 4 * 4, 2 * 3 * 3, 3
    shapes = Counter({(a[0], b[0]): count for (a, b), count in counter.layers.items()})
    want = [((rows, inner), (inner, outer)), ((rows, outer), (outer, inner)), ((inner, rows), (rows, outer))]
    assert shapes == Counter(dict.fromkeys(want, 2))


@pytest.mark.slow
def test_shards_section_reads_each_byte_once(benchmark, monkeypatch):
    from benchmarks import shards

    monkeypatch.setattr(shards, "IMAGES", 32)
    monkeypatch.setattr(shards, "ROWS", 2000)
    rows = {row["what"]: row for row in shards.measure(1)}
    assert rows["bytes sent in an epoch"]["met"]
    assert rows["bytes sent twice in it"]["met"]
    assert rows["requests in it"]["value"] == 32
    assert all({"what", "value", "unit", "against", "target", "met"} == set(row) for row in rows.values())
