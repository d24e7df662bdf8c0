"""SimCLR without Lightning: NT-Xent in tiles, projection head, network. Chen et al. 2020, arXiv:2002.05709.

The loss never holds the matrix of all similarities. simclr.py beside this file trains the network.
B images of this process, V = 2 views, K = 2 x images of all processes (every view), D width of a vector, t temperature.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_vision import distributed
from lit_vision.errors import UserError
from lit_vision.methods.pixels import channel_values
from lit_vision.weights.pretrained import create_backbone

PARTS = frozenset({"backbone", "projection"})  # the modules in a checkpoint of this method
TRAIN_VIEW = "simclr"  # the view with two distorted crops
# values of the hyper-parameters below that a checkpoint does not have, because it is older or only for use
DEFAULTS: dict[str, Any] = {"backbone": "resnet50", "backbone_args": None, "mean": None, "std": None}
DEFAULTS |= {"projection_width": 128, "projection_layers": 2, "projection_batch_norm": False}
DEFAULTS |= {"temperature": 0.1, "negatives": "global"}

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


class ProjectionHead(nn.Sequential):
    """Projection head g(h): the layers between the representation and the loss, not used after pre-training.

    Without batch norm: linear maps with biases and ReLU between them (the paper: 2 layers, 2048-2048-128, 4,458,624
    parameters). With it: linear maps without bias, each followed by batch norm, ReLU after the hidden ones; the last
    norm has a gain and no bias (the official code's default, SimCLR v2, 3 layers). Source: arXiv:2002.05709, section
    4.2; google-research/simclr model_util.py.

    Input (B, in_width), output (B, out_width), float.

    Args:
        in_width: D of the backbone; also the hidden layers' width.
        out_width: D of the projection.
        layers: 1 to 3.
        batch_norm: as above.

    Raises:
        UserError: layers is not 1, 2 or 3.
    """

    def __init__(self, in_width: int, out_width: int = 128, layers: int = 2, batch_norm: bool = False) -> None:
        if layers not in (1, 2, 3):
            raise UserError(f"projection_layers: {layers} is not 1, 2 or 3; the paper has 2, SimCLR v2 has 3")
        modules: list[nn.Module] = []
        for i in range(layers):
            last = i == layers - 1
            width = out_width if last else in_width
            modules.append(nn.Linear(in_width, width, bias=not batch_norm))
            if batch_norm:
                modules.append(nn.BatchNorm1d(width))
                if last:
                    modules[-1].register_parameter("bias", None)
            if not last:
                modules.append(nn.ReLU())
        super().__init__(*modules)


class SimCLRNetwork(nn.Module):
    """Backbone and projection head.

    Args:
        h: hyper-parameters of `lit_vision.methods.simclr.simclr.SimCLR`, as its checkpoints hold them.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do.
    """

    method_name, parts, train_view = "SimCLR", PARTS, TRAIN_VIEW

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams: Any = {**h, **DEFAULTS, **h}  # in the order of h; a LightningModule has its own
        self.build(self.hparams)

    def build(self, h: Mapping[str, Any]) -> None:
        """Make the parts."""
        if not h["temperature"] > 0:
            raise UserError(
                f"temperature: {h['temperature']} is not positive; the paper has 0.1 on ImageNet and 0.5 on CIFAR"
            )
        if h["negatives"] not in ("global", "local"):
            raise UserError(f"negatives: {h['negatives']!r} is not 'global' or 'local'; the paper's are global")
        self.backbone, _ = create_backbone(h["backbone"], **(h["backbone_args"] or {}))
        self.projection = ProjectionHead(
            self.backbone.width, h["projection_width"], h["projection_layers"], h["projection_batch_norm"]
        )
        self.temperature, self.negatives = h["temperature"], h["negatives"]
        channels = self.backbone.config["in_chans"]
        self.register_buffer("mean", torch.tensor(channel_values("mean", h["mean"], [0.0, 0.0, 0.0], channels)))
        self.register_buffer("std", torch.tensor(channel_values("std", h["std"], [1.0, 1.0, 1.0], channels)))

    def forward(self, images: Tensor) -> Tensor:
        """Return projections z (B, projection_width) of normalised images (B, C, H, W)."""
        z: Tensor = self.projection(self.backbone(images))
        return z

    def loss(self, views: Tensor) -> Tensor:
        """Return the NT-Xent loss of a batch of view pairs, normalised (B, 2, C, H, W); scalar, see `nt_xent`."""
        if views.ndim != 5 or views.shape[1] != 2:
            raise UserError(
                f"data.train_view: SimCLR needs two views of each image, got {views.shape[1]}; set it to simclr"
            )
        z = self(views.flatten(0, 1)).unflatten(0, (-1, 2))  # (2B, D) -> (B, 2, D)
        return nt_xent(z[:, 0], z[:, 1], self.temperature, self.negatives)
