"""Tasks: one object each, found by `ModelMetadata.task`, and what is done with a model of any task.

All runtimes go through the same class of a task, so their results differ by rounding only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_vision import methods
from lit_vision.data.views.image_size import height_and_width
from lit_vision.errors import UsageError, UserError
from lit_vision.methods.detection.decoding import decoder_options
from lit_vision.predict.accuracy import AccuracyCheck, ClassificationCheck, DetectionCheck, SegmentationCheck
from lit_vision.predict.captioning import CaptionInference, CaptionLines
from lit_vision.predict.classification import ClassificationLines, ClassifierInference, FeatureInference, softmax
from lit_vision.predict.detection import DecodeBoxes, DetectionLines, detector_inference
from lit_vision.predict.multilabel import MultiLabelInference, MultiLabelLines
from lit_vision.predict.restoration import RestorerInference, restorer_options
from lit_vision.predict.segmentation import SegmentationLines, SegmenterInference
from lit_vision.predict.video import DEFAULT_FRAMES, VideoInference, VideoLines
from lit_vision.weights.compatibility import method_of_hyper_parameters
from lit_vision.weights.model_metadata import ModelMetadata

if TYPE_CHECKING:
    from lit_vision.predict.runtimes import Model

Results = (
    type[ClassificationLines]
    | type[MultiLabelLines]
    | type[DetectionLines]
    | type[SegmentationLines]
    | type[CaptionLines]
    | type[VideoLines]
)


@dataclass(frozen=True)
class Task:
    """A task: the one place that the rest of the package asks about it.

    Attributes:
        inference: takes a method's network, returns the module that is run and exported, which names its `outputs`.
        method: name of the method in `lit_vision.methods`, whose network.py names the metric (`monitor`) that best.ckpt
            is chosen by; None for features.
        results: class that turns outputs into predictions, lines, masks and drawings; it names its file `formats` and
            the `options` of the predict command that apply to it. None if the command does not apply.
        accuracy: measures an exported model on a folder; None if that is impossible.
        pads: True if its view scales the longer side and pads, False if it scales the shorter one and crops.
        decoding: takes a method's network, returns the plain values that decoding the outputs takes.
        traced: True if the inference network can be exported as a graph of operations.
        videos: True if it takes clips of frames, not images.
    """

    inference: Callable[[nn.Module], nn.Module]
    method: str | None = None
    results: Results | None = None
    accuracy: Callable[..., AccuracyCheck] | None = None
    pads: bool = False
    decoding: Callable[[nn.Module], dict[str, Any]] = lambda network: {}
    traced: bool = True
    videos: bool = False

    @property
    def monitor(self) -> tuple[str, bool] | None:
        """Metric that chooses best.ckpt, and True if larger is better, as the method declares; None for features."""
        if self.method is None:
            return None
        found: tuple[str, bool] = methods.network_class(self.method).monitor
        return found

    def network(self, hyper_parameters: Mapping[str, Any]) -> nn.Module:
        """Return the method's network without Lightning, with random weights."""
        if self.method is None:
            raise ValueError("features have no method; build the Backbone")
        return methods.network_class(self.method)(hyper_parameters)


TASKS: dict[str, Task] = {
    "classification": Task(ClassifierInference, "Classifier", ClassificationLines, ClassificationCheck),
    "multilabel": Task(MultiLabelInference, "MultiLabelClassifier", MultiLabelLines),
    "features": Task(FeatureInference),
    "detection": Task(
        detector_inference,
        "Detector",
        DetectionLines,
        DetectionCheck,
        pads=True,
        decoding=decoder_options,
    ),
    "segmentation": Task(
        SegmenterInference,
        "Segmenter",
        SegmentationLines,
        SegmentationCheck,
        pads=True,
        decoding=lambda network: {"background": network.hparams["background"]},
    ),
    "video": Task(VideoInference, "VideoClassifier", VideoLines, videos=True),
    "restoration": Task(RestorerInference, "Restorer", decoding=restorer_options),
    "captioning": Task(
        CaptionInference,
        "Captioner",
        CaptionLines,
        decoding=lambda network: {name: network.hparams[name] for name in ("tokenizer_json", "context_length")},
        traced=False,  # its beam search loops
    ),
}


