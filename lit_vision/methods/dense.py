"""What Detector and Segmenter share: a backbone that gives maps, which of it trains, its parameter groups, and a checkpoint that is whole."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lit_vision import distributed
from lit_vision.backbones import weights
from lit_vision.backbones.backbone import Backbone
from lit_vision.card import card_of_data
from lit_vision.errors import UserError
from lit_vision.methods import tuning


def build_backbone(h: Any) -> tuple[Backbone, list[float], list[float]]:
    """The backbone with its weights and what trains of it or beside it, and the mean and std that these weights want.

    Args:
        h: hyper-parameters of Detector or Segmenter: backbone, img_size, backbone_args, backbone_checkpoint (whose report is printed), tune,
            lora_rank, lora_targets, prompt_length.

    Raises:
        UserError: as Backbone and `tuning.adapt`. PartialMatch: the checkpoint does not fit.
    """
    backbone = Backbone(h.backbone, **{"img_size": h.img_size, **(h.backbone_args or {})})
    mean, std = backbone.data_config["mean"], backbone.data_config["std"]
    if h.backbone_checkpoint is not None:
        report = weights.load_into(backbone, h.backbone_checkpoint)
        print(report, flush=True)
        mean, std = report.mean or mean, report.std or std
    tuning.adapt(backbone, h)
    return backbone, list(mean), list(std)


def maps_of(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """`forward_maps`, with CNN images channels last in memory, which is faster."""
    if len(backbone.strides) > 1:
        images = images.contiguous(memory_format=torch.channels_last)
    return backbone.forward_maps(images)


def at_least_float32(x: Tensor) -> Tensor:
    """What losses and thresholds are computed in; float64 stays float64."""
    return x if x.dtype == torch.float64 else x.float()


def check_data(module: Any, needs: str) -> None:
    """Refuse data that cannot serve, before any step.

    Args:
        module: Detector or Segmenter.
        needs: "targets" or "mask", what its batches must hold.

    Raises:
        UserError: other classes or another size than the model's, or data without boxes (masks).
    """
    distributed.batch_norm_scope(module)
    if module.hparams.tune != "full":  # Lightning warns of modules in evaluation mode; here they are meant to be
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    data, h = getattr(module.trainer, "datamodule", None), module.hparams
    semantic = getattr(data, "format", None)
    if data is not None and (semantic is None or (semantic == "masks") != (needs == "mask")):
        want = (
            "semantic masks (AnnotatedDataModule, format masks)"
            if needs == "mask"
            else "boxes (AnnotatedDataModule, format coco, yolo or voc)"
        )
        raise UserError(f"data: {type(module).__name__} needs {want}; change data.class_path or data.format")
    for name, ours, theirs in (
        ("num_classes", h.num_classes, getattr(data, "num_classes", h.num_classes)),
        ("img_size", h.img_size, getattr(data, "img_size", h.img_size)),
    ):
        if ours != theirs:
            raise UserError(f"model.{name}: {ours}, the data has {theirs}; make them equal")


def card_for(task: str, datamodule: Any, options: dict[str, Any]) -> dict[str, Any] | None:
    """The card of this model's task: evaluation scales the longer side to the size and cuts nothing off."""
    card = card_of_data(task, datamodule)
    return None if card is None else {**card, "crop_pct": 1.0, "options": options}


def channels_last(module: nn.Module, backbone: Backbone) -> None:
    """Lay a head's convolutions out as its CNN backbone's are."""
    if len(backbone.strides) > 1:
        module.to(memory_format=torch.channels_last)
