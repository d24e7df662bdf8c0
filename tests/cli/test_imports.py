"""The commands that use a model or look at data never import Lightning, which takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from toy_dense import make_detector, make_segmenter
from toy_models import make_classifier, write_image_text_run, write_images, write_run
from toy_restorer import write_restorer_run

from lit_vision.methods import MAE, LeJEPA, MultiLabelClassifier

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
HEAVY = ("lightning", "torchmetrics", "tensorboard")
RUN = f"""
import json, os, sys
import lit_vision
from lit_vision.cli.main import main
for command in json.loads(sys.argv[1]):
    if (code := main(command)) != 0:
        sys.exit(f"{{command}} ended with {{code}}")
    if found := {set(HEAVY)!r} & set(sys.modules):
        sys.exit(f"{{command}} imported {{found}}")
lit_vision.load(sys.argv[2], "cpu").predict(sys.argv[3])
if found := {set(HEAVY)!r} & set(sys.modules):
    sys.exit(f"load and predict imported {{found}}")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("imports")
    write_run(folder / "run", make_classifier())
    write_image_text_run(folder / "words", ["a red hat"])
    write_run(folder / "detector", make_detector())
    write_run(folder / "segmenter", make_segmenter())
    write_restorer_run(folder / "restorer")
    mae = MAE("vit_tiny_patch16_224", VIT, decoder_width=16, decoder_depth=1, decoder_heads=2)
    lejepa = LeJEPA("vit_tiny_patch16_224", VIT, projection_width=8, projection_hidden=16)
    labels = MultiLabelClassifier("vit_tiny_patch16_224", 3, VIT)
    for name, method in (("mae", mae), ("lejepa", lejepa), ("labels", labels)):
        (folder / name).mkdir()
        content = {"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}
        torch.save(content, folder / name / "last.ckpt")
    torch.save(timm.create_model("vit_tiny_patch16_224", **VIT).state_dict(), folder / "timm.pth")
    write_images(folder / "data" / "train", 6)
    write_images(folder / "data" / "test", 3, seed=1)
    return folder


def test_no_command_on_a_model_or_on_data_imports_lightning(place: Path) -> None:
    image, out = str(next((place / "data").rglob("*.png"))), place / "out"
    predict = ["predict", "--device", "cpu", "--workers", "1", image]
    search = ["search", "--device", "cpu", "--index", f"{out}/i.safetensors"]
    embed_words, search_words = ([c, "--device", "cpu", "--model", str(place / "words")] for c in ("embed", "search"))
    fewshot = ["fewshot", "--device", "cpu", str(place / "data")]
    size = ["--backbone", "vit_tiny_patch16_224", "--backbone_args", json.dumps(VIT)]
    run_dir = ["--model", str(place / "run"), "--run_dir", f"{out}/choose"]
    commands = [
        [*predict, "--model", str(place / "run"), "--out", f"{out}/p.csv"],
        [*predict, "--model", str(place / "detector"), "--out", f"{out}/d.csv"],
        [*predict, "--model", str(place / "segmenter"), "--out", f"{out}/s.csv"],
        [*predict, "--model", str(place / "labels/last.ckpt"), "--out", f"{out}/l.csv"],
        ["restore", "--device", "cpu", "--model", str(place / "restorer"), image, "--out", f"{out}/restored"],
        ["embed", "--device", "cpu", "--model", str(place / "mae/last.ckpt"), image, "--out", f"{out}/i.safetensors"],
        [*search, "--model", str(place / "mae/last.ckpt"), "--query", image],
        [*embed_words, image, "--out", f"{out}/w.safetensors"],
        [*search_words, "--index", f"{out}/w.safetensors", "--text", "a red hat"],
        ["export", str(place / "run"), "--format", "safetensors", "--out", f"{out}/e.safetensors"],
        ["export", str(place / "lejepa/last.ckpt"), "--format", "safetensors", "--out", f"{out}/l.safetensors"],
        ["embed", "--device", "cpu", "--model", f"{out}/l.safetensors", image, "--out", f"{out}/j.safetensors"],
        [*predict, "--model", f"{out}/e.safetensors", "--out", f"{out}/e.csv"],
        ["import", str(place / "timm.pth"), *size, "--out", f"{out}/t.safetensors"],
        ["import", str(place / "timm.pth"), *size, "--backbone_only", "--out", f"{out}/b.safetensors"],
        [*fewshot, "--model", str(place / "run"), "--shots", "1", "--seeds", "1"],
        ["choose", str(place / "data"), "--ignore_folders", "--num", "2", *run_dir],
        ["doctor", str(place / "data"), "--out", f"{out}/doctor", "--workers", "1"],
        ["data", "scenes", "--out", f"{out}/scenes", "--train", "1", "--val", "0", "--test", "0"],
    ]
    result = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands), place / "run", image], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
