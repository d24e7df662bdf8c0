"""Files made by an attacker; experiments/RELIABILITY.md has the table of cases."""

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import wandb
import yaml

from lit_vision.cli import main as cli
from lit_vision.errors import UserError
from lit_vision.io import checkpoint_digest
from lit_vision.io.redact import redact
from lit_vision.runs.checkpoint_io import AtomicCheckpointIO

RECIPE = """
seed_everything: 3
trainer:
  {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1, enable_model_summary: false, enable_progress_bar: false}
model: {class_path: toy_run.ToyNet, init_args: {width: 4}}
data: {class_path: toy_run.ToyData, init_args: {n: 16}}
"""


class Runs:
    """Makes the folder `ran` when it is unpickled."""

    def __init__(self, folder: Path, how: str = "mkdir") -> None:
        self.folder, self.how = folder, how

    def __reduce__(self):
        target = str(self.folder / "ran")
        return {
            "mkdir": (os.mkdir, (target,)),
            "system": (os.system, (f"mkdir {target}",)),
            "exec": (exec, (f"import os; os.mkdir({target!r})",)),
            "eval": (eval, (f"__import__('os').mkdir({target!r})",)),
            "popen": (subprocess.Popen, (["mkdir", target],)),
            "getattr": (getattr, (Path(target), "mkdir")),
        }[self.how]


