"""metrics.csv over a resume; Weights & Biases offline, read back from the files it wrote; and absent."""

import json
import struct
import sys
import time
from pathlib import Path

import pytest

from lit_vision.cli import main as cli
from lit_vision.runs.loggers import CsvFile, RunCSVLogger, weights_and_biases

RECIPE = """
seed_everything: 3
trainer:
  max_epochs: 2
  accelerator: cpu
  log_every_n_steps: 1
  enable_model_summary: false
  callbacks:
    - {class_path: lit_vision.callbacks.online_knn.OnlineKNN, init_args: {k: 3}}
    - {class_path: toy_run.Draws}
model: {class_path: toy_run.ToyPretrain, init_args: {width: 4}}
data: {class_path: toy_run.ToyData, init_args: {n: 16}}
"""


def test_csv_grows_by_columns_drops_a_repeated_row_and_is_cut(tmp_path: Path) -> None:
    file = CsvFile(tmp_path / "m.csv")
    for row in ({"step": 0, "a": 0.1}, {"step": 0, "a": 0.1}, {"step": 1, "a": 0.2, "b": 1.0}):
        file.append(row)
    assert file.path.read_text().split() == ["step,a,b", "0,0.1,", "1,0.2,1.0"]
    again = CsvFile(file.path)
    assert again.rows == 2
    again.cut(1)
    assert again.path.read_text().split() == ["step,a", "0,0.1"]


def test_csv_is_opened_by_rank_0_only(tmp_path: Path, monkeypatch) -> None:
    """Opening mends what a kill left, which would race with a row that rank 0 appends."""
    (tmp_path / "metrics.csv").write_text("step,a\n0,0.1\n1,")
    monkeypatch.setattr("lit_vision.runs.loggers.rank_zero_only.rank", 1)
    with pytest.raises(RuntimeError, match="rank 0"):
        RunCSVLogger(tmp_path).rows  # noqa: B018
    assert (tmp_path / "metrics.csv").read_text() == "step,a\n0,0.1\n1,"
    monkeypatch.setattr("lit_vision.runs.loggers.rank_zero_only.rank", 0)
    assert RunCSVLogger(tmp_path).rows == 2


def records(folder: Path) -> list:
    """Read wandb's records: LevelDB's log format (blocks of 32 KiB; crc, length, type) after 7 bytes of header."""
    from wandb.proto import wandb_internal_pb2 as pb

    path = next(folder.glob("wandb/offline-run-*/*.wandb"), None)
    if path is None:  # wandb's own process has not come to it yet
        return []
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    found, at, parts = [], 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(pb.Record.FromString(parts))
            parts = b""
    return found


def test_wandb_offline_holds_config_commit_metrics_a_picture_and_a_table(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    Path("toy.yaml").write_text(RECIPE)
    assert cli.main(["fit", "--config", "toy.yaml", "--run_dir", "run", "--wandb", "toys"]) == 0
    import wandb

    wandb.finish()
    deadline = time.monotonic() + 1800  # a safety net, not a measurement
    found = records(Path("run"))
    while not any(r.HasField("exit") for r in found):  # wandb's own process writes the file
        assert time.monotonic() < deadline
        time.sleep(0.05)
        found = records(Path("run"))
    (run,) = [r.run for r in found if r.HasField("run")]
    assert run.project == "toys"
    assert run.run_id == Path("run/wandb_id.txt").read_text().strip()
    config = {u.key: json.loads(u.value_json) for u in run.config.update}
    for record in found:
        if record.HasField("config"):
            config |= {u.key: json.loads(u.value_json) for u in record.config.update}
    environment = json.loads(Path("run/environment.json").read_text())
    assert config["seed_everything"] == 3
    assert config["model"]["init_args"]["width"] == 4
    assert config["commit"] == environment["commit"] == config["environment"]["commit"]
    assert config["environment"]["data_fingerprint"] == "f" * 64

    rows = []
    for record in found:
        if record.HasField("history"):
            items = record.history.item
            rows.append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items})
    losses = {r["trainer/global_step"]: r["train/loss"] for r in rows if "train/loss" in r}
    lines = [line.split(",") for line in Path("run/metrics.csv").read_text().splitlines()]
    column = lines[0].index("train/loss")
    assert losses == {int(line[0]): float(line[column]) for line in lines[1:] if line[column]}
    assert len(losses) == 8
    assert [r["val/knn_top1"] for r in rows if "val/knn_top1" in r]
    flat = {key: value for row in rows for key, value in row.items()}
    assert flat["samples/drawn/_type"] == "images/separated"
    assert flat["samples/knn_per_class/_type"] == "table-file"
    assert (flat["samples/knn_per_class/nrows"], flat["samples/knn_per_class/ncols"]) == (2, 3)
    files = next(Path("run/wandb").glob("offline-run-*")) / "files"
    assert list(files.rglob("drawn*.png"))
    (stored,) = list(files.rglob("knn_per_class*.table.json"))[-1:]
    assert json.loads(stored.read_text())["columns"] == ["class", "images", "top1"]
    assert Path("run/samples/drawn-e0002.png").is_file()
    assert "knn_per_class.csv" in {p.name for p in Path("run/samples").iterdir()}


def test_a_second_run_of_one_process_is_another_run_of_wandb(tmp_path: Path, monkeypatch) -> None:
    """Wandb by itself logs it into the first one, which a fit leaves open until the process ends."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    loggers = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        loggers.append(weights_and_biases("toys", tmp_path / name))
    try:
        assert loggers[0].version != loggers[1].version
        assert all(len(list((tmp_path / name / "wandb").glob("offline-run-*"))) == 1 for name in ("a", "b"))
    finally:
        loggers[1].experiment.finish()


@pytest.mark.parametrize("mode", ["online", "disabled"])
def test_without_an_account_the_run_trains_and_names_metrics_csv(
    tmp_path: Path, monkeypatch, capsys, mode: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    Path("toy.yaml").write_text(RECIPE)
    assert cli.main(["fit", "--config", "toy.yaml", "--run_dir", "run", "--wandb", "toys"]) == 0
    assert "wandb: " in capsys.readouterr().err
    assert Path("run/metrics.csv").is_file()
    assert list(Path("run/tensorboard").iterdir())


def test_without_tensorboard_the_run_goes_on_with_metrics_csv(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    monkeypatch.setenv("WANDB_MODE", "offline")
    Path("toy.yaml").write_text(RECIPE)
    assert cli.main(["fit", "--config", "toy.yaml", "--run_dir", "run", "--wandb", "toys"]) == 0
    error = capsys.readouterr().err
    assert all(f"pip install {name}" in error for name in ("tensorboard", "wandb"))
    assert Path("run/metrics.csv").is_file()
    assert not Path("run/tensorboard").exists()
