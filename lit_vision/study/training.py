"""One training of a study: pre-training on the pool, or a classifier on a few labels. Both through Lightning's Trainer."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file
from torch import nn

from lit_vision.backbones.backbone import Backbone
from lit_vision.callbacks.checkpoint import SeedEachBatch
from lit_vision.callbacks.nonfinite import StopOnNonFinite
from lit_vision.data.views.keyed_rng import derive_seed, temporary_seed
from lit_vision.evaluation.features import extract_features
from lit_vision.evaluation.linear import LinearProbe
from lit_vision.io.atomic import atomic_write
from lit_vision.methods.classifier import Classifier
from lit_vision.methods.mae.mae import MAE
from lit_vision.methods.simclr.simclr import SimCLR
from lit_vision.study.images import StudyData, StudyImages, eval_batches
from lit_vision.study.presets import TIMM, Network, StudyPreset
from lit_vision.weights.load import save_backbone

Tick = Callable[[int, int, float], None]  # (step, steps in all, loss)
NEVER = -10.0  # logit of a class that the labels never show, where a probe has minus infinity; all other biases are kept as they are
FEWEST_MEASURED = 4  # steps
PRETRAINING_METHODS = {"mae": MAE, "simclr": SimCLR}


@dataclass
class TrainingResult:
    """A finished training: its module, seconds, steps, and the loss of each step."""

    module: L.LightningModule
    seconds: float
    steps: int
    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # when each step ended, seconds from the start


@dataclass(frozen=True)
class TrainingCost:
    """Seconds that a training takes: once, per step, and between two epochs."""

    setup: float
    step: float
    epoch: float

    def seconds(self, epochs: float, steps_per_epoch: int) -> float:
        """Of a whole training."""
        return self.setup + epochs * (steps_per_epoch * self.step + self.epoch)

    def epochs(self, seconds: float, steps_per_epoch: int) -> int:
        """How many epochs fit, at least 1."""
        return max(1, int((seconds - self.setup) / (steps_per_epoch * self.step + self.epoch)))


class _LossRecorder(Callback):
    """Collect losses, tell the study's progress about each step, and stop after `limit` seconds (a short measurement)."""

    def __init__(self, steps: int, tick: Tick | None, limit: float):
        self.steps, self.tick, self.limit, self.losses, self.times = steps, tick, limit, [], []
        self.begin = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
        self.losses.append(loss)
        self.times.append(time.perf_counter() - self.begin)
        if self.tick:
            self.tick(len(self.losses), self.steps, loss)
        if self.times[-1] > self.limit and len(self.times) >= FEWEST_MEASURED:
            trainer.should_stop = True


