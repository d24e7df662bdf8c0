"""Settings become plain values; a checkpoint that could not be loaded again is not saved."""

import enum
import fractions
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_vision.errors import UserError
from lit_vision.io.plain_values import plain_value
from lit_vision.methods import Classifier
from lit_vision.runs.checkpoint_io import AtomicCheckpointIO

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


class Word(str, enum.Enum):
    BCE = "bce"


CASES = [
    (np.float64(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.array([[1.0, 2.0]]), [[1.0, 2.0]]),
    (torch.tensor(2), 2),
    (torch.ones(2), [1.0, 1.0]),
    (Path("a/b"), "a/b"),
    (np.str_("x"), "x"),
    (Word.BCE, "bce"),
    ([np.float32(1), (np.int8(2),)], [1.0, (2,)]),
    ({"a": {"b": np.arange(2)}}, {"a": {"b": [0, 1]}}),
    (None, None),
]


@pytest.mark.parametrize(("given", "expected"), CASES)
def test_plain_value(given: object, expected: object) -> None:
    found = plain_value(given, "lr")
    assert found == expected
    assert type(found) is type(expected)


def test_what_is_not_plain_is_refused_at_construction() -> None:
    with pytest.raises(UserError, match=r"backbone_args\.drop_path_rate.*Fraction"):
        Classifier("vit_tiny_patch16_224", 2, {**VIT, "drop_path_rate": fractions.Fraction(0)})


def test_a_methods_settings_are_plain_and_so_is_what_loggers_get() -> None:
    weights = np.array([1.0, 2.0])
    module = Classifier("vit_tiny_patch16_224", np.int64(2), VIT, lr=np.logspace(-4, -2, 3)[1], class_weights=weights)
    for stored in (module.hparams, module.hparams_initial):
        assert (stored["num_classes"], stored["lr"], stored["class_weights"]) == (2, 1e-3, [1.0, 2.0])
        assert [type(stored[name]) for name in ("num_classes", "lr", "class_weights")] == [int, float, list]
    assert module.class_weights.tolist() == [1.0, 2.0]


def test_a_checkpoint_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    path, writer = tmp_path / "last.ckpt", AtomicCheckpointIO()
    writer.save_checkpoint({"state_dict": {"a": torch.ones(2)}, "best": np.float64(0.5)}, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"last\.ckpt: not saved.*fractions\.Fraction"):
        writer.save_checkpoint({"state_dict": {"a": torch.zeros(2)}, "best": fractions.Fraction(1, 2)}, path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    assert writer.load_checkpoint(path)["best"] == 0.5
