"""What trains of a backbone, in which mode the rest stays, its parameter groups, and a checkpoint that is whole: what all methods on labels share."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lit_vision import distributed, optim
from lit_vision.backbones import adapters
from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UserError
from lit_vision.weights import load
from lit_vision.weights.model_metadata import metadata_from_datamodule

TUNES = ("full", "linear", "head+norm", "bias", "last-<k>", "lora", "prompt-shallow", "prompt-deep")
ADAPTERS = ("lora", "prompt-shallow", "prompt-deep")  # the backbone is frozen, what is added to it trains
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def set_trainable(backbone: Backbone, tune: str) -> None:
    """Freeze (requires_grad False) what `tune` leaves out of the backbone; the head is not its matter.

    "full": nothing is frozen. "linear": everything. "head+norm": all but the norms' gains and biases. "bias": all but the biases
    (BitFit, arXiv:2106.10199). "last-<k>": all but the last k blocks and the final norm (partial fine-tuning, arXiv:2111.06377, Figure 9).
    "lora" and "prompt-*": everything, before `backbones.adapters` adds what trains.

    Raises:
        UserError: an unknown value, or more blocks than there are.
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
        raise UserError(f"tune: {tune!r} is not one of {', '.join(TUNES)}; choose one of these")
    if not keep and tune != "linear" and tune not in ADAPTERS:
        raise UserError(f"tune: {tune} leaves nothing of this backbone trainable; use linear")
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name in keep and parameter.requires_grad)


def apply_tuning_mode(backbone: Backbone, h: Any) -> None:
    """Freeze what `tune` leaves out of the backbone, and add what it adds: LoRA, or prompts.

    Args:
        backbone: has its weights already.
        h: the method's hyper-parameters: tune, lora_rank, lora_targets, prompt_length, and lora_alpha (8), lora_layers (all) and
            lora_dropout (0) where it has them.

    Raises:
        UserError: as `set_trainable`, `adapters.add_lora` and `adapters.add_prompts`.
    """
    set_trainable(backbone, h.tune)
    if h.tune == "lora":
        adapters.add_lora(
            backbone,
            rank=h.lora_rank,
            alpha=h.get("lora_alpha", 8.0),
            targets=["qkv"] if h.lora_targets is None else h.lora_targets,
            layers=h.get("lora_layers"),
            dropout=h.get("lora_dropout", 0.0),
        )
    elif h.tune in ADAPTERS:
        adapters.add_prompts(backbone, length=h.prompt_length, deep=h.tune == "prompt-deep")


def keep_frozen_in_eval(backbone: Backbone) -> None:
    """Evaluation mode for the parts of the backbone that do not train: fixed batch-norm statistics, no drop path."""
    backbone.eval()
    for name, module in backbone.named_modules():
        parameters = list(module.parameters())
        if (parameters and all(p.requires_grad for p in parameters)) or ".lora_dropout" in name:
            module.train()


def make_checkpoint_self_contained(checkpoint: dict[str, Any], metadata: dict[str, Any] | None) -> None:
    """A checkpoint is complete in itself: loading it must not ask for the weights that its run began with."""
    if metadata is not None:
        checkpoint["card"] = metadata
    parameters = checkpoint.get("hyper_parameters")
    if parameters is not None:
        args = dict(parameters["backbone_args"] or {})
        if args.get("pretrained"):
            args["pretrained"] = False
        checkpoint["started_from"] = parameters["backbone_checkpoint"]
        checkpoint["hyper_parameters"] = {**parameters, "backbone_args": args, "backbone_checkpoint": None}


def configure_optimizer(module: Any) -> dict[str, Any]:
    """Optimiser and per-step schedule from the module's hyper-parameters; see `lit_vision.optim.optimizer_and_schedule`."""
    h = module.hparams
    layers: list[list[str]] = []
    if h.layer_decay != 1:
        layers = [[f"backbone.{name}" for name in group] for group in module.backbone.layer_groups()]
    groups = optim.layer_decay_groups(module.named_parameters(), layers, h.weight_decay, h.layer_decay)
    return optim.optimizer_and_schedule(
        module,
        groups,
        optimizer=h.optimizer,
        base_lr=h.base_lr,
        lr=h.lr,
        betas=h.betas,
        momentum=h.momentum,
        nesterov=h.get("nesterov", False),
        lr_in_momentum=h.get("lr_in_momentum", True),
        warmup_epochs=h.warmup_epochs,
        min_lr=h.min_lr,
    )


def build_backbone(h: Any) -> tuple[Backbone, list[float], list[float]]:
    """The backbone with its weights and what trains of it or beside it, and the mean and std that these weights want.

    Args:
        h: hyper-parameters of Detector or Segmenter: backbone, img_size, backbone_args, backbone_checkpoint (whose report is printed), tune,
            lora_rank, lora_targets, prompt_length.

    Raises:
        UserError: as Backbone and `apply_tuning_mode`. PartialMatchError: the checkpoint does not fit.
    """
    backbone = Backbone(h.backbone, **{"img_size": h.img_size, **(h.backbone_args or {})})
    mean, std = backbone.data_config["mean"], backbone.data_config["std"]
    if h.backbone_checkpoint is not None:
        report = load.load_into(backbone, h.backbone_checkpoint)
        print(report, flush=True)
        mean, std = report.mean or mean, report.std or std
    apply_tuning_mode(backbone, h)
    return backbone, list(mean), list(std)


def feature_maps(backbone: Backbone, images: Tensor) -> list[Tensor]:
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


def metadata_for(task: str, datamodule: Any, options: dict[str, Any]) -> dict[str, Any] | None:
    """The card of this model's task: evaluation scales the longer side to the size and cuts nothing off."""
    metadata = metadata_from_datamodule(task, datamodule)
    return None if metadata is None else {**metadata, "crop_pct": 1.0, "options": options}


def channels_last(module: nn.Module, backbone: Backbone) -> None:
    """Lay a head's convolutions out as its CNN backbone's are."""
    if len(backbone.strides) > 1:
        module.to(memory_format=torch.channels_last)
