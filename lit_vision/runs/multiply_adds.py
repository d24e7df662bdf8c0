"""Count the multiply-adds of a training step: matrix products, convolutions and attention, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def convolution_backward_operations(
    grad: Sequence[int],
    images: Sequence[int],
    weight: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """Return the operations of a convolution's gradients from shapes: for images and weights as many as forward.

    Torch's own formula ignores groups; of EfficientNet-Lite0's depthwise convolutions it counts 14 times too many.
    """
    positions = math.prod(images[2:] if transposed else grad[2:])
    return 2 * grad[0] * positions * math.prod(weight) * (int(output_mask[0]) + int(output_mask[1]))


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    operations: int = sdpa_flop_count(query, key, value)
    return operations


def _attention_backward(
    grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    operations: int = sdpa_backward_flop_count(grad, query, key, value)
    return operations


CONVOLUTION_BACKWARD = {torch.ops.aten.convolution_backward: convolution_backward_operations}
# torch counts the attention kernels of GPUs, and not these (torch 2.14)
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class MultiplyAddCounter(FlopCounterMode):
    """Count the multiply-adds of what runs in the block, on real or fake tensors.

    with MultiplyAddCounter() as counter:
        loss(images).backward()
    print(counter.multiply_adds)
    """

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping={**CONVOLUTION_BACKWARD, **_CPU_ATTENTION})

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds so far; a multiply-add is two of torch's operations."""
        return int(self.get_total_flops()) // 2
