"""Write environment.json at the start of a run and results.json at its end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from lit_vision.callbacks.checkpoint import LastCheckpoint, monitors_of
from lit_vision.io import checkpoint_digest
from lit_vision.io.atomic import write_json
from lit_vision.io.redact import redact
from lit_vision.results import schema
from lit_vision.results.environment import collect_environment


def _strip_paths(argument: str) -> str:
    """Return an argument of the command line with an absolute path shortened to its last part."""
    head, sign, value = argument.rpartition("=")
    return head + sign + (Path(value).name if Path(value).is_absolute() else value)


class SampleCounter(Callback):
    """Count the samples, on all processes, and the seconds of the last validation or test."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._samples, self._start_time = 0, 0.0

    def total(self, trainer: Trainer) -> int:
        """Return the samples on all processes; every process must call this."""
        return int(
            trainer.strategy.reduce(torch.tensor(self._samples, device=trainer.strategy.root_device), reduce_op="sum")
        )

    def on_validation_start(self, *args: Any) -> None:
        self._samples, self._start_time = 0, time.perf_counter()

    def on_validation_batch_end(
        self, trainer: Trainer, module: Any, out: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        self._samples += len(batch["key"]) if isinstance(batch, dict) else 0

    def on_validation_end(self, *args: Any) -> None:
        self.seconds = time.perf_counter() - self._start_time

    on_test_start, on_test_batch_end, on_test_end = on_validation_start, on_validation_batch_end, on_validation_end


class RunRecord(SampleCounter):
    """Write RUN/environment.json and RUN/results.json.

    environment.json holds commit, versions and the fingerprint of the data; a resume adds to its `resumed`.

    The metric of results.json is that of the last weights: the first of `checkpoint.monitors_of` that was measured,
    else train/loss. The metric that best.ckpt was chosen by is under `best`, because choosing by a split makes its
    number too good.

    Args:
        recipe: name or relative path of the recipe.
        recipe_sha256: of the recipe's bytes; None without a file.
        seed: the run's seed.
        run_sha256: `recipe_hash` of the recipe and the overrides; `--resume auto` finds the run by it.
        overrides: the settings typed after the recipe.
        upload_weights: upload best.ckpt, or last.ckpt without one, as a W&B artifact at the end.
    """

    def __init__(
        self,
        recipe: str,
        recipe_sha256: str | None,
        seed: int,
        run_sha256: str,
        overrides: list[str] | None = None,
        upload_weights: bool = False,
    ) -> None:
        self.recipe, self.recipe_sha256, self.seed, self.run_sha256 = recipe, recipe_sha256, seed, run_sha256
        self.overrides, self.upload_weights = redact(list(overrides or [])), upload_weights
        super().__init__()
        self._measured: dict[str, float] = {}
        self._earlier = 0.0  # seconds of the run before a resume
        self._started = time.perf_counter()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        self._started = time.perf_counter()
        now = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **collect_environment(self.seed),
            "recipe": self.recipe,
            "recipe_sha256": self.recipe_sha256,
            "overrides": self.overrides,
            "run_sha256": self.run_sha256,
            "data_fingerprint": getattr(trainer.datamodule, "fingerprint", None),
            "data_order": getattr(trainer.datamodule, "data_order", None),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
        }
        path = Path(trainer.default_root_dir) / "environment.json"
        if path.is_file():
            first = json.loads(path.read_text())
            now = {**first, "resumed": [*first.get("resumed", []), now]}
        write_json(path, now)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update({"environment": now, "commit": now["commit"]}, allow_val_change=True)

    # ---- seconds over resumes; and the metrics, for a run that was killed between its last checkpoint and its results

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        seconds = self._earlier + time.perf_counter() - self._started
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint["run_record"] = {"seconds": seconds, "measured": measured}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        record = checkpoint.get("run_record", {})
        self._earlier, self._measured = record.get("seconds", 0.0), record.get("measured", {})

    # ---- results

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        validated = self.total(trainer)
        if not trainer.is_global_zero or trainer.interrupted:
            return
        folder = Path(trainer.default_root_dir)
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not measured and not (folder / "results.json").exists():
            measured = self._measured  # the run was complete before this resume
        name = next((name for name, _ in monitors_of(pl_module) if name in measured), "train/loss")
        if name not in measured:
            return  # no step was taken, for example in a resume of a complete run, which has its results
        knn = next((c.samples for c in trainer.callbacks if hasattr(c, "samples")), 0)
        checkpoint = next((c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)
        weights = checkpoint.path if checkpoint else None
        schema.write_result(
            folder / "results.json",
            recipe=self.recipe,
            recipe_sha256=self.recipe_sha256,
            seed=self.seed,
            overrides=[_strip_paths(argument) for argument in self.overrides],
            metric={"name": name, "value": measured[name]},
            metrics=dict(sorted(measured.items())),
            best=checkpoint.best if checkpoint else None,
            samples=knn if name == "val/knn_top1" else validated,
            seconds=self._earlier + time.perf_counter() - self._started,
            images_seen=trainer.global_step * getattr(trainer.datamodule, "global_batch_size", 0) or None,
            data_fingerprint=getattr(trainer.datamodule, "fingerprint", None),
            weights_sha256=checkpoint_digest.checkpoint_sha256(weights) if weights else None,
            epochs=trainer.current_epoch,
            steps=trainer.global_step,
        )
        if self.upload_weights and checkpoint:
            self._upload(trainer, checkpoint)

    def _upload(self, trainer: Trainer, checkpoint: LastCheckpoint) -> None:
        best = checkpoint.path.with_name("best.ckpt")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                artifact = wandb.Artifact(f"{Path(self.recipe).stem}-{logger.experiment.id}", type="model")
                artifact.add_file(str(best if best.is_file() else checkpoint.path))
                logger.experiment.log_artifact(artifact)
