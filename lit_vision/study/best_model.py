"""The model that a study's verdict points to: kept as a file that `lit-vision predict` reads, with pictures of why it answers so."""

from __future__ import annotations

from pathlib import Path

import torch

from lit_vision.convert.export import write_safetensors
from lit_vision.data.batch import normalize
from lit_vision.methods.classifier import Classifier
from lit_vision.predict import explain
from lit_vision.predict.models import build_metadata
from lit_vision.results import plots
from lit_vision.study import figures
from lit_vision.study.cells import CellKey
from lit_vision.study.images import StudyImages
from lit_vision.study.presets import ON_LABELS, TIMM
from lit_vision.study.runner import Study
from lit_vision.study.training import classification, load_classifier, redirect_output
from lit_vision.study.verdict import PROBED

SHOWN = 6


def load_best(study: Study, key: CellKey) -> Classifier | None:
    """The classifier of a cell; None where its protocol makes no network or its weights were not kept."""
    path, images = study.store.folder / f"{key.name}.safetensors", study.images
    rows = images.subset(key.labels, key.seed)
    with redirect_output(study.log):
        if key.protocol == PROBED and key.init in study.encoders:  # the encoder with the probe as its head
            weights, head = study.encoders[key.init].weights, study.probe(key)
            module, _ = classification(key.init, images, rows, study.preset, key.seed, weights, head)
        elif key.protocol in ON_LABELS and path.exists():
            module, _ = classification(key.init, images, rows, study.preset, key.seed, None, protocol=key.protocol)
            load_classifier(path, module)
        else:
            return None
    return module.eval()


def write_model(path: Path, study: Study, key: CellKey, module: Classifier) -> Path:
    """The classifier with class names, mean, std, size and license inside."""
    license = study.licenses.get(key.init, "") if key.init.startswith(TIMM) else ""
    kept = {
        "size": study.preset.side(key.init),
        "class_names": study.images.classes,
        "crop_pct": 1.0,
        "license": license,
    }
    write_safetensors(module, build_metadata(module, "classification", kept), path)
    return path


def write_explanations(path: Path, module: Classifier, images: StudyImages, rows: list[int], side: int) -> Path:
    """Test images, each beside what spoke for the answer: Grad-CAM for CNNs, attention rollout for ViTs."""
    pixels = [figures.as_rgb(images.test[i], side) for i in rows]
    batch = normalize(torch.stack([torch.from_numpy(one) for one in pixels])[:, None], module.mean, module.std)[:, 0]
    with torch.inference_mode():
        found = module(batch).softmax(1)
    answers = found.argmax(1)
    heat = explain.explain(module, batch, answers).numpy()
    shown = [explain.overlay(one, hot) for one, hot in zip(pixels, heat)]
    names = images.classes
    captions = [
        f"{names[images.test_labels[i]]}\nseen as {names[answer]} ({score[answer]:.0%})"
        for i, answer, score in zip(rows, answers.tolist(), found.numpy())
    ]
    return plots.image_grid(path, shown, captions, columns=3)
