"""The cluster scripts, as far as one machine can run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "experiments" / "cluster"
RECIPE = """
seed_everything: 3
trainer: {max_epochs: 1, log_every_n_steps: 1, enable_model_summary: false, enable_progress_bar: false, strategy: ddp}
model: {class_path: toy_run.ToyNet, init_args: {width: 4}}
data: {class_path: toy_run.ToyData, init_args: {n: 16}}
"""


def say(tmp_path: Path, script: str, *words: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs a script with programs that only say how they were called."""
    for name in ("srun", "torchrun"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$(basename $0)" "$@"\n')
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    return subprocess.run([str(SCRIPTS / script), *words], capture_output=True, text=True, env=env, check=False)


def test_slurm_asks_for_a_signal_and_passes_the_layout_on(tmp_path: Path) -> None:
    text = (SCRIPTS / "slurm.sh").read_text()
    for line in ("--signal=USR1@120", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {line}" in text
    done = say(tmp_path, "slurm.sh", "r.yaml", "runs/x", "--a", "1", SLURM_JOB_NUM_NODES="4", SLURM_NTASKS_PER_NODE="8")
    expected = "fit --config r.yaml --run_dir runs/x --resume auto --trainer.num_nodes 4 --trainer.devices 8 --a 1"
    assert done.stdout.strip() == f"srun --kill-on-bad-exit=1 lit-vision {expected}"
    assert say(tmp_path, "slurm.sh").returncode == 2


def test_torchrun_on_one_and_several_machines(tmp_path: Path) -> None:
    one = say(tmp_path, "torchrun.sh", "r.yaml", "runs/x", GPUS="2").stdout
    assert "--nnodes 1 --nproc-per-node 2 --max-restarts 3 --standalone -m lit_vision fit" in one
    many = say(tmp_path, "torchrun.sh", "r.yaml", "runs/x", GPUS="8", NODES="2", HEAD="a:29500").stdout
    assert "--nnodes 2 " in many
    assert "--rdzv-endpoint a:29500 --rdzv-id x" in many
    assert "--trainer.num_nodes 2 " in many
    assert "HEAD" in say(tmp_path, "torchrun.sh", "r.yaml", "runs/x", GPUS="8", NODES="2").stderr
    assert say(tmp_path, "torchrun.sh").returncode == 2


@pytest.mark.slow
def test_torchrun_trains_two_processes_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1] / 'toys'}:{Path(__file__).parents[2]}", "GPUS": "2"}
    env |= {"TORCHRUN": str(Path(sys.executable).parent / "torchrun"), "OMP_NUM_THREADS": "1", "RESTARTS": "0"}
    words = [str(SCRIPTS / "torchrun.sh"), "toy.yaml", "run", "--trainer.accelerator", "cpu"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "results.json").is_file()
    assert "starts anew" in done.stdout
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "restored step 2" in done.stdout
