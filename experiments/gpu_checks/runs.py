"""Whole runs: the tests that need a GPU, runs that are killed and resumed, a short study."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
import xml.etree.ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu_checks.report import Report
from soak.fork_server import preparse, use_preparsed

from lit_vision.cli.main import main as lit_vision
from lit_vision.io.processes import cores, die_with_parent
from lit_vision.methods.classifier.classifier import Classifier

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("mae", "simclr", "lejepa", "classifier", "distiller", "video_classifier")
VIDEO_RECIPE = {  # of clips whose frames are garments of one class; the other recipes stand in experiments/debug
    "seed_everything": 0,
    "trainer": {"max_epochs": 2},
    "model": {
        "class_path": "lit_vision.methods.VideoClassifier",
        "init_args": {
            "backbone": "resnet10t",
            "backbone_args": {"channels": [16, 32, 64, 128], "stem_width": 16},
            "num_classes": 10,
            "temporal": "tsm",
            "warmup_epochs": 0.2,
        },
    },
    "data": {
        "class_path": "lit_vision.data.VideoFolderDataModule",
        "init_args": {"frames_per_clip": 4, "img_size": 28, "batch_size": 16},
    },
}
VIDEO_FRAMES = 8
GPU_KILL, CPU_KILL = (20, 90), (4, 9)  # steps between saves, and step of the kill: in the second half of 124 and 12


def gpu_tests(report: Report) -> None:
    """Run tests/test_gpu.py and count its outcomes; on the CPU all of its tests are skipped."""
    import pytest

    junit = report.work / "tests.xml"
    arguments = ["-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={junit}", "-c", str(ROOT / "setup.cfg")]
    pytest.main([*arguments, f"--rootdir={ROOT}", str(ROOT / "tests" / "test_gpu.py")])
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    for case in xml.etree.ElementTree.parse(junit).iter("testcase"):
        bad = [found for kind in ("failure", "error") if (found := case.find(kind)) is not None]
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        counts[outcome] += 1
        if bad:
            report.fail(case.get("name", ""), bad[0].get("message", "")[:1000])
    for outcome, count in counts.items():
        report.add(f"tests {outcome}", count, "")
    if not sum(counts.values()):
        report.fail("tests", "none was found")


# kill and resume


def resume(report: Report) -> None:
    """Compare runs that were killed and resumed with runs that were not, one debug recipe a method, in bf16-mixed.

    On the CPU the weights must have the same bits. On a GPU a second uninterrupted run tells whether the device repeats
    bits at all; where it does, the resumed run must have them too.
    """
    data = _data(report)
    names = ["reference", "resumed"] + ["repeated"] * report.on_gpu
    recipes = {method: _write_recipe(report, data, method) for method in METHODS}
    if not report.on_gpu:
        for recipe in recipes.values():
            preparse(["fit", "--config", str(recipe), "--run_dir", str(report.work / "run")])
    jobs = [(method, name) for method in METHODS for name in names]
    with ThreadPoolExecutor(max(1, min(len(jobs), cores() * 3 // 4))) as threads:
        futures = {(method, name): threads.submit(_run, report, recipes[method], name) for method, name in jobs}
        for method in METHODS:
            with report.attempt(method):
                files = [futures[method, name].result() for name in names]
                _compare(report, method, *map(_weights, files))


def _write_recipe(report: Report, data: Path, method: str) -> Path:
    """Write the debug recipe of a method with other images, precision and callbacks; return the file."""
    recipe: dict[str, Any] = copy.deepcopy(VIDEO_RECIPE)
    if method != "video_classifier":
        recipe = yaml.safe_load((ROOT / "experiments" / "debug" / f"{method}.yaml").read_text(encoding="utf-8"))
    trainer = recipe["trainer"] | {"precision": "bf16-mixed", "accelerator": report.device, "devices": 1}
    trainer |= {"log_every_n_steps": 1, "enable_progress_bar": False, "enable_model_summary": False}
    checkpoint = "lit_vision.callbacks.checkpoint.LastCheckpoint"
    trainer["callbacks"] = [
        *trainer.get("callbacks", []),
        {"class_path": checkpoint, "init_args": {"every_n_steps": (GPU_KILL if report.on_gpu else CPU_KILL)[0]}},
        {"class_path": "soak.KillAtEvent"},
    ]
    recipe["trainer"] = trainer
    arguments = recipe["data"]["init_args"]
    arguments["root"] = str(_videos(data) if method == "video_classifier" else data)
    if not report.on_gpu:
        arguments["batch_size"] = 8 if method == "video_classifier" else 64
    if method == "distiller":
        recipe["model"]["init_args"]["teacher"] = str(_teacher(report, data))
    file = report.work / f"{method}.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return file


def _teacher(report: Report, data: Path) -> Path:
    """Write a checkpoint of debug/classifier.yaml's network with random weights, which can teach; return it."""
    recipe = yaml.safe_load((ROOT / "experiments" / "debug" / "classifier.yaml").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model = Classifier(**recipe["model"]["init_args"])
    names = sorted(path.name for path in (data / "train").iterdir())
    metadata = {"task": "classification", "class_names": names, "size": 28, "crop_pct": 1.0}
    path = report.work / "teacher.ckpt"
    stored = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "card": metadata}
    torch.save({**stored, "pytorch-lightning_version": "2.6.6"}, path)
    return path


def _videos(data: Path) -> Path:
    """Make folders of frames, links to consecutive images of one class, unless they exist; return their root."""
    folder = data.with_name("videos")
    for directory in (path for split in ("train", "val") for path in (data / split).iterdir()):
        images = sorted(directory.iterdir())
        for first in range(0, len(images) - VIDEO_FRAMES + 1, VIDEO_FRAMES):
            video = folder / directory.relative_to(data) / f"{first:05d}"
            video.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images[first : first + VIDEO_FRAMES]):
                if not (frame := video / f"{number:03d}.png").exists():
                    os.link(image, frame)
    return folder


