"""Run a lit-vision command in a process of its own, which ends with the process that started it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lit_vision.io.processes import die_with_parent

Command = Callable[[Sequence[str]], int]  # arguments after `lit-vision` to an exit code
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of a cluster that wants the machine back


def run_in_child(command: Command, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Run a command in a child process and wait for it.

    On Linux the child is a fork: what has been imported here need not be imported again. It holds what locks this
    process holds, and the kernel kills it if this process is killed.

    Args:
        command: takes the arguments after `lit-vision` and returns an exit code.
        arguments: of the command.
        log: its output is appended here.
        environment: variables to set in the child.

    Returns:
        The exit code; negative: the number of the signal that killed it.

    Raises:
        KeyboardInterrupt, SystemExit: Ctrl-C, or a signal of STOP_SIGNALS; raised when the child has ended.
    """
    linux = sys.platform.startswith("linux")
    context = multiprocessing.get_context("fork") if linux else multiprocessing.get_context("spawn")
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    child = context.Process(target=_run, args=(command, list(arguments), log, dict(environment), os.getpid()))

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        child.start()
        child.join()
    except BaseException as error:  # the child saves a checkpoint and ends; at a second Ctrl-C it ends at once
        for _ in range(2):
            if child.pid is not None and child.is_alive():
                os.kill(child.pid, signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
            with contextlib.suppress(KeyboardInterrupt):
                child.join()
                break
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return child.exitcode or 0


def _run(command: Command, arguments: list[str], log: Path, environment: dict[str, str], parent: int) -> None:
    if sys.platform.startswith("linux"):
        die_with_parent(parent)
    os.setpgid(0, 0)  # Ctrl-C on a terminal reaches the parent alone, which passes it on
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(environment)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # a fork has the parent's objects, which may hold text or write elsewhere
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.argv[1:] = arguments  # Lightning starts further processes of a run by this command line
    sys.exit(command(arguments))
