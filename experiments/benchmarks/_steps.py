"""Training steps of the benchmarks: how one is made, timed in turns with others, and what memory it takes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

Step = Callable[[], None]


def training_step(module: nn.Module, loss: Callable[[], Tensor], dtype: torch.dtype, fused: bool = True) -> Step:
    """Return a step: forward, backward and AdamW, in mixed precision for bf16, on the device of the module."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4, fused=fused or None)
    device = next(module.parameters()).device.type

    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def take_turns(candidates: dict[str, Step], turns: int, steps: int = 1, warm_up: int = 1) -> dict[str, list[float]]:
    """Return the seconds of a step of each, one value a turn; in turns, so that a busy moment hits all of them.

    Args:
        candidates: by name.
        turns: that count.
        steps: of a candidate in one turn; a GPU runs them without waiting for Python in between.
        warm_up: steps of each before the first turn.
    """
    for run in candidates.values():
        for _ in range(warm_up):
            run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(turns):
        for name, run in candidates.items():
            times[name].append(seconds_of(run, steps))
    return times


def seconds_of(run: Callable[[], object], repeats: int = 1) -> float:
    """Return the seconds of one call, the mean of `repeats` calls, up to the end of the GPU's work."""
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize()
    return (time.perf_counter() - start) / repeats


def synchronize() -> None:
    """Wait for the GPU if this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_memory(run: Step, device: str = "cpu") -> tuple[float, float]:
    """Return the seconds of `run`, and the peak MB (10^6 bytes) above what was in use before.

    On a GPU it is the memory of tensors; on the CPU that of the process, sampled every 2 ms.
    """
    _release_memory()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = seconds_of(run)
        return seconds, (torch.cuda.max_memory_allocated() - before) / 1e6
    before, most, over = _resident(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            most[0] = max(most[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        run()
        seconds = time.perf_counter() - start
    finally:
        over.set()
        watcher.join()
    return seconds, max(0.0, most[0] - before)


def _release_memory() -> None:
    """Return freed memory to the system: in the C library's pool it would hide what the next run takes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident() -> float:
    """Return the resident MB of this process, 0 where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 1e6
