"""Signals that end a run, and SLURM requeueing.

A signal handler only sets a flag; the run reads it where stopping is safe.
"""

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

# Clusters send SIGUSR1 some time before the end (sbatch --signal=USR1@120): it ends a run as SIGTERM does
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143}


class StopSignals:
    """Record the signals of EXIT_CODES until the run reads them. A second Ctrl-C interrupts at once.

    Attributes:
        received: the number of the signal that this process got; 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def watch(self) -> None:
        """Install the handlers; in a thread other than the main one, which gets no signals, do nothing."""

        def stop(number: int, frame: Any) -> None:
            if number == signal.SIGINT:
                if self.received:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    raise KeyboardInterrupt
                print("\nCtrl-C: saving after this step; press it again to exit at once", file=sys.stderr)
            self.received = number

        with contextlib.suppress(ValueError):
            for number in EXIT_CODES:
                old = signal.signal(number, stop)
                self._before.setdefault(number, old)

    def restore(self) -> None:
        """Put the previous handlers back."""
        with contextlib.suppress(ValueError):
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._before = {}


def requeue(checkpoint: Path) -> str | None:
    """Ask SLURM to run this job again, after the checkpoint has been read again from the disk and verified.

    Returns:
        A line with the outcome; None outside SLURM.

    Raises:
        UserError: the checkpoint is damaged; the job is not requeued.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if not job:
        return None
    if wrong := integrity_error(checkpoint):
        raise UserError(f"{checkpoint} {wrong}; job {job} was not requeued: check the disk, then submit the job again")
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
        message = (done.stderr or done.stdout).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"SLURM: scontrol requeue {job} failed ({error}); submit the job again: it resumes"
    if done.returncode:
        return f"SLURM: scontrol requeue {job} failed ({message}); submit the job again: it resumes"
    return f"SLURM: job {job} requeued"
