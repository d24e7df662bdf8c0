"""Differentiable sums over processes and global batch norm, so that N processes give the gradients of one.

DistributedDataParallel averages parameter gradients: with a loss L_r on rank r it computes the gradient of mean_r L_r,
but only if the gradient of *every* rank's loss reaches this rank's part of a shared tensor: rank r must hold d(sum_s
L_s)/d(its part), and DDP's average turns the sum over losses into the mean. The adjoint of "sum over ranks" is
therefore "sum the gradients over ranks".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_vision.errors import UserError
from lit_vision.lightning_internals import batch_norm_plugin

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.plugins import LayerSync


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, 0 to world_size() - 1; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum of `x` (any shape, equal on all ranks) over processes; its gradient is summed over ranks too."""
    return _AllReduceSum.apply(x) if world_size() > 1 else x


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """Return (sum of `total` over processes) / (sum of `count` over processes), the mean of the joined batch.

    DDP alone would average the means of the processes. The value is the same on every process; its gradient, after
    DDP's averaging, is that of one process on the joined batch. Every process must call it equally often. With one
    process it is total / count.

    Args:
        total: any shape, equal on all ranks; the sum over the counted elements of this process.
        count: number of counted elements of this process, of a shape that broadcasts to that of `total`; a constant.

    Returns:
        Of `total`'s shape; `total` itself where no process counts an element (a count below 1 is taken as 1).
    """
    if world_size() > 1:
        both = all_reduce_sum(torch.stack((total, count.to(total.dtype).expand_as(total))))
        total, count = both[0], both[1].detach()
    return total / count.clamp(min=1)


def gather(x: Tensor) -> Tensor:
    """Return the rows of all processes in rank order, without gradients.

    Args:
        x: (B, ...), of the same shape on all ranks.

    Returns:
        (world x B, ...).
    """
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def is_sharded(module: nn.Module) -> bool:
    """True for a module under FSDP2: its forward waits for all processes, which must call it equally often."""
    return any(hasattr(m, "set_reshard_after_forward") for m in module.modules())


class AllReduceBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all processes, on any device that can all-reduce.

    `nn.SyncBatchNorm` refuses CPU tensors.

    Same state, same result as `nn.BatchNorm1d/2d/3d` on the joined batch: forward, gradients (after DDP's averaging)
    and running statistics; local batches may differ in size. Variance is taken around the global mean in a second
    all-reduce, which keeps float32 accuracy where E[x^2] - E[x]^2 would cancel. In evaluation, and with one process, it
    is plain batch norm.

    Input (B, C) or (B, C, ...), float. It also carries `drop` and `act` of timm's fused BatchNormAct2d, which it
    applies after the norm.

    Raises:
        ValueError: one value per channel in the whole joined batch, as in `nn.BatchNorm1d`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if world_size() == 1 or not self.training:  # in evaluation ranks may have unequally many batches
            x = super().forward(input)
        else:
            self._check_input_dim(input)
            x = self._global(input)
        for name in ("drop", "act"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x

    def _global(self, x: Tensor) -> Tensor:
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        # statistics in float32 under autocast, as torch's kernels compute them
        wide = x if x.dtype == torch.float64 else x.float()
        count = wide.new_tensor([wide.numel() / wide.shape[1]])
        packed = all_reduce_sum(torch.cat([wide.sum(dims), count]))
        total = packed[-1].detach()
        if total <= 1:
            raise ValueError(
                f"expected more than 1 value per channel when training, got {tuple(x.shape)} on every process"
            )
        mean = packed[:-1] / total
        centered = wide - mean.view(shape)
        var = all_reduce_sum(centered.square().sum(dims)) / total
        if self.track_running_stats:
            self._update(mean.detach(), (var * (total / (total - 1))).detach())
        y = centered * torch.rsqrt(var + self.eps).view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        step = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), step)


def convert_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm in `module` by AllReduceBatchNorm on the same parameters; return the new root.

    State keys, parameters' identities, modes and the activations of timm's BatchNormAct2d are kept. (torch's own
    converter to SyncBatchNorm drops those activations silently.)
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, AllReduceBatchNorm):
        new = AllReduceBatchNorm(
            module.num_features,
            module.eps,
            module.momentum,
            affine=False,
            track_running_stats=module.track_running_stats,
        )
        new.affine = module.affine
        new.weight, new.bias = module.weight, module.bias
        new.running_mean, new.running_var = module.running_mean, module.running_var
        new.num_batches_tracked = module.num_batches_tracked
        for name in ("drop", "act"):
            if hasattr(module, name):
                setattr(new, name, getattr(module, name))
        return new.train(module.training)
    for name, child in module.named_children():
        if (new := convert_batch_norm(child)) is not child:
            setattr(module, name, new)
    return module


def global_batch_norm() -> LayerSync:
    """Return a Lightning plugin that makes batch norm global: `Trainer(plugins=[global_batch_norm()])`.

    It replaces `sync_batchnorm=True`. On CPU it uses AllReduceBatchNorm, elsewhere timm's SyncBatchNormAct and torch's
    SyncBatchNorm. Lightning's own flag uses torch's converter, which fails on CPU and drops the activations of timm's
    fused norms (DenseNet, Inception, MobileNet and more).
    """
    from lightning.pytorch.plugins import LayerSync  # takes seconds to import; nothing else here needs it

    class GlobalBatchNorm(LayerSync):
        def apply(self, model: nn.Module) -> nn.Module:
            if next(model.parameters()).device.type == "cpu":
                return convert_batch_norm(model)
            from timm.layers import convert_sync_batchnorm

            return convert_sync_batchnorm(model)

        def revert(self, model: nn.Module) -> nn.Module:
            return model  # both kinds are plain batch norm in evaluation, with the same state

    return GlobalBatchNorm()


def batch_norm_scope(module: LightningModule) -> str:
    """Return the scope of a module's batch norm in training: "none" (it has no batch norm), "global" or "per process".

    Raises:
        lit_vision.errors.UserError: Lightning's own `sync_batchnorm=True` (see `global_batch_norm`).
    """
    sync = batch_norm_plugin(module.trainer.strategy)
    if type(sync).__name__ == "TorchSyncBatchNorm":
        raise UserError(
            "trainer.sync_batchnorm: torch's converter fails on CPU and drops activations of timm's fused norms; "
            "in Python use plugins=[lit_vision.distributed.global_batch_norm()] (lit-vision fit does it itself)"
        )
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
        return "none"
    return "global" if sync is not None or module.trainer.world_size == 1 else "per process"
