"""CLIP's and SigLIP's losses, forward and backward, compared with open_clip's on the same vectors: time and memory.

open_clip: pip install 'lit-vision[dev]'. The candidates take turns in one process; ratios are taken within a turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks._rows import make_row
from benchmarks._steps import peak_memory
from torch import Tensor

from lit_vision.methods.image_text.losses import clip_loss, siglip_loss

PAIRS, WIDTH = (1024, 2048, 4096, 8192), 512
MEMORY = {8192: 200}  # pairs: MB above the inputs, at most
SCALE, BIAS = {"CLIP": 14.2857, "SigLIP": 10.0}, -10.0  # as a training begins

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def losses() -> dict[str, dict[str, Loss]]:
    """Return {loss: {candidate: function of images, texts, scale and bias}}."""
    ours: dict[str, dict[str, Loss]] = {
        "CLIP": {"ours": lambda images, texts, scale, bias: clip_loss(images, texts, scale)},
        "SigLIP": {"ours": siglip_loss},
    }
    try:
        from open_clip.loss import ClipLoss, SigLipLoss
    except ImportError:
        return ours
    clip, siglip = ClipLoss(), SigLipLoss()

    def unit(x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)

    ours["CLIP"]["open_clip"] = lambda images, texts, scale, bias: clip(unit(images), unit(texts), scale)
    ours["SigLIP"]["open_clip"] = lambda images, texts, scale, bias: siglip(unit(images), unit(texts), scale, bias)
    return ours


def measure(repeats: int) -> list[dict[str, Any]]:
    """Measure both losses at each number of pairs; at most 3 turns after one that warms up."""
    rows = []
    for name, candidates in losses().items():
        for pairs in PAIRS:
            times: dict[str, list[float]] = {candidate: [] for candidate in candidates}
            memory = dict.fromkeys(candidates, 0.0)
            for turn in range(max(1, min(repeats, 3)) + 1):
                for candidate, loss in candidates.items():
                    seconds, megabytes = _step(loss, pairs, SCALE[name])
                    memory[candidate] = max(memory[candidate], megabytes)
                    if turn:
                        times[candidate].append(seconds)
            rows += _rows(f"{name}, {pairs} pairs", times, memory, MEMORY.get(pairs))
    return rows


def _step(loss: Loss, pairs: int, scale: float) -> tuple[float, float]:
    """Return the seconds of forward and backward and the peak MB above the inputs."""
    vectors = [torch.randn(pairs, WIDTH, requires_grad=True) for _ in range(2)]
    scalars = [torch.tensor(value, requires_grad=True) for value in (scale, BIAS)]
    return peak_memory(lambda: loss(*vectors, *scalars).backward())


def _rows(
    what: str, times: dict[str, list[float]], memory: dict[str, float], limit: int | None
) -> list[dict[str, Any]]:
    rows = []
    for name, seconds in times.items():
        rows.append(make_row(f"{what}: {name}", statistics.median(seconds), "s"))
        target = (f"at most {limit} MB", memory[name] <= limit) if limit and name == "ours" else ("-", None)
        rows.append(make_row(f"{what}: {name}, above the inputs", memory[name], "MB", "-", *target))
    if "open_clip" in times:
        ratio = statistics.median(a / b for a, b in zip(times["ours"], times["open_clip"]))
        rows.append(make_row(f"{what}: time of ours", ratio, "x", "open_clip", "at most 1.1 x", ratio <= 1.1))
    return rows
