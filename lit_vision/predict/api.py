"""Use a model from Python: `lit_vision.load`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_vision.errors import UsageError, UserError
from lit_vision.evaluation.detection import MAX_DETECTIONS
from lit_vision.io.processes import cores
from lit_vision.io.sealed import read_key
from lit_vision.predict.detection import limit_detections
from lit_vision.predict.image_list import ImageList, list_images
from lit_vision.predict.inference import check_has_features, check_ranges
from lit_vision.predict.inputs import InputBatch, Inputs, batches
from lit_vision.predict.models import load_model
from lit_vision.predict.predictions import Embeddings
from lit_vision.predict.runtimes import Model
from lit_vision.predict.tasks import TASKS, preprocess_for, results_with_options
from lit_vision.predict.video import outputs_of_videos
from lit_vision.predict.video_inputs import find_videos
from lit_vision.weights.model_metadata import ModelMetadata
from lit_vision.weights.protected_files import model_protection

Errors = Literal["raise", "skip"]


class LoadedModel:
    """A model of any task and runtime, from `load`; gives the numbers that lit-vision predict and embed write.

    Images are a path, a folder (with its subfolders, sorted by name) or shards, a Pillow image, a numpy array
    (H, W, 3) or (N, H, W, 3) uint8 RGB, a tensor (3, H, W) or (N, 3, H, W) uint8 or float from 0 to 1, or a list of
    single images. Gray images have 1 channel instead of 3, or are arrays (H, W). Any size; the model's preprocessing is
    applied, so give plain pixels and no normalized ones. Threads may share a model, except for calls that ask a
    detector for different `max_detections`.

    Attributes:
        classes: names in the order of the class numbers; empty for features.
        metadata: task, input size, pixel statistics, license, ...
        runtime: "torch", "onnx", "openvino" or "pt2".
        path: the file, or timm's name.
    """

    def __init__(self, model: Model, protection: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._model, self._protection = model, protection  # the latter opens the file again for `classes`
        self._max_detections: int = model.metadata.options.get("max_detections", MAX_DETECTIONS)
        self.classes: tuple[str, ...] = tuple(model.metadata.class_names)
        self.metadata: ModelMetadata = model.metadata
        self.runtime, self.path = model.runtime, model.path
        self._classifier: tuple[tuple[list[str], list[str]], LoadedModel] | None = None  # of the last `classes`

    def __repr__(self) -> str:
        """Return task, number of classes, runtime and file."""
        return f"LoadedModel({self.metadata.task}, {len(self.classes)} classes, {self.runtime}, {self.path})"

    def predict(
        self,
        images: Any,
        *,
        top_k: int | None = None,
        min_score: float | None = None,
        max_detections: int | None = None,
        captions: str | None = None,
        classes: Sequence[str] | None = None,
        templates: Sequence[str] = ("a photo of a {}.",),
        step: float | None = None,
        fps: float | None = None,
        batch_size: int = 32,
        workers: int = 0,
        errors: Errors = "raise",
    ) -> list[Any]:
        """Return the predictions of one or many images, or videos for a model of videos.

        Args:
            images: see the class; for a model of videos the path of a video file, of a folder of frames, or of a folder
                of both, or a list of paths.
            top_k: classes per image, classification only; None is 5.
            min_score: leave out detections with a lower score, 0 to 1, detection only; None is 0.
            max_detections: keep the best of an image, detection only; None is the model's number, usually 100.
            captions: "decoder" uses a Captioner's decoder even if the nearest training image's caption was better in
                validation, captioning only; None refuses it.
            classes: names to classify into, for a model of images and captions (ImageText); no training on them.
            templates: prompts for `classes`, with {} for the name; several are averaged.
            step: seconds from the start of a clip to that of the next, videos only; None is clip after clip.
            fps: frames per second that clips are cut from, videos only; None is that of the training videos.
            batch_size: images, or frames, at a time.
            workers: threads that read and decode; 0: the number of cores.
            errors: "raise" for an image that cannot be read, or "skip", which returns None for it.

        Returns:
            A list of `Classification`, `MultiLabel`, `Detections`, `Segmentation`, `Caption` or `VideoScores`
            (lit_vision.predict.predictions), one for each image in order; of one element for a single image.

        Raises:
            UserError: an image cannot be read, another kind of image, or a model of features alone. UsageError (a
                UserError): an option out of range or of another task.
        """
        if classes is not None:
            options: dict[str, Any] = {"top_k": top_k, "min_score": min_score, "max_detections": max_detections}
            options |= {"captions": captions, "batch_size": batch_size, "workers": workers, "errors": errors}
            return self._zero_shot(classes, templates).predict(images, **options)
        given: dict[str, Any] = {"top_k": top_k, "min_score": min_score, "max_detections": max_detections}
        given |= {"captions": captions, "step": step, "fps": fps}
        check_ranges(given)
        results_of_task, options = results_with_options(self._model, given)
        if self.metadata.task == "detection":
            limit_detections(self._model, max_detections or self._max_detections)
        results = results_of_task(self.metadata, "jsonl", **options)
        if TASKS[self.metadata.task].videos:
            inputs: Inputs | ImageList = (videos := find_videos(_paths(images)))
            results_of_inputs = self._run_videos(videos, batch_size, workers, errors, step, fps)
        else:
            inputs = list_images(images)
            results_of_inputs = self._run(inputs, batch_size, workers, errors)
        found: list[Any] = [None] * len(inputs)
        for batch, outputs in results_of_inputs:
            for position, prediction in zip(batch.positions, results.predictions(batch, outputs)):
                found[position] = prediction
        return found

    def _zero_shot(self, classes: Sequence[str], templates: Sequence[str]) -> LoadedModel:
        """Return the classifier of these classes; the last one is kept."""
        from lit_vision.predict.zero_shot import check_classes, check_templates, open_zero_shot

        wanted = check_classes(classes, "classes"), check_templates(templates, "templates")
        if self._classifier is None or self._classifier[0] != wanted:
            with self._protection():
                self._classifier = wanted, LoadedModel(open_zero_shot(self.path, *wanted, str(self._model.device)))
        return self._classifier[1]

    def embed(self, images: Any, *, batch_size: int = 32, workers: int = 0, errors: Errors = "raise") -> Embeddings:
        """Return the features of one or many images, N x D, not normalized.

        A model trained on images with captions gives unit vectors, which those of `embed_texts` can be compared with.

        Args:
            images: see the class.
            batch_size: images at a time.
            workers: threads that read and decode; 0: the number of cores.
            errors: "raise" for an image that cannot be read, or "skip", which leaves its row NaN.

        Raises:
            UserError: an image cannot be read, no image can, another kind of image, or a model without features.
        """
        check_has_features(self._model)
        inputs = list_images(images)
        features: np.ndarray | None = None
        for batch, outputs in self._run(inputs, batch_size, workers, errors):
            rows = outputs["features"].astype(np.float32, copy=False)
            if features is None:
                features = np.full((len(inputs), rows.shape[1]), np.nan, np.float32)
            features[batch.positions] = rows
        if features is None:
            raise UserError("images: none of them can be read; repair them or give others")
        return Embeddings(tuple(inputs.names), features)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors (N, D), float32, of texts in the space of the images' features.

        The cosine similarities of images and texts are `embed(images).features @ embed_texts(texts).T`.

        Raises:
            UserError: an empty text, or a model that was not trained on images with captions.
        """
        from lit_vision.predict.shared_space import check_texts, text_vectors

        return text_vectors(self._model, check_texts(texts, "texts"))

    def _run(
        self, inputs: Inputs | ImageList, batch_size: int, workers: int, errors: Errors
    ) -> Iterator[tuple[InputBatch, dict[str, np.ndarray]]]:
        """Yield batches and their outputs; batches without a readable image are left out."""
        _check_reading(batch_size, workers, errors)
        prepare, pixel_format = preprocess_for(self.metadata), self.metadata.pixel_format
        for batch in batches(inputs, prepare, batch_size, workers=workers or cores(), pixel_format=pixel_format):
            if batch.unreadable and errors == "raise":
                position = min(set(range(batch.start, batch.stop)) - set(batch.positions))
                name, reason = batch.unreadable[0]
                raise UserError(f"{name or f'images[{position}]'}: {reason}")
            if batch.pixels is not None:
                yield batch, self._model(batch.pixels)

    def _run_videos(
        self, videos: Inputs, batch_size: int, workers: int, errors: Errors, step: float | None, fps: float | None
    ) -> Iterator[tuple[InputBatch, dict[str, np.ndarray]]]:
        """Yield each video as a batch, and its outputs; one that cannot be read is left out."""
        _check_reading(batch_size, workers, errors)
        prepare = preprocess_for(self.metadata)
        options: dict[str, Any] = {"batch_size": batch_size, "threads": workers, "step": step, "fps": fps}
        for batch, outputs in outputs_of_videos(self._model, videos, prepare, **options):
            if outputs is not None:
                yield batch, outputs
            elif errors == "raise":
                name, reason = batch.unreadable[0]
                raise UserError(f"{name}: {reason}")


