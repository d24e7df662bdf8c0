"""Run a command on a share of wall time, as on a slower machine: its processes are stopped and continued.

    python experiments/throttle.py 0.2 -- make test
    python experiments/throttle.py 0:1.0,60:0.33,300:1.0 -- python -m pytest -n 2 tests/data

SHARE is above 0 and at most 1, or a timetable SECONDS:SHARE,... whose first entry is at 0 seconds. A cycle is 100 ms.
The command gets a session of its own. With Linux's /proc all its descendants are stopped, those in other sessions too
(pytest-xdist, multiprocessing, start_new_session), also if their parent has ended; elsewhere only its process group is.
A process that the command itself has stopped stays stopped until the command ends. A throttle within a throttle needs
another --cycle_ms: two equal cycles stand in step, and the inner command may run only while the outer one stops it.
SIGINT and SIGQUIT go on to the command's process group, as from a terminal; SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 to the
command alone.
Exit code: the command's, 128 + n if signal n ended it, 126 or 127 if it cannot be started, 2 for wrong arguments.
No process stays stopped when the throttle ends, not even by SIGKILL: a guard process then continues what was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

CYCLE = 100_000_000  # ns
TO_GROUP = (signal.SIGINT, signal.SIGQUIT)
TO_COMMAND = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PROC = Path("/proc")
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

Timetable = list[tuple[float, float]]  # (seconds since the start, share from then on), ascending


def parse_timetable(text: str) -> Timetable:
    """Read `0.2` or `0:1.0,60:0.33`.

    Raises:
        ValueError: with one line that says what is wrong.
    """
    entries = text.split(",") if ":" in text else [f"0:{text}"]
    timetable: Timetable = []
    for entry in entries:
        try:
            seconds, share = map(float, entry.split(":"))
        except ValueError:
            raise ValueError(f"SHARE: {text!r} is neither a number nor SECONDS:SHARE,...") from None
        if not 0 < share <= 1:
            raise ValueError(f"SHARE: {text!r}: a share must be above 0 and at most 1")
        if not (timetable[-1][0] < seconds < float("inf") if timetable else seconds == 0):
            raise ValueError(f"SHARE: {text!r}: times must begin at 0 and ascend")
        timetable.append((seconds, share))
    return timetable


def share_at(timetable: Timetable, seconds: float) -> float:
    """Return the share that holds `seconds` after the start."""
    return next(share for start, share in reversed(timetable) if start <= seconds)


def phase_at(timetable: Timetable, elapsed: int, cycle: int = CYCLE) -> tuple[bool, int]:
    """Return whether the command runs `elapsed` ns after the start, and until when (ns after the start) that holds.

    Cycle n lasts from n to n + 1 times `cycle`; its first part runs. Only time decides, so lateness never adds up.
    """
    begin = elapsed // cycle * cycle
    stop = begin + round(share_at(timetable, begin / 1e9) * cycle)
    return (True, stop) if elapsed < stop else (False, begin + cycle)


def read_process(process: int) -> tuple[int, str] | None:
    """Return (id of the parent, state letter) from /proc, None if there is no such process any more."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return int(parent), state.decode()


def read_processes() -> dict[int, tuple[int, str]]:
    """Return `read_process` of all processes, by id; empty where there is no /proc."""
    ids = [int(name) for name in os.listdir(PROC) if name.isdigit()] if PROC.is_dir() else []
    return {process: found for process in ids if (found := read_process(process))}


def descendants(of: int, processes: dict[int, tuple[int, str]], without: int | None = None) -> list[int]:
    """Return the ids of all processes below `of`, parents before children, but not `without` and those below it."""
    children: dict[int, list[int]] = {}
    for process, (parent, _) in processes.items():
        children.setdefault(parent, []).append(process)
    found = [of]
    for process in found:  # grows while it is read
        found += [child for child in children.get(process, ()) if child not in (without, of)]
    return found[1:]


