"""Run experiments/cluster/slurm.sh on a real SLURM of this machine, preempt it twice, and compare every bit.

Run: make slurm (as root; Debian: apt-get install slurmctld slurmd munge slurm-client). munged, slurmctld and slurmd are
started with all their files in a temporary folder, on the loopback address only; /etc/slurm and /etc/munge are not
read. One job of two CPU tasks is left alone. Another gets SIGUSR1, as `--signal=USR1@120` sends it before the time
limit: it saves, is requeued by its own `scontrol requeue`, and resumes. Then it is preempted as a scheduler does it
(SIGTERM, requeued). Both must end with the same bits. Everything that was started is stopped and removed, also after an
error, Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from lit_vision.cli.parser import ScriptParser
from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write
from lit_vision.io.safe_load import load_safely

ROOT = Path(__file__).parents[1]
LOG = ROOT / "experiments" / "results" / "slurm.log"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
PACKAGES = "apt-get install slurmctld slurmd munge slurm-client"
PATIENCE = 900  # seconds for any state to be reached: a safety net
WARNED_AT, PREEMPTED_AT = 5, 13  # optimizer steps, of 24
RECIPE = """
seed_everything: 3
trainer:
  max_epochs: 3
  accelerator: cpu
  strategy: ddp
  log_every_n_steps: 1
  enable_progress_bar: false
  callbacks: [{class_path: slurm_check.WaitForSignal, init_args: {folder: FOLDER}}]
model:
  class_path: lit_vision.methods.Classifier
  init_args:
    backbone: vit_tiny_patch16_224
    backbone_args: {img_size: 16, patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2, pool: avg, proj_drop_rate: 0.1}
    num_classes: 2
    lr: 1.0e-3
    warmup_epochs: 0.5
data:
  class_path: lit_vision.data.ImageFolderDataModule
  init_args: {root: FOLDER/images, img_size: 16, batch_size: 4, num_workers: 0}
