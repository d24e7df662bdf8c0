"""Soak test: kill real runs over and over, go on, and compare every bit with the run that nobody killed. Run: make soak

One process imports everything once and forks each run, so that a restart costs half a second, not ten. Parts:
  every step      MAE, SimCLR, Classifier x workers 0, 2 x accumulation 1, 2: SIGKILL before and after the save of every step
  random steps    200 SIGKILLs at random places (batch, validation, save, epoch's end), intervals of 1 to 3 steps between saves
  during saving   200 SIGKILLs at random instants while a checkpoint is being written
  two processes   the same over gloo; and 2 to 1 to 2 processes at a constant global batch
Equal means: weights, optimiser, scheduler, loops, RNG after the last batch, the samples of each step, metrics.csv, all at atol=0
(2 to 1 to 2: samples equal, weights within 1e-5). Each restart says which step it restored, and may repeat one interval at most.
Writes experiments/results/soak.json.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import random
import re
import select
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback

from lit_vision import digests, runs
from lit_vision.train import main as lit_vision

RESULT = Path(__file__).parent / "results" / "soak.json"
BATCHES, EPOCHS = 4, 2  # batches of 4 images in an epoch
VIT = "{img_size: 16, patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2%s}"
METHODS = {
    "MAE": f"{{backbone: vit_tiny_patch16_224, backbone_args: {VIT % ''}, decoder_width: 32, decoder_depth: 1, decoder_heads: 2, "
    "base_lr: 0.01, warmup_epochs: 0.5}",
    "SimCLR": "{backbone: resnet18, backbone_args: {stem: small, layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}, projection_width: 8, "
    "optimizer: lars, base_lr: 1.0, warmup_epochs: 0.5}",
    "Classifier": f"{{backbone: vit_tiny_patch16_224, backbone_args: {VIT % ', drop_path_rate: 0.2'}, num_classes: 2, mixup: 0.4, "
    "base_lr: 0.01, warmup_epochs: 0.5, label_smoothing: 0.1}",
    # without random numbers in the model, which are per process: for another number of processes
    "Plain": f"{{backbone: vit_tiny_patch16_224, backbone_args: {VIT % ''}, num_classes: 2, optimizer: sgd, lr: 0.01, warmup_epochs: 0}}",
}
VIEWS = {"MAE": "mae", "SimCLR": "simclr, strength: 0.5, blur: 0.0"}
KNN = "    - {class_path: lit_vision.callbacks.online_knn.OnlineKNN, init_args: {k: 3}}\n"
RECIPE = """
seed_everything: 3
trainer:
  max_epochs: {epochs}
  accelerator: cpu
  strategy: {strategy}
  log_every_n_steps: 1
  enable_model_summary: false
  enable_progress_bar: false
  callbacks:
    - {{class_path: lit_vision.checkpointing.LastCheckpoint, init_args: {{every_n_steps: {interval}}}}}
    - {{class_path: soak.Deadly}}
{knn}model: {{class_path: lit_vision.methods.{method}, init_args: {model}}}
data:
  class_path: lit_vision.data.ImageFolderDataModule
  init_args: {{root: {root}, img_size: 16, train_view: {view}, batch_size: 4, num_workers: {workers}, in_memory: false}}
"""


class Deadly(Callback):
    """Writes down what each batch was, and kills its own process at the event that SOAK_KILL names, as "end:3"."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def _event(self, name: str) -> None:
        self.seen[name] += 1
        here = f"{name}:{self.seen[name]}"
        if here == os.environ.get("SOAK_KILL"):
            sign = os.environ.get("SOAK_SIGNAL", "SIGKILL")
            if name == "save" and sign == "SIGKILL":  # killed from outside, at a random instant from now on
                os.write(int(os.environ["SOAK_PIPE"]), b"x")
            else:
                os.kill(os.getpid(), getattr(signal, sign))

    def on_train_batch_start(self, *args: Any) -> None:
        self._event("start")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        rng = [torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), repr(random.getstate())]
        line = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "keys": batch["key"].tolist(),
            "rng": hashlib.sha256(b"".join(r if isinstance(r, bytes) else r.encode() for r in rng)).hexdigest(),
        }
        path = Path(trainer.default_root_dir) / f"journal-{trainer.global_rank}.jsonl"
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")
        self._event("end")

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._event("val")

    def on_train_epoch_end(self, *args: Any) -> None:
        self._event("epoch")

    def on_save_checkpoint(self, *args: Any) -> None:
        self._event("save")