def _run(report: Report, recipe: Path, name: str) -> Path:
    """Run a recipe to its end, with a kill in the middle if `name` is resumed; return its checkpoint.

    Raises:
        RuntimeError: a run ended in another way.
    """
    folder = report.work / f"{recipe.stem}-{name}"
    arguments = ["fit", "--config", str(recipe), "--run_dir", str(folder)]
    log = folder.with_suffix(".log")
    if name == "resumed":
        step = (GPU_KILL if report.on_gpu else CPU_KILL)[1]
        code = _command(report, arguments, log, f"end:{step}")
        if code != -signal.SIGKILL:
            raise RuntimeError(f"the run to be killed after step {step} has exit code {code}\n{_tail(log)}")
        arguments = [*arguments, "--resume", "auto"]
    code = _command(report, arguments, log)
    if code != 0:
        raise RuntimeError(f"{name} run: exit code {code}\n{_tail(log)}")
    if name == "resumed" and (folder / "restored-0.txt").read_text().split()[-1] == "0":
        raise RuntimeError(f"the resumed run began at step 0\n{_tail(log)}")
    return folder / "checkpoints" / "last.ckpt"


def _command(report: Report, arguments: list[str], log: Path, kill: str = "") -> int:
    """Run a lit-vision command in a process of its own; return its exit code.

    On the CPU it is a fork, which saves importing and parsing; a process that has used CUDA cannot be forked.
    """
    context = multiprocessing.get_context("spawn") if report.on_gpu else multiprocessing.get_context("fork")
    process = context.Process(target=_in_process, args=(arguments, str(log), kill, not report.on_gpu))
    process.start()
    process.join()
    return process.exitcode if process.exitcode is not None else -1


def _in_process(arguments: list[str], log: str, kill: str, forked: bool) -> None:
    code = 1
    try:
        die_with_parent()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ["SOAK_KILL"] = kill
        torch.set_num_threads(1)
        if forked:
            use_preparsed(arguments)
        code = lit_vision(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # Python's own end would join threads that a fork does not have


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state: dict[str, torch.Tensor] = loaded["state_dict"]
    return state


def _compare(
    report: Report,
    method: str,
    reference: dict[str, torch.Tensor],
    resumed: dict[str, torch.Tensor],
    repeated: dict[str, torch.Tensor] | None = None,
) -> None:
    """Add what differs; fail if the resumed run has other bits on a device that repeats them."""
    deterministic = repeated is None or largest_difference(reference, repeated) == 0
    difference = largest_difference(reference, resumed)
    report.facts[method] = {"same_bits": difference == 0}
    if repeated is not None:
        report.facts[method]["deterministic"] = deterministic
        between = largest_difference(reference, repeated)
        report.add(f"{method}: largest difference of a weight, two uninterrupted runs", between, "")
    report.add(f"{method}: largest difference of a weight, resumed and uninterrupted run", difference, "")
    report.add(f"{method}: largest weight", max(float(v.abs().max()) for v in reference.values() if v.numel()), "")
    if deterministic and difference:
        report.fail(method, "the resumed run has other bits, on a device that repeats them")


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest absolute difference of two state dicts, 0 only if all bits are equal.

    Raises:
        ValueError: their keys or shapes differ.
    """
    if a.keys() != b.keys() or any(a[key].shape != b[key].shape for key in a):
        raise ValueError("the two checkpoints have other keys or shapes")
    unequal = [key for key in a if not torch.equal(a[key], b[key])]
    return max((float((a[key].double() - b[key].double()).abs().max()) for key in unequal), default=0.0)


def _data(report: Report) -> Path:
    """Make the folder of the embedded images, unless it exists; on the CPU a small part of it."""
    folder = report.work / "fashion"
    if not folder.is_dir():
        begun = report.work / "fashion.begun"
        if code := lit_vision(["data", "fashion", "--out", str(begun)]):
            raise RuntimeError(f"lit-vision data fashion: exit code {code}")
        if not report.on_gpu:
            for directory in (path for split in ("train", "val", "test") for path in (begun / split).iterdir()):
                for file in sorted(directory.iterdir())[40 if directory.parent.name == "train" else 10 :]:
                    file.unlink()
        begun.rename(folder)
    return folder


# study


def study(report: Report) -> None:
    """Run a study of the embedded images in the time that is left, at most 1.5 minutes, and add its accuracies."""
    folder = report.work / "study"
    shutil.rmtree(folder, ignore_errors=True)
    budget = max(0.2, min(1.5, (report.seconds - 40) / 60))  # importing, reading and the first steps come before it
    options = ["--pretrained", "off", "--budget", f"{budget:.2f}", "--run_dir", str(folder)]
    if report.on_gpu:
        options += ["--inits", "mae,simclr,lejepa", "--labels", "1%", "--seeds", "2"]
    else:
        options += ["--inits", "mae", "--labels", "100", "--seeds", "1"]
    data = _data(report)
    if code := lit_vision(["study", str(data), *options]):
        report.fail("study", f"exit code {code}")
        return
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    report.facts |= {"budget_minutes": budget, "steps": found["steps"]}
    report.add("study", found["seconds"], "s")
    for cell in found["cells"]:
        what = f"{cell['init']}, {cell['protocol']}, {cell['labels']} labels, {len(cell['values'])} seeds"
        report.add(f"{what}: test top-1", 100 * cell["mean"], "%")
