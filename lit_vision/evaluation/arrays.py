"""Conversion between tensors and arrays, so that evaluations take both; torch is loaded only for tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor


def to_array(values: Tensor | ArrayLike) -> np.ndarray:
    """Return a tensor of any device, an array or nested lists as an array."""
    # not by isinstance: tables and studies use this without torch
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)


def to_tensor(values: Tensor | ArrayLike) -> Tensor:
    """Return a tensor as it is, and an array or nested lists as a tensor on the CPU."""
    import torch

    return values if isinstance(values, torch.Tensor) else torch.from_numpy(np.asarray(values))
