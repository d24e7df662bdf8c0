"""Features as linear probes need them: rows of float32, centered, scaled, in a basis of at most as many dimensions.

N samples, D width of the features.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lit_vision.evaluation.arrays import to_array

BLOCK = 1 << 24  # numbers of the features to answer for that are in memory at the same time, 64 MB in float32


def as_rows(values: Any) -> np.ndarray:
    """Return (N, D) float32; images of any shape count as rows of pixels."""
    array = to_array(values)
    return array.reshape(len(array), -1).astype(np.float32)


def mean_and_divisor(x: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what (N, D) features are centered by and divided by, (D,) each.

    Args:
        x: features of the training samples.
        scale: "all": one number, the root of the mean variance; "each": every dimension's standard deviation.
    """
    columns = max(1, BLOCK // len(x))  # at a time: the variance needs a copy of them in float64
    parts = [x[:, first : first + columns].var(0, dtype=np.float64) for first in range(0, x.shape[1], columns)]
    mean, variance = x.mean(0, dtype=np.float64), np.concatenate(parts)
    if scale == "all":
        variance = np.full_like(variance, variance.mean())
    divisor = np.sqrt(variance)
    divisor[divisor <= 1e-6 * max(1.0, float(np.abs(mean).max()))] = 1.0  # constant dimensions are not scaled
    return mean.astype(np.float32), divisor.astype(np.float32)


def row_space_basis(x: np.ndarray) -> np.ndarray | None:
    """Return an orthonormal basis (D, N) of the rows' span if N < D; the best weights lie in it, the fit is smaller."""
    return np.linalg.qr(x.T)[0] if x.shape[0] < x.shape[1] else None


def project(x: np.ndarray, basis: np.ndarray | None) -> np.ndarray:
    """Return (N, D) features in a basis of `row_space_basis`."""
    return np.ascontiguousarray(x if basis is None else x @ basis)
