"""Shards against a pack of the same files: images per second from the disk and from a loopback server, bytes, memory.

The server answers each request after 5 ms, as a bucket in the same region does. It runs in a process of its own and
counts what it sends. Pipelines take turns in short rounds; ratios are taken within a round. From the disk CPU time
counts, so that other programs matter less; from the server the clock, because waiting is what would cost.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks._pack_file import write_pack
from benchmarks._processes import write_jpegs
from benchmarks._rows import make_row

from lit_vision.data import ImageFolderDataModule
from lit_vision.data.folder import scan
from lit_vision.data.shard_writer import write_shards
from lit_vision.data.shards.index import INDEX_NAME, ShardFile, ShardIndex, join_texts, load_index

IMAGES, SHARDS, BATCH = 192, 6, 16
DELAY = 0.005  # seconds of a request
ROWS = 1_000_000  # of the index whose memory is measured
# prints the anonymous bytes that an opened index holds; a first one lets the allocators take what they keep
OPENING = """
import sys
from pathlib import Path
from lit_vision.data.shards.index import load_index

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

load_index(Path(sys.argv[1]))
before = anonymous()
index = load_index(Path(sys.argv[1]))
print(anonymous() - before)
"""
PACK, LOCAL, REMOTE = "pack", "shards", "shards by HTTP"


def measure(repeats: int) -> list[dict[str, Any]]:
    """Measure rates and their ratios, bytes that were read, and anonymous memory."""
    torch.set_num_threads(1)
    os.environ["no_proxy"] = "127.0.0.1"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("a", "b"):
            write_jpegs(folder / "files" / "train" / name, IMAGES // 2)
        scanned = scan(folder / "files")
        write_pack(scanned, folder / "files.pack")
        write_shards(scanned, folder / "shards", SHARDS)
        stored = int(load_index(folder / "shards" / INDEX_NAME).arrays["length"].sum())
        script = Path(__file__).parents[1] / "range_server.py"
        command = [sys.executable, str(script), str(folder / "shards"), "--delay", str(DELAY)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().strip()
                sources = {PACK: str(folder / "files.pack"), LOCAL: str(folder / "shards"), REMOTE: address}
                rows = _rate_rows({name: _Epochs(root) for name, root in sources.items()}, address, stored, repeats)
            finally:
                server.kill()
        return [*rows, _index_row(folder / "large.safetensors")]


class _Epochs:
    """Epochs of SimCLR's views from one source, one after the other, in this process."""

    def __init__(self, root: str):
        # no cache: every epoch is read from where it lies
        self.module = ImageFolderDataModule(
            root, img_size=224, batch_size=BATCH, train_view="simclr", num_workers=0, in_memory=False, cache_gb=0
        )
        self.loader = self.module.train_dataloader()
        self.epoch = 0

    def run(self) -> tuple[float, float, int]:
        """Return the images per second by the clock and by CPU time of an epoch, and anonymous bytes after it."""
        self.loader.batch_sampler.sampler.set_epoch(self.epoch)
        clock, cpu, count = time.perf_counter(), time.process_time(), 0
        for batch in self.loader:
            count += len(batch["key"])
        self.epoch += 1
        return count / (time.perf_counter() - clock), count / (time.process_time() - cpu), anonymous_bytes()


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process in bytes: what is not a page of a file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: Linux only")


def _rate_rows(epochs: dict[str, _Epochs], address: str, stored: int, repeats: int) -> list[dict[str, Any]]:
    clock: dict[str, list[float]] = {name: [] for name in epochs}
    cpu: dict[str, list[float]] = {name: [] for name in epochs}
    memory = []
    counts: dict[str, int] = {}
    for turn in range(repeats + 1):
        names = list(epochs)
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            by_clock, by_cpu, held = epochs[name].run()
            if turn:  # the first round fills caches
                clock[name].append(by_clock)
                cpu[name].append(by_cpu)
        memory.append(held)
        counts = _ask(address, "reset")
    rows = [make_row(f"{name}, of one core", statistics.median(rates), "images/s") for name, rates in cpu.items()]
    local = statistics.median(a / b for a, b in zip(cpu[LOCAL], cpu[PACK]))
    remote = statistics.median(a / b for a, b in zip(clock[REMOTE], clock[LOCAL]))
    remote_cpu = statistics.median(a / b for a, b in zip(cpu[REMOTE], cpu[LOCAL]))
    where = f"{DELAY * 1e3:.0f} ms a request"
    once = counts["bytes"] / stored
    grown = (memory[-1] - memory[1]) / 1e6
    return [
        *rows,
        make_row("shards from the disk, CPU time", local, "x", PACK, ">= 0.95 x", local >= 0.95),
        make_row(f"shards by HTTP, {where}, clock", remote, "x", LOCAL, ">= 0.8 x", remote >= 0.8),
        make_row(f"shards by HTTP, {where}, CPU time", remote_cpu, "x", LOCAL),
        make_row("bytes sent in an epoch", once, "x", "bytes of the images", "1 x", counts["bytes"] == stored),
        make_row("bytes sent twice in it", counts["again"], "bytes", "-", "0", counts["again"] == 0),
        make_row("requests in it", counts["requests"], ""),
        make_row(f"anonymous memory, more after {repeats} rounds", grown, "MB", "after 1", "<= 8 MB", grown <= 8),
    ]


def _ask(address: str, what: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{address}/{what}") as answer:
        counts: dict[str, int] = json.load(answer)
    return counts


def _index_row(path: Path) -> dict[str, Any]:
    """Return the anonymous memory that opening an index of a million images takes."""
    path_ends, path_bytes = join_texts([f"train/class{i % 1000:04d}/{i:08d}.jpg" for i in range(ROWS)])
    arrays = {
        "shard": np.zeros(ROWS, np.int32),
        "offset": np.zeros(ROWS, np.int64),
        "length": np.ones(ROWS, np.int64),
        "checksum": np.zeros((ROWS, 16), np.uint8),
        "label": np.zeros(ROWS, np.int64),
        "path_ends": path_ends,
        "path_bytes": path_bytes,
        "group_ends": np.zeros(ROWS + 1, np.int64),
        "group_bytes": np.zeros(0, np.uint8),
    }
    ShardIndex([ShardFile("train-00000.tar", 1, "")], ["a"], [("train", ROWS)], arrays).save(path)
    del arrays, path_ends, path_bytes
    more = float(subprocess.check_output([sys.executable, "-c", OPENING, str(path)], text=True)) / 1e6
    size = path.stat().st_size / 1e6
    what = f"anonymous memory of an opened index of {ROWS:,} images ({size:.0f} MB)"
    return make_row(what, more, "MB", "-", "<= 8 MB", more <= 8)
