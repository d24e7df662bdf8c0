"""Matrix products of a training step's layers, to be run alone: the rate that the machine reaches for these shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Operand = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # shape, strides, type


class MatrixProductCounter(TorchDispatchMode):
    """Count the matrix products of the layers (two operands each), and the multiply-adds of attention.

    A convolution counts as the products of its unfolded patches (B H W, C_in k k): forward, and in the backward pass
    one for the gradient of the weight and, where it is required, one for that of the input.
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
            gradients = [name for name, required in zip(("input", "weight"), args[-1]) if required]
            self._convolution(args[0], args[2], args[-2], gradients)
        return out

    def _convolution(self, out: Tensor, weight: Tensor, groups: int, products: list[str]) -> None:
        rows, inner, outer = out.numel() // weight.shape[0], math.prod(weight.shape[1:]), weight.shape[0] // groups
        sides = {"forward": (rows, inner, outer), "input": (rows, outer, inner), "weight": (inner, rows, outer)}
        for product in products:
            m, k, n = sides[product]
            self.layers[((m, k), (k, 1), weight.dtype), ((k, n), (n, 1), weight.dtype)] += groups

    def multiply_adds(self) -> int:
        """Return the multiply-adds of the layers' products."""
        return sum(count * a[0][0] * a[0][1] * b[0][1] for (a, b), count in self.layers.items())


def layer_products(step: Callable[[], None]) -> tuple[Callable[[], None], float]:
    """Return a function that runs a step's matrix products alone, and their share of the step's multiply-adds.

    Args:
        step: forward and backward of a training step.
    """
    with MatrixProductCounter() as counter:
        step()
    operands = {key: [random_operand(*one) for one in key] for key in counter.layers}
    adds = counter.multiply_adds()

    def run() -> None:
        with torch.no_grad():
            for key, count in counter.layers.items():
                for _ in range(count):
                    torch.mm(*operands[key])

    return run, adds / (adds + counter.attention)


def random_operand(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Return a matrix of normal numbers with the layout of an operand."""
    return torch.empty_strided(shape, stride, dtype=dtype, device=device).normal_()
