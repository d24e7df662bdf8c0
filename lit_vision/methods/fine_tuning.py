"""Optimizer, metadata, checkpoints and checks that the LightningModules of the supervised methods share."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

from lit_vision import distributed, optim
from lit_vision.data.class_names import match_class_names
from lit_vision.errors import UserError
from lit_vision.methods.pixels import check_channels, match_value_range
from lit_vision.weights.model_metadata import metadata_from_datamodule

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule
    from torch import Tensor

# The next three are hooks of Lightning: a method has them as `on_save_checkpoint`, `on_load_checkpoint` and
# `configure_optimizers`.


def make_checkpoint_self_contained(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Add `module.metadata` to a checkpoint, and make it independent of the weights file that the run started from."""
    if module.metadata is not None:
        checkpoint["card"] = module.metadata  # an older name, which existing checkpoints have
    parameters = checkpoint.get("hyper_parameters")
    if parameters is not None:
        args = dict(parameters["backbone_args"] or {})
        if args.get("pretrained"):
            args["pretrained"] = False
        if pruned := module.backbone.config.get("pruned"):  # by the file that the run started from
            args["pruned"] = pruned
        checkpoint["started_from"] = module.backbone.weights_from or parameters["backbone_checkpoint"]
        checkpoint["hyper_parameters"] = {**parameters, "backbone_args": args, "backbone_checkpoint": None}


def restore_metadata(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Read `module.metadata` from a checkpoint of `make_checkpoint_self_contained`.

    In a Trainer that continues or measures this checkpoint, the data's classes and its range of values are matched to
    the checkpoint's too.

    Raises:
        UserError: as `match_classes`.
    """
    module.metadata = checkpoint.get("card", module.metadata)
    match_classes(module)


def configure_optimizer(module: LightningModule) -> dict[str, Any]:
    """Return optimizer and per-step schedule from the hyper-parameters; see `optim.optimizer_and_schedule`."""
    hparams = module.hparams
    layers: list[list[str]] = []
    if hparams.layer_decay != 1:
        layers = [[f"backbone.{name}" for name in group] for group in module.backbone.layer_groups()]
    groups = optim.layer_decay_groups(module.named_parameters(), layers, hparams.weight_decay, hparams.layer_decay)
    return optim.optimizer_from_hparams(module, groups)


def check_batch_norm(module: LightningModule) -> None:
    """Refuse a batch-norm converter that would break the model; silence Lightning's warning about frozen modules.

    Raises:
        UserError: as `distributed.batch_norm_scope`.
    """
    distributed.batch_norm_scope(module)
    if module.hparams.tune != "full":  # Lightning warns of modules in evaluation mode; frozen ones are in it on purpose
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")


def match_classes(module: LightningModule, new_training: bool = False) -> None:
    """Number the data's classes as the model's, by the names that `module.metadata` has; print what differs.

    Called when the Trainer sets up, and again when it loads a checkpoint. A data module gives its classes other numbers
    by `number_classes_as`; one without that method must have the model's names in the model's order. `data.
    classes_by_number` compares the numbers whatever the names are.

    Args:
        module: of a supervised method; nothing is compared outside of a Trainer.
        new_training: the data's classes may be others, which the head is about to learn instead of its own.

    Raises:
        UserError: as `class_names.match_class_names`.
    """
    try:
        data = getattr(module.trainer, "datamodule", None)
    except RuntimeError:  # not in a Trainer: the checkpoint is only loaded
        return
    if not new_training:
        match_value_range(module)
    names, theirs = (module.metadata or {}).get("class_names"), getattr(data, "class_names", None)
    if data is None or not names or not theirs:
        return
    by_number = bool(getattr(data, "classes_by_number", False))
    where = f"data.root {data.root}" if getattr(data, "root", None) else "data"
    if new_training and sorted(names) != sorted(theirs):
        note = f"{where}: the head was trained on other classes ({', '.join(names[:3])}, ...) and now learns the data's"
    elif hasattr(data, "number_classes_as"):
        note = data.number_classes_as(names, by_number)
    else:
        numbers, note = match_class_names(names, theirs, where, by_number)
        if numbers.tolist() != list(range(len(names))):
            raise UserError(f"{note}, which {type(data).__name__} cannot do: give it a method number_classes_as")
    if note and module.trainer.is_global_zero:
        print(note, flush=True)


def check_number_of_classes(module: LightningModule) -> None:
    """Refuse data without classes, or with another number of them than the head of a classifier has.

    Raises:
        UserError: names both numbers.
    """
    ours = module.hparams.num_classes
    theirs = getattr(getattr(module.trainer, "datamodule", None), "num_classes", ours)
    if not theirs:
        raise UserError(
            "data.root: a classifier needs labels and this folder has no classes; use one with a folder per class"
        )
    if theirs != ours:
        raise UserError(f"model.num_classes: the head has {ours} classes, the data has {theirs}; set it to {theirs}")


def check_labels(labels: Tensor, classes: int, sample: str) -> None:
    """Refuse labels outside [0, classes).

    Args:
        labels: (B,) int64, on the CPU.
        classes: of the head.
        sample: "image" or "video", for the error.

    Raises:
        UserError: names the labels and the classes.
    """
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        low, high = int(labels.min()), int(labels.max())
        raise UserError(
            f"data: a batch has labels {low} to {high}, the head has classes 0 to {classes - 1}; "
            f"-1 is a{'n' * (sample[0] in 'aeiou')} {sample} without a label: leave such {sample}s out"
        )


def log_classification(module: LightningModule, split: str, loss: Tensor, scores: Tensor, labels: Tensor) -> None:
    """Log loss, top1 and top5 of a batch into `module.metrics`, over all processes; of "test" also mean_per_class.

    Args:
        module: a classifier; a metric that its `metrics` do not have is left out.
        split: "val" or "test".
        loss: mean over the samples.
        scores: (B, K), larger is better.
        labels: (B,) int64.
    """
    hits = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]  # (B, 5), best first
    values = {"loss": loss, "top1": hits[:, 0].float().mean(), "top5": hits.any(1).float().mean()}
    for name, value in values.items():
        if f"{split}_{name}" in module.metrics:
            metric = module.metrics[f"{split}_{name}"]
            metric.update(value, weight=len(labels))  # by samples: exact when batches or ranks are unequal
            module.log(f"{split}/{name}", metric, on_step=False, on_epoch=True, prog_bar=name == "top1")
    if split == "test":
        per_class = module.metrics["test_mean_per_class"]
        per_class.update(hits[:, 0], labels)
        module.log("test/mean_per_class", per_class, on_step=False, on_epoch=True)


def check_data(module: LightningModule, needs: Literal["targets", "mask"], stage: str) -> None:
    """Refuse data that a detector or segmenter cannot train on, before any step; also calls `check_batch_norm`.

    Args:
        module: Detector or Segmenter.
        needs: the key that its batches must hold.
        stage: of the Trainer: fit, validate, test or predict.

    Raises:
        UserError: other classes or another size than the model's, or data without boxes (masks).
    """
    check_batch_norm(module)
    check_channels(module)
    match_classes(module, new_training=stage == "fit")
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
