"""Classification into classes that are only named: images are compared with the text vectors of prompts.

B images, K classes, E width of the space that images and texts share.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_vision.data.annotations.files import read_lines
from lit_vision.errors import UserError
from lit_vision.evaluation.features import Features
from lit_vision.evaluation.few_shot import Classifier
from lit_vision.methods.image_text.prompt_learning import (
    CONTEXTS,
    LearnedPrompts,
    learn_contexts,
    paper_epochs,
    room_for_contexts,
)
from lit_vision.predict.models import MODEL_SUFFIXES, load_method, resolve_model_file, torch_device
from lit_vision.predict.open_clip_models import is_open_clip_name, load_open_clip
from lit_vision.predict.runtimes import Model
from lit_vision.predict.shared_space import check_texts, has_texts, no_texts_error
from lit_vision.predict.timm_models import is_timm_name
from lit_vision.weights.checkpoint_layouts import read_file_and_content, to_common_keys
from lit_vision.weights.model_metadata import ModelMetadata
from lit_vision.weights.protected_files import format_suffix

TEMPLATES = ("a photo of a {}.",)
MOST_CLASSES = 100_000
CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth")


def class_vectors(
    encode_texts: Callable[[list[str]], Tensor], classes: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """Return a unit vector for each class: the mean of the unit vectors of its prompts, normalized again (K, E).

    Source: Radford et al. 2021, arXiv:2103.00020, section 3.1.4.

    Args:
        encode_texts: N texts to vectors (N, E) of any length.
        classes: names.
        templates: prompts with {} for the name.
    """
    vectors = encode_texts([template.replace("{}", name) for name in classes for template in templates])
    vectors = F.normalize(vectors, dim=-1).unflatten(0, (len(classes), len(templates)))
    return F.normalize(vectors.mean(1), dim=-1)


class ZeroShotInference(nn.Module):
    """Normalized images (B, C, S, S) -> logits (B, K), unit vectors of the images (B, E).

    The logits are scale x cosine similarity. The bias of a sigmoid loss is left out: it is the same for all classes.

    Args:
        network: of images and captions, from `load_image_text` or `load_open_clip`.
        vectors: of the classes, (K, E).
    """

    outputs = ("logits", "features")

    def __init__(self, network: nn.Module, vectors: Tensor) -> None:
        super().__init__()
        self.backbone, self.image_projection = network.backbone, network.image_projection
        scale = network.similarity.scale.detach()
        self.register_buffer("classes", (scale * vectors).clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs (see the class)."""
        features = F.normalize(self.image_projection(self.backbone(images)), dim=-1)
        return features @ self.classes.T, features


def load_image_text(source: str | os.PathLike[str]) -> tuple[nn.Module, ModelMetadata, Path]:
    """Return the network of images and captions of a run or checkpoint, on the CPU in evaluation mode.

    Returns:
        The network, its metadata, and the file.

    Raises:
        UserError: no such file, a damaged one, or a model that was not trained on captions.
    """
    path = resolve_model_file(source)
    if format_suffix(path) not in CHECKPOINT_SUFFIXES:
        raise UserError(f"{path}: is no checkpoint of a training; give a run of ImageText or its .ckpt")
    network, metadata = load_method(path, shared_space=True)
    if not hasattr(network, "encode_texts"):
        raise no_texts_error(path)
    return network, metadata, path


def zero_shot_network(
    source: str | os.PathLike[str], classes: Sequence[str], templates: Sequence[str] = TEMPLATES, device: str = "auto"
) -> tuple[ZeroShotInference, nn.Module, ModelMetadata, Path]:
    """Return a network that classifies into named classes, in evaluation mode, without the text tower.

    Args:
        source: a run's folder or a checkpoint of ImageText, or `open_clip:MODEL/WEIGHTS` (see open_clip_models.py).
        classes: names, two or more, all different.
        templates: prompts with {} for the name; several make an ensemble, see `class_vectors`.
        device: as in `models.load_model`.

    Returns:
        The classifier, the network of both towers that it was made from, its metadata, and the file.

    Raises:
        UserError: as `check_classes`, `check_templates`, `load_image_text` and `load_open_clip`.
    """
    classes, templates = check_classes(classes, "classes"), check_templates(templates, "templates")
    target = torch_device(device)
    if is_open_clip_name(source):
        path = Path(source)
        network, features = load_open_clip(os.fspath(source))
    else:
        network, features, path = load_image_text(source)
    network = network.to(target)
    vectors = class_vectors(network.encode_texts, classes, templates)
    prompts = json.dumps([classes, templates], ensure_ascii=False)
    metadata = replace(
        features,
        task="classification",
        class_names=classes,
        outputs=list(ZeroShotInference.outputs),
        weights=hashlib.sha256(f"{features.weights} {prompts}".encode("utf-8", "surrogateescape")).hexdigest(),
        options={**features.options, "templates": templates},
    )
    return ZeroShotInference(network, vectors).eval().to(target), network, metadata, path