def with_sidecar(path: Path) -> Path:
    """Add the right sha256, as an attacker would."""
    checkpoint_digest.digest_path(path).write_text(
        checkpoint_digest.format_digests(path, [checkpoint_digest.Digest.of(path, 9)])
    )
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run."""
    folder = tmp_path_factory.mktemp("safety")
    (folder / "toy.yaml").write_text(RECIPE)
    assert cli.main(["fit", "--config", str(folder / "toy.yaml"), "--run_dir", str(folder / "run")]) == 0
    return folder / "run"


@pytest.mark.parametrize("how", ["mkdir", "system", "exec", "eval", "popen", "getattr"])
@pytest.mark.parametrize("where", ["state_dict", "callbacks", "hyper_parameters", "loops", "bare", "legacy"])
def test_a_pickle_in_a_checkpoint_does_not_run(tmp_path: Path, run: Path, capsys, how: str, where: str) -> None:
    path, bad = tmp_path / "last.ckpt", Runs(tmp_path, how)
    good = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    if where == "bare":
        path.write_bytes(pickle.dumps(bad))
    elif where == "legacy":
        torch.save({"state_dict": bad}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({**good, where: {"x": bad}}, path)
    with pytest.raises(UserError):
        AtomicCheckpointIO().load_checkpoint(with_sidecar(path), weights_only=False)
    if how == "mkdir":  # each way in, once
        recipe = str(run.parent / "toy.yaml")
        assert cli.main(["validate", "--config", recipe, "--ckpt_path", str(path), "--run_dir", str(tmp_path)]) == 1
        assert cli.main(["fit", "--config", recipe, "--run_dir", str(tmp_path / "r"), "--resume", str(path)]) == 1
        assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_pickle_hidden_in_a_second_zip_entry_or_a_swapped_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"w": torch.ones(3)}, path)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    name = next(n for n in entries if n.endswith("data.pkl"))
    for content in ({name: pickle.dumps(Runs(tmp_path))}, {"constants.pkl": pickle.dumps(Runs(tmp_path))}):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
            for key, value in {**entries, **content}.items():
                new.writestr(key, value)
        with contextlib.suppress(UserError):
            AtomicCheckpointIO().load_checkpoint(with_sidecar(path))
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["_class_path", "_instantiator", "_target_"])
def test_names_of_classes_in_hyper_parameters_are_not_followed(tmp_path: Path, run: Path, capsys, key: str) -> None:
    (tmp_path / "evil.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass E: pass\ndef make(*a, **k): pass\n"
    )
    good = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    names = {"_class_path": "evil.E", "_instantiator": "evil.make", "_target_": "evil.make"}
    good["hyper_parameters"] = {**good["hyper_parameters"], key: names[key]}
    good["hparams_name"], good["hparams_type"] = "kwargs", "evil.E"
    good["datamodule_hyper_parameters"] = {key: names[key]}
    path = tmp_path / "last.ckpt"
    torch.save(good, path)
    os.environ["PYTHONPATH"] = str(tmp_path)
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        recipe = str(run.parent / "toy.yaml")
        assert (
            cli.main(["validate", "--config", recipe, "--ckpt_path", str(path), "--run_dir", str(tmp_path / "v")]) == 0
        )
        cli.main(["fit", "--config", recipe, "--run_dir", str(tmp_path / "r"), "--resume", str(with_sidecar(path))])
        for command in (
            ["predict", "--model", str(path), str(tmp_path), "--out", str(tmp_path / "o.csv")],
            ["export", str(path)],
        ):
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path)
                with contextlib.suppress(SystemExit):
                    cli.main(command)
    finally:
        sys.path.remove(str(tmp_path))
        del os.environ["PYTHONPATH"]
    assert "evil" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_a_weights_file_is_read_without_running_it(tmp_path: Path) -> None:
    from lit_vision.weights.checkpoint_layouts import read_file

    for name in ("a.pth", "a.ckpt", "a.safetensors", "a.bin"):
        torch.save({"model": Runs(tmp_path)}, tmp_path / name)
        with pytest.raises(UserError):
            read_file(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_sharded_checkpoint_holds_no_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    torch.save({"state_dict": {}, "x": Runs(tmp_path)}, folder / "rest.ckpt")
    entry = {
        "size": (folder / "rest.ckpt").stat().st_size,
        "sha256": checkpoint_digest.sha256_of_file(folder / "rest.ckpt"),
    }
    manifest = {"step": 1, "world": 1, "shapes": {}, "files": {"rest.ckpt": entry}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(folder)
    manifest["files"] = {"../../etc/passwd": {"size": 1, "sha256": "0"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json"):
        AtomicCheckpointIO().load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/passwd", "a/../../outside.jpg", "..\\outside.jpg", "a\0.jpg"])
def test_paths_do_not_leave_the_root(tmp_path: Path, name: str) -> None:
    from lit_vision.data.annotations.table_builder import AnnotationTableBuilder
    from lit_vision.data.folder import Folder, check_within_root

    with pytest.raises(UserError, match=r"out of|outside"):
        Folder(tmp_path, [], {}).read(name)
    with pytest.raises(UserError, match=r"out of|outside"):
        AnnotationTableBuilder(tmp_path, ["x"]).image(name)
    for fine in ("a..b.jpg", "a/b..", "...", "a/.../b.jpg"):
        assert check_within_root(fine) == fine


def test_a_pack_and_shards_name_bytes_in_themselves_only(tmp_path: Path) -> None:
    from PIL import Image

    from lit_vision.data.folder import scan
    from lit_vision.data.pack import Pack
    from lit_vision.data.shard_set import ShardSet
    from lit_vision.data.shard_writer import write_shards

    sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
    from benchmarks._pack_file import write_pack

    for i in range(4):
        path = tmp_path / "set" / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(path)
    write_pack(scan(tmp_path / "set"), tmp_path / "set.pack")
    data = (tmp_path / "set.pack").read_bytes()
    (tmp_path / "evil.pack").write_bytes(data.replace(b"train/a/0.png", b"../../../x.pn"))
    with pytest.raises(UserError, match=r"evil\.pack"):
        Pack(tmp_path / "evil.pack")
    with pytest.raises(KeyError):
        Pack(tmp_path / "set.pack").read("/etc/passwd")
    write_shards(scan(tmp_path / "set"), tmp_path / "shards")
    for path, said in (("/etc/passwd", "leads out"), ("../set.pack", "leads out"), ("train/a/9.png", "is not in it")):
        with pytest.raises(UserError, match=said):
            ShardSet(tmp_path / "shards").read(path)


SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"key {SECRET} used", "key *** used"),
        ("https://me:hunter22@host/x?a=1", "https://***@host/x?a=1"),
        ("s3://b/x?X-Amz-Signature=abc&y=2", "s3://b/x?X-Amz-Signature=***&y=2"),
        ("http://h/p?token=abc&api_key=d", "http://h/p?token=***&api_key=***"),
        ("hf_" + "a" * 34, "***"),
        ("data/fashion, lr 1e-3, user@example.org", "data/fashion, lr 1e-3, user@example.org"),
    ],
)
def test_redact(monkeypatch, text: str, clean: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert redact(text) == clean
    assert redact({"a": [text], "n": 3, "api_key": "x", "monkey": "y"}) == {
        "a": [clean],
        "n": 3,
        "api_key": "***",
        "monkey": "y",
    }


def test_secrets_reach_no_file_and_no_output(tmp_path: Path, monkeypatch, capsys, request) -> None:
    # wandb keeps the key that it read first, for every later run of this process
    request.addfinalizer(lambda: setattr(wandb.setup().settings, "api_key", None))
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    fault = f"https://me:{SECRET[:20]}@host/data?token={SECRET[20:]}"
    (tmp_path / "toy.yaml").write_text(RECIPE.replace("{n: 16}", f"{{n: 16, class_note: 'see {fault}'}}"))
    arguments = [
        "fit",
        "--config",
        "toy.yaml",
        "--run_dir",
        "run",
        "--wandb",
        "p",
        "--data.class_note",
        f"{fault} {SECRET}",
    ]
    assert cli.main(arguments) == 0
    assert cli.main([*arguments[:4], "broken", "--data.fault", f"see {fault} and {SECRET}"]) == 1
    captured = capsys.readouterr()
    for part in (SECRET, SECRET[:20], SECRET[20:]):
        assert part not in captured.out + captured.err
        for path in (p for p in tmp_path.rglob("*") if p.is_file() and p.name != "toy.yaml"):
            assert part.encode() not in path.read_bytes(), path
    assert (
        yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["init_args"]["class_note"].count("***") == 3
    )


def test_results_of_a_random_pickle_stream(tmp_path: Path) -> None:
    """Bytes that are no checkpoint at all: one line, nothing run."""
    for content in (b"", b"\x80\x04.", b"PK\x03\x04", os.urandom(100), io.BytesIO(b"garbage").read()):
        (tmp_path / "x.ckpt").write_bytes(content)
        with pytest.raises(UserError):
            AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")
