"""Tuning modes of the supervised networks: their backbone with its weights, and which of its parameters train.

Imports no Lightning; fine_tuning.py beside this file has what their LightningModules share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_vision.backbones import adapters
from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UserError
from lit_vision.weights.pretrained import backbone_with_weights

TUNING_MODES = ("full", "linear", "head+norm", "bias", "last-<k>", "lora", "prompt-shallow", "prompt-deep")
ADAPTERS = ("lora", "prompt-shallow", "prompt-deep")  # the backbone is frozen; parameters added to it train
# values of the hyper-parameters below that a checkpoint does not have, because it is older or only for use
TUNING_DEFAULTS: Mapping[str, Any] = {
    "backbone_args": None,
    "backbone_checkpoint": None,
    "tune": "full",
    "mean": None,
    "std": None,
    "lora_rank": 8,
    "lora_targets": None,
    "prompt_length": 50,
}
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def set_trainable(backbone: Backbone, tune: str) -> None:
    """Freeze (requires_grad False) the backbone's parameters that do not train in the mode `tune`.

    "full": nothing is frozen. "linear": everything. "head+norm": all but the norms' gains and biases. "bias": all but
    the biases (BitFit, arXiv:2106.10199). "last-<k>": all but the last k blocks and the final norm (partial
    fine-tuning, arXiv:2111.06377, Figure 9). "lora" and "prompt-*": everything, before `backbones.adapters` adds
    parameters that train.

    Raises:
        UserError: an unknown value, more blocks than there are, or a mode that leaves no parameter trainable.
    """
    if tune == "full":
        return
    keep: set[str] = set()
    if tune == "head+norm":
        norms = [m for m in backbone.modules() if isinstance(m, _NORMS) or "Norm" in type(m).__name__]
        parameters = {id(p) for m in norms for p in m.parameters(recurse=False)}
        keep = {name for name, p in backbone.named_parameters() if id(p) in parameters}
    elif tune == "bias":
        keep = {name for name, _ in backbone.named_parameters() if name.rsplit(".", 1)[-1] == "bias"}
    elif match := re.fullmatch(r"last-([1-9]\d*)", tune):
        groups, k = backbone.layer_groups(), int(match[1])
        if k > len(groups) - 2:
            raise UserError(f"tune: {tune} asks for {k} blocks, this backbone has {len(groups) - 2}; lower it")
        keep = {name for group in groups[-k - 1 :] for name in group}
    elif tune != "linear" and tune not in ADAPTERS:
        raise UserError(f"tune: {tune!r} is not one of {', '.join(TUNING_MODES)}; choose one of these")
    if not keep and tune != "linear" and tune not in ADAPTERS:
        raise UserError(f"tune: {tune} leaves nothing of this backbone trainable; use linear")
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name in keep and parameter.requires_grad)


def apply_tuning_mode(backbone: Backbone, hparams: Mapping[str, Any]) -> None:
    """Freeze what does not train in the mode `hparams['tune']`, and add LoRA or prompts if it asks for them.

    Args:
        backbone: with its weights loaded.
        hparams: of the network: tune, lora_rank, lora_targets, prompt_length; lora_alpha (else 8), lora_layers (else
            all) and lora_dropout (else 0) are optional.

    Raises:
        UserError: as `set_trainable`, `adapters.add_lora` and `adapters.add_prompts`.
    """
    set_trainable(backbone, hparams["tune"])
    if hparams["tune"] == "lora":
        adapters.add_lora(
            backbone,
            rank=hparams["lora_rank"],
            alpha=hparams.get("lora_alpha", 8.0),
            targets=["qkv"] if hparams["lora_targets"] is None else hparams["lora_targets"],
            layers=hparams.get("lora_layers"),
            dropout=hparams.get("lora_dropout", 0.0),
        )
    elif hparams["tune"] in ADAPTERS:
        adapters.add_prompts(backbone, length=hparams["prompt_length"], deep=hparams["tune"] == "prompt-deep")


def keep_frozen_in_eval(module: nn.Module) -> None:
    """Put the frozen parts of `module.backbone` in evaluation mode: fixed batch-norm statistics, no drop path.

    A part whose parameters all train (a norm with head+norm, the blocks of last-<k>) is in training mode. With tune
    "full" only `freeze_batch_norm` fixes anything: the statistics of every batch norm. Does nothing in evaluation mode.
    A method calls it at the end of `train`.
    """
    if not module.training:
        return
    backbone = module.backbone
    if module.hparams["tune"] != "full":
        backbone.eval()
        for name, part in backbone.named_modules():
            parameters = list(part.parameters())
            if (parameters and all(p.requires_grad for p in parameters)) or ".lora_dropout" in name:
                part.train()
    if module.hparams.get("freeze_batch_norm"):
        for part in backbone.modules():
            if isinstance(part, nn.modules.batchnorm._NormBase):
                part.eval()


def build_backbone(hparams: Mapping[str, Any]) -> tuple[Backbone, list[float], list[float]]:
    """Return the backbone in its tuning mode, with its weights, and the mean and std that these weights expect.

    Args:
        hparams: of the network: backbone, backbone_args, backbone_checkpoint (whose report is printed), img_size if it
            has one, and those of `apply_tuning_mode`.

    Raises:
        UserError: as Backbone and `apply_tuning_mode`. PartialMatchError: the checkpoint does not fit.
    """
    args = {"img_size": hparams["img_size"]} if "img_size" in hparams else {}
    arguments = {**args, **(hparams["backbone_args"] or {})}
    backbone, mean, std = backbone_with_weights(hparams["backbone"], arguments, hparams["backbone_checkpoint"])
    apply_tuning_mode(backbone, hparams)
    return backbone, mean, std


def square_side(img_size: int) -> int:
    """Return `img_size` of a detector or segmenter, whose views, heads and decoding are square.

    Raises:
        UserError: it is not one number.
    """
    if isinstance(img_size, Sequence):
        raise UserError(f"model.img_size: {img_size}; boxes and masks are predicted on square images: give one number")
    return img_size


def feature_maps(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Return `forward_maps`, with CNN images channels last in memory, which is faster."""
    if len(backbone.strides) > 1:
        images = images.contiguous(memory_format=torch.channels_last)
    return backbone.forward_maps(images)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert to float32, in which losses and thresholds are computed; float64 stays float64."""
    return x if x.dtype == torch.float64 else x.float()


def channels_last(module: nn.Module, backbone: Backbone) -> None:
    """Put a head's convolutions in channels-last layout if its backbone is a CNN."""
    if len(backbone.strides) > 1:
        module.to(memory_format=torch.channels_last)
