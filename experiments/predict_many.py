"""Measure `lit-vision predict` on 20,000 images: peak memory compared with 2,000, and the output's bytes after a kill.

A classifier and a detector with random weights (memory and bytes do not depend on them), on links to the embedded
garments and the scenes. Writes a row per task, with its commit, to experiments/results/predict-many/measured.json.
Run: python experiments/predict_many.py [classification] [detection]     (about ten minutes on one core)
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lit_vision.cli.parser import ScriptParser

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "experiments" / "results" / "predict-many" / "measured.json"
MANY, FEW = 20_000, 2_000  # images
MAX_GROWTH = 60  # MB of peak memory, from FEW to MANY images
CODE = (
    "import sys, resource; from lit_vision.cli.main import main; code = main(sys.argv[1:]);"
    "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
)
BACKBONE = {"stem_type": "deep", "stem_width": 8, "layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
TASKS = {"classification": "csv", "detection": "json"}  # task: suffix of its output


def make_links(folder: Path, count: int) -> None:
    """Make a folder of `count` links to the images of data/fashion and data/scenes, in a fixed order."""
    found = sorted(p for name in ("fashion", "scenes") for p in (ROOT / "data" / name).rglob("*.png"))
    found = [p for p in found if "semantic" not in p.parts and "instances" not in p.parts]
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:06d}.png").symlink_to(found[i * 7919 % len(found)])


def make_checkpoint(folder: Path, task: str) -> Path:
    """Write a checkpoint with random weights; return its path."""
    import torch

    from lit_vision.methods import Classifier, Detector

    torch.manual_seed(0)
    if task == "classification":
        method = Classifier("resnet18", 10, {**BACKBONE, "stem": "small"}, mean=[0.5] * 3, std=[0.25] * 3)
    else:
        method = Detector("resnet18", 10, 128, strides=[8, 16], pyramid_width=64, head_convs=2, backbone_args=BACKBONE)
    size = 28 if task == "classification" else 128
    metadata = {"task": task, "class_names": [str(i) for i in range(10)], "size": size, "crop_pct": 1.0}
    path = folder / f"{task}.ckpt"
    torch.save({"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams), "card": metadata}, path)
    return path


def start_predict(checkpoint: Path, images: Path, out: Path) -> subprocess.Popen:
    """Start a predict command that prints its peak memory at its end."""
    arguments = ["predict", str(images), "--model", str(checkpoint), "--out", str(out), "--device", "cpu"]
    return subprocess.Popen([sys.executable, "-c", CODE, *arguments], stdout=subprocess.PIPE, text=True)


def run_predict(checkpoint: Path, images: Path, out: Path) -> tuple[float, float]:
    """Run a predict command; return its peak memory in MB and its seconds."""
    begin = time.perf_counter()
    process = start_predict(checkpoint, images, out)
    text, _ = process.communicate()
    if process.returncode:
        sys.exit(f"predict failed: {text}")
    return int(text.rsplit("peak", 1)[1]) / 1024, time.perf_counter() - begin


def measure(work: Path, task: str) -> dict:
    """Measure one task: memory for FEW and MANY images, and whether a killed run ends with the same bytes."""
    from lit_vision.io.hashing import sha256_of_file

    checkpoint, suffix = make_checkpoint(work, task), TASKS[task]
    few, _ = run_predict(checkpoint, work / "few", work / f"few.{suffix}")
    many, seconds = run_predict(checkpoint, work / "many", work / f"reference.{suffix}")
    out = work / f"killed.{suffix}"
    victim, state = start_predict(checkpoint, work / "many", out), Path(f"{out}.part.json")
    while not (state.exists() and json.loads(state.read_text() or "{}").get("done", 0) > MANY // 3):
        if victim.poll() is not None:
            sys.exit("the run ended before it was killed")
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    killed_at = json.loads(state.read_text())["done"]
    run_predict(checkpoint, work / "many", out)
    same = sha256_of_file(out) == sha256_of_file(work / f"reference.{suffix}")
    return {
        "task": task,
        "images": MANY,
        "peak_mb": round(many, 1),
        f"peak_mb_of_{FEW}": round(few, 1),
        "seconds": round(seconds, 1),
        "killed_at": killed_at,
        "same_bytes_after_kill": same,
        "output_bytes": out.stat().st_size,
    }


def main() -> int:
    """Run the script; return 1 if memory grew by more than MAX_GROWTH or bytes differ."""
    assert __doc__
    parser = ScriptParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"{', '.join(TASKS)}; default: all")
    tasks = parser.parse_args().tasks or list(TASKS)
    if unknown := set(tasks) - set(TASKS):
        parser.error(f"TASK {sorted(unknown)[0]!r}: give some of {', '.join(TASKS)}")
    from lit_vision.cli.main import main as command
    from lit_vision.io.atomic import write_json
    from lit_vision.results.schema import collect_environment

    for name in ("fashion", "scenes"):
        if code := command(["data", name, "--out", str(ROOT / "data" / name)]):
            return code
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_links(work / "few", FEW)
        make_links(work / "many", MANY)
        rows = {row["task"]: row for row in json.loads(RESULT.read_text())["rows"]} if RESULT.exists() else {}
        for task in tasks:
            rows[task] = {**measure(work, task), **collect_environment(0)}
            print(json.dumps(rows[task]), flush=True)
            write_json(RESULT, {"rows": [rows[name] for name in TASKS if name in rows]})
    found = [rows[task] for task in tasks]
    return int(
        any(row["peak_mb"] - row[f"peak_mb_of_{FEW}"] > MAX_GROWTH or not row["same_bytes_after_kill"] for row in found)
    )


if __name__ == "__main__":
    sys.exit(main())
