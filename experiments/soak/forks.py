"""A command in a fork of a process that has imported everything and read the recipe: a restart costs half a second, not ten."""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_vision.cli.fit import run_command
from lit_vision.runs import run_dir


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
    parse_once(words)
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


def parse_once(words: list[str]) -> None:
    """Builds the parser and reads the recipe in this process, once for each recipe and layout: most of what a start costs."""
    from lit_vision.cli import lightning_cli

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
    return (_CHANGES.sub("*", Path(words[2]).read_text()), *run_dir.drop_flags(words, own))


def use_what_was_parsed(words: list[str]) -> None:
    """In the fork: the command goes its usual way, but for the steps that were done before."""
    from lit_vision.cli.lightning_cli import RunCLI, SaveConfig

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
            use_what_was_parsed(words)
            code = run_command(words[0], words[1:])
        except BaseException as error:
            print("soak:", type(error).__name__, error)
            raise
    os._exit(code)
