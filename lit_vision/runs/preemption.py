"""Signals that end a run, and SLURM's queue. A handler only sets a flag; the run looks at it where stopping is safe."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError
from lit_vision.io.checkpoint_digest import integrity_error

# SIGUSR1 is what clusters send some time before the end (sbatch --signal=USR1@120): it ends a run as SIGTERM does
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143}


class StopSignals:
    """The signals of EXIT_CODES, remembered until the run asks. A second Ctrl-C interrupts at once.

    Attributes:
        received: the number of the signal that this process got; 0: none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def watch(self) -> None:
        """Takes the signals over; nothing in another thread than the main one, which gets none."""

        def stop(number: int, frame: Any) -> None:
            if number == signal.SIGINT:
                if self.received:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    raise KeyboardInterrupt
                print("\nCtrl-C: saving after this step; once more to leave at once", file=sys.stderr)
            self.received = number

        with contextlib.suppress(ValueError):
            for number in EXIT_CODES:
                old = signal.signal(number, stop)
                self._before.setdefault(number, old)

    def give_back(self) -> None:
        """Puts the handlers back that were there before."""
        with contextlib.suppress(ValueError):
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._before = {}


def requeue(checkpoint: Path) -> str | None:
    """Asks SLURM to run this job again, if this is a SLURM job and its checkpoint, read again from the disk, is whole.

    Returns:
        A line that says what was done; None outside SLURM.

    Raises:
        UserError: the checkpoint is not whole; the job is left to end.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if not job:
        return None
    if wrong := integrity_error(checkpoint):
        raise UserError(f"{checkpoint} {wrong}; job {job} was not requeued: look at the disk, then go on by hand")
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
        said = (done.stderr or done.stdout).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"SLURM: scontrol requeue {job} failed ({error}); submit the job again: it goes on"
    if done.returncode:
        return f"SLURM: scontrol requeue {job} failed ({said}); submit the job again: it goes on"
    return f"SLURM: job {job} requeued"
