"""Pre-trained encoders of a study: trained once or downloaded, stored, and applied to the images (frozen features)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_vision.io.atomic import write_json
from lit_vision.io.hashing import sha256_of_file
from lit_vision.io.text import format_duration
from lit_vision.optim import Schedule
from lit_vision.results.schema import SCHEMA
from lit_vision.study import training
from lit_vision.study.cells import hash_inputs, read_record
from lit_vision.study.figures import reconstructions
from lit_vision.study.frozen import frozen_features
from lit_vision.study.images import StudyImages
from lit_vision.study.pixel_cache import Rows
from lit_vision.study.presets import StudyPreset, base_of, method_of
from lit_vision.study.progress import Reporter
from lit_vision.study.training_data import StudyData
from lit_vision.study.weight_files import WeightFiles, redirect_output
from lit_vision.weights.load import load_backbone, save_backbone
from lit_vision.weights.model_metadata import METADATA_KEY

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


@dataclass(frozen=True)
class PretrainedEncoder:
    """Weights of a finished pre-training.

    Attributes:
        weights: the safetensors file.
        sha256: of that file.
        seconds: of the training.
        images_seen: views of images that the training has seen, repetitions counted.
        losses: of each step.
        found: True if an earlier run had trained it.
    """

    weights: Path
    sha256: str
    seconds: float
    images_seen: int
    losses: list[float]
    found: bool


def pretrain_once(
    weights: Path,
    inputs: str,
    build: Callable[[], tuple[LightningModule, StudyData]],
    epochs: int | None,
    seed: int,
    reporter: Reporter,
    title: str,
    log: Path,
    *,
    steps: int | None = None,
    cool_down: Callable[[int], bool] | None = None,
    half: bool = False,
    metadata: dict[str, str] | None = None,
    after_training: Callable[[LightningModule], object] | None = None,
) -> PretrainedEncoder:
    """Pre-train an encoder and store it; if an earlier run has stored it for the same inputs, return that one.

    A pre-training that was stopped goes on from a checkpoint, NAME.ckpt, to the same bits; at most a minute is lost.
    The record next to the weights, NAME.json, is written last, so that an interrupted pre-training counts as missing.

    Args:
        weights: the file, NAME.safetensors; its folder is created.
        inputs: hash of all that the pre-training depends on.
        build: returns the method and its data.
        epochs: of the training; 0 stores the encoder as initialized. None: `steps` are given.
        seed: of the training.
        reporter: shows the progress.
        title: of the progress bar.
        log: file that gets what Lightning prints.
        steps: optimizer steps of the training.
        cool_down: as for `training.train`.
        half: store the weights in half precision.
        metadata: further texts for the metadata of the file.
        after_training: called with the trained method.
    """
    path, checkpoint = weights.with_suffix(".json"), weights.with_suffix(".ckpt")
    record = read_record(path)
    found = record.get("inputs") == inputs and weights.exists() and record["sha256"] == sha256_of_file(weights)
    if not found:
        with redirect_output(log):
            module, data = build()
            seconds, losses, images_seen = 0.0, [], 0
            if epochs or steps:
                reporter.start_task(title, data.batch_size)
                trained = training.train(
                    module,
                    data,
                    epochs,
                    seed,
                    reporter.update,
                    steps=steps,
                    cool_down=cool_down,
                    checkpoint=checkpoint,
                    inputs=inputs,
                )
                seconds, losses, images_seen = trained.seconds, trained.losses, trained.steps * data.batch_size
            save_backbone(weights, module.backbone, module.mean, module.std, half=half, **(metadata or {}))
            if after_training:
                after_training(module)
        record = {
            "schema": SCHEMA,
            "inputs": inputs,
            "sha256": sha256_of_file(weights),
            "seconds": seconds,
            "images_seen": images_seen,
            "precision": training.precision_of(module),
            "losses": [round(loss, 5) for loss in losses],
        }
        write_json(path, record)
    training.remove_checkpoint(checkpoint)  # a kill may have left it behind the record
    return PretrainedEncoder(
        weights, record["sha256"], record["seconds"], record["images_seen"], record["losses"], found
    )


@dataclass
class Encoder:
    """Weights and cost of a pre-trained init, and its frozen features of the labeled pool and the test split.

    `found` is True if an earlier run had trained it.
    """

    weights: Path
    sha256: str
    seconds: float
    images_seen: int
    pool: Rows
    test: np.ndarray
    found: bool = True


class EncoderStore(WeightFiles):
    """Trains, downloads or finds the encoders of one folder's study.

    Args:
        images: of the study.
        preset: of the study.
        folder: of the run; weights go to its weights/, reconstructions to its samples/.
        reporter: shows the progress.
        source: the images to pre-train on; None: the study's own.
        rows: (n,) ascending rows of the labeled pool images whose features are needed; None: all of them.
    """

    def __init__(
        self,
        images: StudyImages,
        preset: StudyPreset,
        folder: Path,
        reporter: Reporter,
        source: StudyImages | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        super().__init__(preset, folder, folder / "study.log")
        self.images, self.reporter, self.rows = images, reporter, rows
        self.source = source or images
        self._found: dict[tuple[str, int], tuple[Rows, np.ndarray]] = {}  # by sha256 of the weights, and side

    def load_public(self, init: str) -> Encoder:
        """Load public weights that `download` has stored."""
        path = self.path(init)
        return Encoder(path, sha256_of_file(path), 0.0, 0, *self._features(init))

    def pretrain(
        self, init: str, steps: int, cool_down: Callable[[int], bool] | None = None, plan_id: str = ""
    ) -> Encoder:
        """Pre-train on the pool, or find the weights of an earlier run of the same images, settings and length.

        Args:
            init: one of PRETRAINED, or METHOD@INIT.
            steps: of the training, as planned.
            cool_down: tells it to end earlier, see `training.train`; None: the steps are fixed, and the learning rate
                follows a cosine.
            plan_id: of the plan that may end it earlier; "" if none does.
        """
        source, preset, method = self.source, self.preset, method_of(init)
        schedule: Schedule = "cosine" if cool_down is None else "warmup-stable-decay"
        start = self.path(base_of(init)) if base_of(init) else None
        inputs = hash_inputs(
            source.fingerprint,
            source.size,
            init,
            steps,
            plan_id,
            sha256_of_file(start) if start else None,
            preset.pretraining_fields(init),
        )
        metadata = {"method": method, "data_fingerprint": source.fingerprint, "size": str(preset.side(init))}
        seen: dict[str, Any] = {"size": preset.side(init), "crop_pct": self.images.crop_pct(preset.side(init))}
        if self.images.value_range is not None:
            seen["value_range"] = list(self.images.value_range)
        metadata[METADATA_KEY] = json.dumps(seen)  # of its evaluation view, for embed and export
        if start:
            metadata["license"] = load_backbone(start)[1].metadata.get("license", "")

        def after_training(module: LightningModule) -> Any:
            if method == "mae":
                reconstructions(self.folder / "samples" / "reconstructions.png", module, self.images)

        trained = pretrain_once(
            self.path(init),
            inputs,
            lambda: training.pretraining(init, source, preset, 0, weights=start, schedule=schedule),
            None,
            0,
            self.reporter,
            f"{init} pre-training",
            self.log,
            steps=steps,
            cool_down=cool_down,
            metadata=metadata,
            after_training=after_training,
        )
        if trained.found:
            self.reporter.log(f"{init}: found the weights of an earlier run ({format_duration(trained.seconds)})")
        else:
            loss, done = np.mean(trained.losses[-20:]), len(trained.losses)
            self.reporter.log(f"{init}: {done} steps, {format_duration(trained.seconds)}, loss {loss:.3f}")
        features = self._features(init)
        return Encoder(
            trained.weights, trained.sha256, trained.seconds, trained.images_seen, *features, found=trained.found
        )

    def head_features(self, init: str) -> tuple[Rows, np.ndarray]:
        """Return features of an init's stored weights as its trainings see the images: what their first head is fit on.

        They differ from the frozen ones where those are taken at another side (`StudyPreset.frozen_side`).
        """
        return self._features(init, self.preset.side(init))

    def _features(self, init: str, side: int | None = None) -> tuple[Rows, np.ndarray]:
        side = side or self.preset.frozen_side(init)
        weights = sha256_of_file(self.path(init))
        if (weights, side) not in self._found:
            self.reporter.start_task(f"features of {init} at {side} pixels", 1)
            with redirect_output(self.log):
                self._found[weights, side] = frozen_features(
                    self.path(init), self.images, side, self.folder / "features", self.reporter.update, self.rows
                )
        return self._found[weights, side]
