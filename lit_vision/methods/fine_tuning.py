"""Fine-tuning modes, optimizer, metadata and checkpoints of the supervised methods, as plain functions they share."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lit_vision import distributed, optim
from lit_vision.backbones import adapters
from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UserError
from lit_vision.weights import load
from lit_vision.weights.model_metadata import metadata_from_datamodule

if TYPE_CHECKING:
    from lightning import LightningDataModule, LightningModule
    from lightning.pytorch.utilities.parsing import AttributeDict

TUNING_MODES = ("full", "linear", "head+norm", "bias", "last-<k>", "lora", "prompt-shallow", "prompt-deep")
ADAPTERS = ("lora", "prompt-shallow", "prompt-deep")  # the backbone is frozen; parameters added to it train
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


def apply_tuning_mode(backbone: Backbone, hparams: AttributeDict) -> None:
    """Freeze what does not train in the mode `hparams.tune`, and add LoRA or prompts if it asks for them.

    Args:
        backbone: with its weights loaded.
        hparams: of the method: tune, lora_rank, lora_targets, prompt_length; lora_alpha (else 8), lora_layers (else
            all) and lora_dropout (else 0) are optional.

    Raises:
        UserError: as `set_trainable`, `adapters.add_lora` and `adapters.add_prompts`.
    """
    set_trainable(backbone, hparams.tune)
    if hparams.tune == "lora":
        adapters.add_lora(
            backbone,
            rank=hparams.lora_rank,
            alpha=hparams.get("lora_alpha", 8.0),
            targets=["qkv"] if hparams.lora_targets is None else hparams.lora_targets,
            layers=hparams.get("lora_layers"),
            dropout=hparams.get("lora_dropout", 0.0),
        )
    elif hparams.tune in ADAPTERS:
        adapters.add_prompts(backbone, length=hparams.prompt_length, deep=hparams.tune == "prompt-deep")


def keep_frozen_in_eval(module: LightningModule) -> None:
    """Put the frozen parts of `module.backbone` in evaluation mode: fixed batch-norm statistics, no drop path.

    A part whose parameters all train (a norm with head+norm, the blocks of last-<k>) is in training mode. Does nothing
    in evaluation mode or with tune "full". A method calls it at the end of `train`.
    """
    if not module.training or module.hparams.tune == "full":
        return
    backbone = module.backbone
    backbone.eval()
    for name, part in backbone.named_modules():
        parameters = list(part.parameters())
        if (parameters and all(p.requires_grad for p in parameters)) or ".lora_dropout" in name:
            part.train()


# The next three are hooks of Lightning: a method has them as `on_save_checkpoint`, `on_load_checkpoint` and
# `configure_optimizers`.


def make_checkpoint_self_contained(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Add `module.metadata` to a checkpoint, and make it independent of the weights file that the run started from."""
    if module.metadata is not None:
        checkpoint["card"] = module.metadata
    parameters = checkpoint.get("hyper_parameters")
    if parameters is not None:
        args = dict(parameters["backbone_args"] or {})
        if args.get("pretrained"):
            args["pretrained"] = False
        checkpoint["started_from"] = parameters["backbone_checkpoint"]
        checkpoint["hyper_parameters"] = {**parameters, "backbone_args": args, "backbone_checkpoint": None}


def restore_metadata(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Read `module.metadata` from a checkpoint of `make_checkpoint_self_contained`."""
    module.metadata = checkpoint.get("card", module.metadata)


def configure_optimizer(module: LightningModule) -> dict[str, Any]:
    """Return optimizer and per-step schedule from the hyper-parameters; see `optim.optimizer_and_schedule`."""
    hparams = module.hparams
    layers: list[list[str]] = []
    if hparams.layer_decay != 1:
        layers = [[f"backbone.{name}" for name in group] for group in module.backbone.layer_groups()]
    groups = optim.layer_decay_groups(module.named_parameters(), layers, hparams.weight_decay, hparams.layer_decay)
    return optim.optimizer_from_hparams(module, groups)


def build_backbone(hparams: AttributeDict) -> tuple[Backbone, list[float], list[float]]:
    """Return the backbone in its tuning mode, with its weights, and the mean and std that these weights expect.

    Args:
        hparams: of the method: backbone, backbone_args, backbone_checkpoint (whose report is printed), img_size if it
            has one, and those of `apply_tuning_mode`.

    Raises:
        UserError: as Backbone and `apply_tuning_mode`. PartialMatchError: the checkpoint does not fit.
    """
    args = {"img_size": hparams.img_size} if "img_size" in hparams else {}
    backbone = Backbone(hparams.backbone, **{**args, **(hparams.backbone_args or {})})
    mean, std = backbone.data_config["mean"], backbone.data_config["std"]
    if hparams.backbone_checkpoint is not None:
        report = load.load_into(backbone, hparams.backbone_checkpoint)
        print(report, flush=True)
        mean, std = report.mean or mean, report.std or std
    apply_tuning_mode(backbone, hparams)
    return backbone, list(mean), list(std)


def feature_maps(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Return `forward_maps`, with CNN images channels last in memory, which is faster."""
    if len(backbone.strides) > 1:
        images = images.contiguous(memory_format=torch.channels_last)
    return backbone.forward_maps(images)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert to float32, in which losses and thresholds are computed; float64 stays float64."""
    return x if x.dtype == torch.float64 else x.float()


def check_batch_norm(module: LightningModule) -> None:
    """Refuse a batch-norm converter that would break the model; silence Lightning's warning about frozen modules.

    Raises:
        UserError: as `distributed.batch_norm_scope`.
    """
    distributed.batch_norm_scope(module)
    if module.hparams.tune != "full":  # Lightning warns of modules in evaluation mode; frozen ones are in it on purpose
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")


def check_data(module: LightningModule, needs: Literal["targets", "mask"]) -> None:
    """Refuse data that a detector or segmenter cannot train on, before any step; also calls `check_batch_norm`.

    Args:
        module: Detector or Segmenter.
        needs: the key that its batches must hold.

    Raises:
        UserError: other classes or another size than the model's, or data without boxes (masks).
    """
    check_batch_norm(module)
    data, hparams = getattr(module.trainer, "datamodule", None), module.hparams
    annotation_format = getattr(data, "format", None)
    if data is not None and (annotation_format is None or (annotation_format == "masks") != (needs == "mask")):
        wanted = (
            "semantic masks (AnnotatedDataModule, format masks)"
            if needs == "mask"
            else "boxes (AnnotatedDataModule, format coco, yolo or voc)"
        )
        raise UserError(f"data: {type(module).__name__} needs {wanted}; change data.class_path or data.format")
    for name, ours, theirs in (
        ("num_classes", hparams.num_classes, getattr(data, "num_classes", hparams.num_classes)),
        ("img_size", hparams.img_size, getattr(data, "img_size", hparams.img_size)),
    ):
        if ours != theirs:
            raise UserError(f"model.{name}: {ours}, the data has {theirs}; make them equal")


def metadata_for(task: str, datamodule: LightningDataModule | None, options: dict[str, Any]) -> dict[str, Any] | None:
    """Return the metadata of a detector or segmenter, None if the data does not give it.

    Evaluation scales the longer side to the size and crops nothing.
    """
    metadata = metadata_from_datamodule(task, datamodule)
    return None if metadata is None else {**metadata, "crop_pct": 1.0, "options": options}


def channels_last(module: nn.Module, backbone: Backbone) -> None:
    """Put a head's convolutions in channels-last layout if its backbone is a CNN."""
    if len(backbone.strides) > 1:
        module.to(memory_format=torch.channels_last)
