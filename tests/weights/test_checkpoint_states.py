"""Other people's checkpoints: prefixes, several states in a file, numpy's values, classes that are refused."""

import argparse
import datetime
import fractions
import itertools
import types
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import timm
import torch
from torch import nn

from lit_vision.backbones.backbone import Backbone
from lit_vision.cli.main import main
from lit_vision.errors import UserError
from lit_vision.io.safe_load import DamagedCheckpointError, load_safely
from lit_vision.weights.checkpoint_layouts import read_common, read_file, to_common_keys
from lit_vision.weights.checkpoint_states import PREFIXES, strip_key_wrappers
from lit_vision.weights.load import load_into

NAME, VIT = "vit_base_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


def state_of(seed: int, classes: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(timm.create_model(NAME, num_classes=classes, **VIT).state_dict())


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


ALL = [*PREFIXES, "_orig_mod."]
NESTED = [*itertools.product(ALL, ALL), ("module.", "model.", "_orig_mod.", "net.", "backbone.")]


def test_any_order_of_prefixes_is_stripped() -> None:
    state = state_of(0)
    for prefixes in NESTED:
        if "".join(prefixes) == "backbone.model.":
            continue  # this project's own form
        common, layout = to_common_keys(strip_key_wrappers(prefixed("".join(prefixes), state)), {})
        assert (layout, set(common)) == ("timm", {f"backbone.{key}" for key in state}), prefixes


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_family_whose_own_module_has_such_a_name(prefix: str, tmp_path: Path) -> None:
    name, size = "qwen3_vit_88m", {"depth": 1, "embed_dim": 32, "num_heads": 2}
    source = timm.create_model(name, num_classes=3, **size).state_dict()
    assert {key.split(".")[0] for key in source} >= {"encoder"}
    torch.save({"state_dict": prefixed(prefix, source)}, tmp_path / "a.pth")
    assert load_into(target := Backbone(name, **size), tmp_path / "a.pth").new == []
    assert all(torch.equal(value, source[key]) for key, value in target.model.state_dict().items())


def test_a_lightning_checkpoint_with_a_loss_beside_the_network(tmp_path: Path, capsys) -> None:
    """Its classifier is imported; what stands beside the network is refused by name, or left out on request."""
    path, out = tmp_path / "a.ckpt", tmp_path / "a.safetensors"
    state, flags = prefixed("model.", state_of(0)), ["--backbone", NAME, "--backbone_args"]
    flags.append(str(VIT).replace("'", '"'))
    torch.save({"state_dict": state, "hyper_parameters": {"lr": 1e-3}, "pytorch-lightning_version": "2.4.0"}, path)
    assert main(["import", str(path), "--out", str(out), *flags]) == 0
    assert "Classifier" in capsys.readouterr().out
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(3)}}, path)
    assert main(["import", str(path), "--out", str(out), *flags, "--overwrite"]) == 1
    assert "criterion.weight" in capsys.readouterr().err
    assert main(["import", str(path), "--out", str(out), *flags, "--overwrite", "--backbone_only"]) == 0


def test_one_of_several_states_is_chosen_by_name_and_said(tmp_path: Path, capsys) -> None:
    path, out = tmp_path / "a.pth.tar", tmp_path / "a.safetensors"
    content = {"state_dict": state_of(0), "state_dict_ema": state_of(1), "optimizer": {"state": {}}, "epoch": 3}
    torch.save({**content, "ema": {"shadow": state_of(2)}}, path)
    flags = ["--backbone", NAME, "--backbone_args", str(VIT).replace("'", '"'), "--out", str(out), "--overwrite"]
    for words, seed in (([], 0), (["--state", "state_dict_ema"], 1), (["--state", "ema.shadow"], 2)):
        assert main(["import", str(path), *flags, *words]) == 0
        said = capsys.readouterr().out.splitlines()[0]
        assert all(name in said for name in ("state_dict", "state_dict_ema", "ema.shadow"))
        assert said.startswith(f"state: {words[1] if words else 'state_dict'} ")
        assert torch.equal(read_common(out)[0]["head.weight"], state_of(seed)["head.weight"])
    assert main(["import", str(path), *flags, "--state", "emma"]) == 1
    error = capsys.readouterr().err
    assert all(name in error for name in ("emma", "state_dict_ema", "ema.shadow"))


def test_states_without_a_usual_name(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"net": prefixed("module.", state_of(0)), "acc": torch.tensor(0.9)}, path)
    assert torch.equal(read_file(path)[0]["head.weight"], state_of(0)["head.weight"])
    torch.save({"student": state_of(0), "teacher": state_of(1)}, path)
    with pytest.raises(UserError, match=r"student, teacher.*--state"):
        read_file(path)
    assert torch.equal(read_file(path, "teacher")[0]["head.weight"], state_of(1)["head.weight"])
    both = {**prefixed("module.student.", state_of(0)), **prefixed("module.teacher.", state_of(1))}
    torch.save({"state_dict": both}, path)  # two networks in one state: modules have names, too
    with pytest.raises(UserError, match="teacher"):
        read_common(path)
    report = load_into(Backbone(NAME, **VIT), _saved(tmp_path, read_file(path, "teacher")[0]))
    assert report.new == []


def _saved(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save(state, folder / "chosen.pth")
    return folder / "chosen.pth"


PLAIN = {
    "numpy float": np.float64(0.5),
    "numpy int": np.int64(3),
    "numpy bool": np.bool_(True),
    "dtype": np.dtype("float32"),
    "type": np.float32,
    "array": np.arange(3),
    "texts": np.array(["a", "b"]),
    "namespace": argparse.Namespace(out=Path("a/b"), lr=np.float32(0.1)),
    "simple namespace": types.SimpleNamespace(a=1),
    "date": datetime.datetime(2026, 1, 2),
}


@pytest.mark.parametrize("what", PLAIN)
def test_plain_data_is_read(what: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {"a.weight": torch.ones(2, 2)}, "extra": PLAIN[what]}, tmp_path / "a.pth")
    assert read_file(tmp_path / "a.pth")[0].keys() == {"a.weight"}
    found = load_safely(tmp_path / "a.pth")["extra"]
    expected = PLAIN[what]
    if what == "namespace":
        expected = argparse.Namespace(out="a/b", lr=np.float32(0.1))  # a path is read as text
    assert np.array_equal(found, expected) if isinstance(expected, np.ndarray) else found == expected


def test_a_path_of_another_system_is_read_as_text(tmp_path: Path) -> None:
    torch.save({"path": PureWindowsPath(r"C:\data\a")}, tmp_path / "a.pth")
    assert load_safely(tmp_path / "a.pth") == {"path": "C:/data/a"}


@pytest.mark.parametrize(
    ("value", "name"),
    [(fractions.Fraction(1, 2), "fractions.Fraction"), (nn.Linear(1, 1), "torch.nn.modules.linear.Linear")],
)
def test_a_refused_class_is_named_in_one_line(value: object, name: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {"a": torch.ones(2, 2)}, "extra": value}, path)
    assert main(["import", str(path), "--out", str(tmp_path / "o.safetensors")]) == 1
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1
    assert not any(word in error for word in ("\x1b", "weights_only", "WeightsUnpickler", "torch.load"))
    with pytest.raises(DamagedCheckpointError, match=name):
        load_safely(path)
