"""Train one network of a study with Lightning's Trainer: pre-training on the pool, or a classifier on a few labels."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file, save_file
from torch import nn

from lit_vision.callbacks.checkpoint import SeedEachBatch
from lit_vision.callbacks.nonfinite import StopOnNonFinite
from lit_vision.data.batch import normalize
from lit_vision.data.views.keyed_rng import derive_seed, temporary_seed
from lit_vision.evaluation.linear import LinearProbe
from lit_vision.io.atomic import atomic_write
from lit_vision.methods.classifier.classifier import Classifier
from lit_vision.methods.lejepa.lejepa import LeJEPA
from lit_vision.methods.mae.mae import MAE
from lit_vision.methods.multilabel.multilabel import MultiLabelClassifier
from lit_vision.methods.simclr.simclr import SimCLR
from lit_vision.optim import Schedule
from lit_vision.runs.checkpoint_io import AtomicCheckpointIO, digest_path
from lit_vision.runs.preemption import EXIT_CODES
from lit_vision.study.images import StudyImages, eval_batches
from lit_vision.study.presets import Network, StudyPreset, method_of
from lit_vision.study.training_callbacks import (
    FEWEST_MEASURED,
    CoolDown,
    LossRecorder,
    OnStep,
    TrainingCheckpoint,
    can_go_on_from,
    stable_decay_of,
)
from lit_vision.study.training_data import StudyData
from lit_vision.weights.load import load_into

UNSEEN_BIAS = -10.0  # bias of a class without labels, for which a probe has minus infinity
CHECKPOINT_SECONDS = 45.0  # between two checkpoints of a training: a kill loses less than a minute
AnyClassifier = Classifier | MultiLabelClassifier  # of one label an image, or several
PRETRAINING_METHODS: dict[str, type[MAE | SimCLR | LeJEPA]] = {"mae": MAE, "simclr": SimCLR, "lejepa": LeJEPA}


@dataclass
class TrainingResult:
    """A finished training: module, seconds, steps, loss of each step, and the times at which the steps ended.

    Seconds and times count what ran before the checkpoint that the training went on from, and not the time in between.
    """

    module: LightningModule
    seconds: float
    steps: int  # fewer than planned after an earlier cool-down
    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # when each step ended, seconds from the start
    decay_start: int | None = None  # steps before the learning rate's decay; None with a cosine


@dataclass(frozen=True)
class TrainingCost:
    """Duration of a training in seconds: once, per step, and between two epochs."""

    setup: float
    step: float
    epoch: float


def pretraining(
    init: str,
    images: StudyImages,
    preset: StudyPreset,
    seed: int,
    count: int | None = None,
    *,
    weights: Path | None = None,
    schedule: Schedule | None = None,
) -> tuple[LightningModule, StudyData]:
    """Return module and data of a pre-training on the pool, or on `count` images drawn from it, without labels.

    Args:
        init: mae, simclr, lejepa, or METHOD@INIT.
        images: to train on.
        preset: of the study.
        seed: of initialization, order and pixels.
        count: images to draw; None: all.
        weights: of the encoder of INIT, to go on from; its mean and std are taken too. None: random weights.
        schedule: of the learning rate; None: that of the preset, a cosine if it names none.
    """
    network, name = preset.network(init), method_of(init)
    options = {**preset.pretraining_options(init), **({"schedule": schedule} if schedule else {})}
    batch_size = options.pop("batch_size")
    views = getattr(preset, f"{name}_views")
    rows = np.random.default_rng(seed).permutation(len(images.pool))[:count] if count else np.arange(len(images.pool))
    method = PRETRAINING_METHODS[name]
    data = StudyData(images, np.sort(rows), method.train_view, views, batch_size, seed, preset.side(init))
    with temporary_seed(derive_seed(seed, 0)):
        arguments = _backbone_args(network, preset.side(init), "token" if name == "mae" else None)
        module = method(backbone=network.backbone, backbone_args=arguments, **options)
    if weights is not None:
        load_into(module, weights)
    return module, data


def classification(
    init: str,
    images: StudyImages,
    rows: np.ndarray,
    preset: StudyPreset,
    seed: int,
    weights: Path | None,
    probe: LinearProbe | None = None,
    protocol: str = "finetune",
    epochs: int | None = None,
    *,
    steps: int | None = None,
    schedule: Schedule | None = None,
) -> tuple[AnyClassifier, StudyData]:
    """Return module and data of a training on the labels of some rows.

    With a linear probe of the same labels, fine-tuning starts from its head instead of from zero, so that the first
    steps do not pull the features towards a random head. Source: Kumar et al. 2022, arXiv:2202.10054 (linear probing,
    then fine-tuning).

    Args:
        init: mae, simclr, lejepa, scratch-cnn, scratch-vit or timm:NAME.
        images: of the study.
        rows: (n,) pool rows with labels.
        preset: of the study.
        seed: of initialization, order and pixels.
        weights: of the encoder; None: random weights.
        probe: gives the classifier's head.
        protocol: one of ON_LABELS.
        epochs: of the training, which set the learning rate; None: the full one.
        steps: of the training, instead of epochs.
        schedule: of the learning rate; None: that of the preset, a cosine if it names none.
    """
    network, several = preset.network(init), images.kind.several
    views = preset.train_views[network.name]
    data = StudyData(images, rows, "train", views, preset.batch_size, seed, preset.side(init))
    steps = steps if epochs is None else epochs * data.batches_per_epoch
    options = {**preset.options(init, protocol, steps), **({"schedule": schedule} if schedule else {})}
    statistics: dict[str, Any] = {} if weights else {"mean": [0.5] * 3, "std": [0.25] * 3}
    if several:  # each label's loss is its own
        options = {name: value for name, value in options.items() if name != "label_smoothing"}
    with temporary_seed(derive_seed(seed, 1)):
        module = (MultiLabelClassifier if several else Classifier)(
            network.backbone,
            len(images.classes),
            backbone_args=_backbone_args(network, preset.side(init)),
            backbone_checkpoint=str(weights) if weights else None,
            **statistics,
            **options,
        )
    if probe is not None:
        (linear,) = (part for part in module.head.modules() if isinstance(part, nn.Linear))
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(probe.weight))
            linear.bias.copy_(torch.from_numpy(np.where(np.isneginf(probe.bias), UNSEEN_BIAS, probe.bias)))
    return module, data


def _backbone_args(network: Network, side: int, pool: str | None = None) -> dict[str, Any]:
    """Return a network's arguments; a plain ViT is built for `side` pixels, whatever its weights were trained on."""
    args = {"img_size": side, **network.args} if network.plain_vit else network.args
    return {**args, "pool": pool} if pool else args


