"""NT-Xent by number of pairs, beside lightly's where its matrices fit: time, peak memory above the inputs."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable

import torch
from benchmarks import _lightly
from benchmarks._steps import peak_memory, seconds_of
from gpu_checks.report import Report
from torch import Tensor

from lit_vision.methods.simclr.network import nt_xent

GPU_PAIRS, CPU_PAIRS = (4096, 8192, 16384, 32768, 65536), (64, 256)
OURS = "ours"
Loss = Callable[[Tensor, Tensor], Tensor]


def nt_xent_sizes(report: Report) -> None:
    """Measure forward and backward of NT-Xent by number of pairs, and lightly's where its matrices fit."""
    warnings.filterwarnings("ignore", module="lightly")
    losses: dict[str, Loss] = {OURS: lambda a, b: nt_xent(a, b, 0.1)}
    if _lightly.is_installed():
        from lightly.loss import NTXentLoss

        losses["lightly"] = NTXentLoss(temperature=0.1)
    else:
        report.leave_out("NT-Xent, lightly", "lightly is not installed")
    for pairs in GPU_PAIRS if report.on_gpu else CPU_PAIRS:
        values = {}
        for name in list(losses):
            what = f"NT-Xent, {pairs} pairs, {name}"
            try:
                with report.attempt(what):
                    values[name] = _time_loss(report, what, losses[name], pairs)
            except _DoesNotFitError:
                report.leave_out(what, "does not fit the device's memory")
                del losses[name]  # nor do more pairs
            if report.on_gpu:
                torch.cuda.empty_cache()
        if len(values) == 2:
            report.add(f"NT-Xent, {pairs} pairs: speed of ours", values["lightly"][0] / values[OURS][0], "x", "lightly")
            difference = abs(values["lightly"][1] - values[OURS][1])
            report.add(f"NT-Xent, {pairs} pairs: difference of the losses", difference, "nats")


class _DoesNotFitError(BaseException):
    """A loss needs more memory than the device has; no Exception, so that it is not recorded as a failure."""


def _time_loss(report: Report, what: str, loss: Loss, pairs: int, width: int = 128) -> tuple[float, float]:
    """Add time and peak memory above the inputs of forward and backward; return the seconds and the loss."""
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(pairs, width, generator=generator).to(report.device).requires_grad_() for _ in range(2)]
    value = 0.0

    def run() -> None:
        nonlocal value
        result = loss(*z)
        result.backward()
        value = float(result.detach())

    try:
        run()
        megabytes = peak_memory(run, report.device)[1]
        seconds = statistics.median(seconds_of(run) for _ in range(3))
    except torch.OutOfMemoryError:
        raise _DoesNotFitError from None
    report.add(what, seconds, "s")
    report.add(f"{what}: peak memory above the inputs", megabytes, "MB")
    return seconds, value
