"""lit-vision serve against decode and runtime in one process: latency, refused requests, memory over many requests.

And lit-vision label: the time to the next image, see _labeling.py.

Throughput is images a CPU second of the server's process, so that what the clients spend does not count and other
processes on the machine hardly do. The baseline is the loop that predict runs, batches of 32, in a process of its own.
Both have one thread for decoding and one for the model. Random weights: time does not depend on them. Linux only
(/proc).
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks._labeling import measure_next_image
from benchmarks._processes import save_classifier, write_jpegs
from benchmarks._rows import make_row

CLIENTS = (1, 8, 32)
IMAGES = 32  # files
REQUESTS = 128  # of each number of clients in a turn
MODEL = "vit_tiny_patch16_224"
TARGET = 0.8  # of the baseline's throughput, with 32 clients
MEMORY_REQUESTS = 10_000
WARM_REQUESTS = 1_000  # before the memory is read for the first time
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}

_BASELINE = """
import json, sys, time
import torch
from lit_vision.predict.inputs import batches, find_images
from lit_vision.predict.models import load_model
from lit_vision.predict.tasks import preprocess_for, results_with_options
torch.set_num_threads(1)
model, inputs = load_model(sys.argv[1], "cpu"), find_images([sys.argv[2]])
kind, options = results_with_options(model, {})
lines = kind(model.metadata, "jsonl", **options)
for turn in range(2):  # the first one warms up
    start, count = time.process_time(), 0
    while count < int(sys.argv[3]):
        for batch in batches(inputs, preprocess_for(model.metadata), 32, workers=1):
            lines.lines(batch, model(batch.pixels))
            count += len(batch.names)
    used = time.process_time() - start
print(json.dumps(count / used))
"""


def measure(repeats: int) -> list[dict[str, Any]]:
    """Measure throughput, latency and refusals with 1, 8 and 32 clients, and memory over 10,000 requests; medians."""
    if not Path("/proc/self/stat").is_file():
        return []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_jpegs(folder / "photos", IMAGES)
        model = save_classifier(folder / "model.ckpt", MODEL, 224)
        rows = _throughput(model, folder / "photos", max(1, repeats))
        write_jpegs(folder / "small", 8, 64, 48)
        rows += _memory(save_classifier(folder / "small.ckpt", "resnet10t", 32), folder / "small")
        (folder / "label").mkdir()
        return rows + measure_next_image(folder / "label")


def _throughput(model: Path, photos: Path, repeats: int) -> list[dict[str, Any]]:
    files = [path.read_bytes() for path in sorted(photos.iterdir())]
    found: dict[int, list[_Load]] = {clients: [] for clients in CLIENTS}
    ratios: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    with _server(model) as (address, process):
        _send(address, process, files, 8, 64)  # warms up
        for _ in range(repeats):
            baseline = _baseline(model, photos)
            for clients in CLIENTS:
                load = _send(address, process, files, clients, REQUESTS)
                found[clients].append(load)
                ratios[clients].append(load.per_cpu_second / baseline)
    rows = []
    for clients in CLIENTS:
        name = f"serve, {MODEL}, {clients} client{'s' * (clients > 1)}"
        ratio = statistics.median(ratios[clients])
        target = (f">= {TARGET}", ratio >= TARGET) if clients == max(CLIENTS) else ("-", None)
        rows.append(make_row(f"{name}: images a CPU second", ratio, "x", "decode and model in one process", *target))
        for share in (50, 99):
            value = statistics.median(load.percentile(share) for load in found[clients])
            rows.append(make_row(f"{name}: p{share} of the time to the answer", 1000 * value, "ms"))
        rows.append(make_row(f"{name}: answers with 503", sum(load.refused for load in found[clients]), "requests"))
    return rows


def _memory(model: Path, photos: Path) -> list[dict[str, Any]]:
    files = [path.read_bytes() for path in sorted(photos.iterdir())]
    with _server(model) as (address, process):
        _send(address, process, files, 8, WARM_REQUESTS)
        before = _anonymous_memory(process)
        _send(address, process, files, 8, MEMORY_REQUESTS)
        after = _anonymous_memory(process)
    what = f"serve, anonymous memory after {MEMORY_REQUESTS:,} more requests"
    return [make_row(what, after - before, "MB", f"{before:.0f} MB after {WARM_REQUESTS:,}")]


def _baseline(model: Path, photos: Path) -> float:
    """Return images a CPU second of decoding and the model in one process."""
    command = [sys.executable, "-c", _BASELINE, str(model), str(photos), str(REQUESTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **_ONE_THREAD})
    return float(json.loads(done.stdout))


@contextmanager
def _server(model: Path) -> Iterator[tuple[str, int]]:
    """Start a server; yield its address and process, and end it."""
    command = [
        sys.executable,
        "-m",
        "lit_vision",
        "serve",
        str(model),
        "--port",
        "0",
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, **_ONE_THREAD}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        lines = iter(process.stdout.readline, "")  # type: ignore[union-attr]
        address = next(line.strip() for line in lines if line.startswith("http"))
        yield address, process.pid
    finally:
        process.terminate()
        process.wait()


class _Load:
    """Answers of a number of requests.

    Attributes:
        per_cpu_second: images a CPU second of the server.
        refused: answers with 503.
    """

    def __init__(self, seconds: list[float], refused: int, used: float) -> None:
        self.seconds, self.refused = sorted(seconds), refused
        self.per_cpu_second = len(seconds) / used

    def percentile(self, share: int) -> float:
        """Return the seconds that a share of the requests, in per cent, did not exceed."""
        return self.seconds[min(len(self.seconds) - 1, len(self.seconds) * share // 100)]


def _send(address: str, process: int, files: list[bytes], clients: int, requests: int) -> _Load:
    """Send requests of one image each from several threads; each sends the next one when it has its answer."""
    import httpx

    numbers, seconds, refused = itertools.count(), [], []

    def work() -> None:
        with httpx.Client(base_url=address, timeout=120) as client:
            while (number := next(numbers)) < requests:
                start = time.perf_counter()
                answer = client.post("/v1/predict", files={"image": files[number % len(files)]})
                if answer.status_code == 503:
                    refused.append(number)
                    continue
                answer.raise_for_status()
                seconds.append(time.perf_counter() - start)

    before = _cpu_seconds(process)
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _Load(seconds, len(refused), _cpu_seconds(process) - before)


def _cpu_seconds(process: int) -> float:
    """Return user and system seconds of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _anonymous_memory(process: int) -> float:
    """Return the resident anonymous memory of a process in MB (10^6 bytes)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) * 1024 / 1e6
