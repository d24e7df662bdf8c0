"""Segmentation losses: cross-entropy per pixel, soft Dice loss, or their sum.

With `across_processes` a loss is that of the joined batch of all processes: its sums and counts are added over them, so
that DDP's average of gradients is that of the joined batch even if the processes have unequal numbers of counted
pixels. Each process must then call it equally often, as in training.

B images, K classes, H W rows and columns of pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_vision import distributed
from lit_vision.data.annotations.masks import IGNORE
from lit_vision.methods.fine_tuning import at_least_float32

SEGMENTATION_LOSSES = ("ce", "dice", "ce+dice")


def pixel_cross_entropy(logits: Tensor, truth: Tensor, ignore: int = IGNORE, across_processes: bool = False) -> Tensor:
    """Return the mean cross-entropy over the pixels that count; 0 if none does.

    Args:
        logits: (B, K, H, W).
        truth: (B, H, W) int64, 0 to K - 1 or `ignore`.
        ignore: marks pixels that do not count.
        across_processes: over the pixels of all processes.

    Returns:
        Scalar in nats, at least float32. With equal logits it is log K.
    """
    return _cross_entropy(_log_softmax(logits), truth, across_processes, ignore)


def dice_loss(
    logits: Tensor, truth: Tensor, ignore: int = IGNORE, smooth: float = 0.0, across_processes: bool = False
) -> Tensor:
    """Return the soft Dice loss.

    It is the mean over the classes of the batch of 1 - (2 sum(p g) + s) / (sum(p) + sum(g) + s), p softmax, g one-hot.

    Sums run over all counted pixels of the batch. Source: Milletari et al. 2016, arXiv:1606.04797, with a linear
    denominator, as segmentation_models.pytorch has it. Unlike it: the mean is over the classes that occur in the batch;
    there, absent classes count as 0, which makes the loss of the others smaller.

    Args:
        logits: (B, K, H, W).
        truth: (B, H, W) int64, 0 to K - 1 or `ignore`.
        ignore: marks pixels that do not count.
        smooth: s, 0 or more.
        across_processes: over the pixels of all processes.

    Returns:
        Scalar, 0 (perfect) to 1 (disjoint); 0 if no pixel counts.
    """
    return _dice(_log_softmax(logits), truth, across_processes, ignore, smooth)


def segmentation_loss(logits: Tensor, truth: Tensor, loss: str = "ce", across_processes: bool = False) -> Tensor:
    """Return `pixel_cross_entropy` ("ce"), `dice_loss` ("dice") or their sum ("ce+dice"), from one softmax."""
    log_p = _log_softmax(logits)
    parts = {"ce": _cross_entropy, "dice": _dice}
    return sum(parts[name](log_p, truth, across_processes) for name in loss.split("+"))


def subsample_targets(truth: Tensor, stride: int) -> Tensor:
    """Select one pixel of each stride x stride block, (B, H, W) to (B, ceil(H / stride), ceil(W / stride)).

    It is the first and the last of a block in turn, so that on average it lies in the middle, where scores of a coarser
    grid are: the first pixel of every block would train a shift of half a block.
    """
    if stride == 1:
        return truth
    for axis in (1, 2):
        size = truth.shape[axis]
        blocks = torch.arange(-(-size // stride), device=truth.device)
        truth = truth.index_select(axis, (blocks * stride + blocks % 2 * (stride - 1)).clamp(max=size - 1))
    return truth


def _log_softmax(logits: Tensor) -> Tensor:
    """Return log softmax over K of (B, K, H, W), in at least float32, contiguous: one class's pixels in sequence."""
    return at_least_float32(logits).contiguous().log_softmax(1)


def _cross_entropy(log_p: Tensor, truth: Tensor, across_processes: bool, ignore: int = IGNORE) -> Tensor:
    total, count = F.nll_loss(log_p, truth, ignore_index=ignore, reduction="sum"), (truth != ignore).sum()
    return distributed.global_mean(total, count) if across_processes else total / count.clamp(min=1)


def _dice(log_p: Tensor, truth: Tensor, across_processes: bool, ignore: int = IGNORE, smooth: float = 0.0) -> Tensor:
    counted = truth != ignore  # (B, H, W)
    classes, known = log_p.shape[1], torch.where(counted, truth, 0)
    p = log_p.exp()
    at_truth = p.gather(1, known[:, None])[:, 0] * counted  # (B, H, W)
    both = p.new_zeros(classes).index_add(0, known.flatten(), at_truth.flatten())
    predicted = (p.flatten(2) @ counted.flatten(1)[..., None].to(p.dtype)).sum((0, 2))  # (K,)
    true = p.new_zeros(classes).index_add(0, known.flatten(), counted.flatten().to(p.dtype))
    if across_processes:
        both, predicted, true = distributed.all_reduce_sum(torch.stack((both, predicted, true)))
    loss = 1 - (2 * both + smooth) / (predicted + true + smooth).clamp(min=1e-7)
    present = true > 0
    return (loss * present).sum() / present.sum().clamp(min=1)
