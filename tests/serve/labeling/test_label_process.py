"""The command as a process: one port, no Lightning, an end that leaves the table of labels."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

RUN = """
import atexit, sys
from lit_vision.cli.main import main
heavy = {"lightning", "torchmetrics", "tensorboard", "matplotlib"}
atexit.register(lambda: print("imported", heavy & set(sys.modules), flush=True))
sys.exit(main(sys.argv[1:]))
"""
# as in tests/cli/test_sockets.py: every use of an internet address
WATCH = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request"):
        print("socket:", event, arguments[1:] if event.startswith("socket.c") else arguments[-1:], flush=True)
sys.addaudithook(watch)
"""


@pytest.mark.slow
def test_a_labeling_from_its_start_to_sigterm(photos, tmp_path) -> None:
    from lit_vision.backbones.backbone import Backbone
    from lit_vision.weights.load import save_backbone

    backbone = Backbone("resnet18", stem="small", layers=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    weights = tmp_path / "weights.safetensors"
    save_backbone(weights, backbone, [0.5] * 3, [0.25] * 3)
    command = [sys.executable, "-c", WATCH + RUN, "label", str(photos), "--port", "0", "--model", str(weights)]
    command += ["--out", str(tmp_path / "out"), "--classes", "cat,dog"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines = []
        while not lines or not lines[-1].startswith("http"):
            lines.append(process.stdout.readline())
            assert lines[-1], "".join(lines)
        address = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/\n", lines[-1])[1]
        with httpx.Client(base_url=address, timeout=600) as client:
            while client.get("/v1/label/state").json()["features"]["done"] < 20:
                pass
            for number in range(12):
                body = {
                    "number": number,
                    "kind": "label",
                    "labels": ["cat" if number % 2 else "dog"],
                    "id": f"a{number}",
                }
                assert client.post("/v1/label/answers", json=body).status_code == 200
            while client.get("/v1/label/state").json()["model"] is None:
                pass
        process.terminate()
        output = "".join(lines) + process.communicate()[0]
    finally:
        process.kill()
    assert process.returncode == 143
    assert "imported set()" in output
    assert "next: lit-vision study" in output
    sockets = [line for line in output.splitlines() if line.startswith("socket:")]
    assert len([line for line in sockets if "bind" in line]) == 1
    assert all("127.0.0.1" in line or "getaddrinfo" in line for line in sockets)
    assert not [line for line in sockets if "connect" in line]
    assert len((tmp_path / "out/labels.csv").read_text().splitlines()) == 13
    assert (tmp_path / "out/model.safetensors").is_file()
    events = [json.loads(line)["event"] for line in Path(tmp_path / "out/labels.jsonl").read_text().splitlines()]
    assert events.count("answer") == 12
