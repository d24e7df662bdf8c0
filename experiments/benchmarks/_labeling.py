"""Seconds until lit-vision label shows the next image, with 50,000 images.

The images are hard links to 8 small JPEGs and the encoder is a toy: times of the queue, the store and the model that
learns along depend on the number of images and labels, not on their content. A client labels as a person does: it asks
for the next image, loads its picture and sends an answer, without a pause in between.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks._processes import write_jpegs
from benchmarks._rows import make_row

LINKS = 50_000
FILES = 8
ANSWERS = 200
CLASSES = 5
TARGET = 100  # ms


def measure_next_image(folder: Path) -> list[dict[str, Any]]:
    """Return rows of p50 and p95: of the next image's number and picture, and of an answer that is on the disk."""
    root = folder / "photos"
    write_jpegs(folder / "files", FILES, 64, 48)
    files = sorted((folder / "files").iterdir())
    root.mkdir()
    for i in range(LINKS):
        os.link(files[i % FILES], root / f"{i:05d}.jpg")
    rows = []
    with _server(root, folder / "store", _write_weights(folder / "weights.safetensors")) as address:
        rows += _label(address, "while features are read")
        _wait_for_features(address)
        rows += _label(address, "with all features")
    return rows


def _label(address: str, when: str) -> list[dict[str, Any]]:
    import httpx

    shown, stored = [], []
    with httpx.Client(base_url=address, timeout=600) as client:
        for _ in range(ANSWERS):
            start = time.perf_counter()
            image = client.get("/v1/label/next", params={"count": 3}).json()["images"][0]
            client.get(f"/v1/label/images/{image['number']}").raise_for_status()
            shown.append(time.perf_counter() - start)
            label = f"class{int(Path(image['path']).stem) % FILES % CLASSES}"
            body = {"number": image["number"], "kind": "label", "labels": [label], "id": str(uuid.uuid4())}
            start = time.perf_counter()
            client.post("/v1/label/answers", json=body).raise_for_status()
            stored.append(time.perf_counter() - start)
    rows = []
    for what, seconds in (("the next image", sorted(shown)), ("an answer", sorted(stored))):
        for share in (50, 95):
            value = 1000 * seconds[min(len(seconds) - 1, len(seconds) * share // 100)]
            target = (f"<= {TARGET}", value <= TARGET) if what == "the next image" else ("-", None)
            rows.append(make_row(f"label, {LINKS:,} images, {when}: p{share} of {what}", value, "ms", "-", *target))
    return rows


def _wait_for_features(address: str) -> None:
    import httpx

    while True:
        state = httpx.get(f"{address}/v1/label/state", timeout=600).raise_for_status().json()
        if state["problem"]:
            raise RuntimeError(state["problem"])
        if state["features"]["done"] == LINKS:
            return
        time.sleep(1)


def _write_weights(path: Path) -> Path:
    from lit_vision.backbones.backbone import Backbone
    from lit_vision.weights.load import save_backbone

    backbone = Backbone("resnet18", stem="small", layers=[1, 1, 1, 1], channels=[8, 8, 8, 512])
    save_backbone(path, backbone, [0.5] * 3, [0.25] * 3, license="Apache-2.0", size="16")
    return path


@contextmanager
def _server(root: Path, store: Path, weights: Path) -> Iterator[str]:
    """Start a server; yield its address, and end it."""
    classes = ",".join(f"class{i}" for i in range(CLASSES))
    command = [sys.executable, "-m", "lit_vision", "label", str(root), "--out", str(store), "--port", "0"]
    command += ["--model", str(weights), "--classes", classes]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        lines = iter(process.stdout.readline, "")  # type: ignore[union-attr]
        yield next(line.strip().rstrip("/") for line in lines if line.startswith("http"))
    finally:
        process.terminate()
        process.communicate()
