"""Losses between images and their captions in tiles: CLIP's softmax and SigLIP's sigmoid.

The matrix of all similarities is never held: memory grows with the number of pairs, not with its square. Forward keeps
one number per vector, backward computes each tile of similarities again. With one process a tile serves its rows and
its columns. Processes exchange their vectors and one number per vector, and no gradients of vectors.
B pairs of this process, N pairs of all processes, D width of a vector, s scale.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_vision import distributed

SHORTEST = 1e-12  # length below which a vector is not made longer, as in F.normalize
MAX_EXP_SCALE = 40.0  # up to it exp(s c) and its sums, products and inverses stay within float32 for every cosine c

Tile = tuple[slice, slice, Tensor]  # rows, columns, values of the pairs of both
TileFunction = Callable[[slice, slice, Tensor], Tensor]  # a tile to one of its shape, in the same memory or not


def clip_loss(images: Tensor, texts: Tensor, scale: Tensor, across_processes: bool = True) -> Tensor:
    """Return CLIP's loss: the mean cross-entropy of finding each image's text, and each text's image, among all.

    With c the cosine similarity and N the number of pairs:
        -1 / (2N) x sum over i of (log softmax over j of (s c_ij) at j = i + log softmax over j of (s c_ji) at j = i)
    Source: Radford et al. 2021, arXiv:2103.00020, Figure 3.
    Negatives come from all processes, which must have equally many rows. The value is the mean over all of them, and
    the gradient of a process is such that DDP's average is that of one process on the joined batch. Differentiable
    once.

    Args:
        images: (B, D) vectors of any length; row i of both is a pair.
        texts: (B, D).
        scale: s, a scalar greater than 0; its logarithm is what the paper learns.
        across_processes: False takes the pairs of this process alone, as an evaluation does.

    Returns:
        Scalar in nats, at least float32 even under autocast. If all similarities are equal it is log N.

    Raises:
        ValueError: the shapes differ, or the scale is no scalar.
    """
    return _in_float32(_SoftmaxLoss, images, texts, across_processes, scale)


def siglip_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, across_processes: bool = True) -> Tensor:
    """Return SigLIP's loss: each of the N x N pairs of an image and a text is told apart as belonging together or not.

    With c the cosine similarity, z_ij = 1 for i = j and else -1:
        -1 / N x sum over i and j of log sigmoid( z_ij (s c_ij + b) )
    Source: Zhai et al. 2023, arXiv:2303.15343, Algorithm 1.
    Negatives come from all processes, and values and gradients are as in `clip_loss`. Differentiable once.

    Args:
        images: (B, D) vectors of any length; row i of both is a pair.
        texts: (B, D).
        scale: s, a scalar greater than 0.
        bias: b, a scalar.
        across_processes: as in `clip_loss`.

    Returns:
        Scalar in nats, at least float32 even under autocast. With s = 0 and b = 0 it is N log 2.

    Raises:
        ValueError: the shapes differ, or scale or bias is no scalar.
    """
    return _in_float32(_SigmoidLoss, images, texts, across_processes, scale, bias)


def _in_float32(
    loss: type[torch.autograd.Function], images: Tensor, texts: Tensor, across_processes: bool, *scalars: Tensor
) -> Tensor:
    """Apply a loss to unit vectors, in float64 if the vectors are, else in float32."""
    if images.shape != texts.shape or images.ndim != 2:
        raise ValueError(f"images and texts must both be (B, D), not {tuple(images.shape)} and {tuple(texts.shape)}")
    if any(scalar.numel() != 1 for scalar in scalars):
        raise ValueError("scale and bias must be scalars")
    dtype = torch.float64 if torch.float64 in (images.dtype, texts.dtype) else torch.float32
    with torch.autocast(images.device.type, enabled=False):
        vectors = [_UnitRows.apply(x.to(dtype)) for x in (images, texts)]
        ranks = _Ranks(distributed.rank(), distributed.world_size()) if across_processes else _Ranks(0, 1)
        value: Tensor = loss.apply(ranks, *vectors, *(scalar.to(dtype).reshape(()) for scalar in scalars))
    return value


class _UnitRows(torch.autograd.Function):
    """Rows scaled to length 1, as `F.normalize` does; their gradient takes the memory of the one that it is made from.

    autograd's own would hold several more arrays of the vectors' size, and they decided the peak at 8,192 pairs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (B, 1)
        units = x / lengths.clamp_min(SHORTEST)
        ctx.save_for_backward(units, lengths)
        return units

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        units, lengths = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            along = _row_products(grad, units)[:, None] * (lengths >= SHORTEST)  # others were divided by a constant
            return grad.addcmul_(units, along, value=-1).div_(lengths.clamp_min(SHORTEST))


