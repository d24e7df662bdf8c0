"""lit-vision doctor: its findings in generated folders, its exit code, its lists, and the suggested workers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from broken_files import encode, picture

from lit_vision.cli.doctor import main
from lit_vision.data.check.duplicates import connected_groups, exact_groups, near_pairs
from lit_vision.data.check.folder_check import examine
from lit_vision.data.check.loader_speed import suggested_workers
from lit_vision.data.folder import scan
from lit_vision.data.shard_writer import Encoding, write_shards
from lit_vision.errors import UsageError, UserError

NAMES = ("train", "val", "test")


def _folder(root: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def _jpeg(seed: int) -> bytes:
    return encode(picture(seed), "JPEG", quality=90)


def _sound() -> dict[str, bytes]:
    return {
        f"{split}/{label}/{i}.jpg": _jpeg(1000 * a + 100 * b + i)
        for a, (split, count) in enumerate((("train", 10), ("val", 3), ("test", 3)))
        for b, label in enumerate(("ant", "bee"))
        for i in range(count)
    }


def _findings(report: dict, level: str) -> str:
    """Return the text of the findings of one level, a line each."""
    return "\n".join(f["what"] for f in report["findings"] if f["level"] == level)


def _files(report: dict) -> list[tuple[int, list[str]]]:
    """Return count and files of the warnings that list files."""
    return [(f["count"], f["files"]) for f in report["findings"] if f["level"] == "warn" and f["files"]]


def test_sound_folder__passes_with_nothing_to_report(tmp_path, capsys) -> None:
    root = _folder(tmp_path / "data", _sound())
    assert main([str(root), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    report = json.loads((tmp_path / "out/doctor.json").read_text())
    assert report["fit"]
    assert report["findings"] == report["quarantine"] == []
    assert report["classes"]["train"] == {"ant": 10, "bee": 10}
    assert str(tmp_path / "out/doctor.json") in capsys.readouterr().out


def test_copies_leaks_and_clashing_labels__are_found(tmp_path) -> None:
    files = _sound()
    files["train/ant/exact.jpg"] = files["train/ant/0.jpg"]
    files["train/bee/near.png"] = encode(picture(101), "PNG")  # train/bee/1.jpg before its compression
    files["test/bee/leak.jpg"] = files["train/ant/5.jpg"]  # under another label, too
    report = examine(_folder(tmp_path, files), NAMES)
    leak = "train/ant/5.jpg = test/bee/leak.jpg"
    assert _files(report) == [
        (2, ["train/ant/0.jpg = train/ant/exact.jpg", leak]),  # the same bytes
        (1, ["train/bee/1.jpg = train/bee/near.png"]),  # nearly the same pixels
        (1, [leak]),  # in train and in an evaluation split
        (1, [leak]),  # under two labels
    ]
    assert [path for path, _ in report["quarantine"]] == ["train/ant/5.jpg"]
    assert report["fit"]


def test_classes__empty_unequal_and_missing_ones(tmp_path) -> None:
    files = _sound() | {f"train/ant/more{i}.jpg": _jpeg(5000 + i) for i in range(95)}
    files = {path: data for path, data in files.items() if not path.startswith("val/bee")}
    root = _folder(tmp_path, files)
    (root / "train/cat").mkdir()
    report = examine(root, NAMES)
    assert _files(report) == [(1, ["train/cat"]), (1, ["bee"])]  # no image; in train, but not in val
    assert re.search(r"\bant\b.*105.*\bbee 10\b", _findings(report, "warn"))
    assert report["fit"]


def test_what_stops_training__is_a_failure(tmp_path) -> None:
    strange = examine(_folder(tmp_path / "a", _sound() | {"val/wasp/0.jpg": _jpeg(1)}), NAMES)
    assert "wasp" in _findings(strange, "FAIL")
    broken = examine(_folder(tmp_path / "b", _sound() | {"test/ant/x.jpg": _jpeg(1)[:300]}), NAMES)
    assert "test: 1 of 7 " in _findings(broken, "FAIL")
    one = examine(_folder(tmp_path / "c", _sound() | {"train/ant/x.jpg": b""}), NAMES)
    assert one["fit"]  # replaced by another image
    assert one["quarantine"][0][0] == "train/ant/x.jpg"
    loop = _folder(tmp_path / "d", _sound())
    (loop / "train/ant/again").symlink_to(loop / "train")
    assert "loop" in _findings(examine(loop, NAMES), "FAIL")
    with pytest.raises(UserError, match=f"^{tmp_path}/none:"):
        examine(tmp_path / "none", NAMES)
    (tmp_path / "e").mkdir()
    empty = examine(tmp_path / "e", NAMES)
    assert (empty["fit"], empty["images"]) == (False, 0)


def test_near_pairs__equal_a_loop_over_all_pairs_and_leave_flat_pictures_out() -> None:
    rng = np.random.default_rng(0)
    thumbs = np.stack([np.asarray(picture(i, 16, 16)).mean(2) for i in range(60)]).astype(np.uint8)
    brighter = np.clip(thumbs[:10] * 0.8 + 30 + rng.normal(0, 1, (10, 16, 16)), 0, 255).astype(np.uint8)
    flat = np.full((5, 16, 16), 90, np.uint8)
    assert near_pairs(np.concatenate([thumbs, brighter, flat])) == [(i, 60 + i) for i in range(10)]
    assert near_pairs(thumbs[:1]) == []


def test_groups__join_what_is_equal() -> None:
    assert exact_groups([b"a", b"b", b"a", b"", b"", b"a"]) == [[0, 2, 5]]
    assert connected_groups([(4, 5), (0, 1), (1, 2)]) == [[0, 1, 2], [4, 5]]
    assert connected_groups([(0, 3), (5, 6), (3, 4), (4, 6)]) == [[0, 3, 4, 5, 6]]
    assert connected_groups([]) == []


@pytest.mark.parametrize(("rate", "wanted", "cores", "workers"), [(100, 50, 8, 1), (100, 400, 8, 5), (100, 4000, 8, 8)])
def test_suggested_workers__keep_the_step_busy(rate: float, wanted: float, cores: int, workers: int) -> None:
    assert suggested_workers(rate, wanted, cores) == workers


@pytest.mark.parametrize(
    "flags", [["--recipe", "none.yaml"], ["--workers", "-1"], ["--workers", "two"], ["--train-split", "a"], ["more"]]
)
def test_wrong_usage__exits_with_2_and_names_the_flag(tmp_path, flags: list[str]) -> None:
    with pytest.raises(UsageError, match=flags[0]) as caught:
        main([str(tmp_path), *flags])
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


RECIPE = """
model:
  class_path: lit_vision.methods.SimCLR
  init_args: {backbone: resnet10t, base_lr: 0.1, backbone_args: {channels: [8, 8, 8, 8], stem_width: 8}}
