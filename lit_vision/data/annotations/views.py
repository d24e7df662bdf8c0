"""Views of an image together with its boxes or masks: geometry and color of albumentations, re-keyed for every sample.

Every view is size x size. `fit` is for evaluation: the image is scaled until its longer side is `size` and padded at
the right and bottom. `flip` adds a random mirror image and color changes. `lsj` is large-scale jitter: the longer side
becomes size x U(jitter), then a random crop or padding (Ghiasi et al. 2021, arXiv:2012.07177; papers use 0.1 to 2.0 for
detection, 0.5 to 2.0 for segmentation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lit_vision.data.views.albumentations_views import import_albumentations, rekey
from lit_vision.errors import UserError

PAD = (124, 116, 104)  # ImageNet's mean color: near 0 after normalization
_JITTER_STEPS = 64  # sizes of the jitter: each is a single resize, where scaling twice would blur


@dataclass(frozen=True)
class AugmentationOptions:
    """Options of the training views.

    Attributes:
        jitter: lowest and highest scale of `lsj`, relative to the size.
        flip: probability of a mirror image, 0 to 1.
        brightness, contrast, saturation: strength of the color change, 0 is none; hue: likewise, at most 0.5.
        min_visibility: a box is dropped if less than this part of it remains in the crop, 0 to 1.
    """

    jitter: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    min_visibility: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.jitter
        if not 0 < low <= high <= 8:
            raise UserError(
                f"data.jitter: {list(self.jitter)} must be a lowest and a highest scale above 0, at most 8, "
                "for example [0.5, 2.0]"
            )
        for name, top in (
            ("flip", 1),
            ("min_visibility", 1),
            ("hue", 0.5),
            ("brightness", 8),
            ("contrast", 8),
            ("saturation", 8),
        ):
            if not 0 <= getattr(self, name) <= top:
                raise UserError(f"data.{name}: {getattr(self, name)} is not between 0 and {top}; change it")


@dataclass
class AnnotatedView:
    """An augmented image with its annotations; S is the side of the view.

    Attributes:
        image: (S, S, 3) uint8.
        boxes: (n, 4) float32 x1, y1, x2, y2 in pixels of the view.
        box_ids: (n,) int64, the index of each box among the given ones.
        masks: (n, S, S) uint8 of these boxes, or None.
        mask: (S, S) uint8 class numbers, or None.
        scale: (2,) float32, pixels of the view per pixel of the image in x and y (`fit` only, else 1).
    """

    image: np.ndarray
    boxes: np.ndarray
    box_ids: np.ndarray
    masks: np.ndarray | None
    mask: np.ndarray | None
    scale: np.ndarray


def _resize_longer_side(longer: int | list[int]) -> Any:
    return import_albumentations().LongestMaxSize(max_size=longer, area_for_downscale="image")


def _color_transforms(o: AugmentationOptions) -> list[Any]:
    A = import_albumentations()
    if not (o.brightness or o.contrast or o.saturation or o.hue):
        return []
    return [A.ColorJitter(o.brightness, o.contrast, o.saturation, o.hue, p=0.8)]


def letterbox(size: int, o: AugmentationOptions, fill_mask: int) -> list[Any]:
    """Scale the longer side to `size`, pad right and bottom."""
    A = import_albumentations()
    return [_resize_longer_side(size), A.PadIfNeeded(size, size, position="top_left", fill=PAD, fill_mask=fill_mask)]


def flip(size: int, o: AugmentationOptions, fill_mask: int) -> list[Any]:
    """Letterbox, then mirror at random and change colors."""
    return [*letterbox(size, o, fill_mask), import_albumentations().HorizontalFlip(p=o.flip), *_color_transforms(o)]


def large_scale_jitter(size: int, o: AugmentationOptions, fill_mask: int) -> list[Any]:
    """Scale by large-scale jitter, crop or pad, then mirror at random and change colors."""
    A = import_albumentations()
    sides = sorted({max(8, round(size * s)) for s in np.linspace(*o.jitter, _JITTER_STEPS)})
    return [
        _resize_longer_side(sides),
        A.PadIfNeeded(size, size, position="random", fill=PAD, fill_mask=fill_mask),
        A.RandomCrop(size, size),
        A.HorizontalFlip(p=o.flip),
        *_color_transforms(o),
    ]


def letterbox_scale(height: int, width: int, size: int) -> np.ndarray:
    """Return pixels of the `fit` view per pixel of the file in x and y, (2,) float32.

    The shorter side has at least one pixel, as in albumentations.
    """
    ratio = size / max(height, width)
    return np.array([max(1, round(side * ratio)) / side for side in (width, height)], np.float32)


VIEWS: dict[str, Callable[[int, AugmentationOptions, int], list[Any]]] = {
    "fit": letterbox,
    "flip": flip,
    "lsj": large_scale_jitter,
}


def register_annotated_view(name: str, build: Callable[[int, AugmentationOptions, int], list[Any]]) -> None:
    """Register a view: `build(size, options, fill_mask)` returns albumentations transforms that end at size x size.

    `build` must be a function of a module if workers are spawned.
    """
    VIEWS[name] = build


class AnnotatedViews:
    """View of an image and its annotations: a pure function of (seed, key).

    Args:
        name: a key of VIEWS.
        size: side of the result, pixels.
        seed: in [0, 2**64).
        options: see AugmentationOptions.
        fill_mask: value of semantic masks outside the image.

    Raises:
        UserError: the view is unknown.
    """

    def __init__(self, name: str, size: int, seed: int, options: AugmentationOptions, fill_mask: int = 255):
        if name not in VIEWS:
            raise UserError(f"data.train_view: {name!r} is unknown; choose from {', '.join(VIEWS)}, or register one")
        self.name, self.size, self.seed, self.options, self.fill_mask = name, size, seed, options, fill_mask

    def _compose(self, fill_mask: int) -> Any:
        A = import_albumentations()
        rules = A.BboxParams(
            "pascal_voc",
            label_fields=["box_ids"],
            min_visibility=self.options.min_visibility,
            min_width=1,
            min_height=1,
            clip=True,
        )
        return A.Compose(VIEWS[self.name](self.size, self.options, fill_mask), bbox_params=rules)

    @cached_property
    def _pipeline_for_boxes(self) -> Any:
        return self._compose(0)

    @cached_property
    def _pipeline_for_mask(self) -> Any:
        return self._compose(self.fill_mask)

    def __call__(
        self,
        image: np.ndarray,
        key: tuple[int, int, int],
        boxes: np.ndarray | None = None,
        masks: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> AnnotatedView:
        """Return the view of one image for one key.

        Args:
            image: (H, W, 3) uint8.
            key: (epoch, index, copy).
            boxes: (n, 4) x1, y1, x2, y2 in pixels.
            masks: (n, H, W) uint8 of 0 and 1, of these boxes; the boxes of the view are then those of the transformed
                masks.
            mask: (H, W) uint8 class numbers.
        """
        compose = self._pipeline_for_boxes if mask is None else self._pipeline_for_mask
        boxes = np.zeros((0, 4), np.float32) if boxes is None else np.asarray(boxes, np.float32).reshape(-1, 4)
        rekey(compose, self.seed, *key)
        extra: dict[str, Any] = {"mask": mask} if mask is not None else {}
        if masks is not None and len(masks):
            extra["masks"] = list(masks)
        fit, scale = self.name == "fit", np.ones(2, np.float32)
        given = np.zeros((0, 4), np.float32) if fit else boxes
        result = compose(image=image, bboxes=given, box_ids=np.arange(len(given)), **extra)
        if fit:  # ground truth of an evaluation: no box is dropped, however small it becomes
            scale = letterbox_scale(image.shape[0], image.shape[1], self.size)
            box_ids, new = np.arange(len(boxes)), boxes * np.tile(scale, 2)
        else:
            box_ids = np.asarray(result["box_ids"], np.int64).reshape(-1)
            new = np.asarray(result["bboxes"], np.float32).reshape(-1, 4)
        new_masks = None
        if masks is not None:
            new_masks = np.zeros((0, self.size, self.size), np.uint8)
            if len(masks) and len(box_ids):
                new_masks = np.stack(result["masks"])[box_ids]
            if not fit:
                visible = new_masks.any((1, 2))
                box_ids, new_masks, new = box_ids[visible], new_masks[visible], boxes_of(new_masks[visible])
        return AnnotatedView(np.ascontiguousarray(result["image"]), new, box_ids, new_masks, result.get("mask"), scale)

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in self.__dict__.items()
            if key not in ("_pipeline_for_boxes", "_pipeline_for_mask")
        }


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Return the boxes x1, y1, x2, y2 around (n, H, W) masks, (n, 4) float32; no mask may be empty."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for index, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes[index] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