"""
CONFIG = """
ClusterName=check
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
MailProg=/bin/true
JobRequeue=1
KillWait=30
ReturnToService=2
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 NodeHostname={host} CPUs=2 State=UNKNOWN
PartitionName=check Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class WaitForSignal(Callback):
    """Wait at two steps, so that a signal comes there and not before or after the few seconds of training.

    Args:
        folder: gets `<step>.<rank>` at each of the steps; training goes on when `<step>.go` is there.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        step = trainer.global_step
        if step in (WARNED_AT, PREEMPTED_AT):
            (self.folder / f"{step}.{trainer.global_rank}").touch()
            _wait("the go of the check", (self.folder / f"{step}.go").exists)


def _wait(what: str, reached: Callable[[], object]) -> None:
    """Wait until `reached` returns a true value.

    Raises:
        UserError: it does not within PATIENCE seconds.
    """
    end = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > end:
            raise UserError(f"make slurm: {what} did not come within {PATIENCE} seconds")
        time.sleep(0.1)


def why_not() -> str:
    """Return the reason why this machine cannot run the check; "" if it can."""
    if os.geteuid() != 0:
        return "needs root, which slurmd runs jobs as"
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"{missing[0]} is not installed ({PACKAGES})" if missing else ""


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # where Debian has the daemons


class Cluster:
    """SLURM with one node, this machine, whose files are all in one folder.

    Args:
        folder: an empty one.
        say: prints a line.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the daemons and wait until the node takes jobs."""
        self.folder.chmod(0o755)  # munged asks for it
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        ports = {name: _free_port() for name in ("ctld_port", "slurmd_port")}
        text = CONFIG.format(folder=self.folder, host=socket.gethostname().split(".")[0], **ports)
        (self.folder / "slurm.conf").write_text(text)
        munge = self.folder / "munge"
        files = {"key-file": key, "socket": f"{munge}.socket", "pid-file": f"{munge}.pid", "seed-file": f"{munge}.seed"}
        self._daemon("munged", "--foreground", *(f"--{name}={path}" for name, path in files.items()))
        _wait("munged's socket", (self.folder / "munge.socket").exists)
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D", "-N", "localhost")
        _wait("an idle node", lambda: "State=IDLE" in self.run("scontrol", "show", "node", "localhost", check=False))
        self.say(f"{self.run('scontrol', '--version').strip()}: node localhost is idle")

    def _daemon(self, program: str, *arguments: str) -> None:
        with open(self.folder / f"{program}.log", "wb") as log:
            command = [str(shutil.which(program, path=_path())), *arguments]
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def run(self, *command: str, check: bool = True) -> str:
        """Return what a command of SLURM prints.

        Raises:
            UserError: it fails, and `check` is set.
        """
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise UserError(f"make slurm: {' '.join(command)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def submit(self, recipe: Path, run_dir: Path) -> str:
        """Submit experiments/cluster/slurm.sh with two tasks on processors; return the job's number."""
        options = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0", "--time=60"]
        script = str(ROOT / "experiments" / "cluster" / "slurm.sh")
        output = [f"--output={run_dir}.log", f"--chdir={ROOT}", "--parsable"]
        job = self.run("sbatch", *options, *output, script, str(recipe), str(run_dir)).strip()
        self.say(f"job {job}: sbatch {' '.join(options)} experiments/cluster/slurm.sh {recipe.name} {run_dir.name}")
        return job

    def show(self, job: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", job)))

    def wait_for_restart(self, job: str, restarts: int) -> None:
        """Wait until the job was requeued so often; the delay before it runs again, a minute or two, is cut short."""
        _wait(f"requeue {restarts}", lambda: self.show(job)["Restarts"] == str(restarts))
        self.say(f"job {job}: requeued by SLURM, Restarts={restarts}")
        _wait("its place in the queue", lambda: self.show(job)["JobState"] in ("PENDING", "RUNNING"))
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)

    def wait_for_end(self, job: str, log: Path) -> None:
        """Wait until the job has ended.

        Raises:
            UserError: not as COMPLETED.
        """
        running = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
        _wait("the end of the job", lambda: self.show(job)["JobState"] not in running)
        fields = self.show(job)
        if fields["JobState"] != "COMPLETED":
            tail = " | ".join(log.read_text().splitlines()[-5:]) if log.exists() else "it wrote no log"
            raise UserError(f"make slurm: job {job} ended as {fields['JobState']}: {tail}")
        self.say(f"job {job}: COMPLETED, exit code {fields['ExitCode']}, Restarts={fields['Restarts']}")

    def stop(self) -> None:
        """Cancel the jobs, end the daemons, and kill what is left of them."""
        if self._daemons:
            with contextlib.suppress(UserError):
                self.run("scancel", "--user=root", check=False)
                end = time.monotonic() + 30
                while self.run("squeue", "--noheader", check=False).strip() and time.monotonic() < end:
                    time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
            daemon.wait()
        for process in _processes_of(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _processes_of(folder: Path) -> Iterator[int]:
    """Yield the numbers of processes whose SLURM_CONF lies in a folder: daemons, their helpers, jobs."""
    wanted = f"SLURM_CONF={folder}/slurm.conf".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def write_images(folder: Path, count: int = 64, seed: int = 0) -> None:
    """Write small pictures of two classes, dark and light, as a training split."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        place = folder / "train" / ("dark", "light")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (20, 20, 3), dtype=np.uint8) + np.uint8(i % 2 * 120)
        Image.fromarray(pixels).save(place / f"{i:03d}.png")
    shutil.copytree(folder / "train", folder / "val")


def digest_of(run_dir: Path) -> str:
    """Return the sha256 (hex) of the bits of last.ckpt's weights and optimizer state."""
    checkpoint = load_safely(run_dir / "checkpoints" / "last.ckpt")
    digest = hashlib.sha256(repr(checkpoint["global_step"]).encode())

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().cpu().numpy().tobytes())
        elif isinstance(value, dict):
            for name in value:
                digest.update(repr(name).encode())
                add(value[name])
        elif isinstance(value, (list, tuple)):
            for entry in value:
                add(entry)
        else:
            digest.update(repr(value).encode())

    add(checkpoint["state_dict"])
    add(checkpoint["optimizer_states"])
    return digest.hexdigest()


