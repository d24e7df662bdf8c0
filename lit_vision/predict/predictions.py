"""Results of `lit_vision.load(...)`: what a model says of images, in their own pixels, in documented units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Classification:
    """The k most probable classes of an image, best first.

    Attributes:
        path: of the image, relative to the folder that was given; "" for pixels.
        classes: names, k.
        labels: (k,) int64, their numbers in the order of the model's classes.
        probabilities: (k,) float64, 0 to 1, of the softmax over all classes.
    """

    path: str
    classes: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True, eq=False)
class MultiLabel:
    """The labels of an image, any number of them.

    Attributes:
        path: of the image, relative to the folder that was given; "" for pixels.
        labels: names of the labels whose score reaches their threshold, in the order of the model's classes.
        classes: names of all K labels.
        scores: (K,) float64, 0 to 1, the probability of each label by itself.
    """

    path: str
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class Detections:
    """The n objects found in an image, best first.

    Attributes:
        path: of the image, relative to the folder that was given; "" for pixels.
        size: (height, width) of the image, pixels.
        classes: names, n.
        labels: (n,) int64, their numbers in the order of the model's classes.
        scores: (n,) float32, 0 to 1.
        boxes: (n, 4) float32, x1, y1, x2, y2 in pixels of the image, to 0.01, clipped to the image.
        run_lengths: n masks as COCO's compressed run lengths, {"size", "counts"}, in the size of the image; None for a
            detector without masks.
    """

    path: str
    size: tuple[int, int]
    classes: tuple[str, ...]
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    run_lengths: tuple[dict[str, Any], ...] | None = None

    def masks(self) -> np.ndarray:
        """Return the masks, (n, H, W) bool in the size of the image.

        Raises:
            ValueError: the detector has no masks.
        """
        if self.run_lengths is None:
            raise ValueError("this detector has no masks; Mask R-CNN has")
        from faster_coco_eval.core.mask import decode

        masks = [decode({**lengths, "counts": lengths["counts"].encode()}) for lengths in self.run_lengths]
        return np.stack(masks).astype(bool) if masks else np.zeros((0, *self.size), bool)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Class of each pixel of an image.

    Attributes:
        path: of the image, relative to the folder that was given; "" for pixels.
        classes: names of all K classes; a pixel's number is an index into them.
        mask: (H, W) uint8 (uint16 above 256 classes), class numbers, in the size of the image.
    """

    path: str
    classes: tuple[str, ...]
    mask: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """Return the share of each class in the pixels, (K,) float64 with sum 1."""
        return np.bincount(self.mask.ravel(), minlength=len(self.classes)) / self.mask.size


@dataclass(frozen=True, eq=False)
class Caption:
    """Description of an image in words.

    Attributes:
        path: of the image, relative to the folder that was given; "" for pixels.
        text: the caption.
        log_probability: mean over its tokens, in nats, at most 0; comparable between images of one model only.
    """

    path: str
    text: str
    log_probability: float


@dataclass(frozen=True, eq=False)
class VideoScores:
    """Classes of a video over time: N clips, K classes.

    Attributes:
        path: of the video, relative to the folder that was given.
        starts: (N,) float64, seconds from the video's first frame to the clips' first ones.
        ends: (N,) float64, seconds to their last ones.
        classes: names of all K classes.
        probabilities: (N, K) float64, 0 to 1, of the softmax over the classes.
    """

    path: str
    starts: np.ndarray
    ends: np.ndarray
    classes: tuple[str, ...]
    probabilities: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Return the probabilities of the whole video, (K,) float64: the mean over its clips."""
        mean: np.ndarray = self.probabilities.mean(0)
        return mean


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of N images.

    Attributes:
        paths: of the images, relative to the folder that was given; "" for pixels.
        features: (N, D) float32, not normalized; a row of NaN for an image that was skipped.
    """

    paths: tuple[str, ...]
    features: np.ndarray


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Return COCO's compressed run lengths of a (H, W) bool mask, as pycocotools' evaluation reads them."""
    from faster_coco_eval.core.mask import encode  # installed wherever a Detector can be built

    return {"size": list(mask.shape), "counts": encode(np.asfortranarray(mask).view(np.uint8))["counts"].decode()}
