"""No command opens a connection or a port that was not asked for; those on a model or on data import no Lightning.

An audit hook in every process, those that a command starts too, writes each use of an internet address to a file. A new
command gets its row here. Programs that are no Python do not appear; W&B's, which may speak to its server, starts only
where a logger of W&B was asked for. Lightning takes seconds to import.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from toy_dense import make_detector, make_segmenter
from toy_models import (
    make_classifier,
    write_captioner_run,
    write_generator_run,
    write_image_text_run,
    write_images,
    write_run,
)
from toy_restorer import write_restorer_run
from toy_videos import make_video_classifier, numbered_frames, write_movie

from lit_vision.cli.main import COMMANDS
from lit_vision.methods import MAE, LeJEPA, MultiLabelClassifier

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
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
heavy = {"lightning", "torchmetrics", "tensorboard"}
imported = {}

def note(name, watched=heavy):
    if found := sorted(watched & set(sys.modules)):
        imported.setdefault(name, found)

from lit_vision import methods
for name in methods.__all__:
    methods.network_class(name)
note("networks", heavy | {"jsonargparse"})
for command in json.loads(sys.argv[1]):
    if (code := main(command.split())) != 0:
        sys.exit(f"{command}: ended with {code}")
    note(command)
if "--load" in sys.argv:
    import lit_vision
    lit_vision.load("run", "cpu").predict("set/test")
    note("load and predict")
print("imported", json.dumps(imported))
"""
RECIPE = """
trainer: {max_epochs: 1, accelerator: cpu, limit_train_batches: 1, enable_progress_bar: false}
model: {class_path: toy_run.ToyNet}
data: {class_path: toy_run.ToyData}
"""
SIZE = f"--backbone vit_tiny_patch16_224 --backbone_args {json.dumps(VIT, separators=(',', ':'))}"
CALLS = [
    "predict --model run set/test --out p.csv",
    "predict --model detector one.png --out d.csv",
    "predict --model segmenter one.png --out s.csv",
    "predict --model labels/last.ckpt one.png --out l.csv",
    "stylize larger.png --style larger.png --out stylized.png --steps 2",
    "restore --model restorer set/test --out r",
    "predict --model captions set/test --out c.csv",
    "predict --model run set/test --out shards.csv --shard 0/1",
    "predict --out shards.csv --merge",
    "predict --model run set/test --out t.parquet",
    "embed --model run set/test --out h.safetensors --index_type hnsw",
    "search --index h.safetensors --model run --query one.png",
    "embed --model run set/test --out i.safetensors",
    "search --index i.safetensors --duplicates 0.9",
    "embed --model mae/last.ckpt one.png --out m.safetensors",
    "search --index m.safetensors --model mae/last.ckpt --query one.png",
    "embed --model words set/test --out w.safetensors",
    "search --index w.safetensors --model words --text hat",
    "predict --model words set/test --out z.csv --classes toy.yaml",
    "export words --format pt2 --out z.pt2 --classes toy.yaml",
    "choose set --ignore_folders --num 3 --model run --run_dir choose",
    "fewshot set --model run --shots 1 --seeds 1",
    "generate --model gan --num 2 --out made --grid made.png",
    f"import timm.pth {SIZE} --out t.safetensors",
    f"import timm.pth {SIZE} --backbone_only --out b.safetensors",
    "export run --format safetensors --out e.safetensors",
    "predict --model e.safetensors one.png --out e.csv",
    "export lejepa/last.ckpt --format safetensors --out l.safetensors",
    "embed --model l.safetensors one.png --out j.safetensors",
    "prune run --keep 0.5 --out p.safetensors",
    "predict --model p.safetensors set/test --out t.csv",
    "protect keygen k.key",
    "protect keygen s.key --signing",
    "protect seal run --key k.key --out m.sealed",
    "protect sign m.sealed --key s.key",
    "protect verify m.sealed --key s.key.pub",
    "protect unseal m.sealed --key k.key --out m.ckpt",
    "predict --model m.sealed set/test --out q.csv --key k.key --require_signature s.key.pub",
    "data scenes --out scenes --train 1 --val 0 --test 0",
    "data frames clip.mkv --out frames",
    "predict --model clips clip.mkv --out v.csv",
    "doctor set --workers 1 --out doctor",
    "pack set --out shards --workers 1",
]
SLOW_CALLS = [  # Lightning alone takes seconds
    "fit --config toy.yaml --run_dir fit",
    "validate --config toy.yaml --ckpt_path fit/checkpoints/last.ckpt",
    "test --config toy.yaml --ckpt_path fit/checkpoints/last.ckpt",
    # by default a study asks timm's hub for public weights (--pretrained auto), as its help says
    "study set --pretrained off --inits scratch-cnn --epochs 6=1 --labels 6 --seeds 1 --run_dir study",
    "plan toy.yaml",
    "sweep --config toy.yaml --space space.yaml --sampler grid --metric val/loss --run_dir sweep",
    "export run --format openvino --out o.xml",  # OpenVINO's converter would report its use
    "predict --model o.xml set/test --out x.csv",
]
WITH_A_PORT = {"serve", "label"}  # their one port: test_server_process.py, test_label_process.py in tests/serve


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sockets")
    write_run(folder / "run", make_classifier())
    write_restorer_run(folder / "restorer")
    write_run(folder / "clips", make_video_classifier())
    write_movie(folder / "clip.mkv", numbered_frames(10))
    write_generator_run(folder / "gan")
    write_image_text_run(folder / "words", ["a red hat"])
    write_run(folder / "detector", make_detector())
    write_run(folder / "segmenter", make_segmenter())
    mae = MAE("vit_tiny_patch16_224", VIT, decoder_width=16, decoder_depth=1, decoder_heads=2)
    lejepa = LeJEPA("vit_tiny_patch16_224", VIT, projection_width=8, projection_hidden=16)
    labels = MultiLabelClassifier("vit_tiny_patch16_224", 3, VIT)
    for name, method in (("mae", mae), ("lejepa", lejepa), ("labels", labels)):
        (folder / name).mkdir()
        content = {"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}
        torch.save(content, folder / name / "last.ckpt")
    torch.save(timm.create_model("vit_tiny_patch16_224", **VIT).state_dict(), folder / "timm.pth")
    write_captioner_run(folder / "captions", 0.75)
    for seed, (split, n) in enumerate((("train", 12), ("val", 6), ("test", 6))):
        write_images(folder / "set" / split, n, seed)
    shutil.copy(next((folder / "set" / "test").rglob("*.png")), folder / "one.png")
    Image.open(folder / "one.png").resize((40, 32)).save(folder / "larger.png")
    (folder / "toy.yaml").write_text(RECIPE)
    (folder / "space.yaml").write_text("model.lr: {values: [0.1, 0.01]}\n")
    (folder / "hook").mkdir()
    (folder / "hook/sitecustomize.py").write_text(HOOK)
    return folder


def run_watched(calls: list[str], place: Path, *more: str) -> tuple[str, dict[str, list[str]]]:
    """Run commands in one process, and check that the hook was at work.

    Returns:
        What was written of their sockets, and {command: heavy modules that were there after it}.
    """
    watched = place / "watched.txt"
    watched.unlink(missing_ok=True)
    toys = str(Path(__file__).parents[1] / "toys")
    paths = [str(place / "hook"), toys, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "WATCHED": str(watched)}
    for name in ("WANDB_MODE", "HF_HUB_OFFLINE", "NO_ALBUMENTATIONS_UPDATE"):  # that the tests set
        environment.pop(name, None)
    command = [sys.executable, "-c", RUN, json.dumps(calls), *more]
    result = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    probe = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(('127.0.0.1', 0))"
    found = watched.read_text() if watched.exists() else ""
    subprocess.run([sys.executable, "-c", probe], env=environment, check=True)
    assert "socket.bind ('127.0.0.1', 0)" in watched.read_text().removeprefix(found)
    return found, json.loads(result.stdout.splitlines()[-1].removeprefix("imported"))


@pytest.fixture(scope="module")
def quick_calls(place: Path) -> tuple[str, dict[str, list[str]]]:
    return run_watched(CALLS, place, "--load")


def test_no_command_opens_a_socket(quick_calls) -> None:
    assert quick_calls[0] == ""


def test_no_network_and_no_command_on_a_model_or_on_data_imports_lightning(quick_calls) -> None:
    assert quick_calls[1] == {}


@pytest.mark.slow
def test_no_training_opens_a_socket(place: Path) -> None:
    sockets, imported = run_watched(SLOW_CALLS, place)
    assert sockets == ""
    assert "lightning" in imported[SLOW_CALLS[0]]  # what test_no_network_and_no_command_... looks for is seen


def test_every_command_is_watched() -> None:
    assert {call.split()[0] for call in (*CALLS, *SLOW_CALLS)} | WITH_A_PORT == set(COMMANDS)
