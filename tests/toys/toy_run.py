"""Toy run of a second for resume tests: keyed noise, batch norm, dropout, a schedule per step, noisy validation."""

import os
import signal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lit_vision.callbacks.log_samples import log_picture
from lit_vision.data.batch import normalize
from lit_vision.data.loader import start_worker
from lit_vision.data.loader_state import loader_state, restore_loader_state
from lit_vision.data.sampler import EvalBatches, TrainBatches
from lit_vision.errors import UserError
from lit_vision.optim import decay_groups, optimizer_and_schedule


class Pictures(Dataset):
    """n pictures of two classes (dark, light), noise drawn from the key."""

    def __init__(self, n: int, seed: int, labels: bool = True) -> None:
        self.n, self.seed, self.labels = n, seed, labels

    def __getitem__(self, key):
        epoch, index, copy = key
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, epoch, index, copy]))
        image = rng.integers(0, 128, (1, 8, 8, 3), dtype=np.uint8) + np.uint8(index % 2 * 120)
        return {"images": torch.from_numpy(image), "label": index % 2 if self.labels else -1, "key": torch.tensor(key)}


class ToyData(LightningDataModule):
    def __init__(
        self,
        n: int = 32,
        batch_size: int = 4,
        seed: int = 0,
        num_workers: int = 0,
        num_classes: int = 2,
        fault: str | None = None,
        class_note: str = "",
    ) -> None:
        super().__init__()
        self.n, self.batch_size, self.seed, self.num_workers = n, batch_size, seed, num_workers
        self.num_classes, self.fault, self.cursor = num_classes, fault, (0, 0)
        self.class_names, self.fingerprint = ["dark", "light"][:num_classes], "f" * 64

    def setup(self, stage=None) -> None:
        if self.fault:
            raise UserError(self.fault)

    def micro(self) -> int:
        return self.batch_size * self.trainer.world_size

    @property
    def global_batch_size(self) -> int:
        return self.micro() * self.trainer.accumulate_grad_batches

    @property
    def batches_per_epoch(self) -> int:
        return self.n // self.global_batch_size * self.trainer.accumulate_grad_batches

    @property
    def num_train(self) -> int:
        return self.n

    def example_batch(self, num_labels: int = 1):
        item = Pictures(1, self.seed)[0, 0, 0]
        return {"images": item["images"][None], "label": torch.zeros(1, dtype=torch.int64), "key": item["key"][None]}

    def train_dataloader(self):
        t = self.trainer
        order = TrainBatches(self.n, self.batch_size, t.global_rank, t.world_size, t.accumulate_grad_batches, self.seed)
        order.epoch, samples = self.cursor
        order.first_batch = samples // self.micro()
        return self._loader(self.n, order)

    def val_dataloader(self):
        return self._loader(16, EvalBatches(16, 4))

    test_dataloader = val_dataloader

    def eval_loader(self, split, limit=None, unlabeled=False):
        n = {"train": self.n, "val": 16}[split]
        return self._loader(n, EvalBatches(min(n, limit or n), 8))

    def _loader(self, n, order):
        data = Pictures(n, self.seed, labels=self.num_classes > 0)
        return DataLoader(
            data,
            batch_sampler=order,
            num_workers=self.num_workers,
            worker_init_fn=start_worker,
            persistent_workers=False,
        )

    def state_dict(self):
        return loader_state(self, str(self.n))

    def load_state_dict(self, state) -> None:
        restore_loader_state(self, state, str(self.n))


class ToyNet(LightningModule):
    """`stop` is "<signal>:<event>:<n>": the process sends itself the signal at the n-th event (batch, saved, val)."""

    def __init__(self, width: int = 4, lr: float = 1e-2, poison_step: int | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(width, 2)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))
        self.events = {"batch": 0, "saved": 0, "val": 0}

    def _event(self, name: str) -> None:
        self.events[name] += 1
        signal_name, _, rest = os.environ.get("TOY_STOP", "").partition(":")
        if rest == f"{name}:{self.events[name]}":
            os.kill(os.getpid(), getattr(signal, signal_name))

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "images": normalize(batch["images"], self.mean, self.std)}

    def training_step(self, batch, batch_idx):
        self._event("batch")
        target = batch["images"].mean((1, 2, 3, 4)).gt(0.5).long()
        loss = nn.functional.cross_entropy(self.head(self.backbone(batch["images"][:, 0])), target)
        if self.global_step == self.hparams.poison_step:
            loss = loss * float("nan")
        self.log("train/loss", loss)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self._event("saved")  # Lightning calls the module after the callbacks, the one that saves included

    def validation_step(self, batch, batch_idx):
        self._event("val")
        logits = self.head(self.backbone(batch["images"][:, 0])) + 0.1 * torch.randn(len(batch["key"]), 2)
        self.log("val/loss", nn.functional.cross_entropy(logits, batch["key"][:, 1] % 2), batch_size=len(logits))
        self.log("val/top1", (logits.argmax(1) == batch["key"][:, 1] % 2).float().mean(), batch_size=len(logits))

    def test_step(self, batch, batch_idx):
        logits = self.head(self.backbone(batch["images"][:, 0]))
        self.log("test/top1", (logits.argmax(1) == batch["key"][:, 1] % 2).float().mean(), batch_size=len(logits))

    def configure_optimizers(self):
        groups = decay_groups(self.named_parameters(), 0.05)
        return optimizer_and_schedule(
            self, groups, optimizer="adamw", base_lr=None, lr=self.hparams.lr, betas=(0.9, 0.999), warmup_epochs=0.5
        )


class ToyPretrain(ToyNet):
    """Without a validation of its own."""

    validation_step = LightningModule.validation_step


class Draws(Callback):
    """A picture per epoch."""

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        image = np.full((8, 8, 3), 40 * trainer.current_epoch, np.uint8)
        log_picture(trainer, f"drawn-e{trainer.current_epoch + 1:04d}", image)
