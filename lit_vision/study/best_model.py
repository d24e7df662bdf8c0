"""Store the best model of a study as a file for `lit-vision predict`, with explanations of its answers."""

from __future__ import annotations

from pathlib import Path

import torch

from lit_vision.convert.export import write_safetensors
from lit_vision.data.batch import normalize
from lit_vision.predict import explain
from lit_vision.predict.models import build_metadata
from lit_vision.results import plots
from lit_vision.study import figures
from lit_vision.study.cells import CellKey
from lit_vision.study.images import StudyImages
from lit_vision.study.presets import ON_LABELS, StudyPreset
from lit_vision.study.runner import Study
from lit_vision.study.training import AnyClassifier, classification, load_classifier
from lit_vision.study.verdict import PROBED
from lit_vision.study.weight_files import redirect_output
from lit_vision.weights.licenses import with_note

EXPLAINED_IMAGES = 6


def load_best(study: Study, key: CellKey) -> AnyClassifier | None:
    """Return the classifier of a cell; None if its protocol trains no network or its weights were not stored."""
    path, images = study.store.folder / f"{key.name}.safetensors", study.images
    rows = images.subset(key.labels, key.seed)
    with redirect_output(study.log):
        if key.protocol == PROBED and key.init in study.encoders:  # the encoder with the probe as its head
            weights, head = study.encoders[key.init].weights, study.probe(key)
            preset = study.preset.as_frozen(key.init)
            module, _ = classification(key.init, images, rows, preset, key.seed, weights, head)
        elif key.protocol in ON_LABELS and path.exists():
            module, _ = classification(key.init, images, rows, study.preset, key.seed, None, protocol=key.protocol)
            load_classifier(path, module)
        else:
            return None
    module.eval()
    return module


def side_of(preset: StudyPreset, key: CellKey) -> int:
    """Return the side at which the model of a cell sees an image, pixels."""
    return preset.frozen_side(key.init) if key.protocol == PROBED else preset.side(key.init)


def write_model(path: Path, study: Study, key: CellKey, module: AnyClassifier) -> Path:
    """Write the classifier with class names, mean, std, size and license in its metadata."""
    license = with_note(study.licenses.get(key.init, ""))
    side = side_of(study.preset, key)
    metadata = {
        "size": side,
        "class_names": study.images.classes,
        "crop_pct": study.images.crop_pct(side),
        "license": license,
        "value_range": None if study.images.value_range is None else list(study.images.value_range),
    }
    write_safetensors(module, build_metadata(module, study.images.kind.task, metadata), path)
    return path


def write_explanations(path: Path, module: AnyClassifier, images: StudyImages, rows: list[int], side: int) -> Path:
    """Draw test images with a map of what the answer rests on: Grad-CAM for CNNs, attention rollout for ViTs."""
    pixels = [figures.as_rgb(image) for image in images.test_view(side, keep=False)[rows]]
    batch = normalize(torch.stack([torch.from_numpy(image) for image in pixels])[:, None], module.mean, module.std)[
        :, 0
    ]
    with torch.inference_mode():
        scores = images.kind.to_probabilities(module(batch))
    answers = scores.argmax(1)
    heat_maps = explain.explain(module, batch, answers).numpy()
    overlays = [explain.overlay(image, heat) for image, heat in zip(pixels, heat_maps)]
    names, seen = images.classes, "likeliest:" if images.kind.several else "seen as"
    captions = [
        f"{_names_of(images, i)}\n{seen} {names[answer]} ({score[answer]:.0%})"
        for i, answer, score in zip(rows, answers.tolist(), scores.numpy())
    ]
    return plots.image_grid(path, overlays, captions, columns=3)


def _names_of(images: StudyImages, row: int) -> str:
    """Return the class of a test image, or its classes."""
    label = images.test_labels[row]
    if not images.kind.several:
        return str(images.classes[label])
    return ", ".join(name for name, applies in zip(images.classes, label == 1) if applies) or "none"