@dataclass(frozen=True)
class Case:
    """One setting of a toy run, in its own folder."""

    folder: Path
    method: str = "MAE"
    workers: int = 0
    accumulate: int = 1
    interval: int = 1
    world: int = 1
    strategy: str = ""

    @property
    def recipe(self) -> Path:
        """The recipe's file."""
        place = "-other" if self.strategy else "-ddp" if self.world > 1 else ""
        return self.folder / f"{self.method}-{self.workers}-{self.interval}{place}.yaml"

    def write(self) -> Path:
        """Writes recipe and images if they are not there; returns the recipe."""
        root = self.folder / ("images-even" if self.strategy else "images")
        if not root.is_dir():
            # 9 to measure on: two processes have unequally many batches, which sharded ones may not
            _write_images(root, 4 * BATCHES + 3, 8 if self.strategy else 9)
        view = VIEWS.get(self.method, "train")
        model = METHODS[self.method]
        method = "Classifier" if self.method == "Plain" else self.method
        strategy = self.strategy or ("ddp" if self.world > 1 else "auto")
        text = RECIPE.format(
            epochs=EPOCHS,
            strategy=strategy,
            interval=self.interval,
            method=method,
            model=model,
            root=root,
            view=view,
            workers=self.workers,
            knn=KNN if self.method in VIEWS else "",
        )
        self.recipe.write_text(text)
        return self.recipe

    def words(self, name: str, resume: bool) -> list[str]:
        """The command of a run."""
        words = ["fit", "--config", str(self.write()), "--run_dir", str(self.folder / name)]
        words += ["--trainer.accumulate_grad_batches", str(self.accumulate), "--trainer.devices", str(self.world)]
        return words + ["--resume", "auto"] * resume


def _write_images(root: Path, n: int, val: int) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(n + val):
        kind = rng.integers(0, 128, (20, 20, 3), dtype=np.uint8) + np.uint8(i % 2 * 120)
        path = root / ("val" if i >= n else "train") / ("light" if i % 2 else "dark") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(kind).save(path)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(
    words: list[str],
    log: Path,
    kill: str = "",
    world: int = 1,
    delay: tuple[float, float] = (0, 0),
    sign: str = "SIGKILL",
) -> int:
    """Runs a command in forks, as torchrun starts them where `world` is more than 1.

    Args:
        words: after `lit-vision`.
        log: gets what is printed.
        kill: the event at which the run dies, as "end:3"; of several processes the last one does, and then the others are killed.
        world: processes.
        delay: seconds between which a random instant is chosen for the kill, for kill="save:<n>".
        sign: the signal.

    Returns:
        The exit code of rank 0; -9 if a process was killed.
    """
    _parse_once(words)
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    port = _free_port() if world > 1 else 0
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            os.close(reader)
            _run_here(words, log, kill if rank == world - 1 else "", sign, rank, world, port, writer)
        children.append(child)
    os.close(writer)
    try:
        if (
            kill.startswith("save")
            and sign == "SIGKILL"
            and select.select([reader], [], [], 120)[0]
            and os.read(reader, 1)
        ):
            time.sleep(random.uniform(*delay))
            for child in children:
                os.kill(child, signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(children[-1], 0)[1])]
        if world > 1:
            if codes[0] < 0:  # as a cluster does when one process of a job is lost
                with contextlib.suppress(ProcessLookupError):
                    os.kill(children[0], signal.SIGKILL)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children[:-1]] + codes
        # a process that loses its partner ends with an error of its own, if it is not killed first
        return -9 if -9 in codes else codes[0]
    finally:
        os.close(reader)


_PARSED: dict[tuple, tuple] = {}


