"""experiments/compare_losses.py on packages that only pretend to train."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import compare_losses
from compare_losses import Difference, compare

PRETENDER = """
import sys
from pathlib import Path
if sys.argv[1] == "fit":
    run = Path(sys.argv[sys.argv.index("--run_dir") + 1])
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text({metrics!r})
    sys.exit({code})
"""


def tree(folder: Path, metrics: str, code: int = 0) -> str:
    """Make a tree whose runs write these metrics and end with this exit code."""
    (folder / "lit_vision").mkdir(parents=True)
    (folder / "lit_vision" / "__init__.py").write_text("")
    (folder / "lit_vision" / "__main__.py").write_text(PRETENDER.format(metrics=metrics, code=code))
    return str(folder)


def test_cells_are_compared_as_text() -> None:
    old = {"step": ["0", "1"], "train/loss": ["0.5", "0.25"], "val/top1": ["", "1.0"]}
    assert compare(old, old) == [
        Difference("train/loss", 2, 0, ""),
        Difference("step", 2, 0, ""),
        Difference("val/top1", 1, 0, ""),
    ]
    new = {"step": ["0", "1", "2"], "train/loss": ["0.5", "0.250"], "val/knn": ["0.1", ""]}
    assert compare(old, new) == [
        Difference("train/loss", 2, 1, "row 2: 0.25 -> 0.250"),
        Difference("step", 3, 1, "row 3: none -> 2"),
        Difference("val/knn", 1, 1, "row 1: none -> 0.1"),
        Difference("val/top1", 1, 1, "row 2: 1.0 -> none"),
    ]


@pytest.mark.parametrize(("loss", "code"), [("0.1", 0), ("0.10000000000000002", 1)])
def test_two_trees(tmp_path: Path, capsys: pytest.CaptureFixture[str], loss: str, code: int) -> None:
    old = tree(tmp_path / "a", "step,train/loss\n0,0.1\n")
    new = tree(tmp_path / "b", f"step,train/loss\n0,{loss}\n")
    assert compare_losses.main([old, new, "--recipes", "mae"]) == code
    assert ("row 1: 0.1 -> 0.10000000000000002" in capsys.readouterr().out) == bool(code)


def test_a_run_that_fails_or_logs_no_loss_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tree(tmp_path / "a", "step,train/loss\n0,0.1\n")
    bad = tree(tmp_path / "b", "step,train/loss\n0,0.1\n", code=3)
    none = tree(tmp_path / "c", "step\n0\n")
    assert compare_losses.main([good, bad, "--recipes", "mae"]) == 1
    assert "exit code 3" in capsys.readouterr().err
    assert compare_losses.main([none, none, "--recipes", "mae"]) == 1
    assert "no loss" in capsys.readouterr().err


def test_wrong_arguments_exit_2(tmp_path: Path) -> None:
    for arguments in (["no-such-commit"], ["--recipes", "dino"], ["--keep", str(tmp_path)]):
        with pytest.raises(SystemExit) as error:
            compare_losses.main(arguments)
        assert error.value.code == 2
