"""Small runs to be killed: their recipes, their images, and the callback that kills them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback

BATCHES, EPOCHS = 4, 2  # batches of 4 images in an epoch
VIT = "{img_size: 16, patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2%s}"
METHODS = {
    "MAE": f"{{backbone: vit_tiny_patch16_224, backbone_args: {VIT % ''}, decoder_width: 32, decoder_depth: 1, "
    "decoder_heads: 2, base_lr: 0.01, warmup_epochs: 0.5}",
    "SimCLR": "{backbone: resnet18, backbone_args: {stem: small, layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}, "
    "projection_width: 8, optimizer: lars, base_lr: 1.0, warmup_epochs: 0.5}",
    "LeJEPA": "{backbone: resnet18, backbone_args: {stem: small, layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}, "
    "projection_width: 8, projection_hidden: 16, num_directions: 32, lr: 0.001, warmup_epochs: 0.5}",
    "Classifier": f"{{backbone: vit_tiny_patch16_224, backbone_args: {VIT % ', drop_path_rate: 0.2'}, num_classes: 2, "
    "mixup: 0.4, base_lr: 0.01, warmup_epochs: 0.5, label_smoothing: 0.1}",
    "Distiller": "{backbone: resnet18, backbone_args: {stem: small, layers: [1, 1, 1, 1], channels: [4, 4, 8, 8]}, "
    "num_classes: 2, teacher: TEACHER, feature_weight: 0.5, lr: 0.01, warmup_epochs: 0.5}",
    "FlowMatching": "{img_size: 16, num_classes: 2, width: 8, multipliers: [1, 2], blocks: 1, lr: 0.001, "
    "warmup_epochs: 0.5}",
    "GAN": "{img_size: 16, num_classes: 2, width: 8, discriminator_width: 8, multipliers: [1, 2], noise_width: 8, "
    "r1_every: 3}",
    # without random numbers in the model, which differ by process: for runs that change the number of processes
    "Plain": f"{{backbone: vit_tiny_patch16_224, backbone_args: {VIT % ''}, num_classes: 2, optimizer: sgd, lr: 0.01, "
    "warmup_epochs: 0}",
}
VIEWS = {
    "MAE": "mae",
    "SimCLR": "simclr, strength: 0.5, blur: 0.0",
    "LeJEPA": "lejepa, local_views: 2, local_size: 8, strength: 0.5, blur: 0.0",
}
KNN = "    - {class_path: lit_vision.callbacks.online_knn.OnlineKNN, init_args: {k: 3}}\n"
RECIPE = """
seed_everything: 3
trainer:
  max_epochs: {epochs}
  accelerator: cpu
  strategy: {strategy}
  log_every_n_steps: 1
  enable_model_summary: false
  enable_progress_bar: false
  callbacks:
    - {{class_path: lit_vision.callbacks.checkpoint.LastCheckpoint, init_args: {{every_n_steps: {interval}}}}}
    - {{class_path: soak.KillAtEvent}}
{knn}model: {{class_path: lit_vision.methods.{method}, init_args: {model}}}
data:
  class_path: lit_vision.data.ImageFolderDataModule
  init_args: {{root: {root}, img_size: 16, train_view: {view}, batch_size: 4, num_workers: {workers}, in_memory: false}}
"""


def batch_file(folder: Path, rank: int) -> Path:
    """Return the file that records each batch of a rank: step, epoch, sample keys, hash of the RNG states."""
    return folder / f"batches-{rank}.jsonl"


def restored_file(folder: Path, rank: int) -> Path:
    """Return the file with the step at which each process of a rank began to train, a line each."""
    return folder / f"restored-{rank}.txt"


class KillAtEvent(Callback):
    """Record each batch, and kill this process at the event that the environment variable SOAK_KILL names.

    SOAK_KILL is an event and its number, as "end:3": start or end of a training batch, val (end of a validation batch),
    epoch (its end), save (a checkpoint is about to be written). SOAK_SIGNAL names the signal, default SIGKILL. For
    SIGKILL at a save a byte is written to the pipe SOAK_PIPE instead: the process is killed from outside, a bit later.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def _event(self, name: str) -> None:
        self.counts[name] += 1
        if f"{name}:{self.counts[name]}" == os.environ.get("SOAK_KILL"):
            signal_name = os.environ.get("SOAK_SIGNAL", "SIGKILL")
            if name == "save" and signal_name == "SIGKILL":
                os.write(int(os.environ["SOAK_PIPE"]), b"x")
            else:
                os.kill(os.getpid(), getattr(signal, signal_name))

    def on_train_start(self, trainer: Any, module: Any) -> None:
        with open(restored_file(Path(trainer.default_root_dir), trainer.global_rank), "a") as file:
            file.write(f"{trainer.global_step}\n")

    def on_train_batch_start(self, *args: Any) -> None:
        self._event("start")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        rng = [torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), repr(random.getstate())]
        line = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "keys": batch["key"].tolist(),
            "rng": hashlib.sha256(b"".join(r if isinstance(r, bytes) else r.encode() for r in rng)).hexdigest(),
        }
        with open(batch_file(Path(trainer.default_root_dir), trainer.global_rank), "a") as file:
            file.write(json.dumps(line) + "\n")
        self._event("end")

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._event("val")

    def on_train_epoch_end(self, *args: Any) -> None:
        self._event("epoch")

    def on_save_checkpoint(self, *args: Any) -> None:
        self._event("save")


