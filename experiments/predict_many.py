"""predict on 20,000 images: peak memory against a tenth of them, and the same bytes after a kill in the middle.

A classifier and a detector with random weights (memory and bytes do not depend on them) on links to the embedded garments and the scenes.
A row a task, with its commit, in experiments/results/predict-many/measured.json. Run: python experiments/predict_many.py [classification] [detection]     about ten minutes on one core
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "experiments" / "results" / "predict-many" / "measured.json"
MANY, FEW = 20_000, 2_000
CODE = (
    "import sys, resource; from lit_vision.cli.main import main; code = main(sys.argv[1:]);"
    "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
)
BODY = {"stem_type": "deep", "stem_width": 8, "layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
TASKS = {"classification": "csv", "detection": "json"}


def links(folder: Path, count: int) -> Path:
    """A folder of `count` links to the images of data/fashion and data/scenes, names in a fixed order."""
    found = sorted(p for name in ("fashion", "scenes") for p in (ROOT / "data" / name).rglob("*.png"))
    found = [p for p in found if "semantic" not in p.parts and "instances" not in p.parts]
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:06d}.png").symlink_to(found[i * 7919 % len(found)])
    return folder


def model(folder: Path, task: str) -> Path:
    """A checkpoint with random weights."""
    import torch

    from lit_vision.methods import Classifier, Detector

    torch.manual_seed(0)
    if task == "classification":
        method = Classifier("resnet18", 10, {**BODY, "stem": "small"}, mean=[0.5] * 3, std=[0.25] * 3)
    else:
        method = Detector("resnet18", 10, 128, strides=[8, 16], pyramid_width=64, head_convs=2, backbone_args=BODY)
    size = 28 if task == "classification" else 128
    metadata = {"task": task, "class_names": [str(i) for i in range(10)], "size": size, "crop_pct": 1.0}
    path = folder / f"{task}.ckpt"
    torch.save({"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams), "card": metadata}, path)
    return path


def start(checkpoint: Path, images: Path, out: Path) -> subprocess.Popen:
    words = ["predict", str(images), "--model", str(checkpoint), "--out", str(out), "--device", "cpu"]
    return subprocess.Popen([sys.executable, "-c", CODE, *words], stdout=subprocess.PIPE, text=True)


def run(checkpoint: Path, images: Path, out: Path) -> tuple[float, float]:
    """(peak memory in MB, seconds)."""
    begin = time.perf_counter()
    process = start(checkpoint, images, out)
    text, _ = process.communicate()
    if process.returncode:
        sys.exit(f"predict failed: {text}")
    return int(text.rsplit("peak", 1)[1]) / 1024, time.perf_counter() - begin


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def measure(work: Path, task: str) -> dict:
    """One task: memory of few and many, and whether a killed run ends in the same bytes."""
    checkpoint, form = model(work, task), TASKS[task]
    few, _ = run(checkpoint, work / "few", work / f"few.{form}")
    many, seconds = run(checkpoint, work / "many", work / f"whole.{form}")
    out = work / f"killed.{form}"
    victim, state = start(checkpoint, work / "many", out), Path(f"{out}.part.json")
    while not (state.exists() and json.loads(state.read_text() or "{}").get("done", 0) > MANY // 3):
        if victim.poll() is not None:
            sys.exit("the run ended before it was killed")
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    at = json.loads(state.read_text())["done"]
    run(checkpoint, work / "many", out)
    same = sha256(out) == sha256(work / f"whole.{form}")
    return {
        "task": task,
        "images": MANY,
        "peak_mb": round(many, 1),
        f"peak_mb_of_{FEW}": round(few, 1),
        "seconds": round(seconds, 1),
        "killed_at": at,
        "same_bytes_after_kill": same,
        "output_bytes": out.stat().st_size,
    }


def main() -> int:
    """The script; 1 if memory grew by more than 60 MB or bytes differ."""
    from lit_vision.cli.main import main as command
    from lit_vision.io.atomic import write_json
    from lit_vision.results.schema import collect_environment

    for name in ("fashion", "scenes"):
        if code := command(["data", name, "--out", str(ROOT / "data" / name)]):
            return code
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        links(work / "few", FEW)
        links(work / "many", MANY)
        rows = {row["task"]: row for row in json.loads(RESULT.read_text())["rows"]} if RESULT.exists() else {}
        asked = sys.argv[1:] or list(TASKS)
        for task in asked:
            rows[task] = {**measure(work, task), **collect_environment(0)}
            print(json.dumps(rows[task]), flush=True)
            write_json(RESULT, {"rows": [rows[name] for name in TASKS if name in rows]})
    found = [rows[task] for task in asked]
    return int(any(row["peak_mb"] - row[f"peak_mb_of_{FEW}"] > 60 or not row["same_bytes_after_kill"] for row in found))


if __name__ == "__main__":
    sys.exit(main())