def _check_reading(batch_size: int, workers: int, errors: Errors) -> None:
    check_ranges({"batch_size": batch_size, "workers": workers})
    if errors not in ("raise", "skip"):
        raise UsageError(f"errors: {errors!r} is not 'raise' or 'skip'")


def _paths(videos: Any) -> list[str]:
    """Return the paths of videos; UserError if something else than paths is given."""
    listed = [videos] if isinstance(videos, str | os.PathLike) else videos
    try:
        paths = [os.path.expanduser(os.fspath(path)) for path in listed]
    except TypeError:
        paths = []
    if not paths:
        raise UserError(
            "images: this model takes videos; give the path of a video or a folder of frames, or a list of them"
        )
    return paths


def load(
    model: str | Path,
    device: str = "auto",
    *,
    base: str | None = None,
    trust_pt2: bool = False,
    threads: int | None = None,
    range: Sequence[float] | None = None,
    backbone_features: bool = False,
    key: str | Path | None = None,
    passphrase_file: str | Path | None = None,
    require_signature: str | Path | None = None,
) -> LoadedModel:
    """Load a model to use it: `load("runs/classifier/1").predict("cat.jpg")[0].classes[0]`.

    Nothing in a file is executed, except for `.pt2`, which is loaded only if it is trusted.

    Args:
        model: a run's folder, a .ckpt, .safetensors, .onnx, .xml (OpenVINO), .pt2 or .sealed file, or a name of timm
            with or without a weight tag ("resnet18", "vit_small_patch16_224.augreg_in1k"), which gets timm's weights,
            or without a network those of an installed package of lit-vision[public], and the class names of ImageNet.
        device: of torch, "auto" (CUDA if there is one), "cpu" or "cuda"; the other runtimes use the CPU.
        base: the weights that an adapter (`model`) was trained on; "timm" for timm's.
        trust_pt2: load a .pt2, which can run code of whoever made it.
        threads: of ONNX Runtime and OpenVINO; None is their default.
        range: values of images deeper than 8 bits that become 0 and 255; None is that of the training images.
        backbone_features: of a model trained on images with captions, embed with the backbone alone, not in the space
            that images and texts share.
        key: key file that opens a model of `lit-vision protect seal`, in memory only.
        passphrase_file: file whose first line is the passphrase that opens it.
        require_signature: a public key's file; a model without a valid signature of it beside the file (`lit-vision
            protect sign`) is refused before anything in it is parsed.

    Raises:
        UserError: one line: the file is missing, damaged, of another kind or without metadata, its runtime is not
            installed, or timm's weights cannot be fetched.
    """
    options: dict[str, Any] = {"threads": threads, "value_range": range, "shared_space": not backbone_features}
    master = read_key(key, passphrase_file)

    def protection() -> AbstractContextManager[None]:
        return model_protection(master, require_signature)

    with protection():
        return LoadedModel(load_model(os.fspath(model), device, base, trust_pt2, **options), protection)