data:
  class_path: lit_vision.data.ImageFolderDataModule
  init_args: {root: elsewhere, img_size: 32, train_view: simclr, batch_size: 8}
"""


@pytest.mark.slow
def test_recipe__its_loader_is_timed_against_its_step(tmp_path) -> None:
    root = _folder(tmp_path / "data", _sound())
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert main([str(root), "--out", str(tmp_path), "--workers", "1", "--recipe", str(tmp_path / "r.yaml")]) == 0
    loader = json.loads((tmp_path / "doctor.json").read_text())["loader"]
    assert loader["images_per_second_step"] > 0
    assert loader["images_per_second_per_worker"] > 0
    assert loader["workers"] >= 1
    (tmp_path / "r.yaml").write_text("model: {}")
    with pytest.raises(UserError, match=r"--recipe .*r\.yaml: its data"):
        main([str(root), "--out", str(tmp_path), "--workers", "1", "--recipe", str(tmp_path / "r.yaml")])


def test_quarantine__the_list_that_doctor_writes_makes_the_folder_fit(tmp_path, capsys) -> None:
    root = _folder(tmp_path / "data", _sound() | {f"val/ant/x{i}.jpg": _jpeg(1)[:300] for i in range(2)})
    arguments = [str(root), "--workers", "1", "--out"]
    assert main([*arguments, str(tmp_path / "first")]) == 1
    listed = tmp_path / "first/quarantine.txt"
    assert str(listed) in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "second"), "--quarantine", str(listed)]) == 0
    report = json.loads((tmp_path / "second/doctor.json").read_text())
    assert report["fit"]
    assert [path for path, _ in report["quarantine"]] == ["val/ant/x0.jpg", "val/ant/x1.jpg"]  # the list stays complete
    assert "2 in quarantine" in " ".join(report["inventory"])


def test_verdict__names_the_use_that_a_folder_is_fit_for(tmp_path, capsys) -> None:
    root = _folder(tmp_path / "data", {path: data for path, data in _sound().items() if path.startswith("train")})
    (root / "train/ant/raw.cr2").write_bytes(b"x")
    assert main([str(root), "--workers", "1", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "fit for pre-training only" in shown
    assert "no val split" in shown
    assert "1 .cr2" in shown


def test_shards__have_no_file_of_a_wrong_ending(tmp_path) -> None:
    root = _folder(tmp_path / "data", {f"{split}/{c}/{i}.png": encode(picture(10 * k + i), "PNG")
        for k, (split, c) in enumerate((s, c) for s in ("train", "val") for c in "ab") for i in range(2)})  # fmt: skip
    write_shards(scan(root), tmp_path / "shards", 1, Encoding(256))
    report = examine(tmp_path / "shards", ("train", "val", "test"))
    assert "wrong extension" not in _findings(report, "warn")
