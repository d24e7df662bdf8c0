"""Refusals of experiments/transfer.py before any training, in one line. What it trains: test_dense_tables.py."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
transfer = importlib.import_module("transfer")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch) -> Path:
    """Two folders of two classes, A and B; next to them what is broken."""
    rng = np.random.default_rng(0)
    for root, side, classes in (
        ("A", 16, "xy"),
        ("B", 16, "xy"),
        ("other/A", 16, "xy"),
        ("one", 16, "x"),
    ):
        for split in ("train", "test"):
            for name in classes:
                (tmp_path / root / split / name).mkdir(parents=True)
                for i in range(4):
                    pixels = rng.integers(0, 255, (side, side), dtype=np.uint8)
                    Image.fromarray(pixels).save(tmp_path / root / split / name / f"{i}.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transfer, "make", lambda *args: pytest.fail("trained"))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ("--pretrain_on A --adapt_to other/A", 1, ("A and other/A", "ln -s other/A other-A")),
        ("--pretrain_on A --adapt_to other/A --dry", 1, ("A and other/A", "ln -s other/A other-A")),
        ("--pretrain_on A --adapt_to A/", 1, ("A and A/",)),
        ("--pretrain_on . --adapt_to B", 1, (".: ", "name")),
        ("--pretrain_on A", 2, ("--pretrain_on", "--adapt_to")),
        ("--pretrain-on A --adapt-to B", 2, ("--pretrain-on",)),
        ("--pretrain_on A --adapt_to none", 1, ("none: ",)),
        ("--pretrain_on empty --adapt_to B", 1, ("empty: ",)),
        ("--pretrain_on A --adapt_to file", 1, ("file: ",)),
        ("--pretrain_on A --adapt_to one", 1, ("one: ", "class")),
        ("--pretrain_on A --adapt_to B --labels some", 2, ("--labels", "'some'")),
        ("--pretrain_on A --adapt_to B --labels 0", 2, ("--labels", "'0'")),
        ("--pretrain_on A --adapt_to B --run_dir file", 1, ("--run_dir file",)),
        ("--pretrain_on A --adapt_to B --seeds 0", 2, ("--seeds", "--epochs")),
        ("--pretrain_on A --adapt_to B --init moco", 2, ("--init", "'moco'")),
    ],
)
def test_it_is_refused_before_any_training(
    arguments: str, code: int, named: tuple[str, ...], folders: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", ["transfer.py", *arguments.split()])
    try:
        found = transfer.main()
    except SystemExit as stop:  # argparse, which prints the usage before its line
        found = stop.code
    assert found == code
    error = capsys.readouterr().err
    assert all(word in error.splitlines()[-1] for word in named)
    assert code == 2 or error.count("\n") == 1
    assert not (folders / "runs").exists()


def test_a_link_with_another_name_is_another_folder(folders: Path, monkeypatch) -> None:
    made = []
    monkeypatch.setattr(transfer, "make", lambda plan, images, *args: made.append(list(images)))
    (folders / "other-A").symlink_to(folders / "other/A")
    monkeypatch.setattr(transfer, "show", lambda *args: None)
    monkeypatch.setattr(sys, "argv", ["transfer.py", "--pretrain_on", "A", "--adapt_to", "other-A", "--labels", "4"])
    assert transfer.main() == 0
    assert made == [["A", "other-A"]]
