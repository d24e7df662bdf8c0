"""Extract features of a split with a frozen encoder."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_vision.data.batch import Batch, normalize
from lit_vision.errors import UserError


@dataclass(frozen=True)
class Features:
    """Features, labels and keys of a split; row i of all three is the same sample.

    Attributes:
        features: (N, D) float32 on the CPU.
        labels: (N,) int64, -1 without one.
        keys: (N, 3) int64: epoch, index, copy.
    """

    features: Tensor
    labels: Tensor
    keys: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def select(self, rows: Tensor | np.ndarray | list[int]) -> Features:
        """Return the given rows (indices or a boolean mask), in the given order."""
        rows = torch.as_tensor(np.asarray(rows))
        return Features(self.features[rows], self.labels[rows], self.keys[rows])


def extract_features(
    backbone: nn.Module,
    loader: Iterable[Batch],
    mean: Tensor,
    std: Tensor,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Features:
    """Run the encoder over every sample of a loader.

    Evaluation mode and inference mode are on while it runs; each submodule's mode is restored afterwards, also after an
    error. With several processes each rank runs its part of the loader and all ranks return all rows, sorted by key,
    without the duplicates of samples that two ranks saw (padding). With one process the rows have the loader's order.

    Args:
        backbone: images (B, 3, H, W), normalized float -> (B, D). It is moved to `device`.
        loader: batches {images uint8 (B, V, H, W, 3), label (B,), key (B, 3)}; of several views the first is used.
        mean: (3,) subtracted from images scaled to 0..1.
        std: (3,) by which the difference is divided.
        device: where the encoder runs.
        progress: show a bar on rank zero if the output is a terminal.

    Returns:
        Features on the CPU, float32 whatever the encoder's precision.

    Raises:
        UserError: the loader is empty, or a feature is not finite.
    """
    device = torch.device(device)
    backbone.to(device)
    mean, std = mean.to(device), std.to(device)
    features, labels, keys = [], [], []
    with evaluation_mode(backbone), torch.inference_mode():
        for batch in _with_bar(loader, progress):
            images = batch["images"][:, :1].to(device, non_blocking=True)
            features.append(backbone(normalize(images, mean, std)[:, 0]).float().cpu())
            labels.append(batch["label"].cpu())
            keys.append(batch["key"].cpu())
    # joined outside inference mode, so that a head can be trained on them
    found = Features(torch.cat(features), torch.cat(labels), torch.cat(keys)) if features else None
    found = _gather_features(found)
    if found is None or len(found) == 0:
        raise UserError("features: the loader gives no samples; check the split's folder and `limit`")
    bad = ~found.features.isfinite().all(dim=1)
    if bad.any():
        first = found.keys[bad][0].tolist()
        raise UserError(
            f"features: {int(bad.sum())} of {len(bad)} samples have features that are not finite "
            f"(the first: epoch, index, copy = {first}); check the checkpoint"
        )
    return found


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside the block, and restore the mode of each of its parts after it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:  # not module.train(): a frozen part may have been in evaluation mode
            part.training = training


def _gather_features(part: Features | None) -> Features | None:
    """Return all ranks' rows on every rank, sorted by (epoch, index, copy), each key once."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return part
    parts: list[Any] = [None] * dist.get_world_size()
    local = None if part is None else tuple(x.numpy() for x in (part.features, part.labels, part.keys))
    dist.all_gather_object(parts, local)  # objects: ranks may hold different counts, and some none
    parts = [p for p in parts if p is not None]
    if not parts:
        return None
    features, labels, keys = (np.concatenate(column) for column in zip(*parts))
    _, first = np.unique(keys, axis=0, return_index=True)  # sorted by key
    return Features(*(torch.from_numpy(x[first]) for x in (features, labels, keys)))


def _with_bar(loader: Iterable[Batch], progress: bool) -> Iterator[Batch]:
    rank_zero = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    if not (progress and rank_zero and sys.stderr.isatty()):
        yield from loader
        return
    from rich.console import Console
    from rich.progress import track

    total = len(loader) if isinstance(loader, Sized) else None
    yield from track(loader, "features", total=total, console=Console(stderr=True), transient=True)
