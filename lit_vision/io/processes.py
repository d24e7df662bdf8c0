"""One job over many items in all cores, with a progress bar; results come in order."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_JOB: Callable | None = None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_map(job: Callable, items: Sequence, workers: int = 1, title: str = "") -> Iterator[Any]:
    """job(item) of each item, in order.

    Args:
        job: called in the workers; sent to each of them once. It must not let an exception out.
        items: what it is called with.
        workers: processes; 1 works here.
        title: of the progress bar on stderr; "" shows none.
    """
    results = map(job, items) if workers < 2 or len(items) < 64 else _pool_map(job, items, workers)
    return _with_progress(results, len(items), title) if title else results


def _pool_map(job: Callable, items: Sequence, workers: int) -> Iterator[Any]:
    # spawned: forking a process that has torch's threads running can hang
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _init_worker, (job,)) as pool:
        yield from pool.imap(_run, items, chunksize=max(1, min(64, len(items) // (8 * workers))))


def _init_worker(job: Callable) -> None:
    global _JOB
    _JOB = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _run(item: Any) -> Any:
    return _JOB(item)


def _with_progress(results: Iterator, total: int, title: str) -> Iterator[Any]:
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
    """Has the kernel kill this process when the one that started it dies, even by SIGKILL (Linux; elsewhere nothing).

    Args:
        parent: its process id, if known: without it, a parent that died a moment ago is not seen.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
