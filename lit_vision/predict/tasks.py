"""Tasks: inference network, preprocessing and results of each, found by `ModelMetadata.task`.

All runtimes go through the same class of a task, so their results differ by rounding only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_vision.errors import UsageError
from lit_vision.predict.classification import Classification, ClassifierNetwork, FeatureNetwork, softmax
from lit_vision.predict.detection import DecodeBoxes, Detection, detector_network
from lit_vision.predict.segmentation import Segmentation, SegmenterNetwork
from lit_vision.weights.model_metadata import ModelMetadata

TASKS: dict[str, Any] = {"classification": Classification, "detection": Detection, "segmentation": Segmentation}
NETWORKS: dict[str, Callable[[nn.Module], nn.Module]] = {  # each network lists its `outputs`, in order
    "classification": ClassifierNetwork,
    "features": FeatureNetwork,
    "detection": detector_network,
    "segmentation": SegmenterNetwork,
}
DENSE = ("detection", "segmentation")  # tasks whose view scales the longer side and pads


def format_from_suffix(out: str, formats: Sequence[str]) -> str:
    """Return the format that a file's suffix names.

    Raises:
        UsageError: another suffix.
    """
    matches = [name for name in formats if out.lower().endswith(f".{name}")]
    if not matches:
        raise UsageError(f"--out {out}: end its name in {' or '.join('.' + name for name in formats)}")
    return max(matches, key=len)  # .results.json also ends in .json


def preprocess_for(metadata: ModelMetadata) -> Callable[[np.ndarray], np.ndarray]:
    """Return the evaluation view of a model, (H, W, 3) uint8 -> (S, S, 3) uint8, which may be called in threads."""
    size, crop_pct = metadata.size, metadata.crop_pct
    if metadata.task not in DENSE:
        from lit_vision.data.views.views import resize_and_crop

        return lambda image: resize_and_crop(image, size, crop_pct)
    from lit_vision.data.annotations.views import AnnotatedViews, AugmentationOptions

    per_thread = threading.local()  # albumentations stores the state of a call in its objects

    def fit(image: np.ndarray) -> np.ndarray:
        if not hasattr(per_thread, "view"):
            per_thread.view = AnnotatedViews("fit", size, 0, AugmentationOptions())
        pixels: np.ndarray = per_thread.view(image, (0, 0, 0)).image
        return pixels

    return fit


def inference_network(method: nn.Module, task: str) -> nn.Module:
    """Return the network that is run and exported, in evaluation mode, without gradients."""
    network = NETWORKS[task](method).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def example_input(metadata: ModelMetadata, n: int, seed: int = 0) -> Tensor:
    """Return (n, 3, S, S) float: noise with the spread of normalized pixels, the same for the same arguments."""
    pixels = torch.rand(n, 3, metadata.size, metadata.size, generator=torch.Generator().manual_seed(seed))
    return (pixels - torch.tensor(metadata.mean)[:, None, None]) / torch.tensor(metadata.std)[:, None, None]


def max_difference(
    metadata: ModelMetadata, wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """Return the largest difference between two runtimes' outputs, and between their boxes in pixels (0 without boxes).

    Outputs are compared relative to their largest value (at least 1), class probabilities as they are. A one-stage
    detector's outputs are first decoded to the scores and boxes of all anchors, which are compared as they are. A value
    that is not finite makes the difference infinite.
    """

    def gap(a: np.ndarray, b: np.ndarray, scale: float = 1.0) -> float:
        worst = float(np.abs(a - b).max()) / scale
        return worst if np.isfinite(worst) else float("inf")

    if metadata.task == "detection" and "strides" in metadata.options:
        decoder = DecodeBoxes(metadata)
        boxes, scores = decoder.decode_all(wanted)
        found_boxes, found_scores = decoder.decode_all(found)
        return gap(scores, found_scores), gap(boxes, found_boxes)
    worst = max(gap(found[name], value, max(1.0, float(np.abs(value).max()))) for name, value in wanted.items())
    if "logits" in wanted and wanted["logits"].ndim == 2:
        worst = max(worst, gap(softmax(found["logits"]), softmax(wanted["logits"])))
    return worst, 0.0
