"""Colour jitter: as one 3 x 4 matrix per view (the default), or exactly as the papers' code has it (`exact`).

One matrix: brightness, contrast, saturation, hue and grayscale are one multiplication and one clip at the end, in one pass over the pixels.
Unlike the paper, values are not clipped after each operation, and hue turns colours about the gray axis of YIQ (as NVIDIA DALI does)
instead of going through HSV. How far the two are apart is in data/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from lit_vision.data.views.params import ORDERS, ViewParams

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, what torchvision, Pillow and TensorFlow call gray
_TO_YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_TO_RGB = np.linalg.inv(_TO_YIQ)
_GRAY = np.outer(np.ones(3), LUMA)  # a colour to its gray
_CHROMA = np.eye(3) - _GRAY  # to what it has beside its gray
_TURNED = (
    _TO_RGB @ np.array([[0, 0, 0], [0, 0, 1], [0, -1, 0]]) @ _TO_YIQ
)  # the same, a quarter turn on, red towards yellow
# the nine entries of each, as plain floats: numpy's overhead on 3 x 3 arrays would cost more than the view's own pixels
_TERMS = list(zip(_GRAY.ravel().tolist(), _CHROMA.ravel().tolist(), _TURNED.ravel().tolist()))
_R, _G, _B = LUMA.tolist()


def color_matrix(drawn: ViewParams, mean: Sequence[float]) -> list[list[float]]:
    """One view's colour operations: pixel -> matrix[:, :3] @ pixel + matrix[:, 3].

    With gray g and chroma c of a pixel (pixel = g + c): saturation and hue change c alone, by a factor and a rotation; brightness scales both;
    contrast scales both and adds its share of the mean gray, which saturation and hue leave as it is. So without clipping in between the
    drawn order makes no difference: b k (g + s R(hue) c) + b (1 - k) mean gray.

    Args:
        drawn: the parameters.
        mean: (R, G, B) mean of the view before any colour operation; read only if the contrast is not 1.

    Returns:
        3 x 4 floats, the last column in the unit of `mean`.
    """
    gain = drawn.brightness * drawn.contrast
    chroma = 0.0 if drawn.gray else gain * drawn.saturation
    angle = 2 * math.pi * drawn.hue
    along, across = chroma * math.cos(angle), chroma * math.sin(angle)
    shift = 0.0
    if drawn.contrast != 1:
        shift = drawn.brightness * (1 - drawn.contrast) * (_R * mean[0] + _G * mean[1] + _B * mean[2])
    m = [gain * g + along * c + across * t for g, c, t in _TERMS]
    return [[m[0], m[1], m[2], shift], [m[3], m[4], m[5], shift], [m[6], m[7], m[8], shift]]


def color_matrices(draws: Sequence[ViewParams], means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`color_matrix` of N views.

    Args:
        draws: N parameter sets.
        means: (N, 3) mean colour of each view.

    Returns:
        matrices (N, 3, 3) and shifts (N, 3), float64, the shifts in the unit of the means.
    """
    whole = np.array([color_matrix(d, mean) for d, mean in zip(draws, means.tolist())]).reshape(-1, 3, 4)
    return whole[..., :3], whole[..., 3]


def sequential_color_jitter(image: np.ndarray, drawn: ViewParams) -> np.ndarray:
    """The operations one after the other in their drawn order, each clipped, hue through HSV: as torchvision has them on floats.

    Args:
        image: (H, W, 3) uint8.
        drawn: the parameters; all four operations run, a neutral one changes nothing.

    Returns:
        (H, W, 3) uint8, rounded once at the end.
    """
    x = image.astype(np.float32) * np.float32(1 / 255)
    for operation in ORDERS[drawn.order]:
        if operation == 0 and drawn.brightness != 1:
            x = x * np.float32(drawn.brightness)
        elif operation == 1 and drawn.contrast != 1:
            x = x * np.float32(drawn.contrast) + np.float32((1 - drawn.contrast) * _gray(x).mean(dtype=np.float64))
        elif operation == 2 and drawn.saturation != 1:
            x = x * np.float32(drawn.saturation) + np.float32(1 - drawn.saturation) * _gray(x)[..., None]
        elif operation == 3 and drawn.hue != 0:
            hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)  # hue in degrees
            hsv[..., 0] = (hsv[..., 0] + np.float32(360 * drawn.hue)) % 360
            x = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        x = np.clip(x, 0, 1, out=x)
    if drawn.gray:
        x = np.repeat(_gray(x)[..., None], 3, axis=2)
    return np.rint(x * 255).astype(np.uint8)


def _gray(x: np.ndarray) -> np.ndarray:
    return x @ LUMA.astype(np.float32)
