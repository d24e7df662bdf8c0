"""What each task makes of a model: the network that runs, the pixels it wants, and what its results become.

One class per task, found by `metadata.task`. All runtimes go through the same class, so their results differ by rounding only.
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

__all__ = [
    "NETWORKS",
    "TASKS",
    "example_input",
    "format_from_suffix",
    "inference_network",
    "max_difference",
    "preprocess_for",
    "softmax",
]

TASKS: dict[str, Any] = {"classification": Classification, "detection": Detection, "segmentation": Segmentation}
NETWORKS: dict[str, Callable[[nn.Module], nn.Module]] = {  # each network says its `outputs`, in order
    "classification": ClassifierNetwork,
    "features": FeatureNetwork,
    "detection": detector_network,
    "segmentation": SegmenterNetwork,
}
DENSE = ("detection", "segmentation")  # their view scales the longer side and pads


def format_from_suffix(out: str, forms: Sequence[str]) -> str:
    """The form that a file's ending asks for.

    Raises:
        UsageError: another ending.
    """
    found = [form for form in forms if out.lower().endswith(f".{form}")]
    if not found:
        raise UsageError(f"--out {out}: end its name in {' or '.join('.' + f for f in forms)}")
    return max(found, key=len)


def preprocess_for(metadata: ModelMetadata) -> Callable[[np.ndarray], np.ndarray]:
    """The evaluation view of this model: (H, W, 3) uint8 -> (S, S, 3) uint8. It can be called in threads."""
    size, crop_pct = metadata.size, metadata.crop_pct
    if metadata.task not in DENSE:
        from lit_vision.data.views.views import resize_and_crop

        return lambda image: resize_and_crop(image, size, crop_pct)
    from lit_vision.data.annotations.views import AnnotatedViews, AugmentationOptions

    own = threading.local()  # albumentations keeps the state of a call in its objects

    def fit(image: np.ndarray) -> np.ndarray:
        if not hasattr(own, "view"):
            own.view = AnnotatedViews("fit", size, 0, AugmentationOptions())
        return own.view(image, (0, 0, 0)).image

    return fit


def inference_network(method: nn.Module, task: str) -> nn.Module:
    """The network that runs and is exported, in evaluation mode."""
    network = NETWORKS[task](method).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def example_input(metadata: ModelMetadata, n: int, seed: int = 0) -> Tensor:
    """(n, 3, S, S) float: noise with the spread of normalised pixels, the same for the same arguments."""
    pixels = torch.rand(n, 3, metadata.size, metadata.size, generator=torch.Generator().manual_seed(seed))
    return (pixels - torch.tensor(metadata.mean)[:, None, None]) / torch.tensor(metadata.std)[:, None, None]


def max_difference(
    metadata: ModelMetadata, wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """How far an export's outputs are from torch's: of scores and outputs, and of boxes in pixels; infinite if one is not finite.

    Outputs are compared relative to their largest value (at least 1), class probabilities as they are. A one-stage detector's are turned
    into the scores and boxes of all anchors first, which are compared as they are.
    """

    def gap(a: np.ndarray, b: np.ndarray, scale: float = 1.0) -> float:
        worst = float(np.abs(a - b).max()) / scale
        return worst if np.isfinite(worst) else float("inf")

    if metadata.task == "detection" and "strides" in metadata.options:
        boxes = DecodeBoxes(metadata)
        both = (boxes.everything(outputs) for outputs in (wanted, found))
        (here, ours), (there, theirs) = both
        return gap(ours, theirs), gap(here, there)
    worst = max(gap(found[name], value, max(1.0, float(np.abs(value).max()))) for name, value in wanted.items())
    if "logits" in wanted and wanted["logits"].ndim == 2:
        worst = max(worst, gap(softmax(found["logits"]), softmax(wanted["logits"])))
    return worst, 0.0
