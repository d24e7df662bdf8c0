"""Boxes and masks drawn on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from lit_vision.data.annotations.masks import IGNORE

_GOLDEN = 0.618033988749895  # neighbouring classes get hues far apart


def color_of_class(label: int) -> tuple[int, int, int]:
    """A bright RGB colour of its own for each class number."""
    hue = round(180 * ((label * _GOLDEN) % 1)) % 180
    return tuple(cv2.cvtColor(np.array([[[hue, 220, 255]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].tolist())


def draw_boxes(image: np.ndarray, boxes: Any, labels: Any, texts: Sequence[str] | None = None) -> np.ndarray:
    """A copy of an image (H, W, 3) uint8 with boxes (n, 4) x1, y1, x2, y2 in the colours of their labels (n,), each with its text."""
    image = image.copy()
    corners = np.asarray(boxes).round().astype(int).reshape(-1, 4).tolist()
    for i, ((x1, y1, x2, y2), label) in enumerate(zip(corners, np.asarray(labels).tolist())):
        color = color_of_class(label)
        cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), color, max(1, image.shape[0] // 256))
        if texts:
            high = y1 >= 12
            cv2.rectangle(
                image, (x1, y1 - 12 if high else y1), (x1 + 6 * len(texts[i]), y1 if high else y1 + 12), color, -1
            )
            where = (x1 + 1, y1 - 3 if high else y1 + 9)
            cv2.putText(image, texts[i], where, cv2.FONT_HERSHEY_SIMPLEX, 0.32, (0, 0, 0), 1, cv2.LINE_AA)
    return image


def draw_instances(image: np.ndarray, masks: Sequence[np.ndarray], labels: Any) -> np.ndarray:
    """A copy of an image (H, W, 3) uint8 tinted inside masks (n times (H, W) bool) in the colours of their labels (n,); the first is on top."""
    drawn = image.copy()
    for mask, label in zip(reversed(masks), np.asarray(labels)[::-1].tolist()):
        drawn[mask] = 0.45 * image[mask] + 0.55 * np.array(color_of_class(label))
    return drawn


def draw_mask(image: np.ndarray, mask: Any, background: int | None) -> np.ndarray:
    """A copy of an image (H, W, 3) uint8 tinted by the classes of a mask (H, W); background and ignored pixels stay as they are."""
    mask = np.asarray(mask).astype(np.int64)
    table = np.array([color_of_class(label) for label in range(IGNORE + 1)], np.float32)
    tinted = (0.45 * image + 0.55 * table[mask.clip(0, IGNORE)]).astype(np.uint8)
    plain = (mask == IGNORE) | (mask == background if background is not None else False)
    return np.where(plain[..., None], image, tinted)
