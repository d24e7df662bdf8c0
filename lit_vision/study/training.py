"""Train one network of a study with Lightning's Trainer: pre-training on the pool, or a classifier on a few labels."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
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
from lit_vision.methods.simclr.simclr import SimCLR
from lit_vision.study.images import StudyData, StudyImages, eval_batches
from lit_vision.study.presets import TIMM, Network, StudyPreset
from lit_vision.weights.load import save_backbone
from lit_vision.weights.pretrained import create_backbone

OnStep = Callable[[int, int, float], None]  # called with (step, total steps, loss)
UNSEEN_BIAS = -10.0  # bias of a class without labels, for which a probe has minus infinity
FEWEST_MEASURED = 4  # steps of a measurement
PRETRAINING_METHODS: dict[str, type[MAE | SimCLR | LeJEPA]] = {"mae": MAE, "simclr": SimCLR, "lejepa": LeJEPA}


@dataclass
class TrainingResult:
    """A finished training: module, seconds, steps, loss of each step, and the times at which the steps ended."""

    module: LightningModule
    seconds: float
    steps: int
    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # when each step ended, seconds from the start


@dataclass(frozen=True)
class TrainingCost:
    """Duration of a training in seconds: once, per step, and between two epochs."""

    setup: float
    step: float
    epoch: float

    def seconds(self, epochs: float, steps_per_epoch: int) -> float:
        """Return the seconds of a training of this length."""
        return self.setup + epochs * (steps_per_epoch * self.step + self.epoch)

    def epochs(self, seconds: float, steps_per_epoch: int) -> int:
        """Return how many epochs fit into `seconds`, at least 1."""
        return max(1, int((seconds - self.setup) / (steps_per_epoch * self.step + self.epoch)))


class _LossRecorder(Callback):
    """Record the losses, report each step to the study's progress, and stop a measurement after `limit` seconds."""

    def __init__(self, steps: int, on_step: OnStep | None, limit: float):
        self.steps, self.on_step, self.limit = steps, on_step, limit
        self.losses: list[float] = []
        self.times: list[float] = []
        self.begin = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
        self.losses.append(loss)
        self.times.append(time.perf_counter() - self.begin)
        if self.on_step:
            self.on_step(len(self.losses), self.steps, loss)
        if self.times[-1] > self.limit and len(self.times) >= FEWEST_MEASURED:
            trainer.should_stop = True


@contextlib.contextmanager
def redirect_output(log: Path) -> Iterator[None]:
    """Send what methods and the Trainer print to a log file, and silence warnings: a study prints its own progress."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning")
    levels = [logging.getLogger(name).level for name in names]
    with (
        open(log, "a", encoding="utf-8", errors="backslashreplace") as file,
        contextlib.redirect_stdout(file),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in zip(names, levels):
                logging.getLogger(name).setLevel(level)


def pretraining(
    init: str, images: StudyImages, preset: StudyPreset, seed: int, count: int | None = None
) -> tuple[LightningModule, StudyData]:
    """Return module and data of a pre-training on the pool, or on `count` images drawn from it, without labels."""
    network = preset.network(init)
    options = dict(getattr(preset, init))
    batch_size = options.pop("batch_size")
    views = getattr(preset, f"{init}_views")
    rows = np.random.default_rng(seed).permutation(len(images.pool))[:count] if count else np.arange(len(images.pool))
    method = PRETRAINING_METHODS[init]
    data = StudyData(images, np.sort(rows), method.train_view, views, batch_size, seed)
    with temporary_seed(derive_seed(seed, 0)):
        module = method(backbone=network.backbone, backbone_args=_backbone_args(init, network), **options)
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
) -> tuple[Classifier, StudyData]:
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
    """
    network = preset.network(init)
    views = preset.train_views[network.name]
    data = StudyData(images, rows, "train", views, preset.batch_size, seed, preset.side(init))
    options = preset.options(init, protocol, None if epochs is None else epochs * data.batches_per_epoch)
    statistics: dict[str, Any] = {} if weights else {"mean": [0.5] * 3, "std": [0.25] * 3}
    with temporary_seed(derive_seed(seed, 1)):
        module = Classifier(
            network.backbone,
            len(images.classes),
            backbone_args=network.args,
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


def _backbone_args(init: str, network: Network) -> dict[str, Any]:
    return {**network.args, "pool": "token"} if init == "mae" else network.args


def train(
    module: LightningModule,
    data: StudyData,
    epochs: int,
    seed: int,
    on_step: OnStep | None = None,
    limit: float = float("inf"),
) -> TrainingResult:
    """Train a method for a number of epochs.

    Args:
        module: the method.
        data: its data.
        epochs: at least 1.
        seed: of dropout, drop path and other random draws of the method.
        on_step: called after each step.
        limit: seconds after which it stops, for a measurement.

    Returns:
        The result; its module is on the CPU.
    """
    steps = epochs * data.batches_per_epoch
    recorder = _LossRecorder(steps, on_step, limit)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        precision=precision_of(module),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=[SeedEachBatch(seed), StopOnNonFinite(), recorder],
    )
    begin = time.perf_counter()
    trainer.fit(module, data)
    return TrainingResult(module.cpu(), time.perf_counter() - begin, steps, recorder.losses, recorder.times)


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


def measure(module: LightningModule, data: StudyData, epochs: int = 3, limit: float = float("inf")) -> TrainingCost:
    """Measure the cost of a training by a short one of `limit` seconds or four steps, whichever is longer.

    `data` should have two or three steps an epoch; the module is discarded.
    """
    trained = train(module, data, epochs, seed=0, limit=limit)
    gaps = np.diff(trained.times)
    last = np.arange(1, len(gaps) + 1) % data.batches_per_epoch == 0  # gaps that contain the end of an epoch
    step = float(np.median(gaps[~last] if (~last).any() else gaps))
    between = float(np.median(gaps[last])) - step if last.any() and (~last).any() else 0.0
    return TrainingCost(
        max(0.0, trained.seconds - len(trained.times) * step - last.sum() * between), step, max(0.0, between)
    )


@torch.inference_mode()
def probabilities(module: Classifier, images: StudyImages, size: int) -> np.ndarray:
    """Return the (M, K) class probabilities of the test split, seen at `size` pixels."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module.eval().to(device)
    parts = []
    for batch in eval_batches(images.test_view(size), images.test_labels, size):
        logits = module(normalize(batch["images"].to(device), module.mean, module.std)[:, 0])
        parts.append(logits.float().softmax(1).cpu())
    return np.asarray(torch.cat(parts))


def public_weights(init: str, path: Path) -> None:
    """Download a timm model's weights, or take them from the cache or a package, and write its encoder to `path`.

    The file's metadata has the license, as timm or the package states it, and the origin of a package's weights.

    Raises:
        UserError: there is no such model, or no network and no such file in the cache or a package.
    """
    name = init.removeprefix(TIMM)
    backbone, origin = create_backbone(name, pretrained=True)
    license = backbone.model.pretrained_cfg.get("license") or "not stated"
    data = backbone.data_config
    record: dict[str, Any] = {"license": license, **origin}
    save_backbone(path, backbone, data["mean"], data["std"], **record)


def save_classifier(path: Path, module: Classifier) -> None:
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


def load_classifier(path: Path, module: Classifier) -> None:
    """Load a file of `save_classifier` into a module of the same preset; every key must be there."""
    module.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
    )
