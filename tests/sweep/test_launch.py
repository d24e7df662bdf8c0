"""Commands in a child process: exit codes, output, environment, and signals that are passed on."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from lit_vision.io.file_lock import try_lock
from lit_vision.sweep.launch import run_in_child


def show(arguments):
    print(*arguments, os.environ["SHOWN"])
    return 3


def die(arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def wait(arguments):
    Path(arguments[0]).write_text("ready")
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        print("saved")
        return 130


def test_exit_code_output_and_environment_of_a_child(tmp_path):
    log = tmp_path / "new" / "log.txt"
    assert run_in_child(show, ["a", "b"], log, {"SHOWN": "c"}) == 3
    assert run_in_child(die, [], log, {}) == -signal.SIGKILL
    assert log.read_text() == "a b c\n"  # appended to
    assert "SHOWN" not in os.environ


@pytest.mark.parametrize(("sent", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_reaches_the_child_once_and_ends_both(tmp_path, request, sent, raised):
    ready, log, before = tmp_path / "ready", tmp_path / "log.txt", signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a job that a shell runs with &
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, interrupt))

    def send():
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), sent)

    thread = threading.Thread(target=send)
    thread.start()
    with try_lock(tmp_path / "lock"), pytest.raises(raised):
        run_in_child(wait, [str(ready)], log, {})
    thread.join()
    assert log.read_text() == ("saved\n" if sent == signal.SIGINT else "")  # SIGTERM ended it: it has no handler
    assert signal.getsignal(signal.SIGTERM) == before
    assert try_lock(tmp_path / "lock") is not None  # the child, which shared it, has ended
