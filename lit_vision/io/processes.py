"""Ordered parallel map with a progress bar, the number of cores, and processes that end with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_JOB: Callable[[Any], Any] | None = None  # of this worker process


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_map(job: Callable[[T], R], items: Sequence[T], workers: int = 1, title: str = "") -> Iterator[R]:
    """Yield job(item) for each item, in order.

    Args:
        job: called in the worker processes; sent to each of them once. It must not raise.
        items: the arguments.
        workers: number of processes; 1, or fewer than 64 items, work in this process.
        title: of the progress bar on stderr; "" shows none.
    """
    results = map(job, items) if workers < 2 or len(items) < 64 else _pool_map(job, items, workers)
    return _with_progress(results, len(items), title) if title else results


def _pool_map(job: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    # spawned: forking a process that has torch's threads running can hang
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _init_worker, (job,)) as pool:
        yield from pool.imap(_run, items, chunksize=max(1, min(64, len(items) // (8 * workers))))


def _init_worker(job: Callable[[Any], Any]) -> None:
    global _JOB
    _JOB = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _run(item: Any) -> Any:
    assert _JOB is not None  # set by _init_worker
    return _JOB(item)


def _with_progress(results: Iterator[R], total: int, title: str) -> Iterator[R]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        for done, result in enumerate(results, 1):
            yield result
            if done % 100 == 0 or done == total:
                bar.update(task, completed=done)


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies, even by SIGKILL (Linux only; elsewhere do nothing).

    Args:
        parent: process id of the parent, if known: without it, the death of a parent before this call goes unnoticed.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