@dataclass(frozen=True)
class Case:
    """One setting of a small run.

    Attributes:
        folder: for recipe, images and runs.
        method: a key of METHODS.
        workers: of the data loader.
        accumulate: batches a step.
        interval: steps between saves.
        world_size: number of processes.
        strategy: Lightning's, "" for auto with one process and ddp with more.
        source: data.root in place of the folder of images, such as its shards.
    """

    folder: Path
    method: str = "MAE"
    workers: int = 0
    accumulate: int = 1
    interval: int = 1
    world_size: int = 1
    strategy: str = ""
    source: str = ""

    @property
    def recipe(self) -> Path:
        """The recipe's file."""
        suffix = "-other" if self.strategy else "-ddp" if self.world_size > 1 else ""
        suffix += f"-{self.source.rpartition('/')[2].replace(':', '-')}" if self.source else ""
        return self.folder / f"{self.method}-{self.workers}-{self.interval}{suffix}.yaml"

    def write(self) -> Path:
        """Write the recipe, and the images if they do not exist; return the recipe's path."""
        root = self.write_images()
        if self.method == "Distiller":
            _write_teacher(self.folder / "teacher.ckpt")
        text = RECIPE.format(
            epochs=EPOCHS,
            strategy=self.strategy or ("ddp" if self.world_size > 1 else "auto"),
            interval=self.interval,
            method="Classifier" if self.method == "Plain" else self.method,
            model=METHODS[self.method].replace("TEACHER", str(self.folder / "teacher.ckpt")),
            root=self.source or root,
            view=VIEWS.get(self.method, "train"),
            workers=self.workers,
            knn=KNN if self.method in VIEWS else "",
        )
        self.recipe.write_text(text)
        return self.recipe

    def write_images(self) -> Path:
        """Write the images if they do not exist; return their folder."""
        root = self.folder / ("images-even" if self.strategy else "images")
        if not root.is_dir():
            # 9 validation images: two processes then have different numbers of batches, which sharded ones may not have
            _write_images(root, 4 * BATCHES + 3, 8 if self.strategy else 9)
        return root

    def arguments(self, name: str, resume: bool) -> list[str]:
        """Return the command line of a run after `lit-vision`."""
        arguments = ["fit", "--config", str(self.write()), "--run_dir", str(self.folder / name)]
        arguments += ["--trainer.accumulate_grad_batches", str(self.accumulate)]
        arguments += ["--trainer.devices", str(self.world_size)]
        return arguments + ["--resume", "auto"] * resume


def _write_teacher(path: Path) -> None:
    """Write the checkpoint of a classifier with random weights, if it does not exist."""
    from lit_vision.methods import network_class

    if path.exists():
        return
    torch.manual_seed(0)
    arguments = {"stem": "small", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    hyper = {"backbone": "resnet18", "backbone_args": arguments, "num_classes": 2, "tune": "full", "head_init_std": 1.0}
    state = network_class("Classifier")(hyper).state_dict()
    torch.save({"state_dict": state, "hyper_parameters": hyper, "card": {"class_names": ["dark", "light"]}}, path)


def _write_images(root: Path, train: int, val: int) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(train + val):
        image = rng.integers(0, 128, (20, 20, 3), dtype=np.uint8) + np.uint8(i % 2 * 120)
        path = root / ("val" if i >= train else "train") / ("light" if i % 2 else "dark") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