def send(processes: Iterable[int], number: int) -> None:
    """Send a signal to each process that is still there."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


class Guard:
    """A process that continues what is stopped if the throttle dies without doing so itself (SIGKILL).

    It reads a pipe from the throttle: ids that are about to be stopped, an empty line when all run again. The pipe ends
    when the throttle does.
    """

    def __init__(self) -> None:
        reader, self.pipe = os.pipe()
        os.set_blocking(self.pipe, False)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            self._watch(reader)
        os.close(reader)

    @staticmethod
    def _watch(reader: int) -> None:
        try:
            os.setsid()
            for number in (*TO_GROUP, *TO_COMMAND):
                signal.signal(number, signal.SIG_IGN)
            null = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):  # whoever reads the throttle's output is not to wait for this process
                os.dup2(null, stream)
            stopped: list[int] = []
            with open(reader) as lines:
                for line in lines:
                    stopped = stopped + [int(process) for process in line.split()] if line.strip() else []
            send(reversed(stopped), signal.SIGCONT)
        finally:
            os._exit(0)

    def write(self, processes: Iterable[int] = ()) -> None:
        """Tell it which processes are about to be stopped; none: all run again."""
        with contextlib.suppress(OSError):  # it was killed or stopped: throttling goes on without it
            os.write(self.pipe, (" ".join(map(str, processes)) + "\n").encode())

    def close(self) -> None:
        """End it."""
        os.close(self.pipe)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


class Throttle:
    """A command, stopped and continued by a timetable.

    Args:
        command: program and arguments.
        timetable: shares of wall time.
        cycle: ns.
    """

    def __init__(self, command: Sequence[str], timetable: Timetable, cycle: int = CYCLE) -> None:
        self.command, self.timetable, self.cycle = list(command), timetable, cycle
        self.stopped: list[int] = []
        self.status: int | None = None
        self.wake: int = -1  # the read end of a pipe on which Python writes the number of each signal that came
        self.pid: int = -1

    def run(self) -> int:
        """Run the command to its end; returns its exit code, 128 + n if signal n ended it.

        Raises:
            OSError: it cannot be started.
        """
        self._receive_signals()
        with contextlib.suppress(
            AttributeError, OSError
        ):  # Linux: orphans of the command become children of this process
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.guard = Guard()
        try:
            process = subprocess.Popen(self.command, start_new_session=True)
            self.pid = process.pid
            start = time.monotonic_ns()
            while self.status is None:
                runs, until = phase_at(self.timetable, time.monotonic_ns() - start, self.cycle)
                if runs:
                    self.continue_all()
                else:
                    self.stop_all()
                self._wait(start + until)
            process.returncode = os.waitstatus_to_exitcode(self.status)
            return process.returncode if process.returncode >= 0 else 128 - process.returncode
        finally:
            self.release()
            self.guard.close()

    def stop_all(self) -> None:
        """Stop the command and its descendants, parents first."""
        if not PROC.is_dir():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGSTOP)
            return
        seen: set[int] = set()
        while True:  # what was forked before its parent stopped is found by looking again
            new = [p for p in descendants(os.getpid(), read_processes(), self.guard.pid) if p not in seen]
            if not new:
                return
            self.guard.write(new)
            seen.update(new)
            for process in new:
                now = read_process(process)
                if now and now[1] not in "Tt":  # the command stopped it: not ours to continue
                    self.stopped.append(process)
                    send([process], signal.SIGSTOP)

    def continue_all(self) -> None:
        """Continue what `stop_all` stopped, children first."""
        if not PROC.is_dir():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGCONT)
        elif self.stopped:
            send(reversed(self.stopped), signal.SIGCONT)
            self.stopped = []
            self.guard.write()

    def release(self) -> None:
        """Continue every descendant, whoever stopped it."""
        self.continue_all()
        send(descendants(os.getpid(), read_processes(), self.guard.pid), signal.SIGCONT)

    def _receive_signals(self) -> None:
        self.wake, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (*TO_GROUP, *TO_COMMAND):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                signal.signal(number, lambda *_: None)

    def _wait(self, end: int) -> None:
        """Wait until that time or the command's end; pass signals on, and let the command run to receive them."""
        while self.status is None and (left := end - time.monotonic_ns()) > 0:
            if select.select([self.wake], [], [], left / 1e9)[0]:
                for number in os.read(self.wake, 4096):
                    self._handle(number)

    def _handle(self, number: int) -> None:
        if number == signal.SIGCHLD:
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    if ended[0] == self.pid:
                        self.status = ended[1]
        elif self.status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if number in TO_GROUP:
                    os.killpg(self.pid, number)
                else:
                    os.kill(self.pid, number)
            self.continue_all()


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, run the command, return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="throttle.py",
        usage="throttle.py [--cycle_ms MS] SHARE -- COMMAND...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # not ScriptParser: the throttle runs without the package
    )
    parser.add_argument("share", metavar="SHARE", help="(0 to 1], or a timetable such as 0:1.0,60:0.33,300:1.0")
    parser.add_argument("--cycle_ms", type=int, default=CYCLE // 1_000_000, help="length of a cycle (default: 100)")
    split = argv.index("--") if "--" in argv else len(argv)
    options, command = parser.parse_args(argv[:split]), argv[split + 1 :]
    if not command:
        parser.error("no command; give it after --")
    if options.cycle_ms < 1:
        parser.error("--cycle_ms: give 1 or more")
    try:
        timetable = parse_timetable(options.share)
    except ValueError as error:
        parser.error(str(error))
    try:
        return Throttle(command, timetable, options.cycle_ms * 1_000_000).run()
    except OSError as error:
        print(f"throttle.py: cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126


if __name__ == "__main__":
    sys.exit(main())
