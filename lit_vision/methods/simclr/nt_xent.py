"""NT-Xent, the loss of SimCLR, in tiles: the matrix of all similarities is never stored.

Source: Chen et al. 2020, arXiv:2002.05709.

B images of this process, K = 2 x images of all processes (every view), D width of a vector, t temperature.
"""

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_vision import distributed

# up to this 1/t, sums of exp(s/t) need no shift in float32: e^40 x K and e^-40 are both far inside its range
MAX_EXP_SCALE = 40.0


def nt_xent(
    z1: Tensor, z2: Tensor, temperature: float = 0.1, negatives: Literal["global", "local"] = "global"
) -> Tensor:
    """Return the contrastive loss between two views of each image (SimCLR).

    For view i with partner j among the 2B views, and s the cosine similarity:
        l(i, j) = -log( exp(s_ij / t) / sum over k != i of exp(s_ik / t) );  returns the mean over all 2B views.
    Source: Chen et al. 2020, arXiv:2002.05709, Eq. 1 and Algorithm 1.
    Negatives come from all processes, so B is the global batch. All processes must have equally many rows.
    The anchors of a process are its rows; the value returned is the global mean, and the gradient (after DDP's
    averaging) is that of the global mean.
    Unlike the official code: the loss is not counted twice (it returns the sum of two means over B).

    Memory grows with B, not with B^2: forward keeps one number per view, backward computes each tile of similarities
    again. With one process a tile is used for its rows and its columns, half of the work. Processes exchange their
    vectors and one number per view, and no gradients of vectors: the gradient of a process's rows needs nothing more.
    Differentiable once.

    Args:
        z1: (B, D) projections of view one, any scale; row i of z1 and row i of z2 are the same image.
        z2: (B, D) projections of view two.
        temperature: t, no unit, greater than 0.
        negatives: "global"; or "local", those of this process alone, a different loss that does not improve with more
            processes.

    Returns:
        Scalar in nats, at least float32 even under autocast. If every row is equal it is log(2B - 1).

    Raises:
        ValueError: shapes differ, temperature is not positive, or negatives is neither of the two.
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(f"z1 and z2 must both be (B, D), not {tuple(z1.shape)} and {tuple(z2.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    if negatives not in ("global", "local"):
        raise ValueError(f"negatives must be 'global' or 'local', not {negatives!r}")
    with torch.autocast(z1.device.type, enabled=False):
        pairs = torch.stack((z1, z2), dim=1)  # (B, 2, D): views 2i and 2i + 1 are partners, as in Algorithm 1
        views = F.normalize(pairs if pairs.dtype == torch.float64 else pairs.float(), dim=-1).flatten(0, 1)
        return _NTXent.apply(views, temperature, negatives == "global" and distributed.world_size() > 1)


class _NTXent(torch.autograd.Function):
    """Loss of unit vectors (2B, D), partners next to each other; `is_global`: negatives from all processes."""

    @staticmethod
    def forward(ctx: Any, local_views: Tensor, temperature: float, is_global: bool) -> Tensor:
        rows = len(local_views)
        ctx.start = distributed.rank() * rows if is_global else 0
        views = distributed.gather(local_views) if is_global else local_views  # (K, D)
        sums = _tiled_logsumexp(views, ctx.start, rows, 1 / temperature)  # (2B,)
        sums = distributed.gather(sums) if is_global else sums
        ctx.save_for_backward(views, sums)
        ctx.rows, ctx.temperature, ctx.is_global = rows, temperature, is_global
        positives = torch.linalg.vecdot(views[::2], views[1::2])
        return sums.mean() - positives.mean() / temperature

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        views, sums = ctx.saved_tensors
        # each process's loss is the mean over its anchors; this is d(sum over processes of grad x loss) / d(local
        # views)
        grads = distributed.gather(grad.reshape(1)) if ctx.is_global else grad.reshape(1)
        weights = (grads / ctx.rows).repeat_interleave(ctx.rows)  # (K,)
        local = slice(ctx.start, ctx.start + ctx.rows)
        with torch.autocast(views.device.type, enabled=False):
            out = _tiled_gradient(views, sums, weights, ctx.start, ctx.rows, 1 / ctx.temperature)
        partners = views[local].unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        out -= 2 * weights[local, None] * partners
        return out.div_(ctx.temperature), None, None


def _tile_size(views: Tensor) -> tuple[int, int]:
    """Return rows and columns of a tile that fits a CPU core's cache, or that is large enough for another device."""
    return (256, 1024) if views.device.type == "cpu" else (4096, 4096)


def _tiles(views: Tensor, start: int, rows: int, scale: float) -> Iterator[tuple[slice, slice, Tensor, bool]]:
    """Yield (rows I, columns J, logits of I against J, True if the logits are also those of J against I) per tile.

    A view's logit with itself is minus infinity. If the rows are all views, only tiles from the diagonal on are
    visited, and all but those on it are used in both directions. The logits are in one buffer that the next tile
    overwrites.
    """
    height, width = _tile_size(views)
    buffer = views.new_empty(height * max(height, width))
    symmetric = rows == len(views)
    for top in range(start, start + rows, height):
        i = slice(top, min(top + height, start + rows))
        left = views[i] * scale
        edges = [*range(i.stop if symmetric else 0, len(views), width), len(views)]
        columns = [i] * symmetric + [slice(a, b) for a, b in itertools.pairwise(edges)]
        for j in columns:
            logits = buffer[: len(left) * (j.stop - j.start)].view(len(left), -1)
            torch.mm(left, views[j].T, out=logits)
            if j.start < i.stop and i.start < j.stop:
                logits.diagonal(i.start - j.start).fill_(float("-inf"))
            yield i, j, logits, symmetric and j is not i


def _tiled_logsumexp(views: Tensor, start: int, rows: int, scale: float) -> Tensor:
    """Return log sum over k != i of exp(scale x s_ik) for the `rows` views i from `start` on: (rows,)."""
    if scale <= MAX_EXP_SCALE:
        sums = views.new_zeros(len(views))
        for i, j, logits, both in _tiles(views, start, rows, scale):
            logits.exp_()
            sums[i] += logits.sum(1)
            if both:
                sums[j] += logits.sum(0)
        sums.log_()
    else:
        sums = views.new_full((len(views),), float("-inf"))
        for i, j, logits, both in _tiles(views, start, rows, scale):
            sums[i] = torch.logaddexp(sums[i], logits.logsumexp(1))
            if both:
                sums[j] = torch.logaddexp(sums[j], logits.logsumexp(0))
    return sums[start : start + rows]


def _tiled_gradient(views: Tensor, sums: Tensor, weights: Tensor, start: int, rows: int, scale: float) -> Tensor:
    """Return sum over k of (w_i p_ik + w_k p_ki) v_k for the `rows` views i from `start` on: (rows, D).

    Here p_ik = exp(scale s_ik - sums_i).
    """
    out = torch.zeros_like(views)
    shares = weights * (-sums).exp() if scale <= MAX_EXP_SCALE else None
    for i, j, logits, both in _tiles(views, start, rows, scale):
        if shares is not None:
            logits.exp_().mul_(shares[i, None] + shares[j])
        else:
            row_part = weights[i, None] * (logits - sums[i, None]).exp()
            column_part = weights[j] * (logits - sums[j]).exp()
            torch.add(row_part, column_part, out=logits)
        out[i].addmm_(logits, views[j])
        if both:
            out[j].addmm_(logits.T, views[i])
    return out[start : start + rows]