def _parse_once(words: list[str]) -> None:
    """Builds the parser and reads the recipe in this process, once for each recipe and layout: most of what a start costs."""
    from lit_vision import lightning_cli

    class Read(Exception):
        pass

    class Reader(lightning_cli.RunCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            super().parse_arguments(parser, args)
            raise Read

    key = _key(words)
    if key not in _PARSED:
        reader = Reader.__new__(Reader)
        with contextlib.suppress(Read):
            reader.__init__(words, words[2], [])
        _PARSED[key] = (
            reader.config,
            {k: v for k, v in reader.__dict__.items() if k not in ("config", "recipe", "overrides", "start")},
        )


_CHANGES = re.compile(
    r"(?<=every_n_steps: )\d+|(?<=num_workers: )\d+|(?<=root: )[^,}]+|(?<=strategy: )(?:auto|ddp)(?=\n)"
)


def _key(words: list[str]) -> tuple:
    """What two commands must have in common to be parsed once: the recipe but for what is set anew, and the other flags."""
    own = {"--config", "--run_dir", "--resume", "--trainer.accumulate_grad_batches", "--trainer.devices"}
    return (_CHANGES.sub("*", Path(words[2]).read_text()), *runs.without(words, own))


def _use_what_was_parsed(words: list[str]) -> None:
    """In the fork: the command goes its usual way, but for the steps that were done before."""
    from lit_vision.lightning_cli import RunCLI, SaveConfig

    (config, built), recipe = _PARSED[_key(words)], yaml.safe_load(Path(words[2]).read_text())
    own, typed = config.fit, dict(zip(words[1::2], words[2::2]))
    own.run_dir, own.resume = typed["--run_dir"], typed.get("--resume")
    for name in ("accumulate_grad_batches", "devices"):
        if f"--trainer.{name}" in typed:
            own.trainer[name] = int(typed[f"--trainer.{name}"])
    if recipe["trainer"].get("strategy") in ("auto", "ddp") and "--trainer.strategy" not in typed:
        own.trainer.strategy = recipe["trainer"]["strategy"]
    for name in {"num_workers", "root"} & recipe["data"]["init_args"].keys():
        own.data.init_args[name] = recipe["data"]["init_args"][name]
    saver = next(c for c in recipe["trainer"]["callbacks"] if c["class_path"].endswith("LastCheckpoint"))
    for callback in own.trainer.callbacks:
        if callback.class_path.endswith("LastCheckpoint"):
            callback.init_args.every_n_steps = saver["init_args"]["every_n_steps"]
    RunCLI.setup_parser = lambda self, *args: self.__dict__.update(built)
    RunCLI.parse_arguments = lambda self, *args: setattr(self, "config", config)
    if (Path(own.run_dir) / "config.yaml").is_file():  # a third of a start
        SaveConfig.setup = lambda *args, **kwargs: None


def _run_here(words: list[str], log: Path, kill: str, sign: str, rank: int, world: int, port: int, writer: int) -> None:
    code = 1
    with contextlib.suppress(BaseException):
        os.environ.update(SOAK_KILL=kill, SOAK_PIPE=str(writer), SOAK_SIGNAL=sign)
        if world > 1:
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            place |= {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "soak"}
            os.environ.update({k: str(v) for k, v in place.items()})
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = sys.stderr = os.fdopen(handle, "w", buffering=1)
        torch.set_num_threads(1)
        try:
            _use_what_was_parsed(words)
            code = lit_vision(words)
        except BaseException as error:
            print("soak:", type(error).__name__, error)
            raise
    os._exit(code)


class Failure(AssertionError):
    """A run did not end as the one that nobody killed."""


class Run:
    """A run that is killed and goes on.

    Args:
        case: its setting.
        name: of its folder.
    """

    def __init__(self, case: Case, name: str) -> None:
        self.case, self.name, self.kills, self.repeated = case, name, 0, 0
        self.folder, self.log = case.folder / name, case.folder / f"{name}.log"
        self.begun = False

    def go(
        self, kill: str = "", sign: str = "SIGKILL", case: Case | None = None, delay: tuple[float, float] = (0, 0)
    ) -> bool:
        """Starts or goes on, up to the kill; False if the run came to its end first.

        Raises:
            Failure: it ended in another way, or repeats more than one interval, as a run that starts anew would.
        """
        case = case or self.case
        done, read = self._steps(), self.log.stat().st_size if self.log.exists() else 0
        resume = self.begun
        self.begun = True
        code = launch(case.words(self.name, resume), self.log, kill, case.world, delay, sign)
        said = self.log.read_text()[read:]
        if code not in (0, -9, {"SIGTERM": 143, "SIGINT": 130}.get(sign)):
            raise Failure(f"{case} {self.name} {kill}: exit code {code}\n{said[-1500:]}")
        if resume:
            self._check_restored(said, done, kill)
        self.kills += code != 0
        return code != 0

    def _check_restored(self, said: str, done: int, kill: str) -> None:
        restored = re.findall(r"^restored step (\d+) ", said, re.M)
        if not restored and "restored" not in said and "starts anew" not in said:
            if "going on from" not in said and not said.strip():
                return  # killed before it could say anything
            raise Failure(f"{self.name} {kill}: does not say what it restored\n{said[-1500:]}")
        step = int(restored[0]) if restored else 0
        self.repeated = max(self.repeated, done - step)
        if done - step > self.case.interval:
            raise Failure(
                f"{self.name} {kill}: {done} steps were done, restored step {step}: more than {self.case.interval} repeated"
            )

    def _steps(self) -> int:
        return max((line["step"] for line in self.journal()), default=0)

    def journal(self, rank: int = 0) -> list[dict[str, Any]]:
        """What was done, batch by batch, repeated ones included."""
        path = self.folder / f"journal-{rank}.jsonl"
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def samples(self, ranks: int) -> dict[int, set[tuple[int, ...]]]:
        """The samples of each optimiser step (the counter after it) over all ranks; a repeated step must have the same."""
        steps: dict[int, set] = {}
        for rank in range(ranks):
            for line in self.journal(rank):
                # inside an accumulation window the counter is that of the step before
                steps.setdefault((line["epoch"], line["step"]), set()).update(map(tuple, line["keys"]))
        return steps

    def check(self, whole: Run, tolerance: float = 0.0) -> None:
        """Compares with the run that nobody killed.

        Raises:
            Failure: something differs.
        """
        ours, theirs = (torch.load(r.folder / "checkpoints" / "last.ckpt", weights_only=True) for r in (self, whole))
        if tolerance:
            for key, value in theirs["state_dict"].items():
                if not torch.allclose(ours["state_dict"][key], value, rtol=0, atol=tolerance):
                    raise Failure(f"{self.name}: {key} differs by {(ours['state_dict'][key] - value).abs().max():.2e}")
            return
        for key in (
            "state_dict",
            "optimizer_states",
            "lr_schedulers",
            "epoch",
            "global_step",
            "loops",
            "ImageFolderDataModule",
        ):
            _same(ours[key], theirs[key], f"{self.name}: {key}")
        if (self.folder / "metrics.csv").read_text() != (whole.folder / "metrics.csv").read_text():
            raise Failure(f"{self.name}: metrics.csv differs")
        for rank in range(self.case.world):
            last = [max(r.journal(rank), key=lambda line: (line["epoch"], line["step"])) for r in (self, whole)]
            _same(*(r.journal(rank)[-1] for r in (self, whole)), f"{self.name}: the last batch and the RNG after it")
            _same(last[0]["step"], last[1]["step"], f"{self.name}: steps")
        _same(self.samples(self.case.world), whole.samples(self.case.world), f"{self.name}: samples of the steps")
        for path in (self.folder / "checkpoints").glob("*.ckpt"):
            if wrong := digests.fault(path):
                raise Failure(f"{path} {wrong}")


def _same(a: Any, b: Any, where: str) -> None:
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        same = a.keys() == b.keys()
        for key in a if same else ():
            _same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        same = len(a) == len(b)
        for i, (x, y) in enumerate(zip(a, b) if same else ()):
            _same(x, y, f"{where}[{i}]")
    else:
        same = a == b
    if not same:
        raise Failure(f"{where} differs")


class Soak:
    """All parts over one folder; counts what happened.

    Args:
        folder: for the runs; in memory it is quick.
        seed: of the random kills.
        warm: methods that the forks will need.
        out: a JSON file that the counts are added to, or None.
    """

    def __init__(
        self,
        folder: Path,
        seed: int = 0,
        warm: tuple[str, ...] = ("SimCLR", "MAE", "Classifier"),
        out: Path | None = None,
    ) -> None:
        self.out = out
        self.folder, self.random = folder, random.Random(seed)
        self.wholes: dict[tuple, Run] = {}
        self.counts: dict[str, Counter] = {}
        self.failures: list[str] = []
        # in this process: what the methods import on the way, the forks need not import again
        for method in warm:
            case = Case(folder, method)
            with contextlib.redirect_stdout(None):
                lit_vision(case.words(f"warm-{method}", False))
            _parse_once(case.words("parsed", False))

    def whole(self, case: Case) -> Run:
        """The uninterrupted run of this setting, made once (the interval between saves does not matter to it)."""
        key = (case.method, case.workers, case.accumulate, case.world)
        if key not in self.wholes:
            run = Run(case, "whole-" + "-".join(map(str, key)))
            if run.go():
                raise Failure(f"{run.name} was killed")
            self.wholes[key] = run
        return self.wholes[key]

    def chain(
        self, part: str, case: Case, name: str, kills: Any, tolerance: float = 0.0, also: Any = lambda run, whole: None
    ) -> None:
        """One run through the kills (a function of how many there were), then to its end, then compared; `also` compares more."""
        counts, run, failed = self.counts.setdefault(part, Counter()), Run(case, name), True
        try:
            whole = self.whole(case)
            while (kill := kills(run.kills)) and run.go(**kill):
                pass
            if (kill is None) and run.go():
                raise Failure(f"{name}: killed without a kill")
            run.check(whole, tolerance)
            also(run, whole)
            failed = False
        except Failure as failure:
            self.failures.append(str(failure))
            print("FAILED", failure, flush=True)
            counts["failures"] += 1
        counts["runs"] += 1
        counts["kills"] += run.kills
        counts["steps_repeated_at_most"] = max(counts["steps_repeated_at_most"], run.repeated)
        self.note(part, run, failed)

    def note(self, part: str, run: Run, failed: bool) -> None:
        """Adds a run to the file at once: a soak that is killed has not been for nothing, and parts may run beside each other."""
        if self.out is None:
            return
        folder = os.open(self.out.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            whole = json.loads(self.out.read_text())
            entry = whole["parts"].setdefault(part, {"failures": 0, "runs": 0, "kills": 0, "steps_repeated_at_most": 0})
            entry["failures"] += failed
            entry["runs"] += 1
            entry["kills"] += run.kills
            entry["steps_repeated_at_most"] = max(entry["steps_repeated_at_most"], run.repeated)
            whole["failures"] += failed
            self.out.write_text(json.dumps(whole, indent=2) + "\n")
        finally:
            os.close(folder)

    def every_step(self, methods: list[str], workers: list[int], accumulations: list[int], steps: int = 99) -> None:
        """Kills before the save of each step and after it, in one chain."""
        for method in methods:
            for n in workers:
                for accumulate in accumulations:
                    case = Case(self.folder, method, n, accumulate)
                    # before the save of a step: it is repeated; then past it, and killed as the next one begins
                    before, after = {"kill": f"end:{accumulate}"}, {"kill": f"start:{accumulate + 1}"}
                    plan = lambda i, a=after, b=before: (b, a)[i % 2] if i < 2 * steps else None  # noqa: E731
                    self.chain("every step", case, f"every-{method}-{n}-{accumulate}", plan)

    def _any_case(self, world: int = 1) -> Case:
        pick = self.random.choice
        return Case(
            self.folder, pick(["MAE", "SimCLR", "Classifier"]), pick([0, 0, 2]), pick([1, 2]), pick([1, 2, 3]), world
        )

    def random_steps(self, kills: int, world: int = 1, part: str = "random steps") -> None:
        """Kills at random events, one to four a run."""
        while self.counts.get(part, {}).get("kills", 0) < kills and not self.failures:
            left = kills - self.counts.get(part, {}).get("kills", 0)
            times = min(left, self.random.randint(1, 4))

            def kill(i: int, times: int = times) -> dict[str, Any] | None:
                event = self.random.choice(["start", "start", "end", "end", "val", "epoch"])
                most = {"start": 8, "end": 6, "val": 3, "epoch": 2}[event]
                return {"kill": f"{event}:{self.random.randint(1, most)}"} if i < times else None

            case = self._any_case(world)
            self.chain(
                part, case, f"random{world}-{len(self.failures)}-{self.counts.get(part, {}).get('runs', 0)}", kill
            )

    def during_saving(self, kills: int, world: int = 1, part: str = "during saving") -> None:
        """Kills at random instants after a save has begun; the span is longer than a save, so that some come after it."""
        while self.counts.get(part, {}).get("kills", 0) < kills and not self.failures:
            left = kills - self.counts.get(part, {}).get("kills", 0)

            def kill(i: int, left: int = left) -> dict[str, Any] | None:
                wanted = {"kill": f"save:{self.random.randint(1, 3)}", "delay": (0.0, self.save_seconds * 1.3)}
                return wanted if i < min(left, 8) else None

            self.chain(part, self._any_case(world), f"saving{world}-{self.counts.get(part, {}).get('runs', 0)}", kill)

    @property
    def save_seconds(self) -> float:
        """About how long one save of a toy takes here."""
        if not hasattr(self, "_save_seconds"):
            from lit_vision.checkpoint_files import AtomicIO

            state = torch.load(self.whole(Case(self.folder)).folder / "checkpoints" / "last.ckpt", weights_only=True)
            start = time.perf_counter()
            for _ in range(5):
                AtomicIO().save_checkpoint(state, self.folder / "probe" / "last.ckpt", {"previous": "previous.ckpt"})
            self._save_seconds = (time.perf_counter() - start) / 5
        return self._save_seconds

    def elastic(self, rounds: int = 1) -> None:
        """2 to 1 to 2 processes at a constant global batch of 8."""
        two = Case(self.folder, "Plain", interval=1, world=2)
        one = Case(self.folder, "Plain", accumulate=2, interval=1)
        for i in range(rounds):
            a = self.random.randint(2, 3)
            sequence = [
                {"kill": f"start:{a}"},
                {"kill": "start:3", "case": WithRecipe(one, two)},  # one step of two batches, then killed
                None,
            ]
            self.chain("2 to 1 to 2", two, f"elastic-{i}", lambda n, s=sequence: s[min(n, 2)], 1e-5, _check_samples)


class WithRecipe:
    """A case that runs another one's recipe with its own number of processes."""

    def __init__(self, case: Case, of: Case) -> None:
        self.case, self.of, self.world, self.interval = case, of, case.world, case.interval

    def words(self, name: str, resume: bool) -> list[str]:
        words = self.of.words(name, resume)
        words[words.index("--trainer.accumulate_grad_batches") + 1] = str(self.case.accumulate)
        words[words.index("--trainer.devices") + 1] = str(self.case.world)
        return words + ["--trainer.strategy", self.case.strategy] * bool(self.case.strategy)


def _check_samples(run: Run, whole: Run) -> None:
    """No sample missing, none too many, over all processes of all parts of the run; a repeated batch counts once."""
    batches = [{json.dumps(line["keys"]) for rank in range(2) for line in r.journal(rank)} for r in (run, whole)]
    seen, expected = ({tuple(key) for batch in part for key in json.loads(batch)} for part in batches)
    if seen != expected:
        raise Failure(f"{run.name}: samples missing or too many: {sorted(seen ^ expected)}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="random kills, and as many during saving")
    parser.add_argument("--gloo-kills", type=int, default=20, help="of two processes, and as many during saving")
    parser.add_argument(
        "--beside", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time (default: cores)"
    )
    parser.add_argument("--only", default="", help="every, random, saving or gloo; the others' counts stay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    import lit_vision.lightning_cli  # noqa: F401  the forks have it then
    from lit_vision.evaluation import results

    torch.set_num_threads(1)
    start, environment = time.perf_counter(), results.environment(args.seed)
    shares = [args.kills // args.beside + (i < args.kills % args.beside) for i in range(args.beside)]
    parts = {
        "every": [
            lambda s, m=m, w=w: s.every_step([m], [w], [1, 2]) for m in VIEWS | {"Classifier": ""} for w in (0, 2)
        ],
        "random": [lambda s, n=n: s.random_steps(n) for n in shares],
        "saving": [lambda s, n=n: s.during_saving(n) for n in shares],
        "gloo": [
            lambda s: s.random_steps(args.gloo_kills, 2, "two processes, random steps"),
            lambda s: s.during_saving(args.gloo_kills, 2, "two processes, during saving"),
            lambda s: s.elastic(3),
        ],
    }
    jobs = [job for name, part in parts.items() if args.only in ("", name) for job in part]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not args.only or not args.out.is_file():
        args.out.write_text(
            json.dumps({"made_by": "make soak", "failures": 0, "parts": {}, "environment": environment})
        )
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None, prefix="soak-") as folder:
        soak = Soak(Path(folder), warm=("SimCLR", "MAE", "Classifier", "Plain"), out=args.out)
        running: set[int] = set()
        for number, job in enumerate(jobs):
            if len(running) == args.beside:
                running.discard(os.wait()[0])
            running.add(_fork(soak, job, number, args.seed))
        while running:
            running.discard(os.wait()[0])
    done = json.loads(args.out.read_text())
    print(f"{args.out}: {done['failures']} failures, {time.perf_counter() - start:.0f} s: {json.dumps(done['parts'])}")
    return bool(done["failures"])


def _fork(soak: Soak, job: Any, number: int, seed: int) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            soak.folder = soak.folder / str(number)
            soak.folder.mkdir()
            soak.random = random.Random(f"{seed}-{number}")
            job(soak)
        except BaseException as error:
            print("FAILED", number, repr(error), flush=True)
        os._exit(0)
    return child


if __name__ == "__main__":
    from soak import main  # the recipes name soak.Deadly: one module, not two

    sys.exit(main())
