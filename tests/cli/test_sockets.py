"""No command opens a connection or a port that was not asked for, in its own process or in one that it starts.

An audit hook in every process writes each use of an internet address to a file. A new command gets its row here.
Programs that are no Python do not appear; W&B's, which may speak to its server, starts only where a logger of W&B was
asked for.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_models import make_classifier, write_image_text_run, write_images, write_run

from lit_vision.cli.main import COMMANDS

# Python imports sitecustomize at its start, so that child processes are watched too
HOOK = """
import os, sys

def watch(event, arguments):
    if event == "socket.connect" or event == "socket.bind":
        address = arguments[1]
        if isinstance(address, tuple):
            note(event, address)
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request", "smtplib.connect"):
        note(event, arguments)

def note(event, what):
    with open(os.environ["WATCHED"], "a") as file:
        file.write(f"{' '.join(sys.argv)[:200]}: {event} {str(what)[:200]}\\n")

sys.addaudithook(watch)
"""
RUN = """
import json, sys
from lit_vision.cli.main import main
for command in json.loads(sys.argv[1]):
    if (code := main(command.split())) != 0:
        sys.exit(f"{command}: ended with {code}")
"""
RECIPE = """
trainer: {max_epochs: 1, accelerator: cpu, limit_train_batches: 1, enable_progress_bar: false}
model: {class_path: toy_run.ToyNet}
data: {class_path: toy_run.ToyData}
"""
CALLS = [
    "predict --model run set/test --out p.csv",
    "embed --model run set/test --out i.safetensors",
    "search --index i.safetensors --duplicates 0.9",
    "embed --model words set/test --out w.safetensors",
    "search --index w.safetensors --model words --text hat",
    "choose set --ignore_folders --num 3 --model run --run_dir choose",
    "fewshot set --model run --shots 1 --seeds 1",
    "import timm.pth --backbone resnet18 --backbone_args {} --backbone_only --out t.safetensors",
    "export run --format safetensors --out e.safetensors",
    "data scenes --out scenes --train 1 --val 0 --test 0",
    "doctor set --workers 1 --out doctor",
    "pack set --out o.pack --workers 1",
]
SLOW_CALLS = [  # Lightning alone takes seconds
    "fit --config toy.yaml --run_dir fit",
    "validate --config toy.yaml --ckpt_path fit/checkpoints/last.ckpt",
    "test --config toy.yaml --ckpt_path fit/checkpoints/last.ckpt",
    # by default a study asks timm's hub for public weights (--pretrained auto), as its help says
    "study set --pretrained off --inits scratch-cnn --epochs 6=1 --labels 6 --seeds 1 --run_dir study",
]
WITH_A_PORT = {"serve", "label"}  # their one port: test_server_process.py, test_label_process.py in tests/serve


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    import timm

    folder = tmp_path_factory.mktemp("sockets")
    write_run(folder / "run", make_classifier())
    write_image_text_run(folder / "words", ["a red hat"])
    for seed, (split, n) in enumerate((("train", 12), ("val", 6), ("test", 6))):
        write_images(folder / "set" / split, n, seed)
    (folder / "toy.yaml").write_text(RECIPE)
    torch.save(timm.create_model("resnet18").state_dict(), folder / "timm.pth")
    (folder / "hook").mkdir()
    (folder / "hook/sitecustomize.py").write_text(HOOK)
    return folder


def sockets_of(calls: list[str], place: Path) -> str:
    """Return what was written of the sockets of some commands, and check that the hook was at work."""
    watched = place / "watched.txt"
    watched.unlink(missing_ok=True)
    toys = str(Path(__file__).parents[1] / "toys")
    paths = [str(place / "hook"), toys, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "WATCHED": str(watched)}
    for name in ("WANDB_MODE", "HF_HUB_OFFLINE", "NO_ALBUMENTATIONS_UPDATE"):  # that the tests set
        environment.pop(name, None)
    command = [sys.executable, "-c", RUN, json.dumps(calls)]
    result = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    probe = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(('127.0.0.1', 0))"
    found = watched.read_text() if watched.exists() else ""
    subprocess.run([sys.executable, "-c", probe], env=environment, check=True)
    assert "socket.bind ('127.0.0.1', 0)" in watched.read_text().removeprefix(found)
    return found


def test_no_command_opens_a_socket(place: Path) -> None:
    assert sockets_of(CALLS, place) == ""


@pytest.mark.slow
def test_no_training_opens_a_socket(place: Path) -> None:
    assert sockets_of(SLOW_CALLS, place) == ""


def test_every_command_is_watched() -> None:
    assert {call.split()[0] for call in (*CALLS, *SLOW_CALLS)} | WITH_A_PORT == set(COMMANDS)
