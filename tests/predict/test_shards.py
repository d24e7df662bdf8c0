"""Shards of predict and embed: merged they are the unsharded file; parts that do not belong together are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from toy_models import make_classifier, write_images, write_run

from lit_vision.cli.main import main
from lit_vision.errors import UserError
from lit_vision.predict.search import read_index
from lit_vision.predict.shards import DonePart, Shard, default_count

COUNT = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two runs, and 23 images of which the second and all of the last batch of 4 cannot be read."""
    folder = tmp_path_factory.mktemp("shards")
    write_run(folder / "run", make_classifier())
    write_run(folder / "other", make_classifier(mean=[0.1] * 3))
    names = write_images(folder / "images", 23)
    for name in (names[1], *names[20:]):
        (folder / "images" / name).write_bytes(b"no image")
    return folder


def command(root: Path, verb: str, out: Path, *more: str, model: str = "run", images: str = "images") -> list[str]:
    return [verb, str(root / images), "--model", str(root / model), "--out", str(out), "--batch_size", "4", *more]


def run_shards(root: Path, verb: str, out: Path, count: int = COUNT) -> None:
    for i in reversed(range(count)):
        assert main(command(root, verb, out, "--shard", f"{i}/{count}")) == 0


def merge(verb: str, out: Path, *more: str) -> int:
    return main([verb, "--out", str(out), "--merge", *more])


@pytest.mark.parametrize(("total", "batch_size", "count"), [(23, 4, 3), (8, 4, 2), (1, 32, 1), (1000, 7, 143)])
def test_shards_are_whole_batches_and_each_image_is_in_one(total: int, batch_size: int, count: int) -> None:
    ranges = [Shard(i, count).images(total, batch_size) for i in range(count)]
    assert [i for images in ranges for i in images] == list(range(total))
    assert all(images.start % batch_size == 0 and len(images) for images in ranges)
    assert max(map(len, ranges)) - min(map(len, ranges[:-1] or ranges)) <= batch_size
    with pytest.raises(UserError, match=f"at most {-(-total // batch_size)}"):
        Shard(0, total + 1).images(total, batch_size)


def test_default_count() -> None:
    assert [default_count(n, 32) for n in (1, 2048, 2049, 200_000, 10**12)] == [1, 1, 2, 98, 99_999]


@pytest.mark.parametrize(("verb", "name"), [("predict", "o.csv"), ("predict", "o.jsonl"), ("embed", "o.safetensors")])
def test_merged_is_the_unsharded_file(verb: str, name: str, root, tmp_path, stopped_writer, capsys) -> None:
    whole, merged = tmp_path / "whole" / name, tmp_path / "merged" / name
    assert main(command(root, verb, whole)) == 0
    with stopped_writer(3):
        assert main(command(root, verb, merged, "--shard", f"0/{COUNT}")) == 130
    assert "stopped after 4 of 8 images" in capsys.readouterr().err
    run_shards(root, verb, merged)
    assert "continuing after 4 of 8 images" in capsys.readouterr().out
    assert merge(verb, merged) == 0
    assert "19 images of 3 shards, 4 skipped" in capsys.readouterr().out
    assert sorted(path.name for path in merged.parent.iterdir()) == [name, f"{name}.skipped.csv"]
    for suffix in ("", ".skipped.csv"):
        assert Path(f"{merged}{suffix}").read_bytes() == Path(f"{whole}{suffix}").read_bytes()


def test_parquet_has_the_rows_of_the_csv_file(root, tmp_path) -> None:
    pytest.importorskip("pyarrow", reason="needs the parquet extra")
    import pyarrow.csv
    import pyarrow.parquet

    assert main(command(root, "predict", tmp_path / "o.csv")) == 0
    run_shards(root, "predict", tmp_path / "o.parquet", 2)
    assert merge("predict", tmp_path / "o.parquet") == 0
    table = pyarrow.parquet.read_table(tmp_path / "o.parquet")
    assert table.column_names[:3] == ["path", "label", "score"]
    assert table.to_pylist() == pyarrow.csv.read_csv(tmp_path / "o.csv").to_pylist()
    assert main(command(root, "predict", tmp_path / "whole.parquet")) == 0
    assert pyarrow.parquet.read_table(tmp_path / "whole.parquet").equals(table)


def test_parquet_of_features_is_the_index(root, tmp_path) -> None:
    pytest.importorskip("pyarrow", reason="needs the parquet extra")
    import pyarrow.parquet

    run_shards(root, "embed", tmp_path / "o.parquet")
    assert merge("embed", tmp_path / "o.parquet") == 0
    assert main(command(root, "embed", tmp_path / "o.safetensors")) == 0
    table, index = pyarrow.parquet.read_table(tmp_path / "o.parquet"), read_index(tmp_path / "o.safetensors")
    assert table["path"].to_pylist() == index.names
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), np.float32), index.features)


