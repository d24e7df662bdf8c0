"""Resume after a full disk, with changed data, with limits, after a kill behind the last step, on two ranks."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import soak
import toy_run

import lit_vision.cli.lightning_cli  # noqa: F401
from lit_vision.cli import main as cli
from lit_vision.io import checkpoint_digest

RECIPE = """
seed_everything: 3
trainer:
  max_epochs: 2
  accelerator: cpu
  log_every_n_steps: 1
  enable_model_summary: false
  enable_progress_bar: false
  callbacks: [{class_path: lit_vision.callbacks.checkpoint.LastCheckpoint, init_args: {every_n_steps: 1}}]
model: {class_path: toy_run.ToyNet, init_args: {width: 4}}
data: {class_path: toy_run.ToyData, init_args: {n: 24}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(RECIPE)
    return tmp_path


def fit(*arguments: str, stop: str = "") -> int:
    """lit-vision fit in this process; with `stop`, in a fork that kills itself."""
    arguments = ["fit", "--config", "toy.yaml", *arguments]
    if not stop:
        return cli.main(arguments)
    os.environ["TOY_STOP"] = stop
    try:
        return soak.launch([*arguments, "--trainer.devices", "1"], Path("fork.log"))
    finally:
        del os.environ["TOY_STOP"]


def errors(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-vision: error")]


@pytest.fixture
def small_disk(here: Path):
    folder = here / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_with_one_line_and_the_run_goes_on_when_there_is_room(small_disk: Path, here, capsys) -> None:
    folder = small_disk / "run"
    assert fit("--run_dir", str(folder), stop="SIGKILL:saved:3") == -9
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - 12_000)))
    assert fit("--run_dir", str(folder), "--resume", "auto") == 1
    lines = errors(capsys)
    assert len(lines) == 1, lines
    assert "No space left" in lines[0] or "no room left" in lines[0]
    assert "checkpoint" in lines[0]
    assert checkpoint_digest.newest_valid(folder / "checkpoints")[0] is not None
    step = checkpoint_digest.step_of(checkpoint_digest.newest_valid(folder / "checkpoints")[0])
    assert step >= 3
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert fit("--run_dir", str(folder), "--resume", "auto") == 0
    assert f"restored step {step} " in capsys.readouterr().out
    assert fit("--run_dir", "whole") == 0
    kept = [torch.load(f / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for f in (folder, Path("whole"))]
    soak.assert_same(*kept, "weights after a full disk")
    assert (folder / "metrics.csv").read_text() == Path("whole/metrics.csv").read_text()


@pytest.mark.parametrize(
    ("change", "says", "batches", "steps"),
    [
        (["--data.n", "28"], "split_file", 14, 13),
        pytest.param(["--seed_everything", "4"], "data.seed", 12, 12, marks=pytest.mark.slow),
        pytest.param(
            ["--data.batch_size", "2"],
            "was 4, now 2",
            24,
            16,
            marks=pytest.mark.slow,
        ),
        (["--trainer.accumulate_grad_batches", "2"], "was 4, now 8", 12, 10),
    ],
)
def test_a_changed_run_is_refused_by_name_unless_forced(here: Path, capsys, change, says, batches, steps) -> None:
    assert fit("--run_dir", "run", stop="SIGKILL:saved:8") == -9  # 8 samples into the second epoch of 24
    last = Path("run/checkpoints/last.ckpt")
    assert fit("--run_dir", "run", "--resume", str(last), *change) == 1
    assert says in errors(capsys)[0]
    assert fit("--run_dir", "run", "--resume", str(last), "--resume_anyway", "true", *change) == 0
    out = capsys.readouterr().out
    assert says in out
    assert "--resume_anyway" in out
    kept = torch.load(last, weights_only=True)
    progress = kept["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    # 8 steps before, then what is left of the second epoch as the changed run counts it
    assert (kept["epoch"], progress["total"]["completed"], kept["global_step"]) == (1, batches, steps)


def test_resume_anyway_needs_something_to_resume(here: Path, capsys) -> None:
    assert fit("--resume_anyway", "true") == 2
    assert "--resume_anyway" in errors(capsys)[0]


STOPS = ("SIGKILL:val:2", "SIGKILL:saved:6", "SIGKILL:saved:3")  # in validation, in the second epoch, in the first


@pytest.mark.parametrize(
    ("limits", "stops"), [(["4", "2"], STOPS[:2]), pytest.param(["0.7", "0.5"], STOPS, marks=pytest.mark.slow)]
)
def test_limited_epochs_go_on_exactly(here: Path, limits: list[str], stops: tuple[str, ...]) -> None:
    arguments = ["--trainer.limit_train_batches", limits[0], "--trainer.limit_val_batches", limits[1]]
    assert fit("--run_dir", "whole", *arguments) == 0
    for stop in stops:
        name = stop.replace(":", "-")
        assert fit("--run_dir", name, *arguments, stop=stop) == -9
        assert fit("--run_dir", name, "--resume", "auto", *arguments) == 0
        files = [torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (Path(name), Path("whole"))]
        for key in ("state_dict", "optimizer_states", "loops", "ToyData"):
            soak.assert_same(*(f[key] for f in files), f"{stop} {key}")
        assert (Path(name) / "metrics.csv").read_text() == Path("whole/metrics.csv").read_text()


def test_a_run_killed_after_its_last_checkpoint_still_writes_its_results(here: Path) -> None:
    assert fit("--run_dir", "whole") == 0
    result = json.loads(Path("whole/results.json").read_text())
    Path("whole/results.json").unlink()  # as if it was killed in between
    assert fit("--run_dir", "whole", "--resume", "auto") == 0
    again = json.loads(Path("whole/results.json").read_text())
    for key in ("metric", "metrics", "steps", "epochs", "weights_sha256", "best"):
        assert again[key] == result[key], key


def test_a_signal_after_the_last_epoch_lets_the_run_end(here: Path) -> None:
    Path("toy.yaml").write_text(RECIPE.replace("callbacks: [", "callbacks: [{class_path: soak.KillAtEvent}, "))
    arguments = ["fit", "--config", "toy.yaml", "--run_dir", "last"]
    assert (
        soak.launch(arguments, Path("log"), "save:14", signal_name="SIGTERM") == 0
    )  # 7 saves an epoch: nothing is left but the end
    assert Path("last/results.json").is_file()


def test_the_same_wandb_run_goes_on(here: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    assert fit("--run_dir", "run", "--wandb", "p", "--trainer.limit_train_batches", "2") == 0
    wandb.finish()
    ids = [Path("run/wandb_id.txt").read_text().strip()]
    Path("run/results.json").unlink()
    assert fit("--run_dir", "run", "--wandb", "p", "--trainer.limit_train_batches", "2", "--resume", "auto") == 0
    assert wandb.run.id == ids[0]
    assert wandb.run.settings.resume == "allow"
    wandb.finish()
    runs = [p.name.split("-")[3] for p in Path("run/wandb").glob("offline-run-*")]  # two of one second end in -1
    assert set(runs) == set(ids)


class OneRankIsPoisoned(toy_run.ToyNet):
    """The loss is NaN at one step, on the last rank alone."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        poisoned = self.global_step == 2 and self.trainer.global_rank == self.trainer.world_size - 1
        return loss * (float("nan") if poisoned else 1.0)


toy_run.OneRankIsPoisoned = OneRankIsPoisoned
OneRankIsPoisoned.__module__ = "toy_run"


@pytest.mark.parametrize("late", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_nan_on_one_rank_of_two_moves_no_weight_on_either(late: str) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        recipe = Path(folder) / "toy.yaml"
        text = RECIPE.replace("ToyNet", "OneRankIsPoisoned").replace("max_epochs: 2", "max_epochs: 1\n  strategy: ddp")
        guard = (
            f"{{class_path: lit_vision.callbacks.nonfinite.StopOnNonFinite, init_args: {{policy: skip, late: {late}}}}}"
        )
        recipe.write_text(text.replace("callbacks: [", f"callbacks: [{guard}, "))
        arguments = ["fit", "--config", str(recipe), "--run_dir", f"{folder}/run", "--trainer.devices", "2"]
        log = Path(folder) / "log"
        assert soak.launch(arguments, log, world_size=2) == 0, log.read_text()[-3000:]
        found = sorted((Path(folder) / "run" / "nonfinite").iterdir())
        assert [p.name for p in found] == ["step-00000002-rank0.pt", "step-00000002-rank1.pt"]
        kept = [torch.load(p, weights_only=True) for p in found]
        assert [bool(torch.tensor(k["losses"]).isfinite().all()) for k in kept] == [True, False]
        assert {tuple(k) for k in kept[0]["batches"][0]["key"].tolist()}.isdisjoint(
            tuple(k) for k in kept[1]["batches"][0]["key"].tolist()
        )
        assert "seed_everything: 3" in kept[0]["recipe"]
        last = torch.load(f"{folder}/run/checkpoints/last.ckpt", weights_only=True)
        assert all(v.isfinite().all() for v in last["state_dict"].values())
        assert last["global_step"] == 3


def test_kept_steps_are_checkpoints_like_any_other(here: Path) -> None:
    Path("toy.yaml").write_text(RECIPE.replace("{every_n_steps: 1", "{every_n_steps: 5, keep_every_n_steps: 4"))
    assert fit("--run_dir", "run") == 0
    found = {p.name: checkpoint_digest.step_of(p) for p in checkpoint_digest.checkpoints_in("run/checkpoints")}
    steps = {f"step-{n:08d}.ckpt": n for n in (4, 8, 12)}
    # the last step is saved before its validation, as a kept step, and after it
    assert found.items() >= {**steps, "last.ckpt": 12, "previous.ckpt": 12}.items()
    assert fit("--run_dir", "again", "--resume", "run/checkpoints/step-00000004.ckpt") == 0
    kept = [torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("run", "again")]
    for key in ("state_dict", "optimizer_states", "loops"):
        soak.assert_same(*(k[key] for k in kept), key)
