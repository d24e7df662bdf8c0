"""A run that FSDP2 saved in parts gives the model of the same run in one file."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from toy_models import make_classifier, write_images, write_run

from lit_vision.cli.main import main
from lit_vision.io.checkpoint_digest import MANIFEST
from lit_vision.io.hashing import sha256_of_file
from lit_vision.io.sharded_checkpoint import REST, load_consolidated
from lit_vision.weights.load import load_into


def split_checkpoint(file: Path, world: int = 2) -> None:
    """Replace a checkpoint by the folder that FSDP2 would have written on `world` processes."""
    checkpoint = torch.load(file, weights_only=True)
    folder = file.with_name("folder")
    folder.mkdir()
    parts, shapes = [{} for _ in range(world)], {}
    for key, value in checkpoint["state_dict"].items():
        if value.ndim:
            name = f"t{len(shapes):06d}"
            shapes[name] = list(value.shape)
            each = -(-len(value) // world)
            for rank, part in enumerate(parts):
                part[name] = value[rank * each : (rank + 1) * each].clone()
            checkpoint["state_dict"][key] = {"tensor": name}
    torch.save(checkpoint, folder / REST)
    for rank, part in enumerate(parts):
        save_file(part, folder / f"rank-{rank:05d}-of-{world:05d}.safetensors")
    files = {p.name: {"size": p.stat().st_size, "sha256": sha256_of_file(p)} for p in folder.iterdir()}
    (folder / MANIFEST).write_text(json.dumps({"step": 1, "world": world, "shapes": shapes, "files": files}))
    file.unlink()
    folder.rename(file)


def test_a_sharded_run_predicts_and_starts_a_training(tmp_path: Path, capsys) -> None:
    method = make_classifier()
    write_run(tmp_path / "run", method)
    write_images(tmp_path / "images", 3)
    shutil.copytree(tmp_path / "run", tmp_path / "sharded")
    checkpoint = tmp_path / "sharded" / "checkpoints" / "last.ckpt"
    split_checkpoint(checkpoint)
    for name in ("run", "sharded", "sharded/checkpoints/last.ckpt"):
        out = tmp_path / f"{name.count('/')}-{name[:3]}.csv"
        arguments = ["predict", str(tmp_path / "images"), "--model", str(tmp_path / name), "--device", "cpu"]
        assert main([*arguments, "--out", str(out)]) == 0
        assert out.read_text() == (tmp_path / "0-run.csv").read_text()
    target = make_classifier()
    with torch.no_grad():
        target.head.weight.zero_()
    assert load_into(target, checkpoint).source == "Classifier"
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in method.state_dict().items())
    assert list(load_consolidated(checkpoint)["state_dict"]) == list(method.state_dict())
    (checkpoint / REST).write_bytes((checkpoint / REST).read_bytes()[:-1])
    assert (
        main(["predict", str(tmp_path / "images"), "--model", str(checkpoint), "--out", str(tmp_path / "d.csv")]) == 1
    )
    assert REST in capsys.readouterr().err
