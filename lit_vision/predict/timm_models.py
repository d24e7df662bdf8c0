"""Models of timm by name, with timm's weights and the class names of ImageNet."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.models import is_model_pretrained
from torch import Tensor, nn

from lit_vision.backbones.backbone import is_vit
from lit_vision.data.views.image_size import plain_size
from lit_vision.errors import UserError
from lit_vision.io.hashing import state_dict_sha256
from lit_vision.weights.model_metadata import ModelMetadata
from lit_vision.weights.pretrained import create_pretrained_classifier


def is_timm_name(source: str | os.PathLike[str], suffixes: tuple[str, ...]) -> bool:
    """Return True for a name of timm, with or without a weight tag, that is no path and ends in none of `suffixes`."""
    name = os.fspath(source)
    is_path = os.path.exists(name) or os.path.basename(name) != name or Path(name).suffix.lower() in suffixes
    return not is_path and timm.is_model(name)


class TimmInference(nn.Module):
    """Normalized images (B, 3, S, S) -> logits (B, K), features (B, D); features alone without a classifier.

    Features are what timm gives to its classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.outputs = ("logits", "features") if model.num_classes else ("features",)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs (see the class)."""
        maps = self.model.forward_features(images)
        features = self.model.forward_head(maps, pre_logits=True)
        return (self.model.forward_head(maps), features) if self.model.num_classes else (features,)


def load_timm_model(name: str) -> tuple[TimmInference, ModelMetadata]:
    """Return a timm model with its weights, in evaluation mode on the CPU, and its metadata.

    Without a network, some weights come from an installed package (weights/public_packages.py): stderr and the
    metadata's options say so.

    Images get this project's evaluation view with timm's size, crop and pixel statistics; timm resizes many models'
    images bicubically instead, which changes probabilities slightly.

    Args:
        name: as `timm.list_pretrained()` gives it; without a tag, timm's default weights.

    Raises:
        UserError: timm has no such weights, or they are not on this machine and cannot be fetched; or as
            `public_packages.find`.
    """
    if not is_model_pretrained(name):
        tags = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")[:4])
        raise UserError(f"{name}: timm has no such weights; choose {tags or 'another model'}")
    model, origin = create_pretrained_classifier(name)
    model.eval().requires_grad_(False)
    network, config = TimmInference(model), resolve_model_data_config(model)
    weights = state_dict_sha256(model.state_dict())
    return network, ModelMetadata(
        task="classification" if model.num_classes else "features",
        size=plain_size(config["input_size"][-2:]),
        mean=[float(v) for v in config["mean"]],
        std=[float(v) for v in config["std"]],
        crop_pct=float(config["crop_pct"]),
        class_names=imagenet_classes(model),
        outputs=list(network.outputs),
        weights=weights,
        features=weights,
        license=origin.get("license") or str(model.pretrained_cfg.get("license") or ""),
        options={"family": "vit" if is_vit(model) else "cnn", **{k: v for k, v in origin.items() if k != "license"}},
    )


def imagenet_classes(model: nn.Module) -> list[str]:
    """Return the class names of a timm model: ImageNet's by the number of classes, else "0", "1", ..."""
    subset = infer_imagenet_subset(model)
    return [str(i) for i in range(model.num_classes)] if subset is None else imagenet_names(subset)


def imagenet_names(subset: str = "imagenet-1k") -> list[str]:
    """Return the class names of an ImageNet that timm knows, in the order of the outputs.

    A name that several classes have gets its WordNet number: "crane (n02012849)".
    """
    info = ImageNetInfo(subset)
    names, numbers = info.label_descriptions(), info.label_names()
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({number})" for name, number in zip(names, numbers)]
