"""Kill the server of lit-vision label while two clients answer, and count answers that were lost or stored twice."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from soak.run import SoakError

CLIENTS = 2
ANSWERS_A_KILL = 10
CLASSES = ("cat", "dog")
PATIENCE = 600.0  # seconds without any answer after which the server is taken for dead: only a safety net
_DELAY = 0.02  # seconds in which the instant of a kill is drawn, after an answer begins to be sent: some come after it


@dataclass
class LabelCounts:
    """Counts of answers and kills while a labeling server is killed and started again.

    Attributes:
        acknowledged: answers that a client got back, by id: path and label.
        kills: of the server.
        lost: acknowledged answers that the store does not have as they were sent.
        doubled: ids that the store has more than once, and images with more than one answer.
        sent_again: answers that were on their way when the server was killed.
        conflicts: answers to an image that the other client had answered.
    """

    acknowledged: dict[str, tuple[str, str]] = field(default_factory=dict)
    kills: int = 0
    lost: int = 0
    doubled: int = 0
    sent_again: int = 0
    conflicts: int = 0


def kill_the_server(folder: Path, kills: int, rng: random.Random) -> int:
    """Kill the server while ten answers a kill are sent to it; return the kills.

    Raises:
        SoakError: an acknowledged answer was lost, or one is there twice.
    """
    found = kill_while_labeling(folder, ANSWERS_A_KILL * kills, kills, rng)
    print(
        f"labeling: {len(found.acknowledged)} answers, {found.kills} kills, {found.sent_again} answers sent again, "
        f"{found.conflicts} conflicts of the two clients, {found.lost} lost, {found.doubled} doubled",
        flush=True,
    )
    if found.lost or found.doubled:
        raise SoakError(f"labeling: {found.lost} answers lost, {found.doubled} doubled")
    return found.kills


def kill_while_labeling(folder: Path, answers: int, kills: int, rng: random.Random) -> LabelCounts:
    """Answer images from two clients while the server is killed at random instants and started again.

    Args:
        folder: for images and store.
        answers: to be acknowledged.
        kills: spread over them.
        rng: of the instants.
    """
    root, out = folder / "images", folder / "store"
    _write_images(root, answers + 50)
    weights = _write_weights(folder / "weights.safetensors")
    server = _Server(root, out, weights, folder / "server.log")
    counts, lock, done = LabelCounts(), threading.Lock(), threading.Event()
    sending = threading.Event()

    def work(seed: int) -> None:
        own = random.Random(seed)
        with httpx.Client(base_url=server.address, timeout=30) as client:
            while not done.is_set():
                images = _patiently(lambda: client.get("/v1/label/next", params={"count": CLIENTS}))["images"]
                image = images[seed % len(images)]  # or the clients would always answer the same image
                number, path = image["number"], image["path"]
                _patiently(lambda n=number: client.get(f"/v1/label/images/{n}"), is_json=False)
                label, answer_id = own.choice(CLASSES), str(uuid.UUID(int=own.getrandbits(128)))
                body = {"number": number, "path": path, "kind": "label", "labels": [label], "id": answer_id}
                tries = [0]

                def send(body: dict[str, Any] = body, tries: list[int] = tries) -> httpx.Response:
                    tries[0] += 1
                    sending.set()
                    return client.post("/v1/label/answers", json={**body, "replaces": None})

                answer = _patiently(send)
                with lock:
                    counts.sent_again += tries[0] > 1
                    if "error" in answer:  # 409: the other client was faster
                        counts.conflicts += 1
                    elif len(counts.acknowledged) < answers:
                        counts.acknowledged[answer_id] = path, label
                    if len(counts.acknowledged) >= answers:
                        done.set()

    server.start()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    while not done.is_set():
        if counts.kills < kills and len(counts.acknowledged) >= (counts.kills + 1) * answers // (kills + 1):
            sending.clear()
            sending.wait(1)
            time.sleep(rng.uniform(0, _DELAY))
            server.kill()
            counts.kills += 1
            server.start()
        time.sleep(0.001)
    for thread in threads:
        thread.join()
    server.kill()
    count_faults(out / "labels.jsonl", counts)
    return counts


def count_faults(store: Path, counts: LabelCounts) -> None:
    """Set `lost` and `doubled` from the lines of a store."""
    lines = [json.loads(line) for line in store.read_text().splitlines()]  # the last kill may not leave a cut line here
    stored = [line for line in lines if line["event"] == "answer"]
    by_id = {line["id"]: (line["path"], line["labels"][0]) for line in stored}
    counts.lost = sum(by_id.get(answer_id) != sent for answer_id, sent in counts.acknowledged.items())
    for key in ("id", "path"):
        counts.doubled += sum(n - 1 for n in Counter(line[key] for line in stored).values())


def _patiently(request: Any, is_json: bool = True) -> Any:
    """Return the answer to a request, which is sent again, the same, while the server is away."""
    start = time.monotonic()
    while True:
        try:
            answer = request()
            return answer.json() if is_json else answer
        except httpx.TransportError:
            if time.monotonic() - start > PATIENCE:
                raise
            time.sleep(0.02)


class _Server:
    """A server in a fork of this process, which has imported all that it needs."""

    def __init__(self, root: Path, out: Path, weights: Path, log: Path) -> None:
        import lit_vision.serve.labeling.app
        import lit_vision.serve.run_server
        import lit_vision.study.frozen_encoder  # noqa: F401

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address, self.log, self.child = f"http://127.0.0.1:{self.port}", log, 0
        self.arguments = ["label", str(root), "--out", str(out), "--classes", ",".join(CLASSES)]
        self.arguments += ["--port", str(self.port), "--model", str(weights)]

    def start(self) -> None:
        self.child = os.fork()
        if self.child == 0:
            try:
                with open(self.log, "a") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                from lit_vision.cli.main import main

                main(self.arguments)
            finally:
                os._exit(1)

    def kill(self) -> None:
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)


def _write_images(root: Path, count: int) -> None:
    from PIL import Image

    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / f"{i:04d}.png")


def _write_weights(path: Path) -> Path:
    from lit_vision.backbones.backbone import Backbone
    from lit_vision.weights.load import save_backbone

    backbone = Backbone("resnet18", stem="small", layers=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    save_backbone(path, backbone, [0.5] * 3, [0.25] * 3, license="Apache-2.0")
    return path
