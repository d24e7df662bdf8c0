"""Open a trained network as a teacher: frozen, in evaluation mode, with its own pixel statistics.

B images, C H W channels and pixels, K classes, D width of the features.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from lit_vision.backbones.backbone import Backbone
from lit_vision.data.class_names import match_class_names
from lit_vision.errors import UserError
from lit_vision.io.hashing import state_dict_sha256
from lit_vision.methods.classifier.network import ClassifierNetwork
from lit_vision.weights import public_packages
from lit_vision.weights.checkpoint_layouts import (
    load_own_weights,
    read_file_and_content,
    stored_hyper_parameters,
    to_common_keys,
)
from lit_vision.weights.licenses import is_non_commercial
from lit_vision.weights.load import load_common
from lit_vision.weights.model_metadata import METADATA_KEY, current_keys
from lit_vision.weights.pretrained import create_pretrained_classifier

_ACCEPTED = "give a run's checkpoint, a .safetensors of lit-vision export, or timm:NAME"


@dataclass
class Teacher:
    """A frozen network that answers for the student's images.

    Attributes:
        name: of the file, or timm's.
        network: its weights.
        answer: normalized images (B, C, H, W) -> logits (B, K), None without a classifier; and features (B, D).
        mean, std: of the pixels that it expects, per channel in [0, 1].
        width: D.
        classes: K; 0 without a classifier.
        class_names: in the order of the logits; empty if it does not know them.
        license: of its weights, free text; "" if not stated.
        order: (K',) its numbers of the student's classes; None takes them all in order.
    """

    name: str
    network: nn.Module
    answer: Callable[[Tensor], tuple[Tensor | None, Tensor]]
    mean: list[float]
    std: list[float]
    width: int
    classes: int = 0
    class_names: list[str] = field(default_factory=list)
    license: str = ""
    order: Tensor | None = None

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # a copy of the student, such as its average, has the same teacher

    def __call__(self, images: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return logits (B, K') in the student's order, or None, and features (B, D), of the student's images.

        Args:
            images: (B, C, H, W), normalized with `mean` and `std`, (C,) each.
        """
        ours = [torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std)]
        self.network.to(images.device)
        with torch.no_grad():
            pixels = images * std[:, None, None] + mean[:, None, None]
            logits, features = self.answer((pixels - ours[0]) / ours[1])
        if logits is not None and self.order is not None:
            logits = logits[:, self.order.to(logits.device)]
        return logits, features

    def match(self, classes: int, names: list[str] | None) -> str:
        """Choose its classes that are the student's; return a line about it, "" without a classifier.

        Args:
            classes: of the student.
            names: of these, in order; None if the data names none: then the student has the teacher's classes.

        Raises:
            UserError: the student has a class that the teacher lacks, or, where names are not known, another number.
        """
        if not self.classes:
            return ""
        if names and self.class_names:
            numbers, note = match_class_names(self.class_names, names, "data")
            self.order = torch.from_numpy(numbers)
            return f"teacher {self.name}: {note or 'has the same classes'}"
        if classes != self.classes:
            raise UserError(
                f"model.teacher: {self.name} has {self.classes} classes, the student {classes}; set model.num_classes "
                f"to {self.classes}, or model.logit_weight to 0 and model.feature_weight above 0"
            )
        return f"teacher {self.name}: classes are compared by number"

    def record(self) -> dict[str, Any]:
        """Return name, sha256 of the weights and license, for the student's metadata."""
        return {
            "name": self.name,
            "weights": state_dict_sha256(self.network.state_dict()),
            "license": self.license,
            "non_commercial": is_non_commercial(self.license),
        }


def open_teacher(source: str | os.PathLike[str]) -> Teacher:
    """Open a teacher.

    Args:
        source: a checkpoint or .safetensors of a Classifier (logits and features), or of another method or of a
            backbone (features alone); `timm:NAME`, or a name of weights/public_packages.py, with timm's classifier.

    Raises:
        UserError: no such file or model, one that is damaged, or one that is not described in the file.
    """
    text = os.fspath(source)
    if text.startswith("timm:") or (not Path(text).exists() and text in public_packages.PACKAGES):
        return _timm_teacher(text.removeprefix("timm:"))
    path = Path(text).expanduser()
    state, header, content = read_file_and_content(path)
    if header.get("lit_vision") == "Adapter":
        raise UserError(f"model.teacher: {path} is an adapter without its backbone; export the run as safetensors")
    stored = content if isinstance(content, dict) else {}
    hyper = stored.get("hyper_parameters") or stored_hyper_parameters(header)
    card = current_keys(stored.get("card") or json.loads(header.get(METADATA_KEY) or "{}"))
    common, layout = to_common_keys(state, header)
    license = header.get("license") or str(card.get("license") or "")
    if layout == "Classifier" and hyper:
        network = ClassifierNetwork({**hyper, "backbone_checkpoint": None})
        load_own_weights(network, state, path)
        names, classes = [str(name) for name in card.get("class_names") or []], network.head.out_features
        mean, std = network.mean.tolist(), network.std.tolist()
        answer = _classifier_answer(network)
        return Teacher(path.name, network, answer, mean, std, network.backbone.width, classes, names, license)
    backbone = _described_backbone(hyper, header, path)
    report = load_common(backbone, common, layout, header, path)
    mean, std = (
        list(value or backbone.data_config[name]) for name, value in (("mean", report.mean), ("std", report.std))
    )
    return Teacher(path.name, backbone, lambda x: (None, backbone(x)), mean, std, backbone.width, license=license)


def _classifier_answer(network: ClassifierNetwork) -> Callable[[Tensor], tuple[Tensor | None, Tensor]]:
    def answer(images: Tensor) -> tuple[Tensor | None, Tensor]:
        features = network.backbone(images)
        return network.head(network.head_norm(features)), features

    return answer


def _described_backbone(hyper: Mapping[str, Any], header: Mapping[str, str], path: Path) -> Backbone:
    """Build the backbone that a file describes.

    Raises:
        UserError: it describes none.
    """
    if hyper.get("backbone"):
        return Backbone(hyper["backbone"], **{**(hyper.get("backbone_args") or {}), "pretrained": False})
    if "backbone" in header:
        return Backbone(**json.loads(header["backbone"]))
    raise UserError(f"model.teacher: {path} does not say which backbone its weights are for; {_ACCEPTED}")


def _timm_teacher(name: str) -> Teacher:
    """Return a timm model with its classifier, or without one if it has none."""
    model, origin = create_pretrained_classifier(name)
    config = resolve_model_data_config(model)

    def answer(images: Tensor) -> tuple[Tensor | None, Tensor]:
        maps = model.forward_features(images)
        logits = model.forward_head(maps) if model.num_classes else None
        return logits, model.forward_head(maps, pre_logits=True)

    width = getattr(model, "head_hidden_size", None) or model.num_features
    license = origin.get("license") or str(model.pretrained_cfg.get("license") or "")
    mean, std = (list(map(float, config[key])) for key in ("mean", "std"))
    return Teacher(f"timm:{name}", model, answer, mean, std, width, model.num_classes, license=license)
