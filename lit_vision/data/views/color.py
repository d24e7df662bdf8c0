"""Color jitter, fused into one 3 x 4 matrix per view (the default) or sequential as in the papers' code (`exact`).

Fused: brightness, contrast, saturation, hue and grayscale are one multiplication and one clip at the end, in one pass
over the pixels. Unlike the paper, values are not clipped after each operation, and hue rotates colors about the gray
axis of YIQ (as NVIDIA DALI does) instead of going through HSV. data/README.md gives the difference of the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from lit_vision.data.views.params import COLOR_ORDERS, ViewParams

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, the gray of torchvision, Pillow and TensorFlow
_TO_YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_TO_RGB = np.linalg.inv(_TO_YIQ)
_GRAY = np.outer(np.ones(3), LUMA)  # a color to its gray
_CHROMA = np.eye(3) - _GRAY  # a color to its difference from its gray
# the same, rotated by a quarter turn of hue, red towards yellow
_ROTATED = _TO_RGB @ np.array([[0, 0, 0], [0, 0, 1], [0, -1, 0]]) @ _TO_YIQ
# the nine entries of each, as plain floats: numpy's overhead on 3 x 3 arrays would take longer than the view's pixels
_TERMS = list(zip(_GRAY.ravel().tolist(), _CHROMA.ravel().tolist(), _ROTATED.ravel().tolist()))
_R, _G, _B = LUMA.tolist()


def color_matrix(params: ViewParams, mean: Sequence[float]) -> list[list[float]]:
    """Return the matrix of one view's color operations: pixel -> matrix[:, :3] @ pixel + matrix[:, 3].

    With gray g and chroma c of a pixel (pixel = g + c): saturation s and hue change c alone, by a factor and a rotation
    R; brightness b scales both; contrast k scales both and adds (1 - k) times the mean gray, which saturation and hue
    do not change. So without clipping in between the order makes no difference:
        b k (g + s R(hue) c) + b (1 - k) mean gray

    Args:
        params: parameters of the view.
        mean: (R, G, B) mean of the view before any color operation; used only if the contrast is not 1.

    Returns:
        3 x 4 floats, the last column in the unit of `mean`.
    """
    gain = params.brightness * params.contrast
    chroma = 0.0 if params.gray else gain * params.saturation
    angle = 2 * math.pi * params.hue
    along, across = chroma * math.cos(angle), chroma * math.sin(angle)
    shift = 0.0
    if params.contrast != 1:
        shift = params.brightness * (1 - params.contrast) * (_R * mean[0] + _G * mean[1] + _B * mean[2])
    m = [gain * g + along * c + across * t for g, c, t in _TERMS]
    return [[m[0], m[1], m[2], shift], [m[3], m[4], m[5], shift], [m[6], m[7], m[8], shift]]


def color_matrices(params: Sequence[ViewParams], means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the result of `color_matrix` for N views.

    Args:
        params: of the N views.
        means: (N, 3) mean color of each view.

    Returns:
        matrices (N, 3, 3) and shifts (N, 3), float64, the shifts in the unit of the means.
    """
    matrices = np.array([color_matrix(p, mean) for p, mean in zip(params, means.tolist())]).reshape(-1, 3, 4)
    return matrices[..., :3], matrices[..., 3]


def sequential_color_jitter(image: np.ndarray, params: ViewParams) -> np.ndarray:
    """Apply the color operations one after the other, each clipped, hue through HSV, as torchvision does on floats.

    Args:
        image: (H, W, 3) uint8.
        params: parameters of the view, with the order of the operations; a neutral one changes nothing.

    Returns:
        (H, W, 3) uint8, rounded once at the end.
    """
    x = image.astype(np.float32) * np.float32(1 / 255)
    for operation in COLOR_ORDERS[params.order]:
        if operation == 0 and params.brightness != 1:
            x = x * np.float32(params.brightness)
        elif operation == 1 and params.contrast != 1:
            x = x * np.float32(params.contrast) + np.float32((1 - params.contrast) * _gray(x).mean(dtype=np.float64))
        elif operation == 2 and params.saturation != 1:
            x = x * np.float32(params.saturation) + np.float32(1 - params.saturation) * _gray(x)[..., None]
        elif operation == 3 and params.hue != 0:
            hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)  # hue in degrees
            hsv[..., 0] = (hsv[..., 0] + np.float32(360 * params.hue)) % 360
            x = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        x = np.clip(x, 0, 1, out=x)
    if params.gray:
        x = np.repeat(_gray(x)[..., None], 3, axis=2)
    rounded: np.ndarray = np.rint(x * 255).astype(np.uint8)
    return rounded


def _gray(x: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 -> (H, W)."""
    return x @ LUMA.astype(np.float32)
