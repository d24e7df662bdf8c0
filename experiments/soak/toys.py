"""The toy runs that are killed: their recipes, their images, and the callback that kills them."""

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
    "MAE": f"{{backbone: vit_tiny_patch16_224, backbone_args: {VIT % ''}, decoder_width: 32, decoder_depth: 1, decoder_heads: 2, "
    "base_lr: 0.01, warmup_epochs: 0.5}",
    "SimCLR": "{backbone: resnet18, backbone_args: {stem: small, layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}, projection_width: 8, "
    "optimizer: lars, base_lr: 1.0, warmup_epochs: 0.5}",
    "Classifier": f"{{backbone: vit_tiny_patch16_224, backbone_args: {VIT % ', drop_path_rate: 0.2'}, num_classes: 2, mixup: 0.4, "
    "base_lr: 0.01, warmup_epochs: 0.5, label_smoothing: 0.1}",
    # without random numbers in the model, which are per process: for another number of processes
    "Plain": f"{{backbone: vit_tiny_patch16_224, backbone_args: {VIT % ''}, num_classes: 2, optimizer: sgd, lr: 0.01, warmup_epochs: 0}}",
}
VIEWS = {"MAE": "mae", "SimCLR": "simclr, strength: 0.5, blur: 0.0"}
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
    - {{class_path: soak.Deadly}}
{knn}model: {{class_path: lit_vision.methods.{method}, init_args: {model}}}
data:
  class_path: lit_vision.data.ImageFolderDataModule
  init_args: {{root: {root}, img_size: 16, train_view: {view}, batch_size: 4, num_workers: {workers}, in_memory: false}}
"""


class Deadly(Callback):
    """Writes down what each batch was, and kills its own process at the event that SOAK_KILL names, as "end:3"."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def _event(self, name: str) -> None:
        self.seen[name] += 1
        here = f"{name}:{self.seen[name]}"
        if here == os.environ.get("SOAK_KILL"):
            sign = os.environ.get("SOAK_SIGNAL", "SIGKILL")
            if name == "save" and sign == "SIGKILL":  # killed from outside, at a random instant from now on
                os.write(int(os.environ["SOAK_PIPE"]), b"x")
            else:
                os.kill(os.getpid(), getattr(signal, sign))

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
        path = Path(trainer.default_root_dir) / f"journal-{trainer.global_rank}.jsonl"
        with open(path, "a") as file:
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
    """One setting of a toy run, in its own folder."""

    folder: Path
    method: str = "MAE"
    workers: int = 0
    accumulate: int = 1
    interval: int = 1
    world: int = 1
    strategy: str = ""

    @property
    def recipe(self) -> Path:
        """The recipe's file."""
        place = "-other" if self.strategy else "-ddp" if self.world > 1 else ""
        return self.folder / f"{self.method}-{self.workers}-{self.interval}{place}.yaml"

    def write(self) -> Path:
        """Writes recipe and images if they are not there; returns the recipe."""
        root = self.folder / ("images-even" if self.strategy else "images")
        if not root.is_dir():
            # 9 to measure on: two processes have unequally many batches, which sharded ones may not
            _write_images(root, 4 * BATCHES + 3, 8 if self.strategy else 9)
        view = VIEWS.get(self.method, "train")
        model = METHODS[self.method]
        method = "Classifier" if self.method == "Plain" else self.method
        strategy = self.strategy or ("ddp" if self.world > 1 else "auto")
        text = RECIPE.format(
            epochs=EPOCHS,
            strategy=strategy,
            interval=self.interval,
            method=method,
            model=model,
            root=root,
            view=view,
            workers=self.workers,
            knn=KNN if self.method in VIEWS else "",
        )
        self.recipe.write_text(text)
        return self.recipe

    def words(self, name: str, resume: bool) -> list[str]:
        """The command of a run."""
        words = ["fit", "--config", str(self.write()), "--run_dir", str(self.folder / name)]
        words += ["--trainer.accumulate_grad_batches", str(self.accumulate), "--trainer.devices", str(self.world)]
        return words + ["--resume", "auto"] * resume


def _write_images(root: Path, n: int, val: int) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(n + val):
        kind = rng.integers(0, 128, (20, 20, 3), dtype=np.uint8) + np.uint8(i % 2 * 120)
        path = root / ("val" if i >= n else "train") / ("light" if i % 2 else "dark") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(kind).save(path)
