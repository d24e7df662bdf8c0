"""200,000 made-up small images through `predict --shard` and through a Ray cluster of two nodes, a worker of it killed.

Both give one file with each image once, and the same bytes; rates and memory of both stand in
experiments/results/scale-inference.json and are printed from there. The images (16 pixels, PNG) and the network (random
weights) are made up: what is measured is the work around the network. The two nodes are two of Ray's on one machine, on
its loopback address: no network between them is measured.
Run: make scale-inference        Print the results only: experiments/scale_inference.py --print
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "experiments" / "results" / "scale-inference.json"
FOLDER = ROOT / "runs" / "scale-inference"
IMAGES, SHARDS, BATCH, SIDE, A_FOLDER = 200_000, 8, 256, 16, 1_000
SAMPLE_SECONDS = 0.5


def write_images(folder: Path, count: int) -> None:
    """Write made-up PNGs into subfolders of a thousand; a call that was stopped goes on with its last subfolder."""
    from PIL import Image

    for first in range(0, count, A_FOLDER):
        part = folder / f"{first // A_FOLDER:04}"
        last = min(first + A_FOLDER, count)
        if part.is_dir() and len(os.listdir(part)) == last - first:
            continue
        part.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(first).integers(0, 256, (last - first, 4, 4, 3), dtype=np.uint8)
        pixels = pixels.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
        for i, image in enumerate(pixels, first):
            Image.fromarray(image).save(part / f"{i:06}.png", compress_level=1)


def write_model(folder: Path) -> Path:
    """Write a run folder of a small classifier with random weights; return it."""
    import torch

    from lit_vision.methods import Classifier

    path = folder / "checkpoints" / "last.ckpt"
    if not path.exists():
        torch.manual_seed(0)
        network = {"stem": "small", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
        method = Classifier("resnet18", 10, network, head_init_std=1.0).eval()
        names = [f"class {i}" for i in range(10)]
        method.metadata = {"task": "classification", "class_names": names, "size": SIDE, "crop_pct": 1.0}
        checkpoint = {"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}
        method.on_save_checkpoint(checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)
    return folder


class Meter:
    """Samples memory and CPU time of processes while a block runs. Use it as a context manager.

    Args:
        pids: returns the processes to add up, at every sample.

    Attributes:
        peak_sum: MB of all of them together, the most at one sample.
        peak_one: MB of the largest one.
        processes: the most at one sample.
        cpu_seconds: of each process, user and system, at its last sample.
    """

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids, self._stop = pids, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak_sum = self.peak_one = 0.0
        self.processes = 0
        self.cpu_seconds: dict[int, float] = {}

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            pids = self._pids()
            self.cpu_seconds.update({pid: used for pid in pids if (used := cpu_seconds(pid))})
            found = [anonymous_mb(pid) for pid in pids]
            self.peak_sum = max(self.peak_sum, sum(found))
            self.peak_one = max([self.peak_one, *found])
            self.processes = max(self.processes, len(found))

    def numbers(self) -> dict[str, float]:
        """Return what was measured, as plain values."""
        return {
            "cpu_seconds": round(sum(self.cpu_seconds.values()), 1),
            "processes": self.processes,
            "peak_mb": round(self.peak_sum),
            "largest_process_mb": round(self.peak_one),
        }


def anonymous_mb(pid: int) -> float:
    """Return the anonymous memory of a process (RssAnon), MB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:")), 0.0)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far, user and system; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants() -> list[int]:
    """Return the ids of all processes below this one."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        below.setdefault(parent, []).append(int(stat.parent.name))
    found = [*below.get(os.getpid(), [])]
    for pid in found:  # grows while it is read
        found += below.get(pid, [])
    return found


def command(images: Path, model: Path, out: Path) -> list[str]:
    """Return the command line of predict."""
    options = ["--out", str(out), "--batch_size", str(BATCH), "--workers", "1", "--device", "cpu", "--overwrite"]
    return [sys.executable, "-m", "lit_vision", "predict", str(images), "--model", str(model), *options]


def by_shards(images: Path, model: Path, out: Path, count: int, shards: int) -> dict[str, Any]:
    """Run each shard as a process of its own, one after the other, and merge; return what was measured."""
    began = time.perf_counter()
    with Meter(descendants) as meter:
        for i in range(shards):
            subprocess.run([*command(images, model, out), "--shard", f"{i}/{shards}"], check=True)
        merge = [sys.executable, "-m", "lit_vision", "predict", "--out", str(out), "--merge", "--overwrite"]
        subprocess.run(merge, check=True)
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 1), "images_per_s": round(count / seconds), **meter.numbers()}


def by_ray(images: Path, model: Path, out: Path, count: int, shards: int) -> dict[str, Any]:
    """Run the shards on two nodes of Ray, and kill a worker in the middle of one; return what was measured."""
    loopback = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    os.environ.update(loopback)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        killed: list[int] = []
        began = time.perf_counter()
        engine = ["--engine", "ray", "--address", cluster.address, "--shards", str(shards)]
        with Meter(descendants) as meter:
            process = subprocess.Popen([*command(images, model, out), *engine])
            while process.poll() is None:
                time.sleep(0.2)
                if not killed and (worker := busy_worker(out)) is not None:
                    os.kill(worker, signal.SIGKILL)
                    killed.append(worker)
        seconds = time.perf_counter() - began
        if process.returncode != 0 or not killed:
            sys.exit(f"ray: exit code {process.returncode}, {len(killed)} workers killed")
        nodes = len(cluster.list_all_nodes())
    finally:
        cluster.shutdown()
    return {
        "seconds": round(seconds, 1),
        "images_per_s": round(count / seconds),
        "nodes": nodes,
        "workers_killed": len(killed),
        **meter.numbers(),
    }


def busy_worker(out: Path) -> int | None:
    """Return the id of a worker that holds an unfinished part of OUT open, once another part is finished."""
    if not list(out.parent.glob(f"{out.stem}-*.done.json")):
        return None
    for pid in descendants():
        try:
            files = [Path(os.readlink(link)) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        for path in files:
            record = path.with_name(f"{path.name}.json")  # written after each batch
            if path.name.endswith(".csv.part") and path.parent == out.parent and record.exists():
                return pid
    return None


def measure(folder: Path, count: int, shards: int) -> dict[str, Any]:
    """Make images and model, run both ways, and check that each image is in the result once.

    A call that was stopped goes on with the way that is missing.
    """
    from lit_vision.io.atomic import write_json
    from lit_vision.results.environment import collect_environment

    images, model = folder / "images", write_model(folder / "model")
    write_images(images, count)
    found: dict[str, Any] = {"images": count, "parts": shards, "batch_size": BATCH, "side": SIDE}
    contents = []
    for name, run in (("shards", by_shards), ("ray", by_ray)):
        out, numbers = folder / name / "predictions.csv", folder / f"{name}.json"
        if not (out.exists() and numbers.exists()):
            write_json(numbers, run(images, model, out, count, shards))
        found[name] = json.loads(numbers.read_text())
        contents.append(out.read_bytes())
        paths = [line.split(b",", 1)[0] for line in contents[-1].splitlines()[1:]]
        if len(paths) != count or len({*paths}) != count or paths != sorted(paths):
            sys.exit(f"{name}: {len({*paths})} images in {len(paths)} rows, wanted each of {count} once")
        print(f"{name}: {found[name]}", flush=True)
    if contents[0] != contents[1]:
        sys.exit("ray: its file is not that of the shards")
    found["each_image_once_and_the_same_bytes"] = True
    found["environment"] = collect_environment()
    return found


def to_markdown(found: dict[str, Any]) -> str:
    """Return the table of a result."""
    lines = [
        f"{found['images']:,} images of {found['side']} pixels, {found['parts']} shards, batches of "
        f"{found['batch_size']}; each image once and the same bytes both ways. Wall time depends on what else the "
        "machine does: compare images per CPU second, which count the start of every process too (a command for each "
        "shard; Ray's own processes).",
        "",
        "| engine | images/s | images/CPU s | seconds | processes | anonymous MB, all | largest | workers killed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, label in (("shards", "`--shard`, one process at a time"), ("ray", "Ray, two nodes of one core")):
        row = found[name]
        lines.append(
            f"| {label} | {row['images_per_s']:,} | {found['images'] / row['cpu_seconds']:,.0f} | {row['seconds']:g} | "
            f"{row['processes']} | {row['peak_mb']} | {row['largest_process_mb']} | {row.get('workers_killed', 0)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, unless --print is given, and print the table."""
    if "--print" not in sys.argv:
        from lit_vision.io.atomic import write_json

        write_json(RESULT, measure(FOLDER, IMAGES, SHARDS))
    print(to_markdown(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
