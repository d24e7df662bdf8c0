"""The matrix products of a training step's layers, to be run by themselves: what the machine gives for these shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Operand = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # shape, strides, type


class Seen(TorchDispatchMode):
    """Counts the matrix products of the layers (two operands each), and the multiply-adds of attention.

    A convolution counts as the products of its unfolded patches (B H W, C_in k k): forward, and in the backward pass one for the gradient
    of the weight and, where one is asked for, one for the input's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers: Counter[tuple[Operand, Operand]] = Counter()
        self.attention = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        out = func(*args, **(kwargs or {}))
        if name in ("mm", "addmm"):
            a, b = args[-2:]
            self.layers[tuple((tuple(x.shape), x.stride(), x.dtype) for x in (a, b))] += 1
        elif name == "bmm":
            self.attention += args[0].numel() * args[1].shape[-1]
        elif name.startswith("_scaled_dot_product") and not name.endswith("backward"):
            q, k = args[:2]
            self.attention += 3 * 2 * q.numel() * k.shape[-2]  # two products forward, four backward
        elif name == "convolution":
            self._convolution(out, args[1], args[-1], ["forward"])
        elif name == "convolution_backward":
            asked = [part for part, wanted in zip(("input", "weight"), args[-1]) if wanted]
            self._convolution(args[0], args[2], args[-2], asked)
        return out

    def _convolution(self, out: Tensor, weight: Tensor, groups: int, parts: list[str]) -> None:
        rows, inner, outer = out.numel() // weight.shape[0], math.prod(weight.shape[1:]), weight.shape[0] // groups
        sides = {"forward": (rows, inner, outer), "input": (rows, outer, inner), "weight": (inner, rows, outer)}
        for part in parts:
            m, k, n = sides[part]
            self.layers[((m, k), (k, 1), weight.dtype), ((k, n), (n, 1), weight.dtype)] += groups


def products(step: Callable[[], None]) -> tuple[Callable[[], None], float]:
    """What a step's layers multiply, forward and backward, alone one after another; and their share of all its multiply-adds."""
    with Seen() as seen:
        step()
    operands = {key: [_like(*one) for one in key] for key in seen.layers}
    adds = sum(count * key[0][0][0] * key[0][0][1] * key[1][0][1] for key, count in seen.layers.items())

    def run() -> None:
        with torch.no_grad():
            for key, count in seen.layers.items():
                for _ in range(count):
                    torch.mm(*operands[key])

    return run, adds / (adds + seen.attention)


def _like(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype).normal_()
