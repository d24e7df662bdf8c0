"""The cluster scripts, as far as one machine can run them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_vision.io.safe_load import load_safely

SCRIPTS = Path(__file__).parents[2] / "experiments" / "cluster"
RECIPE = """
seed_everything: 3
trainer: {max_epochs: 1, log_every_n_steps: 1, enable_model_summary: false, enable_progress_bar: false, strategy: ddp}
model: {class_path: toy_run.ToyNet, init_args: {width: 4}}
data: {class_path: toy_run.ToyData, init_args: {n: 16}}
"""


SAFETY_NET = 1800  # seconds; no test is judged by it


def run_script(tmp_path: Path, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a script with an srun and a torchrun that only print their arguments."""
    for name in ("srun", "torchrun"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$(basename $0)" "$@"\n')
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    return subprocess.run([str(SCRIPTS / script), *arguments], capture_output=True, text=True, env=env, check=False)


def directives(script: str) -> dict[str, str]:
    """Return {option: value} of the lines for sbatch."""
    lines = (SCRIPTS / script).read_text().splitlines()
    options = (line.removeprefix("#SBATCH --").partition("=") for line in lines if line.startswith("#SBATCH --"))
    return {name: value for name, _, value in options}


def options_of(line: str, command: str) -> tuple[list[str], dict[str, str]]:
    """Return the arguments before `command`, and {flag: value} of those after it."""
    before, _, after = line.strip().partition(f" {command} ")
    flags = after.split()
    return before.split(), dict(zip(flags[::2], flags[1::2]))


def test_slurm_gets_a_signal_before_the_end_and_requeues() -> None:
    options = directives("slurm.sh")
    signal_name, _, seconds = options["signal"].partition("@")
    assert signal_name == "USR1"  # not B:USR1, which only the batch shell would get
    assert int(seconds) >= 60
    assert "requeue" in options
    assert options["open-mode"] == "append"  # a requeued job must not empty its log
    assert options["ntasks-per-node"] == options["gpus-per-node"]


def test_slurm_passes_the_layout_on(tmp_path: Path) -> None:
    layout = {"SLURM_JOB_NUM_NODES": "4", "SLURM_NTASKS_PER_NODE": "8"}
    run = run_script(tmp_path, "slurm.sh", "r.yaml", "runs/x", "--a", "1", **layout)
    before, flags = options_of(run.stdout, "fit")
    assert before == ["srun", "--kill-on-bad-exit=1", "lit-vision"]
    assert flags == {
        "--config": "r.yaml",
        "--run_dir": "runs/x",
        "--resume": "auto",
        "--trainer.num_nodes": "4",
        "--trainer.devices": "8",
        "--a": "1",
    }
    assert run_script(tmp_path, "slurm.sh").returncode == 2


def test_torchrun_on_one_and_several_machines(tmp_path: Path) -> None:
    one, flags = options_of(run_script(tmp_path, "torchrun.sh", "r.yaml", "runs/x", GPUS="2").stdout, "fit")
    assert one[-2:] == ["-m", "lit_vision"]
    assert "--standalone" in one
    assert [one[one.index(name) + 1] for name in ("--nnodes", "--nproc-per-node")] == ["1", "2"]
    assert int(one[one.index("--max-restarts") + 1]) > 0
    assert flags["--resume"] == "auto"
    machines = {"GPUS": "8", "NODES": "2"}
    run = run_script(tmp_path, "torchrun.sh", "r.yaml", "runs/x", HEAD="a:29500", **machines)
    many, flags = options_of(run.stdout, "fit")
    names = ("--nnodes", "--rdzv-endpoint", "--rdzv-id")
    assert [many[many.index(name) + 1] for name in names] == ["2", "a:29500", "x"]
    assert "--standalone" not in many
    assert (flags["--trainer.num_nodes"], flags["--trainer.devices"]) == ("2", "8")
    assert "HEAD" in run_script(tmp_path, "torchrun.sh", "r.yaml", "runs/x", **machines).stderr
    assert run_script(tmp_path, "torchrun.sh").returncode == 2


@pytest.mark.slow
def test_torchrun_trains_two_processes_and_resumes(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1] / 'toys'}:{Path(__file__).parents[2]}", "GPUS": "2"}
    env |= {"TORCHRUN": str(Path(sys.executable).parent / "torchrun"), "OMP_NUM_THREADS": "1", "RESTARTS": "0"}
    command = [str(SCRIPTS / "torchrun.sh"), "toy.yaml", "run", "--trainer.accelerator", "cpu"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=SAFETY_NET, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "results.json").is_file()
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=SAFETY_NET, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 2" in done.stdout  # restored


@pytest.mark.slow
def test_two_agents_train_as_one_with_two_processes(tmp_path: Path) -> None:
    """`torchrun` on two machines, both this one, against one machine with two processes: the same bits."""
    (tmp_path / "toy.yaml").write_text(RECIPE)
    env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1] / 'toys'}:{Path(__file__).parents[2]}"}
    env |= {"TORCHRUN": str(Path(sys.executable).parent / "torchrun"), "OMP_NUM_THREADS": "1", "RESTARTS": "0"}
    env |= {"GLOO_SOCKET_IFNAME": "lo"}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        head = f"127.0.0.1:{listener.getsockname()[1]}"

    def start(run: str, **variables: str) -> subprocess.Popen:
        command = [str(SCRIPTS / "torchrun.sh"), "toy.yaml", run, "--trainer.accelerator", "cpu"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env={**env, **variables}, **pipes)

    for agents in ([start("one", GPUS="2")], [start("two", GPUS="1", NODES="2", HEAD=head) for _ in range(2)]):
        outputs = [agent.communicate(timeout=SAFETY_NET)[0] for agent in agents]
        assert not any(agent.returncode for agent in agents), outputs[0][-3000:]
    one, two = (load_safely(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 2
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name
    assert (tmp_path / "one/metrics.csv").read_bytes() == (tmp_path / "two/metrics.csv").read_bytes()
