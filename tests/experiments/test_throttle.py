"""experiments/throttle.py: timetables, exit codes, signals, and that every descendant is stopped and continued.

Nothing here judges a speed: states are waited for. The throttles of these tests use a cycle of their own (--cycle_ms),
so that the tests also pass under `python experiments/throttle.py 0.2 -- make test`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import throttle

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")


def start(share: str, *command: str) -> subprocess.Popen[str]:
    """Start the script; SIGINT has its default action even if the tests run in the background of a shell."""
    script = [sys.executable, "-I", throttle.__file__, "--cycle_ms", "30", share, "--", *command]
    return subprocess.Popen(
        script,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def state(process: int) -> str:
    """Return the letter in /proc, Z if the process is gone."""
    return (throttle.read_process(process) or (0, "Z"))[1]


def wait_for(process: int, states: str) -> None:
    """Wait, as long as it takes on a slow machine, until the process has one of these states; it must not end."""
    while (now := state(process)) not in states:
        assert now not in "ZX", f"process {process} has ended"
        time.sleep(0.002)


@contextlib.contextmanager
def running(share: str, script: str) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Yield the throttle of a shell script, the script's id, and the id of the child that it prints; end all three."""
    process = start(share, "sh", "-c", f"echo $$\n{script}\nexec sleep 100")
    assert process.stdout
    parent, child = int(process.stdout.readline()), int(process.stdout.readline())
    try:
        yield process, parent, child
    finally:
        throttle.send([parent, child, process.pid], signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("text", "timetable"),
    [
        ("0.2", [(0, 0.2)]),
        ("1", [(0, 1)]),
        ("0:1.0,60:0.33,300:1.0", [(0, 1), (60, 0.33), (300, 1)]),
    ],
)
def test_timetables(text: str, timetable: throttle.Timetable) -> None:
    assert throttle.parse_timetable(text) == timetable


@pytest.mark.parametrize(
    "text", ["0", "-1", "1.01", "nan", "", "x", "5:0.5", "0:1,0:0.5", "0:1,9:1,8:1", "0:1,x:1", "0:1,inf:1"]
)
def test_wrong_timetables_name_themselves(text: str) -> None:
    with pytest.raises(ValueError, match="SHARE") as error:
        throttle.parse_timetable(text)
    assert repr(text) in str(error.value)


def test_the_share_changes_at_its_second() -> None:
    timetable = throttle.parse_timetable("0:1.0,60:0.33,300:0.5")
    assert [throttle.share_at(timetable, s) for s in (0, 59.9, 60, 299, 300, 1e6)] == [1, 1, 0.33, 0.33, 0.5, 0.5]


def test_phases_stay_on_the_grid() -> None:
    """The ends of the phases are the same however late the throttle wakes."""
    timetable, cycle = throttle.parse_timetable("0:0.25,1:1.0,2:0.5"), 100
    assert throttle.phase_at(timetable, 0, cycle) == (True, 25)
    assert throttle.phase_at(timetable, 24, cycle) == (True, 25)
    assert throttle.phase_at(timetable, 25, cycle) == (False, 100)
    assert throttle.phase_at(timetable, 1_000_000_799, cycle) == (True, 1_000_000_800)
    assert throttle.phase_at(timetable, 2_000_000_070, cycle) == (False, 2_000_000_100)
    for late in (0, 3, 17):  # each wake-up comes late
        elapsed, ran = 0, 0
        while elapsed < 100 * cycle:
            runs, until = throttle.phase_at(timetable, elapsed, cycle)
            ran += runs
            elapsed = until + late
        assert ran == 100


def test_descendants_come_below_their_parents() -> None:
    processes = {1: (0, "S"), 5: (1, "S"), 3: (5, "R"), 4: (3, "S"), 7: (1, "S"), 8: (7, "S"), 9: (2, "S")}
    assert throttle.descendants(1, processes) == [5, 7, 3, 8, 4]
    assert throttle.descendants(1, processes, without=7) == [5, 3, 4]
    assert throttle.descendants(6, processes) == []


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
)
def test_the_commands_exit_code_comes_back(script: str, code: int) -> None:
    assert start("0.5", "sh", "-c", script).wait() == code


def test_wrong_arguments_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["0", "--", "true"], ["1", "--"], ["0.5", "true"], [], ["1", "--cycle_ms", "0", "--", "true"]):
        with pytest.raises(SystemExit) as error:
            throttle.main(arguments)
        assert error.value.code == 2
        assert "error" in capsys.readouterr().err


def test_a_command_that_does_not_start(tmp_path: Path) -> None:
    missing = start("1", str(tmp_path / "missing"))
    assert "missing" in missing.communicate()[1]
    assert missing.returncode == 127
    (tmp_path / "no_program").write_text("")
    assert start("1", str(tmp_path / "no_program")).wait() == 126


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_command(number: signal.Signals) -> None:
    process = start("0.3", "sh", "-c", f"trap 'exit 9' {number.name[3:]}; echo up; while :; do sleep 0.01; done")
    assert process.stdout
    process.stdout.readline()
    process.send_signal(number)
    assert process.wait() == 9


@needs_proc
def test_a_grandchild_in_its_own_session_is_stopped_and_continued() -> None:
    with running("0.3", "setsid sh -c 'echo $$; exec sleep 100' &") as (_, parent, child):
        assert os.getsid(child) == child != parent
        for _ in range(2):
            wait_for(child, "T")
            wait_for(child, "RSD")


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_stopped_when_the_throttle_ends(number: signal.Signals) -> None:
    """SIGTERM ends command and throttle, SIGKILL the throttle alone. The grandchild lives on, and runs."""
    with running("0.2", "setsid sh -c 'echo $$; exec sleep 100' &") as (process, _, child):
        wait_for(child, "T")
        process.send_signal(number)
        assert process.wait() == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        wait_for(child, "RSD")


@needs_proc
def test_an_orphan_in_its_own_session_is_stopped() -> None:
    with running("0.3", "(setsid sh -c 'echo $$; exec sleep 100' &)") as (process, parent, child):
        wait_for(child, "T")
        assert throttle.read_process(child) == (process.pid, "T")  # the shell between has ended
        assert os.getsid(child) == child != parent
        process.terminate()
        assert process.wait() == 143
        wait_for(child, "RSD")


@needs_proc
def test_a_process_that_someone_else_stopped_stays_stopped() -> None:
    with running("0.5", "sleep 100 & echo $!") as (process, parent, child):

        def stays_stopped() -> bool:
            """Stop the child while it runs, and look at it in three cycles."""
            wait_for(child, "RSD")
            os.kill(child, signal.SIGSTOP)
            for _ in range(3):
                wait_for(parent, "T")
                wait_for(parent, "RSD")
                if state(child) != "T":
                    return False  # the throttle was about to stop it, too: try again
            return True

        assert any(stays_stopped() for _ in range(10))
        process.terminate()
        assert process.wait() == 143
        wait_for(child, "RSD")
