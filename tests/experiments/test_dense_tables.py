"""The scripts of the scenes', the adaptation and the transfer table at toy size: run, stop, resume, publish, verify.

No accuracy is judged here.
"""

import csv
import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def adaptation(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script = importlib.import_module("table_adaptation")
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(script, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr("adaptation_runs.KEPT", ((0, 24),))
    monkeypatch.setattr("adaptation_costs.TURNS", 1)
    return script


def test_adaptation__stops_resumes_prints_and_verifies(adaptation, images, monkeypatch, tmp_path, capsys) -> None:
    small = {"epochs": 1, "steps": 2, "seeds": 2, "labels": ("24",)}
    folder = tmp_path / "run"
    put, calls = adaptation.Runner._measure, []

    def dying(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return put(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(adaptation.Runner, "_measure", dying)
        with pytest.raises(KeyboardInterrupt):
            adaptation.make(images, folder, **small)
    times = {p: p.stat().st_mtime_ns for p in folder.glob("cells/*.npy")}
    assert len(times) == 3
    adaptation.make(images, folder, **small)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in times.items())  # what was done is not done again
    result = json.loads((tmp_path / "results" / "adaptation-desk.json").read_text())
    cells = {cell["protocol"]: cell for cell in result["cells"]}
    assert set(cells) == set(adaptation.PROTOCOLS)
    assert all(len(cell["values"]) == 2 for cell in cells.values())
    costs = result["costs"]
    assert costs["linear"]["parameters"] == 64 * 2 + 2
    assert costs["finetune"]["share"] == 1
    assert costs["linear"]["parameters"] < costs["prompt-shallow"]["parameters"] < costs["prompt-deep"]["parameters"]
    assert costs["lora"]["parameters"] == 64 * 2 + 2 + 3 * 8 * (64 + 192)
    assert costs["lora"]["parameters"] < costs["lora-all"]["parameters"] < costs["finetune"]["parameters"]
    assert costs["linear"]["bytes"] < costs["last-1"]["bytes"] < costs["finetune"]["bytes"]
    capsys.readouterr()
    adaptation.show()
    printed = capsys.readouterr().out
    assert all(f"| {name} " in printed for name in adaptation.PROTOCOLS)
    assert "24 labels, points against fine-tuning everything" in printed
    assert adaptation.verify(images) == 0
    assert "10 of 18 values re-evaluated, 0 moved" in capsys.readouterr().out


def test_adaptation__protocols_have_the_values_of_the_committed_results(adaptation) -> None:
    preset = adaptation.preset_of(32)
    slow = {"lr": 3e-3, "layer_decay": 1.0}
    changes = {
        "finetune": {},
        "last-1": {"tune": "last-1"},
        "head+norm": {"tune": "head+norm", **slow},
        "bias": {"tune": "bias", **slow},
        "lora": {"tune": "lora", **slow, "lora_targets": ["qkv"]},
        "lora-all": {"tune": "lora", **slow, "lora_targets": ["qkv", "proj", "mlp"]},
        "prompt-shallow": {"tune": "prompt-shallow", **slow, "prompt_length": 8},
        "prompt-deep": {"tune": "prompt-deep", **slow, "prompt_length": 8},
    }
    assert ["linear", *changes] == list(adaptation.PROTOCOLS)
    for protocol, change in changes.items():
        assert preset.options("mae", protocol) == {**preset.tune["vit"], **change}


@pytest.fixture
def scenes(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script = importlib.import_module("table_scenes")
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    return script


def _result(script, run, value: float) -> None:
    from lit_vision.io.atomic import write_json
    from lit_vision.results.schema import collect_environment

    metric = f"test/{script.METRICS[run.task]}"
    names = {"map50": 0.5, "map75": 0.3} if run.task == "detect" else {"miou": 0.4, "pixel_accuracy": 0.9}
    others = {f"test/{k}": v for k, v in names.items()}
    facts = {
        "recipe": script.RECIPES[run.task],
        "recipe_sha256": None,
        "data_fingerprint": None,
        "weights_sha256": None,
    }
    facts |= {"seconds": 1.0, "peak_memory_mb": 1.0, "samples": 4, "images_seen": 10, "seed": run.seed}
    facts |= {"metric": {"name": metric, "value": value}, "metrics": {metric: value, **others}}
    facts |= {"trained": {"seconds": 60.0}, "pretrain_seconds": 0.0 if run.init == "scratch" else 30.0}
    facts |= {"curve": [[1, value / 2], [2, value]]}
    if run.seed == 0:
        facts["int8"] = {"metric": "mAP", "before": value, "after": value - 0.02, "format": "openvino"}
    run.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(run.result, {**collect_environment(run.seed), **facts})


def test_scenes__the_page_agrees_with_the_results(scenes, capsys) -> None:
    for run in scenes.ALL:
        if run.task == "detect":
            _result(scenes, run, 0.40 + 0.01 * run.seed + (0.08 if run.init == "simclr" else 0))
        elif run.seed == 0:
            _result(scenes, run, 0.5)
    scenes.show()
    text = (scenes.RESULTS / "scenes.md").read_text()
    assert "49.0 ± 1.0 % (3)" in text
    assert "+8.0 ± 0.0" in text
    detection, segmentation = (line for line in text.splitlines() if line.startswith("- "))
    assert re.search(r"45 % .*reached.*helps.*\+8\.0 ", detection)
    assert re.search(r"85 % .*missed.*\b35\.0 .*\+0\.0 .*one seed", segmentation)
    assert "| detection | from scratch" in " ".join(text[text.index("## int8") :].split())
    assert "+2.0" in text[text.index("## int8") :]
    assert (scenes.RESULTS / "scenes-detect-curves.png").exists()
    rows = list(csv.reader((scenes.RESULTS / "scenes.csv").open()))
    assert len(rows) == 5


def test_scenes__without_results_nothing_is_claimed(scenes) -> None:
    scenes.show()
    assert (scenes.RESULTS / "scenes.md").read_text().count("not run yet") == 4


def test_scenes__commands_name_existing_recipes(scenes, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["table", "--dry"])
    assert scenes.main() == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("lit-vision fit")]
    assert len(lines) == 1 + 12
    assert all((EXPERIMENTS.parent / arguments[3]).is_file() for arguments in lines)
    assert len({arguments[arguments.index("--run_dir") + 1] for arguments in lines}) == 13


def test_scenes__tiles_cover_every_image_once(scenes, tmp_path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    cv2.imwrite(str(source / "000000.png"), image)
    out = tmp_path / "tiles"
    assert scenes.cut_tiles(source, out) == 9
    np.testing.assert_array_equal(cv2.imread(str(out / "000000-032-064.png")), image[32:96, 64:128])
    (out / "000000-032-064.png").unlink()
    assert scenes.cut_tiles(source, out) == 9  # done is done
    assert not (out / "000000-032-064.png").exists()


@pytest.mark.slow
def test_transfer__both_directions_stopped_and_resumed(images, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script = importlib.import_module("transfer")
    other = dataclasses.replace(images, pool=255 - images.pool, test=255 - images.test, fingerprint="e" * 64)
    plan = script.Plan(
        ("here/dark", "here/light"), {"here/dark": 0.0, "here/light": 90.0}, labels="16", seeds=2, epochs=1, steps=2
    )
    both = dict(zip(plan.roots, (images, other)))
    measure, calls = script.Transfer._train, []

    def dying(self, *args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return measure(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(script.Transfer, "_train", dying)
        with pytest.raises(KeyboardInterrupt):
            script.make(plan, both, tmp_path / "run", tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npy")}
    assert len(stamps) > 4
    script.make(plan, both, tmp_path / "run", tmp_path)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    for root in plan.roots:
        cells = json.loads(script.result_of(root, tmp_path).read_text())["cells"]
        assert {(c["init"], c["protocol"]) for c in cells} == {
            (start, protocol)
            for start in ("simclr@dark", "simclr@light", "scratch")
            for protocol in ("linear", "finetune")
            if (start, protocol) != ("scratch", "linear")
        }
        assert all(len(c["values"]) == 2 for c in cells)
        steps = {c["init"]: c["steps"] for c in cells if c["protocol"] == "finetune"}
        assert steps["scratch"] == 4 * steps["simclr@dark"]
    capsys.readouterr()
    script.show(plan.roots, "simclr", tmp_path, "transfer")
    text = (tmp_path / "transfer.md").read_text()
    assert text.count("the other folder") == 4
    for name in ("light", "dark"):
        assert re.search(rf"16 labels: .*\b{name}\b.*points", text)