def check(cluster: Cluster, folder: Path, say: Callable[[str], None]) -> None:
    """Run both jobs and compare them.

    Raises:
        UserError: a job fails, or the bits differ.
    """
    write_images(folder / "images")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("FOLDER", str(folder)))
    for step in (WARNED_AT, PREEMPTED_AT):
        (folder / f"{step}.go").touch()
    alone, preempted = folder / "alone", folder / "preempted"
    job = cluster.submit(recipe, alone)
    cluster.wait_for_end(job, Path(f"{alone}.log"))
    for path in folder.glob("*.go"):
        path.unlink()
    for path in (*folder.glob("*.0"), *folder.glob("*.1")):
        path.unlink()

    job = cluster.submit(recipe, preempted)
    signals = ((WARNED_AT, ["scancel", "--signal=USR1", job]), (PREEMPTED_AT, ["scontrol", "requeue", job]))
    for restarts, (step, command) in enumerate(signals, 1):
        _wait(f"step {step} of both tasks", lambda s=step: all((folder / f"{s}.{rank}").exists() for rank in (0, 1)))
        say(f"job {job}: both tasks are at step {step}; {' '.join(command)}")
        cluster.run(*command)
        time.sleep(2)  # the signal reaches the tasks while they wait
        (folder / f"{step}.go").touch()
        cluster.wait_for_restart(job, restarts)
    log = Path(f"{preempted}.log")
    cluster.wait_for_end(job, log)
    for line in log.read_text().splitlines():
        if line.startswith(("restored step", "SLURM:", "resuming from", "stopped by")):
            say(f"  {line.replace(str(folder), '.')}")
    for step in (WARNED_AT, PREEMPTED_AT):
        if f"restored step {step} " not in log.read_text():
            raise UserError(f"make slurm: the run did not resume from step {step}, where it was stopped; see {log}")
    digests = [digest_of(run) for run in (alone, preempted)]
    tables = [(run / "metrics.csv").read_bytes() for run in (alone, preempted)]
    say(f"weights and optimizer, sha256: left alone {digests[0][:16]}, preempted {digests[1][:16]}")
    if digests[0] != digests[1] or tables[0] != tables[1]:
        raise UserError("make slurm: the preempted run ended with other bits or another metrics.csv")
    say("the same bits, and the same metrics.csv")


def main(argv: list[str] | None = None) -> int:
    """Run the check; return 0 if it passes or this machine cannot run it, 1 if it fails."""
    parser = ScriptParser(prog="slurm_check.py", description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, default=LOG, help="the file of the printed lines (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder, with the daemons' logs")
    args = parser.parse_args(argv)
    if reason := why_not():
        print(f"make slurm: skipped: {reason}")
        return 0
    lines: list[str] = []
    begin = time.monotonic()

    def say(line: str) -> None:
        lines.append(f"{time.monotonic() - begin:7.1f} s  {line}")
        print(lines[-1], flush=True)

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the daemons are stopped
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(folder, say)
    cluster.environment |= {
        "LIT_VISION": os.environ.get("LIT_VISION", str(Path(sys.executable).parent / "lit-vision")),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "experiments")]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "WANDB_MODE": "disabled",
    }
    code = 1
    try:
        cluster.start()
        check(cluster, folder, say)
        code = 0
    except UserError as error:
        say(f"failed: {error}")
    finally:
        cluster.stop()
        left = list(_processes_of(folder))
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)
    kept = f"{folder} is kept" if args.keep else "the folder is removed"
    say(f"stopped: {len(left)} processes left, {kept}")
    if not code:
        atomic_write(args.log, lambda file: file.write_text("\n".join(lines) + "\n"))
    return code


if __name__ == "__main__":
    sys.exit(main())
