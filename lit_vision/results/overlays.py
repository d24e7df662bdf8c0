"""Draw boxes and masks on images, and tile images to one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from lit_vision.data.annotations.masks import IGNORE

_GOLDEN_RATIO = 0.618033988749895  # steps of this size give consecutive classes distant hues


def color_of_class(label: int) -> tuple[int, int, int]:
    """Return a bright RGB color that differs for each class number."""
    hue = round(180 * ((label * _GOLDEN_RATIO) % 1)) % 180
    return tuple(cv2.cvtColor(np.array([[[hue, 220, 255]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].tolist())


def draw_boxes(image: np.ndarray, boxes: Any, labels: Any, texts: Sequence[str] | None = None) -> np.ndarray:
    """Return a copy of an image with boxes drawn in the colors of their labels.

    Args:
        image: (H, W, 3) uint8.
        boxes: (n, 4) x1, y1, x2, y2 in pixels.
        labels: (n,) class numbers.
        texts: a caption for each box.
    """
    image = image.copy()
    corners = np.asarray(boxes).round().astype(int).reshape(-1, 4).tolist()
    for i, ((x1, y1, x2, y2), label) in enumerate(zip(corners, np.asarray(labels).tolist())):
        color = color_of_class(label)
        cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), color, max(1, image.shape[0] // 256))
        if texts:
            top = y1 - 12 if y1 >= 12 else y1  # above the box where there is room, else inside it
            cv2.rectangle(image, (x1, top), (x1 + 6 * len(texts[i]), top + 12), color, -1)
            cv2.putText(image, texts[i], (x1 + 1, top + 9), cv2.FONT_HERSHEY_SIMPLEX, 0.32, (0, 0, 0), 1, cv2.LINE_AA)
    return image


def draw_instances(image: np.ndarray, masks: Sequence[np.ndarray], labels: Any) -> np.ndarray:
    """Return a copy of an image (H, W, 3) uint8 that is tinted inside instance masks.

    Args:
        image: (H, W, 3) uint8.
        masks: n times (H, W) bool; where masks overlap, the first one is visible.
        labels: (n,) class numbers, which choose the colors.
    """
    drawn = image.copy()
    for mask, label in zip(reversed(masks), np.asarray(labels)[::-1].tolist()):
        drawn[mask] = 0.45 * image[mask] + 0.55 * np.array(color_of_class(label))
    return drawn


def draw_mask(image: np.ndarray, mask: Any, background: int | None) -> np.ndarray:
    """Return a copy of an image that is tinted by a mask of classes; background and ignored pixels are not changed.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) class numbers.
        background: the class that is not drawn; None if there is none.
    """
    mask = np.asarray(mask).astype(np.int64)
    table = np.array([color_of_class(label) for label in range(IGNORE + 1)], np.float32)
    tinted = (0.45 * image + 0.55 * table[mask.clip(0, IGNORE)]).astype(np.uint8)
    plain = (mask == IGNORE) | (mask == background if background is not None else False)
    return np.where(plain[..., None], image, tinted)


def tile_images(images: np.ndarray, columns: int, pad: int = 2) -> np.ndarray:
    """Tile images row by row on white.

    Args:
        images: (N, H, W, 3) uint8.
        columns: images in a row, at least 1.
        pad: pixels between them.

    Returns:
        One uint8 (H', W', 3) picture.
    """
    n, h, w, c = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, c), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = pad + i // columns * (h + pad), pad + i % columns * (w + pad)
        sheet[top : top + h, left : left + w] = image
    return sheet
