"""Run a lit-vision command in a fork of a process that has imported everything and parsed the recipe.

A restart then costs half a second, not ten.
"""

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

SAVE_TIMEOUT = 1800  # seconds to wait for a save to begin: only a safety net, a run that ends closes the pipe


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(
    arguments: list[str],
    log: Path,
    kill: str = "",
    world_size: int = 1,
    delay: tuple[float, float] = (0, 0),
    signal_name: str = "SIGKILL",
) -> int:
    """Run a command in forks, started as torchrun does where `world_size` is above 1.

    Args:
        arguments: the command line after `lit-vision`.
        log: file that standard output and error are appended to.
        kill: the event at which the run is killed, as "end:3" (see `cases.KillAtEvent`), "" for none. With several
            processes the last one is killed at the event, then the others.
        world_size: number of processes.
        delay: range of seconds in which a random instant is chosen for the kill, for kill="save:<n>".
        signal_name: the signal that is sent.

    Returns:
        The exit code of rank 0; -9 if a process was killed.
    """
    preparse(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    port = _free_port() if world_size > 1 else 0
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            os.close(reader)
            kill_here = kill if rank == world_size - 1 else ""
            _run_in_child(arguments, log, kill_here, signal_name, rank, world_size, port, writer)
        children.append(child)
    os.close(writer)
    try:
        if (
            kill.startswith("save")
            and signal_name == "SIGKILL"
            and select.select([reader], [], [], SAVE_TIMEOUT)[0]
            and os.read(reader, 1)
        ):
            time.sleep(random.uniform(*delay))
            for child in children:
                os.kill(child, signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(children[-1], 0)[1])]
        if world_size > 1:
            if codes[0] < 0:  # as a cluster does when one process of a job is lost
                with contextlib.suppress(ProcessLookupError):
                    os.kill(children[0], signal.SIGKILL)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children[:-1]] + codes
        # a process that loses its partner ends with an error of its own, if it is not killed first
        return -9 if -9 in codes else codes[0]
    finally:
        os.close(reader)


_PARSED: dict[tuple, tuple] = {}


def preparse(arguments: list[str]) -> None:
    """Build the parser and read the recipe in this process, once for each recipe and layout.

    This is most of the time that a start takes.
    """
    from lit_vision.cli import lightning_cli

    class ParsedError(Exception):
        """Raised to stop the command after parsing."""

    class ParseOnlyCLI(lightning_cli.RunCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            super().parse_arguments(parser, args)
            raise ParsedError

    key = _cache_key(arguments)
    if key not in _PARSED:
        parsed = ParseOnlyCLI.__new__(ParseOnlyCLI)
        with contextlib.suppress(ParsedError):
            parsed.__init__(arguments, arguments[2], [])
        _PARSED[key] = (
            parsed.config,
            {k: v for k, v in parsed.__dict__.items() if k not in ("config", "recipe", "overrides", "start")},
        )


_VARYING_VALUES = re.compile(
    r"(?<=every_n_steps: )\d+|(?<=num_workers: )\d+|(?<=root: )[^,}]+|(?<=strategy: )(?:auto|ddp)(?=\n)"
)


def _cache_key(arguments: list[str]) -> tuple:
    """Return what two commands must have in common to share one parse: recipe, without what is set anew, and flags."""
    set_anew = {"--config", "--run_dir", "--resume", "--trainer.accumulate_grad_batches", "--trainer.devices"}
    recipe = _VARYING_VALUES.sub("*", Path(arguments[2]).read_text())
    return (recipe, *run_dir.drop_flags(arguments, set_anew))


def use_preparsed(arguments: list[str]) -> None:
    """Make the command in this fork skip parsing: it takes the parsed config, with the values that vary set anew."""
    from lit_vision.cli.lightning_cli import RunCLI, SaveConfig

    (config, attributes), recipe = _PARSED[_cache_key(arguments)], yaml.safe_load(Path(arguments[2]).read_text())
    fit, flags = config.fit, dict(zip(arguments[1::2], arguments[2::2]))
    fit.run_dir, fit.resume = flags["--run_dir"], flags.get("--resume")
    for name in ("accumulate_grad_batches", "devices"):
        if f"--trainer.{name}" in flags:
            fit.trainer[name] = int(flags[f"--trainer.{name}"])
    if recipe["trainer"].get("strategy") in ("auto", "ddp") and "--trainer.strategy" not in flags:
        fit.trainer.strategy = recipe["trainer"]["strategy"]
    for name in {"num_workers", "root"} & recipe["data"]["init_args"].keys():
        fit.data.init_args[name] = recipe["data"]["init_args"][name]
    saver = next(c for c in recipe["trainer"]["callbacks"] if c["class_path"].endswith("LastCheckpoint"))
    for callback in fit.trainer.callbacks:
        if callback.class_path.endswith("LastCheckpoint"):
            callback.init_args.every_n_steps = saver["init_args"]["every_n_steps"]
    RunCLI.setup_parser = lambda self, *args: self.__dict__.update(attributes)
    RunCLI.parse_arguments = lambda self, *args: setattr(self, "config", config)
    if (Path(fit.run_dir) / "config.yaml").is_file():  # writing it takes a third of a start
        SaveConfig.setup = lambda *args, **kwargs: None


def _run_in_child(
    arguments: list[str], log: Path, kill: str, signal_name: str, rank: int, world_size: int, port: int, writer: int
) -> None:
    code = 1
    with contextlib.suppress(BaseException):
        os.environ.update(SOAK_KILL=kill, SOAK_PIPE=str(writer), SOAK_SIGNAL=signal_name)
        if world_size > 1:
            layout = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "soak", "GROUP_RANK": 0}
            layout |= {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "RANK": rank, "LOCAL_RANK": rank}
            os.environ.update({k: str(v) for k, v in layout.items()})
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = sys.stderr = os.fdopen(handle, "w", buffering=1)
        torch.set_num_threads(1)
        try:
            use_preparsed(arguments)
            code = run_command(arguments[0], arguments[1:])
        except BaseException as error:
            print("soak:", type(error).__name__, error)
            raise
    os._exit(code)