@contextlib.contextmanager
def redirect_output(log: Path) -> Iterator[None]:
    """What methods and the Trainer print goes to a log file: a study has its own progress, and runs dozens of trainings."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning")
    levels = [logging.getLogger(name).level for name in names]
    with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file), warnings.catch_warnings():
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
) -> tuple[L.LightningModule, StudyData]:
    """The module and the data of a pre-training on the whole pool, or on `count` images drawn from it; labels unseen."""
    network = preset.network(init)
    options = dict(getattr(preset, init))
    batch_size = options.pop("batch_size")
    views = getattr(preset, f"{init}_views")
    rows = np.random.default_rng(seed).permutation(len(images.pool))[:count] if count else np.arange(len(images.pool))
    data = StudyData(images, np.sort(rows), init, views, batch_size, seed)
    with temporary_seed(derive_seed(seed, 0)):
        module = PRETRAINING_METHODS[init](backbone=network.backbone, backbone_args=_pool(init, network), **options)
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
    """The module and the data of a training on the labels of `rows`, from `weights` or as initialised.

    With a linear probe of the same labels, fine-tuning starts from its head instead of from zero, so that the first steps do not
    bend the features towards a random head. Source: Kumar et al. 2022, arXiv:2202.10054 (linear probing, then fine-tuning).
    """
    network = preset.network(init)
    views = preset.train_views[network.name]
    data = StudyData(images, rows, "train", views, preset.batch_size, seed, preset.side(init))
    options = preset.options(init, protocol, None if epochs is None else epochs * data.batches_per_epoch)
    statistics = {} if weights else {"mean": [0.5] * 3, "std": [0.25] * 3}
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
            linear.bias.copy_(torch.from_numpy(np.where(np.isneginf(probe.bias), NEVER, probe.bias)))
    return module, data


def _pool(init: str, network: Network) -> dict[str, Any]:
    return {**network.args, "pool": "token"} if init == "mae" else network.args


def train(
    module: L.LightningModule,
    data: StudyData,
    epochs: int,
    seed: int,
    tick: Tick | None = None,
    limit: float = float("inf"),
) -> TrainingResult:
    """Train for whole epochs.

    Args:
        module: the method.
        data: its data.
        epochs: at least 1.
        seed: of dropout, drop path and whatever else the method draws.
        tick: called after each step.
        limit: seconds after which it stops, for a measurement.

    Returns:
        The result; its module is on the CPU.
    """
    steps = epochs * data.batches_per_epoch
    watch = _LossRecorder(steps, tick, limit)
    trainer = L.Trainer(
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
        callbacks=[SeedEachBatch(seed), StopOnNonFinite(), watch],
    )
    begin = time.perf_counter()
    trainer.fit(module, data)
    return TrainingResult(module.cpu(), time.perf_counter() - begin, steps, watch.losses, watch.times)


def precision_of(module: L.LightningModule) -> str:
    """bf16-mixed where this machine's hardware gains by it, else 32-true.

    On a CPU with bfloat16 tiles the large batches of pre-training gain (SimCLR 1.3 to 1.5 times, MAE 1.3), trainings on labels do not.
    """
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    can = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    return "bf16-mixed" if can.get("amx_bf16") and isinstance(module, (SimCLR, MAE)) else "32-true"


def measure(module: L.LightningModule, data: StudyData, epochs: int = 3, limit: float = float("inf")) -> TrainingCost:
    """Time a training by a short one, of at most `limit` seconds or four steps; the module is thrown away.

    `data` should have two or three steps an epoch.
    """
    trained = train(module, data, epochs, seed=0, limit=limit)
    gaps = np.diff(trained.times)
    last = np.arange(1, len(gaps) + 1) % data.batches_per_epoch == 0  # gaps that hold an epoch's end
    step = float(np.median(gaps[~last] if (~last).any() else gaps))
    between = float(np.median(gaps[last])) - step if last.any() and (~last).any() else 0.0
    return TrainingCost(
        max(0.0, trained.seconds - len(trained.times) * step - last.sum() * between), step, max(0.0, between)
    )


@torch.inference_mode()
def probabilities(module: Classifier, images: StudyImages, size: int) -> np.ndarray:
    """(M, K) class probabilities of the test split, seen at `size` pixels."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module.eval().to(device)
    parts = []
    for batch in eval_batches(images.test, images.test_labels, size):
        batch = {name: value.to(device) for name, value in batch.items()}
        logits = module(module.on_after_batch_transfer(batch, 0)["images"][:, 0])
        parts.append(logits.float().softmax(1).cpu())
    return torch.cat(parts).numpy()


def features(backbone: Backbone, mean: Any, std: Any, images: StudyImages, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Frozen features of the labelled pool (rows of unlabelled images are left out) and of the test split, seen at `size` pixels."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    known = int((images.labels >= 0).sum())  # labelled images come first
    mean, std = (torch.as_tensor(values, dtype=torch.float32) for values in (mean, std))
    both = []
    for pixels, labels in ((images.pool[:known], images.labels[:known]), (images.test, images.test_labels)):
        loader = eval_batches(pixels, labels, size)
        both.append(extract_features(backbone, loader, mean, std, device, progress=False).features.numpy())
    return both[0], both[1]


@contextlib.contextmanager
def _hub_offline_if_unreachable() -> Iterator[None]:
    """Without a network the hub's client would try five times, for half a minute; offline it looks into its cache at once."""
    from huggingface_hub import constants

    was = constants.HF_HUB_OFFLINE
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was


def public_weights(init: str, path: Path) -> str:
    """Fetch a timm model's weights (from timm's cache or hub) and write its encoder to `path`.

    Returns:
        Its license as timm states it.

    Raises:
        UserError: no such model, or no network and nothing in the cache.
    """
    name = init.removeprefix(TIMM)
    with _hub_offline_if_unreachable():
        backbone = Backbone(name, pretrained=True)
    license = backbone.model.pretrained_cfg.get("license") or "not stated"
    data = backbone.data_config
    save_encoder(backbone, data["mean"], data["std"], path, license=license)
    return license


def save_classifier(path: Path, module: Classifier) -> None:
    """A classifier with its body in half precision (weights move by at most one part in 2048) and its head whole.

    A head that began as a probe of features far from zero has biases near -90 that its weights all but cancel: in half precision it
    answered 5 of 1000 test images differently.
    """
    state = {
        name: value.half() if value.is_floating_point() and name.startswith("backbone.") else value
        for name, value in module.state_dict().items()
    }
    state = {name: value.contiguous() for name, value in state.items()}
    atomic_write(path, lambda file: save_file(state, file))


def load_classifier(path: Path, module: Classifier) -> None:
    """Read what `save_classifier` wrote into a module of the same recipe; every key must be there."""
    module.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
    )


def save_encoder(backbone: Backbone, mean: Any, std: Any, path: Path, **notes: str) -> None:
    """Write the encoder, whole or not at all, with the mean and std that it expects."""
    save_backbone(path, backbone, mean, std, **notes)