def train(
    module: LightningModule,
    data: StudyData,
    epochs: int | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    limit: float = float("inf"),
    *,
    steps: int | None = None,
    cool_down: Callable[[int], bool] | None = None,
    checkpoint: Path | None = None,
    inputs: str = "",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    fewest_measured: int = FEWEST_MEASURED,
) -> TrainingResult:
    """Train a method for a number of epochs or optimizer steps.

    Args:
        module: the method.
        data: its data.
        epochs: at least 1; or give `steps`.
        seed: of dropout, drop path and other random draws of the method.
        on_step: called after each step.
        limit: seconds after which it stops, for a measurement.
        steps: planned optimizer steps, at least 1, which need not fill an epoch.
        cool_down: asked after each step, with the number of steps done, until it returns True or the decay of the
            learning rate has begun. After True at step c the decay begins there and takes the method's `decay_share` of
            all steps (max(1, round(c * decay_share / (1 - decay_share))) steps); then the training ends. Only with
            the schedule warmup-stable-decay.
        checkpoint: file that gets the whole state of the training, at most every `checkpoint_seconds` and on SIGTERM
            and Ctrl-C. If it holds a training with the same `inputs`, that training goes on, to the same bits, and
            `cool_down` is asked from there on; a damaged file or one of other inputs is replaced. The caller removes
            it with `remove_checkpoint` when the result is stored.
        inputs: hash of all that the training depends on.
        checkpoint_seconds: see `checkpoint`.
        fewest_measured: steps that run whatever the limit is.

    Returns:
        The result; its module is on the CPU.

    Raises:
        ValueError: both or neither of epochs and steps are given, or cool_down with another schedule.
        KeyboardInterrupt: after Ctrl-C; the checkpoint, if there is one, is written.
        SystemExit: likewise after SIGTERM or SIGUSR1, with code 143.
    """
    if epochs is not None and steps is None:
        data.planned_steps, planned = None, epochs * data.batches_per_epoch
    elif steps is not None and epochs is None:
        data.planned_steps = planned = steps
        epochs = -(-steps // data.batches_per_epoch)
    else:
        raise ValueError("give either epochs or steps")
    length = CoolDown(planned, cool_down)
    recorder = LossRecorder(length, on_step, limit, fewest_measured)
    callbacks: list[Callback] = [SeedEachBatch(seed), StopOnNonFinite(), length, recorder]
    writer = None if checkpoint is None else TrainingCheckpoint(checkpoint, inputs, checkpoint_seconds)
    trainer = Trainer(
        max_epochs=epochs,
        max_steps=-1 if steps is None else steps,
        accelerator="auto",
        devices=1,
        precision=precision_of(module),
        logger=False,
        enable_checkpointing=writer is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, writer] if writer else callbacks,
        plugins=[AtomicCheckpointIO()],
    )
    found = checkpoint is not None and can_go_on_from(checkpoint, inputs)
    try:
        trainer.fit(module, data, ckpt_path=str(checkpoint) if found else None)
    except SystemExit as error:  # Lightning's exit code 1 after Ctrl-C, after which it ignores the next ones
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from error
    if writer and (received := writer.signals.received):
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(EXIT_CODES[signal.Signals(received)])
    schedule = stable_decay_of(trainer)
    decay_start = None if schedule is None else schedule.decay_start
    done = length.steps if schedule is None or not schedule.moved else schedule.decay_start + schedule.decay_steps
    seconds = time.perf_counter() - recorder.begin
    return TrainingResult(module.cpu(), seconds, done, recorder.losses, recorder.times, decay_start)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint of `train`, the file with its digest, and what a kill in a write left, if they are there."""
    AtomicCheckpointIO().remove_checkpoint(checkpoint)
    for path in (checkpoint, digest_path(checkpoint)):
        path.with_name(f"{path.name}.tmp").unlink(missing_ok=True)


def precision_of(module: LightningModule) -> str:
    """Return the Trainer's precision: bf16-mixed if it is faster for this method on this machine, else 32-true.

    On a CPU with bfloat16 tiles the large batches of pre-training are faster (SimCLR 1.3 to 1.5 times, MAE 1.3),
    trainings on labels are not.
    """
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, bool])()  # not in every torch
    self_supervised = tuple(PRETRAINING_METHODS.values())
    return "bf16-mixed" if capabilities.get("amx_bf16") and isinstance(module, self_supervised) else "32-true"


def measure_step(module: LightningModule, data: StudyData, limit: float, on_step: OnStep | None = None) -> TrainingCost:
    """Measure the cost of a step by at most three of them, or by fewer once `limit` seconds are over.

    The first step takes longer than the others, as memory is allotted and kernels are chosen; it counts only if it is
    the only one. The module is discarded. Time between two epochs is part of a step: `epoch` of the result is 0.

    Args:
        module: the method.
        data: its data; what a step costs follows from its batch size.
        limit: seconds.
        on_step: called after each step, for a line of progress.
    """
    trained = train(module, data, seed=0, on_step=on_step, limit=limit, steps=3, fewest_measured=1)
    ends = trained.times
    step = ends[0] if len(ends) == 1 else (ends[-1] - ends[0]) / (len(ends) - 1)
    return TrainingCost(max(0.0, trained.seconds - len(ends) * step), step, 0.0)


@torch.inference_mode()
def probabilities(module: AnyClassifier, images: StudyImages, size: int) -> np.ndarray:
    """Return the (M, K) class probabilities of the test split, seen at `size` pixels."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module.eval().to(device)
    parts = []
    for batch in eval_batches(images.test_view(size), images.test_labels, size):
        logits = module(normalize(batch["images"].to(device), module.mean, module.std)[:, 0])
        parts.append(images.kind.to_probabilities(logits.float()).cpu())
    return np.asarray(torch.cat(parts))


def save_classifier(path: Path, module: AnyClassifier) -> None:
    """Write a classifier with its backbone in half precision and its head in full precision.

    Half precision changes weights by at most one part in 2048. A head that started as a probe of features far from zero
    has biases near -90 that its weights nearly cancel: in half precision it answered 5 of 1000 test images differently.
    """
    state = {
        name: value.half() if value.is_floating_point() and name.startswith("backbone.") else value
        for name, value in module.state_dict().items()
    }
    state = {name: value.contiguous() for name, value in state.items()}
    atomic_write(path, lambda file: save_file(state, file))


def load_classifier(path: Path, module: AnyClassifier) -> None:
    """Load a file of `save_classifier` into a module of the same preset; every key must be there."""
    module.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
    )