def _row_products(x: Tensor, y: Tensor) -> Tensor:
    """Return the dot product of each row of two (B, D), without the (B, D) of their products: (B,)."""
    return torch.bmm(x[:, None], y[:, :, None]).flatten()


class _Ranks(NamedTuple):
    """Place of this process among those whose pairs count."""

    rank: int
    world: int

    def gather(self, x: Tensor) -> Tensor:
        """Return the rows of all of them."""
        return distributed.gather(x) if self.world > 1 else x

    def local(self, rows: int) -> slice:
        """Return this process's rows among those of all."""
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def row_weights(self, grad: Tensor, rows: int) -> Tensor:
        """Return for each row of all processes the gradient that reached its process's loss, over its rows: (N,).

        A process's loss counts as the mean over its own rows: DDP's average of the processes is that of all rows.
        """
        return (self.gather(grad.reshape(1)) / rows).repeat_interleave(rows)


class _SoftmaxLoss(torch.autograd.Function):
    """`clip_loss` of unit vectors."""

    @staticmethod
    def forward(ctx: Any, ranks: _Ranks, images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        all_images, all_texts = ranks.gather(images), ranks.gather(texts)
        ctx.small = _is_small(scale)
        if len(all_images) == len(images):
            image_sums, text_sums = _log_sums(images, texts, scale, ctx.small, both=True)
        else:
            image_sums = ranks.gather(_log_sums(images, all_texts, scale, ctx.small)[0])
            text_sums = ranks.gather(_log_sums(texts, all_images, scale, ctx.small)[0])
        ctx.save_for_backward(all_images, all_texts, scale, image_sums, text_sums)
        ctx.ranks, ctx.rows = ranks, len(images)
        positives = _row_products(all_images, all_texts).mean() * scale
        return (image_sums.mean() + text_sums.mean()) / 2 - positives

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        images, texts, scale, image_sums, text_sums = ctx.saved_tensors
        weights = ctx.ranks.row_weights(grad, ctx.rows) / 2  # (N,)

        def gradient(row_sums: Tensor, column_sums: Tensor, row_weights: Tensor) -> TileFunction:
            if ctx.small:
                row_share, column_share = row_weights * (-row_sums).exp(), weights * (-column_sums).exp()
                return lambda i, j, logits: logits.exp_().mul_(row_share[i, None] + column_share[j])

            def shifted(i: slice, j: slice, logits: Tensor) -> Tensor:
                by_columns = (logits - column_sums[j]).exp_().mul_(weights[j])
                return logits.sub_(row_sums[i, None]).exp_().mul_(row_weights[i, None]).add_(by_columns)

            return shifted

        with torch.autocast(images.device.type, enabled=False):
            local = ctx.ranks.local(ctx.rows)
            if ctx.rows == len(images):
                rows = gradient(image_sums, text_sums, weights)
                from_images, from_texts = _weighted_sums(images, texts, scale, rows, both=True)
            else:
                rows = gradient(image_sums[local], text_sums, weights[local])
                columns = gradient(text_sums[local], image_sums, weights[local])
                from_images = _weighted_sums(images[local], texts, scale, rows)[0]
                from_texts = _weighted_sums(texts[local], images, scale, columns)[0]
            pull = 2 * weights[local, None]
            from_images.addcmul_(texts[local], pull, value=-1)
            from_texts.addcmul_(images[local], pull, value=-1)
            # sum of gradient x similarity over the pairs of this process's images with all texts
            of_scale = _row_products(images[local], from_images).sum()
        return None, from_images.mul_(scale), from_texts.mul_(scale), of_scale


class _SigmoidLoss(torch.autograd.Function):
    """`siglip_loss` of unit vectors."""

    @staticmethod
    def forward(ctx: Any, ranks: _Ranks, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        all_images, all_texts = ranks.gather(images), ranks.gather(texts)
        start = ranks.local(len(images)).start
        losses = images.new_zeros(len(images))
        for i, j, logits in _tiles(images, all_texts, scale):
            logits.add_(bias)
            _pairs(i, j, logits, start).neg_()
            losses[i] -= F.logsigmoid(logits.neg_()).sum(1)
        ctx.save_for_backward(all_images, all_texts, scale, bias)
        ctx.ranks, ctx.rows = ranks, len(images)
        return ranks.gather(losses).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor, Tensor]:
        images, texts, scale, bias = ctx.saved_tensors
        weights = ctx.ranks.row_weights(grad, ctx.rows)  # (N,), of the images
        local = ctx.ranks.local(ctx.rows)
        of_bias = torch.zeros_like(bias)

        def gradient(i: slice, j: slice, logits: Tensor) -> Tensor:
            """Return sigmoid(logits), minus 1 where a pair belongs together."""
            pairs = _pairs(i, j, logits.add_(bias), local.start)
            pairs.neg_()
            logits.sigmoid_()
            pairs.neg_()
            return logits

        def of_image_rows(i: slice, j: slice, logits: Tensor) -> Tensor:
            values = gradient(i, j, logits).mul_(weights[local][i, None])
            of_bias.add_(values.sum())
            return values

        with torch.autocast(images.device.type, enabled=False):
            if ctx.rows == len(images):
                from_images, from_texts = _weighted_sums(images, texts, scale, of_image_rows, both=True)
            else:
                from_images = _weighted_sums(images[local], texts, scale, of_image_rows)[0]
                from_texts = _weighted_sums(
                    texts[local], images, scale, lambda i, j, logits: gradient(i, j, logits).mul_(weights[j])
                )[0]
            of_scale = _row_products(images[local], from_images).sum()
        return None, from_images.mul_(scale), from_texts.mul_(scale), of_scale, of_bias


def _is_small(scale: Tensor) -> bool:
    """True if exponentials of all logits can be added as they are; never on a GPU, for which reading it would wait."""
    return scale.device.type == "cpu" and float(scale) <= MAX_EXP_SCALE


def _tile_size(vectors: Tensor) -> tuple[int, int]:
    """Return rows and columns of a tile that fits a CPU core's cache, or that is large enough for another device."""
    return (256, 1024) if vectors.device.type == "cpu" else (4096, 4096)


def _tiles(rows: Tensor, columns: Tensor, scale: Tensor) -> Iterator[Tile]:
    """Yield (rows I, columns J, scale x similarities of I and J) per tile, in one buffer that the next overwrites."""
    height, width = _tile_size(rows)
    buffer = rows.new_empty(min(height, len(rows)) * min(width, len(columns)))
    for top in range(0, len(rows), height):
        i = slice(top, min(top + height, len(rows)))
        left = rows[i] * scale
        for start in range(0, len(columns), width):
            j = slice(start, min(start + width, len(columns)))
            logits = buffer[: len(left) * (j.stop - j.start)].view(len(left), -1)
            yield i, j, torch.mm(left, columns[j].T, out=logits)


def _pairs(i: slice, j: slice, tile: Tensor, start: int) -> Tensor:
    """Return the values of a tile that belong to an image and its own text, a view; rows are numbered from `start`."""
    offset = start + i.start - j.start
    if -tile.shape[0] < offset < tile.shape[1]:
        return tile.diagonal(offset)
    return tile[:0, 0]


def _log_sums(rows: Tensor, columns: Tensor, scale: Tensor, small: bool, both: bool = False) -> tuple[Tensor, Tensor]:
    """Return log sum exp of the logits over columns for each row, and over rows for each column if `both` (else empty).

    Args:
        rows: (R, D) unit vectors.
        columns: (C, D) unit vectors.
        scale: s.
        small: of `_is_small`.
        both: also over rows.
    """
    nothing = 0.0 if small else float("-inf")
    row_sums = rows.new_full((len(rows),), nothing)
    column_sums = rows.new_full((len(columns) if both else 0,), nothing)
    for i, j, logits in _tiles(rows, columns, scale):
        if small:
            logits.exp_()
            row_sums[i] += logits.sum(1)
            if both:
                column_sums[j] += logits.sum(0)
        else:
            row_sums[i] = torch.logaddexp(row_sums[i], logits.logsumexp(1))
            if both:
                column_sums[j] = torch.logaddexp(column_sums[j], logits.logsumexp(0))
    return (row_sums.log_(), column_sums.log_()) if small else (row_sums, column_sums)


def _weighted_sums(
    rows: Tensor, columns: Tensor, scale: Tensor, weight: TileFunction, both: bool = False
) -> tuple[Tensor, Tensor]:
    """Return sum over j of w_ij column_j for each row i, and sum over i of w_ij row_i for each column if `both`.

    Args:
        rows: (R, D) unit vectors.
        columns: (C, D) unit vectors.
        scale: s.
        weight: rows, columns and logits of a tile to its w.
        both: also the sums for columns, else empty.
    """
    of_rows = torch.zeros_like(rows)
    of_columns = torch.zeros_like(columns) if both else columns[:0]
    for i, j, logits in _tiles(rows, columns, scale):
        values = weight(i, j, logits)
        of_rows[i].addmm_(values, columns[j])
        if both:
            of_columns[j].addmm_(values.T, rows[i])
    return of_rows, of_columns