def task_of_checkpoint(hyper_parameters: Iterable[str]) -> str | None:
    """Return the task of a checkpoint without metadata, by the names of its hyper-parameters; None for pre-training."""
    method = method_of_hyper_parameters(hyper_parameters)
    return next((name for name, task in TASKS.items() if method is not None and task.method == method), None)


def results_with_options(model: Model, given: Mapping[str, Any]) -> tuple[Results, dict[str, Any]]:
    """Return the class of a model's results, and its options: those given, defaults for those that are None.

    Raises:
        UserError: the model returns features alone. UsageError: an option that the task does not have.
    """
    task = model.metadata.task
    results = TASKS[task].results
    if task == "restoration":
        raise UserError(f"{model.path}: restores images; use lit-vision restore")
    if results is None:
        raise UserError(
            f"{model.path}: returns {task} and no predictions; use lit-vision embed, fine-tune a classifier, or name "
            "classes (--classes) if it was trained on images with captions"
        )
    for name, value in given.items():
        if value is not None and name not in results.options:
            raise UsageError(f"--{name}: does not apply to {task}; leave it out")
    values = {name: given.get(name) for name in results.options}
    return results, {name: results.options[name] if value is None else value for name, value in values.items()}


def result_formats() -> list[str]:
    """Return the suffixes that some task writes."""
    return sorted({name for task in TASKS.values() if task.results for name in task.results.formats})


def accuracy_check_for(
    root: str, metadata: ModelMetadata, settings: Mapping[str, Any] | None = None, by_number: bool = False
) -> AccuracyCheck:
    """Return the accuracy check of a model's task.

    Args:
        root: a folder with classes (classification), or of annotated images (detection: COCO, YOLO or VOC;
            segmentation: PNG masks).
        metadata: of the model.
        settings: arguments of the data module that the model was trained with; None for the usual splits and places.
        by_number: compare classes by number although their names differ.

    Raises:
        UserError: another task, a folder without labels, or classes that the model does not have.
    """
    check = TASKS[metadata.task].accuracy if metadata.task in TASKS else None
    if check is None:
        raise UserError(
            f"--int8: needs a task whose accuracy can be measured, not {metadata.task}; export without --int8"
        )
    return check(root, metadata, preprocess_for(metadata), settings or {}, by_number)


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
    """Return the evaluation view of a model, (H, W, 3) uint8 to its size, uint8, which may be called in threads."""
    size, crop_pct = metadata.size, metadata.crop_pct
    if not TASKS[metadata.task].pads:
        from lit_vision.data.views.views import resize_and_crop

        return lambda image: resize_and_crop(image, size, crop_pct)
    from lit_vision.data.annotations.views import AnnotatedViews, AugmentationOptions

    per_thread = threading.local()  # albumentations stores the state of a call in its objects

    def fit(image: np.ndarray) -> np.ndarray:
        if not hasattr(per_thread, "view"):
            per_thread.view = AnnotatedViews("fit", metadata.side, 0, AugmentationOptions())
        pixels: np.ndarray = per_thread.view(image, (0, 0, 0)).image
        return pixels

    return fit


def inference_network(method: nn.Module, task: str) -> nn.Module:
    """Return the network that is run and exported, in evaluation mode, without gradients."""
    network = TASKS[task].inference(method).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def example_input(metadata: ModelMetadata, n: int, seed: int = 0) -> Tensor:
    """Return (n, C, *size) float: noise with the spread of normalized pixels, the same for the same arguments.

    For a model of videos it is (n, T, C, *size) with the T frames of its clips.
    """
    frames = [metadata.options.get("frames_per_clip", DEFAULT_FRAMES)] if TASKS[metadata.task].videos else []
    shape = n, *frames, len(metadata.mean), *height_and_width(metadata.size)
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
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