def test_a_finished_part_is_not_done_again_and_one_killed_at_its_end_is_finished(root, tmp_path, monkeypatch) -> None:
    from lit_vision.predict import shards

    out, part = tmp_path / "o.csv", tmp_path / "o-00000-of-00003.csv"
    with monkeypatch.context() as patch:  # killed between the part and its record
        patch.setattr(shards, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(command(root, "predict", out, "--shard", "0/3")) == 130
    assert part.exists()
    assert main(command(root, "predict", out, "--shard", "0/3")) == 0
    before = part.stat().st_mtime_ns
    assert main(command(root, "predict", out, "--shard", "0/3")) == 0
    assert part.stat().st_mtime_ns == before
    assert main(command(root, "predict", out, "--shard", "0/3", "--overwrite")) == 0
    assert part.stat().st_mtime_ns != before


@pytest.fixture(scope="module")
def parts(root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    run_shards(root, "predict", folder / "o.csv")
    return folder


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("none", "has no finished part beside it"),
        ("missing", "lacks the finished part of shard 1/3"),
        ("unfinished", "lacks the finished part of shard 1/3"),
        ("another model", "o-00001-of-00003.csv: is of another model than o-00000-of-00003.csv"),
        ("other images", "o-00001-of-00003.csv: is of other images than"),
        ("another setting", "o-00001-of-00003.csv: is of another top_k than"),
        ("changed", "o-00001-of-00003.csv: was changed or removed after it was written; run shard 1/3 again"),
        ("skipped list", "o-00002-of-00003.csv.skipped.csv: was changed or removed"),
        ("damaged record", "o-00001-of-00003.csv.done.json: is damaged"),
        ("two counts", "has parts of 3 and 4 shards beside it"),
    ],
)
def test_parts_that_cannot_be_merged(case: str, message: str, root, parts, tmp_path, capsys) -> None:
    for path in parts.iterdir():
        shutil.copy(path, tmp_path)
    out, part = tmp_path / "o.csv", tmp_path / "o-00001-of-00003.csv"
    record = tmp_path / f"{part.name}.done.json"
    again = ["--shard", "1/3", "--overwrite"]
    if case == "none":
        out = tmp_path / "x.csv"
    elif case in ("missing", "unfinished"):
        (part if case == "missing" else record).unlink()
    elif case == "another model":
        assert main(command(root, "predict", out, *again, model="other")) == 0
    elif case == "another setting":
        assert main(command(root, "predict", out, *again, "--top_k", "2")) == 0
    elif case == "other images":
        write_images(tmp_path / "images", 24)
        assert main(command(tmp_path, "predict", out, *again, model=str(root / "run"))) == 0
    elif case == "changed":
        part.write_bytes(part.read_bytes().replace(b"0", b"1"))
    elif case == "skipped list":
        (tmp_path / "o-00002-of-00003.csv.skipped.csv").unlink()
    elif case == "damaged record":
        record.write_text('{"shard": 1}')
    elif case == "two counts":
        assert main(command(root, "predict", out, "--shard", "3/4")) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert merge("predict", out) == 1
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_part_that_another_process_writes(root, tmp_path, capsys) -> None:
    from lit_vision.io.file_lock import try_lock

    with try_lock(tmp_path / "o-00001-of-00003.csv.lock"):
        assert main(command(root, "predict", tmp_path / "o.csv", "--shard", "1/3")) == 1
    assert "o-00001-of-00003.csv: is being written by another process" in capsys.readouterr().err


def test_a_rerun_with_another_model_does_not_take_a_finished_part(root, parts, tmp_path, capsys) -> None:
    for path in parts.iterdir():
        shutil.copy(path, tmp_path)
    assert main(command(root, "predict", tmp_path / "o.csv", "--shard", "1/3", model="other")) == 1
    assert "is of another model than this command" in capsys.readouterr().err
    stored = json.loads((tmp_path / "o-00001-of-00003.csv.done.json").read_text())
    assert stored["images"] == [8, 16, 23]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shard", "3/3"], "--shard 3/3: give i/n with i from 0 to n - 1"),
        (["--shard", "1"], "--shard 1: give i/n"),
        (["--shard", "-1/3"], "--shard -1/3: give i/n"),
        (["--shard", "0/0"], "--shard 0/0: give i/n"),
        (["--shard", "0/7"], "23 images are 6 batches of 4; give n of at most 6"),
        (["--merge"], "leave IMAGES and --model out"),
        (["--address", "127.0.0.1:6379"], "--address: is for --engine ray"),
        (["--shards", "3"], "--shards: is for --engine ray"),
        (["--engine", "ray", "--shards", "0"], "--shards 0: give 1 to 99999"),
        (["--engine", "ray", "--shard", "0/3"], "leave one of them out"),
    ],
)
def test_wrong_flags(more: list[str], message: str, root, tmp_path, capsys) -> None:
    more = [f"{more[0]}={more[1]}", *more[2:]] if len(more) == 2 else more
    assert main(command(root, "predict", tmp_path / "o.csv", *more)) in (1, 2)
    assert message in capsys.readouterr().err


def test_addresses_are_no_files_to_write(root, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command(root, "predict", "s3://bucket/o.csv")) == 1
    assert "--out s3://bucket/o.csv: is no local file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_formats_that_cannot_be_joined(root, tmp_path, capsys) -> None:
    assert main(command(root, "predict", tmp_path / "o.json", "--shard", "0/2")) == 2
    assert "cannot be joined from parts" in capsys.readouterr().err
    assert main(command(root, "embed", tmp_path / "o.safetensors", "--shard", "0/2", "--index_type", "hnsw")) == 2
    assert "give it with --merge" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changed",
    [
        {"identity": None},
        {"identity": {}},
        {"shard": None},
        {"shard": [4, 3]},
        {"images": [0]},
        {"images": [0, 1, 23]},
        {"skipped": None},
        {"skipped": 100},
        {"header_bytes": -1},
        {"size": "a"},
    ],
)
def test_values_of_a_record_that_cannot_be_right(changed: dict, parts, tmp_path) -> None:
    part = tmp_path / "o-00001-of-00003.csv"
    record = json.loads((parts / f"{part.name}.done.json").read_text())
    (tmp_path / f"{part.name}.done.json").write_text(json.dumps({**record, **changed}))
    with pytest.raises(UserError, match=r"o-00001-of-00003\.csv\.done\.json: is damaged"):
        DonePart.read(part)