def open_zero_shot(
    source: str | os.PathLike[str], classes: Sequence[str], templates: Sequence[str] = TEMPLATES, device: str = "auto"
) -> Model:
    """Return a classifier of the named classes from a model of images and captions; see `zero_shot_network`."""
    inference, network, metadata, path = zero_shot_network(source, classes, templates, device)
    target = torch_device(device)

    def run(images: Tensor) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            outputs = inference(images.to(target))
        return {name: value.float().cpu().numpy() for name, value in zip(metadata.outputs, outputs)}

    return Model(metadata, path, run, "torch", None, target, network.encode_texts)


def read_prompts(
    classes: str | os.PathLike[str], template: str | os.PathLike[str] | None = None
) -> tuple[list[str], list[str]]:
    """Return the names of classes and the templates that two text files list, one a line.

    Args:
        classes: file of --classes.
        template: file of --template; None: `TEMPLATES`.

    Raises:
        UserError: as `check_classes` and `check_templates`, or a file that cannot be read.
    """
    lines = read_lines(Path(classes).expanduser(), "file of --classes")
    names = check_classes(lines, f"--classes {os.fspath(classes)}")
    if template is None:
        return names, list(TEMPLATES)
    lines = read_lines(Path(template).expanduser(), "file of --template")
    return names, check_templates(lines, f"--template {os.fspath(template)}")


def text_network(source: str | os.PathLike[str], device: torch.device) -> nn.Module | None:
    """Return the network of images and captions of a model, in evaluation mode, or None if it has no text tower.

    Args:
        source: a run, a file or a name, from which `models.load_model` has loaded a model of features.
        device: where the network is put.

    Raises:
        UserError: as `load_image_text` and `load_open_clip`, but for a model without a text tower.
    """
    if is_open_clip_name(source):
        return load_open_clip(os.fspath(source))[0].to(device)
    if is_timm_name(source, MODEL_SUFFIXES):
        return None
    path = resolve_model_file(source)
    if format_suffix(path) not in CHECKPOINT_SUFFIXES:
        return None
    state, header, _ = read_file_and_content(path)
    if not has_texts(to_common_keys(state, header)[1]):
        return None
    return load_image_text(source)[0].to(device)


def text_classifiers(network: nn.Module, classes: Sequence[str]) -> tuple[int, dict[str, Classifier]]:
    """Return classifiers for `evaluation.few_shot` that use the names of the classes: "zero-shot" and "coop".

    Both take features of the network's image tower before its projection. "zero-shot" is `class_vectors`; "coop" learns
    contexts from the labeled images, see prompt_learning.py, with the paper's recipe.

    Args:
        network: from `text_network`.
        classes: names of folders; their underscores are read as spaces.

    Returns:
        The number of context vectors: 16, or fewer if the text tower takes no more; and the classifiers, by name.

    Raises:
        UserError: as `check_classes`, `LearnedPrompts` and the network's tokenizer.
    """
    readable = [name.encode("utf-8", "replace").decode().replace("_", " ") for name in classes]  # tokenizers' UTF-8
    names = check_classes(readable, "names of the classes")
    contexts = min(CONTEXTS, room_for_contexts(network, names))
    if contexts < 1:
        raise UserError("names of the classes: the longest leaves no place for context vectors; shorten it")
    LearnedPrompts(network, names, contexts)  # refuses what cannot work
    vectors = class_vectors(network.encode_texts, names)

    @torch.no_grad()
    def image_vectors(features: Tensor) -> Tensor:
        return F.normalize(network.image_projection(features.to(vectors.device)), dim=-1)

    def zero_shot(labeled: Features, test: Features, seed: int) -> Tensor:
        return (image_vectors(test.features) @ vectors.T).cpu()

    def coop(labeled: Features, test: Features, seed: int) -> Tensor:
        prompts = LearnedPrompts(network, names, contexts, seed=seed)
        shots = int(torch.bincount(labeled.labels).max())
        learn_contexts(prompts, image_vectors(labeled.features), labeled.labels, paper_epochs(shots), seed=seed)
        with torch.no_grad():
            return (image_vectors(test.features) @ prompts.class_vectors().T).cpu()

    return contexts, {"zero-shot": zero_shot, "coop": coop}


def check_classes(names: Sequence[str], where: str) -> list[str]:
    """Return names of classes without the space around them.

    Args:
        names: two or more.
        where: the flag and file, for the error.

    Raises:
        UserError: fewer than two or too many, one that is empty or no Unicode text, or one that occurs twice.
    """
    found = [" ".join(str(name).split()) for name in names]
    if isinstance(names, str) or not 2 <= len(found) <= MOST_CLASSES or not all(found):
        raise UserError(f"{where}: {len(found)} names of classes; give 2 to {MOST_CLASSES:,}, none empty")
    check_texts(found, where)
    name, count = Counter(found).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where}: {name!r} stands there {count} times; give each class once")
    return found


def check_templates(templates: Sequence[str], where: str) -> list[str]:
    """Return templates of prompts; arguments as `check_classes`.

    Raises:
        UserError: none, or one without {} or that is no Unicode text.
    """
    if isinstance(templates, str) or not templates:
        raise UserError(f"{where}: give one template or more, such as 'a photo of a {{}}.'")
    for template in templates:
        if "{}" not in template:
            raise UserError(f"{where}: {template[:80]!r} has no {{}} for the name of the class; add it")
    check_texts(templates, where)
    return [str(template) for template in templates]
