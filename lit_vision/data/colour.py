"""Colour jitter as one matrix: brightness, contrast, saturation, hue and grayscale compose, in their drawn order, into a 3 x 4 matrix per view.

Unlike the paper: values are clipped to [0, 255] once, at the end, not after each operation; and hue turns colours about the gray
axis of YIQ (as NVIDIA DALI does) where the official code goes through HSV. One pass over the pixels instead of five.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_vision.data.laws import ORDERS, Draw

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, what torchvision, Pillow and TensorFlow call gray
_TO_YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_TO_RGB = np.linalg.inv(_TO_YIQ)
_ORDERS = np.array(ORDERS)
_GRAY = np.outer(np.ones(3), LUMA)


def colour_matrices(draws: Sequence[Draw], means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colour operations of N views: pixel -> matrix @ pixel + shift.

    Contrast blends with the mean gray value of the image as the operations before it left it, which is linear in the view's mean
    colour (without the clipping in between), so no second pass over the pixels is needed.

    Args:
        draws: N parameter sets.
        means: (N, 3) mean colour of each view before any colour operation, any unit.

    Returns:
        matrices (N, 3, 3) and shifts (N, 3), float64, the shifts in the unit of the means.
    """
    n = len(draws)
    factors = np.array([(d.brightness, d.contrast, d.saturation) for d in draws]).reshape(n, 3)
    steps = np.empty((n, 4, 3, 3))
    steps[:, :2] = factors[:, :2, None, None] * np.eye(3)
    saturation = factors[:, 2, None, None]
    steps[:, 2] = saturation * np.eye(3) + (1 - saturation) * _GRAY
    steps[:, 3] = _hue([d.hue for d in draws])
    order = _ORDERS[[d.order for d in draws]]  # (N, 4): the operation in each place
    rows = np.arange(n)
    matrix, shift = np.broadcast_to(np.eye(3), (n, 3, 3)), np.zeros((n, 3))
    for place in range(4):
        step = steps[rows, order[:, place]]
        mean_gray = (np.einsum("nij,nj->ni", matrix, means) + shift) @ LUMA
        blend = np.where(order[:, place] == 1, (1 - factors[:, 1]) * mean_gray, 0.0)
        matrix, shift = step @ matrix, np.einsum("nij,nj->ni", step, shift) + blend[:, None]
    gray = np.array([d.gray for d in draws])
    matrix = np.where(gray[:, None, None], _GRAY @ matrix, matrix)
    shift = np.where(gray[:, None], shift @ _GRAY.T, shift)
    return matrix, shift


def _hue(turns: list[float]) -> np.ndarray:
    """(N, 3, 3) rotations about the gray axis; 1 is a full turn, and red goes towards yellow, as in HSV."""
    angle = -2 * np.pi * np.array(turns)
    rotation = np.zeros((len(turns), 3, 3))
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(angle)
    rotation[:, 1, 2], rotation[:, 2, 1] = -np.sin(angle), np.sin(angle)
    return _TO_RGB @ rotation @ _TO_YIQ
