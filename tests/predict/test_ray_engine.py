"""predict --engine ray: the local engine's bytes, on loopback only, and errors of workers in one line.

Two nodes and a killed worker: tests/experiments/test_scale_inference.py.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_models import make_classifier, write_images, write_run

from lit_vision.cli.main import main
from lit_vision.errors import UserError
from lit_vision.predict.ray_engine import run_on_ray
from lit_vision.predict.shards import Shard


@pytest.mark.slow
def test_ray_is_the_local_engine_and_listens_on_loopback_only(tmp_path, monkeypatch) -> None:
    pytest.importorskip("ray", reason="needs the ray extra")
    write_run(tmp_path / "run", make_classifier())
    names = write_images(tmp_path / "images", 24)
    (tmp_path / "images" / names[1]).write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    arguments = ["predict", "images", "--model", "run", "--batch_size", "4", "--device", "cpu", "--out"]
    assert main([*arguments, "local.csv"]) == 0
    command = [sys.executable, "-m", "lit_vision", *arguments, "ray.csv", "--engine", "ray", "--shards", "6"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        seen = set()
        while process.poll() is None:
            seen |= listening(process.pid)
            time.sleep(0.2)
        output = process.stdout.read()
    assert process.returncode == 0, output
    assert "ray.csv: 23 images of 6 shards, 1 skipped" in output
    assert len(seen) >= 3  # the head, the node, a worker
    assert {address for address, _ in seen} <= {"0100007F", "0000000000000000FFFF00000100007F"}, seen
    assert Path("ray.csv").read_bytes() == Path("local.csv").read_bytes()
    assert Path("ray.csv.skipped.csv").read_bytes() == Path("local.csv.skipped.csv").read_bytes()
    assert not list(tmp_path.glob("*-of-*"))


def listening(pid: int) -> set[tuple[str, str]]:
    """Return (address, port), hexadecimal, of the TCP sockets on which a process or one below it listens."""
    inodes = set()
    for process in (pid, *descendants(pid)):
        with contextlib.suppress(OSError):  # it has ended
            inodes |= {os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, _, port = fields[1].partition(":")
                found.add((address, port))
    return found


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below one."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(stat.parent.name))
    found = [*below.get(pid, [])]
    for one in found:  # grows while it is read
        found += below.get(one, [])
    return found


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379", "127.0.0.1:port", "x", "127.0.0.1:99999"])
def test_an_address_without_a_cluster(address: str) -> None:
    pytest.importorskip("ray", reason="needs the ray extra")
    with pytest.raises(UserError, match=f"^--address {address}: nothing answers there"):
        run_on_ray(print, [Shard(0, 1)], address)


def test_without_ray(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    write_run(tmp_path / "run", make_classifier())
    write_images(tmp_path / "images", 4)
    command = ["predict", str(tmp_path / "images"), "--model", str(tmp_path / "run"), "--out", str(tmp_path / "o.csv")]
    assert main([*command, "--engine", "ray"]) == 1
    assert "pip install 'lit-vision[ray]'" in capsys.readouterr().err
