"""Runs on shards that are killed at every step, compared with a run on the folder that nobody killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.data.folder import scan
from lit_vision.data.shard_writer import write_shards
from soak.cases import Case

if TYPE_CHECKING:
    from soak.scenarios import Soak

SERVER = Path(__file__).parents[1] / "range_server.py"
SETTINGS = ((1, 0), (1, 2), (2, 0))  # processes, workers of the loader
FAIL_EVERY = 10  # requests
STEPS = 99  # more than a run has


def train_from_disk(soak: Soak) -> None:
    """Kill runs on local shards."""
    _kill_at_every_step(soak, "shards on the disk, every step", str(_write(soak)))


def train_by_http(soak: Soak) -> None:
    """Kill runs on shards behind a loopback server that fails every tenth request."""
    command = [sys.executable, str(SERVER), str(_write(soak)), "--fail_every", str(FAIL_EVERY)]
    os.environ["LIT_VISION_CACHE_GB"] = "0"  # every image is asked for in every epoch and after every resume
    os.environ["no_proxy"] = "127.0.0.1"
    os.environ["XDG_CACHE_HOME"] = str(soak.folder)  # of the index
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            _kill_at_every_step(soak, "shards by HTTP, every step", server.stdout.readline().strip())
        finally:
            server.kill()


def _write(soak: Soak) -> Path:
    """Write the shards of the images that all runs have; return their folder."""
    folder = soak.folder / "shards"
    write_shards(scan(Case(soak.folder).write_images()), folder, 3)
    return folder


def _kill_at_every_step(soak: Soak, scenario: str, source: str) -> None:
    """Kill before the save of each step, which is then repeated, and after it; compare with the run on the folder."""
    for processes, workers in SETTINGS:

        def kill(i: int) -> dict[str, Any] | None:
            return {"kill": ("end:1", "start:2")[i % 2]} if i < 2 * STEPS else None

        soak.reference(Case(soak.folder, "MAE", workers, world_size=processes))  # on the folder
        case = Case(soak.folder, "MAE", workers, world_size=processes, source=source)
        soak.kill_and_compare(scenario, case, f"shards-{processes}-{workers}", kill)
