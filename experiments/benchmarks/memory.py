"""Freed memory that the C library keeps (lit_vision/io/malloc.py): costs of predict, study and fit with it and without.

Each command runs as a process of its own, with LIT_VISION_MALLOC=on and off in turns; ratios are taken within a turn.
By default the setting is on for predict, embed and study (of photographs: its row here has small images), not for fit.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._processes import Usage, run_python, save_classifier, write_jpegs
from benchmarks._rows import make_row

from lit_vision.io.malloc import VARIABLE

IMAGES = 200
BACKBONE, SIZE = "resnet50", 224
MOST_MORE = 1000  # MB of peak memory that the setting may cost
DEBUG = Path(__file__).resolve().parents[1] / "debug"
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "16", "--trainer.limit_val_batches", "0"]
# images of 128 pixels in a ResNet-18: tensors large enough that glibc would give them back
LARGE = ["--data.img_size", "128", "--data.batch_size", "32", "--model.backbone", "resnet18"]
LARGE += ["--model.backbone_args", "{}", "--trainer.callbacks", "[]"]
STUDY = ["--labels", "100", "--seeds", "1", "--inits", "simclr", "--epochs", "simclr=1,100=2", "--pretrained", "off"]


def commands(folder: Path) -> dict[str, list[str]]:
    """Make the data and the model in a folder; return {name: arguments of lit-vision}, OUT standing for a new path."""
    write_jpegs(folder / "jpegs", IMAGES)
    model = save_classifier(folder / "model.ckpt", BACKBONE, SIZE)
    fashion = str(folder / "fashion")
    run_python(["-m", "lit_vision", "data", "fashion", "--out", fashion])
    fit = ["fit", "--config", str(DEBUG / "simclr.yaml"), "--data.root", fashion, "--run_dir", "OUT", *SHORT]
    predict = ["predict", "--device", "cpu", "--model", str(model), str(folder / "jpegs"), "--out", "OUT.csv"]
    return {
        f"predict, {BACKBONE}, {IMAGES} JPEGs": predict,
        "study, 28 pixels": ["study", fashion, "--run_dir", "OUT", *STUDY],
        "fit, debug recipe": fit,
        "fit, ResNet-18 at 128 pixels": [*fit, *LARGE],
    }


def measure(repeats: int) -> list[dict[str, Any]]:
    """Measure CPU seconds, page faults, wall time and peak memory; at most 3 turns."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, arguments in commands(folder).items():
            used: dict[str, list[Usage]] = {"on": [], "off": []}
            for turn in range(min(repeats, 3)):
                for value in used if turn % 2 else reversed(used):  # the first of a turn has no advantage
                    out = str(folder / f"{len(os.listdir(folder))}-{value}")
                    given = [argument.replace("OUT", out) for argument in arguments]
                    used[value].append(run_python(["-m", "lit_vision", *given], {VARIABLE: value}))
            rows += _rows(name, used["on"], used["off"])
    return rows


def _rows(name: str, on: list[Usage], off: list[Usage]) -> list[dict[str, Any]]:
    """Return medians of both and ratios of a command's costs."""
    rows = []
    for what, unit in (("user", "s"), ("system", "s"), ("wall", "s"), ("faults", ""), ("peak", "MB")):
        words = {"user": "user CPU", "system": "system CPU", "faults": "minor page faults", "peak": "peak memory"}
        for label, usages in (("kept", on), ("given back", off)):
            value = statistics.median(getattr(usage, what) for usage in usages)
            rows.append(make_row(f"{name}: {words.get(what, what)}, memory {label}", value, unit))
    for what, words in (("cpu", "user and system CPU"), ("wall", "wall time"), ("faults", "minor page faults")):
        ratio = statistics.median(getattr(a, what) / getattr(b, what) for a, b in zip(on, off))
        paid = ("at most 0.95 x", ratio <= 0.95) if what == "cpu" and name.startswith("predict") else ("-", None)
        rows.append(make_row(f"{name}: {words}, memory kept", ratio, "x", "given back", *paid))
    more = statistics.median(a.peak - b.peak for a, b in zip(on, off))
    target = (f"at most {MOST_MORE} MB", more <= MOST_MORE)
    rows.append(make_row(f"{name}: peak memory, more if kept", more, "MB", "-", *target))
    return rows
