"""The input pipeline and predict on made-up JPEG files, in images a second."""

from __future__ import annotations

import io
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from benchmarks._steps import seconds_of
from gpu_checks.report import Report
from PIL import Image

from lit_vision.cli.main import main as lit_vision
from lit_vision.data.datamodule import ImageFolderDataModule
from lit_vision.io.processes import cores

WIDTH, HEIGHT, QUALITY = 500, 375, 92  # about ImageNet's files: 500 x 375 pixels, 110 kB


def make_jpegs(folder: Path, count: int, distinct: int) -> Path:
    """Make a folder of two classes of JPEG files, unless it exists; return it.

    Args:
        folder: to make.
        count: files.
        distinct: different images; the other files are links to them, which take as long to decode.
    """
    if folder.is_dir():
        return folder
    begun = folder.with_name(folder.name + ".begun")
    for name in ("a", "b"):
        (begun / "train" / name).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(cores()) as threads:
        images = list(threads.map(_jpeg, range(distinct)))
    for i in range(count):
        path, first = (begun / "train" / "ab"[k % 2] / f"{k:06d}.jpg" for k in (i, i % distinct))
        if i < distinct:
            path.write_bytes(images[i])
        else:
            os.link(first, path)
    begun.rename(folder)
    return folder


def _jpeg(seed: int) -> bytes:
    """Return a JPEG of smooth shapes under fine noise, whose size in bytes is that of a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (HEIGHT // 25, WIDTH // 25, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + rng.integers(-14, 15, smooth.shape, dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _folder(report: Report) -> Path:
    count, distinct = (4096, 512) if report.on_gpu else (48, 16)
    folder = make_jpegs(report.work / "jpegs", count, distinct)
    files = list((folder / "train").rglob("*.jpg"))
    report.facts |= {"files": len(files), "kilobytes_per_file": sum(f.stat().st_size for f in files) / len(files) / 1e3}
    return folder


def input_pipeline(report: Report) -> None:
    """Measure files to finished batches in pinned memory, with all cores and with num_workers auto, against the step.

    Then the same from shards that hold these files as they are, against the files.

    The step's rate is the best one in steps.json of the same folder; without that file there is no ratio.
    """
    folder, size, batch = _folder(report), *((224, 256) if report.on_gpu else (32, 8))
    images = 8192 if report.on_gpu else 64
    settings: tuple[int | str, ...] = (cores(), "auto") if report.on_gpu else (2,)
    shards = report.work / "shards"
    if not shards.is_dir() and (code := lit_vision(["pack", str(folder), "--out", str(shards), "--lossless"])):
        report.fail("shards", f"lit-vision pack: exit code {code}")
    for view in ("mae", "simclr"):
        step = _step_rate(report.path.with_name("steps.json"), view)
        for workers in settings:
            what = f"{view} view, {size} px, {workers} workers"
            with report.attempt(what):
                rates = []
                for root, source in ((folder, ""), (shards, ", from shards")):
                    data = ImageFolderDataModule(
                        str(root),
                        img_size=size,
                        batch_size=batch,
                        train_view=view,
                        num_workers=workers,
                        in_memory=False,
                    )
                    data.setup("fit")
                    rates.append(_loader_rate(data, images))
                    report.add(what + source, rates[-1], "images/s")
                if step:
                    report.add(f"{what}: rate of the input", rates[0] / step, "x", "the step's")
                report.add(f"{what}: rate of shards", rates[1] / rates[0], "x", "the files'")
    if not (report.path.with_name("steps.json")).is_file():
        report.leave_out("rate of the input relative to the step", "there is no steps.json; run the part steps first")


def _loader_rate(data: ImageFolderDataModule, images: int) -> float:
    """Return images a second after the first batch, by which all workers have started."""
    loader, seen, start = data.train_dataloader(), 0, 0.0
    while True:  # epochs
        for batch in loader:
            if start:
                seen += len(batch["images"])
            else:
                start = time.perf_counter()
            if seen >= images:
                return seen / (time.perf_counter() - start)


def _step_rate(path: Path, method: str) -> float | None:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
    except (OSError, ValueError, KeyError):
        return None
    rate: float | None = facts.get("images_per_second", {}).get(method)
    return rate


def predict_folder(report: Report) -> None:
    """Measure lit-vision predict with a classifier of random weights, and its network alone."""
    from lit_vision.cli.predict import main as predict
    from lit_vision.methods.classifier.classifier import Classifier
    from lit_vision.predict.models import load_model

    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    vit, batch, size = ("vit_base_patch16_224", 256, 224) if report.on_gpu else ("vit_tiny_patch16_224", 8, 32)
    folder = _folder(report)
    count = report.facts["files"]
    model = Classifier(vit, 1000, {} if report.on_gpu else tiny)
    path, out = report.work / "classifier.ckpt", report.work / "predictions.csv"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, path)
    what = "classifier ViT-B/16" if report.on_gpu else "classifier toy ViT"
    with report.attempt(f"{what}, network alone"):
        network = load_model(path, report.device).run
        images = torch.randn(batch, 3, size, size)
        network(images)
        alone = batch / seconds_of(lambda: network(images), 4)  # copies to and from the device included
        report.add(f"{what}, network alone, batch {batch}", alone, "images/s")
    few = sorted((folder / "train" / "a").iterdir())[:batch]
    options = ["--model", str(path), "--out", str(out), "--batch_size", str(batch), "--overwrite"]
    options += ["--device", report.device]
    predict([*map(str, few), *options])  # warm
    start = time.perf_counter()
    predict([str(folder), *options])
    seconds = time.perf_counter() - start
    lines = len(out.read_text(encoding="utf-8").splitlines()) - 1
    if lines < count:
        report.fail(what, f"{out.name} has {lines} lines for {count} images")
    report.add(f"{what}, predict, batch {batch}, loading of the model included", count / seconds, "images/s")
