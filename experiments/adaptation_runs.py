"""Trainings behind table_adaptation.py: one MAE pre-training, then every protocol on the same labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from adaptation_costs import costs
from adaptation_protocols import INIT, NAME, PROTOCOLS, preset_of

from lit_vision.study import training
from lit_vision.study.cells import (
    CellKey,
    CellResult,
    CellStore,
    Measurement,
    hash_inputs,
    measure_once,
    parse_labels,
)
from lit_vision.study.encoders import PretrainedEncoder, pretrain_once
from lit_vision.study.frozen import fit_probe, frozen_features, measure_frozen
from lit_vision.study.weight_files import redirect_output

if TYPE_CHECKING:
    from lit_vision.study.images import StudyImages
    from lit_vision.study.progress import Reporter

EPOCHS = 40  # of the pre-training
LABELS, SEEDS = ("1%", "10%", "all"), 5
STEPS = 240  # of each training on labels, rounded up to full epochs
KEPT = ((0, 800),)  # (seed, labels) whose weights are committed


class Runner:
    """Trains and measures what is not stored yet.

    Args:
        images: from `lit_vision.study.images.read_images`.
        folder: for weights and cells, under runs/.
        reporter: prints the progress.
        epochs, steps, seeds, labels: see the constants.
    """

    def __init__(
        self,
        images: StudyImages,
        folder: Path,
        reporter: Reporter,
        epochs: int = EPOCHS,
        steps: int = STEPS,
        seeds: int = SEEDS,
        labels: Sequence[str] = LABELS,
    ) -> None:
        self.images, self.folder, self.reporter = images, folder, reporter
        self.epochs, self.steps, self.seeds = epochs, steps, seeds
        self.labels = parse_labels(",".join(labels), images.per_class)
        self.preset = preset_of(images.size)
        self.log = folder / "table.log"
        self.store, self.data_hash = CellStore(folder / "cells"), hash_inputs(images.fingerprint, images.size)

    @cached_property
    def encoder(self) -> PretrainedEncoder:
        """The pre-trained encoder: trained now, or found from an earlier run with the same settings."""
        inputs = hash_inputs(self.data_hash, INIT, self.epochs, self.preset.pretraining_fields(INIT))
        return pretrain_once(
            self.folder / "weights" / "mae-0.safetensors",
            inputs,
            lambda: training.pretraining(INIT, self.images, self.preset, 0),
            self.epochs,
            0,
            self.reporter,
            "pre-training",
            self.log,
            half=True,
            metadata={"table": NAME},
        )

    @cached_property
    def frozen(self) -> tuple[np.ndarray, np.ndarray]:
        """Features of the labeled pool and the test split, computed before the first measurement that is not stored."""
        return frozen_features(self.encoder.weights, self.images, self.preset.side(INIT))

    def run(self) -> tuple[list[CellResult], dict[str, dict[str, float]], float]:
        """Return results, the cost of each protocol, and seconds of pre-training.

        All protocols of a seed run before the next seed, so that pairs are complete after a stop.
        """
        found = costs(self.images, self.preset, self.encoder.weights)
        keys = [
            CellKey(INIT, protocol, labels, seed)
            for seed in range(self.seeds)
            for labels in self.labels
            for protocol in PROTOCOLS
        ]
        return [self._measure(key) for key in keys], found, self.encoder.seconds

    def _measure(self, key: CellKey) -> CellResult:
        trains = PROTOCOLS[key.protocol] is not None
        settings = (self.steps, self.preset.training_fields(INIT, key.protocol)) if trains else "frozen"
        inputs = hash_inputs(self.data_hash, self.encoder.sha256, settings)
        if self.store.get(key, inputs) is None:
            _ = self.frozen  # computed here, so that its time does not count as that of the measurement

        def measure() -> Measurement:
            return self._train(key) if trains else measure_frozen(key, *self.frozen, self.images)

        result = measure_once(self.store, key, inputs, self.images.test_labels, measure)
        score = f"{100 * result.value:5.1f} %  {result.seconds:5.1f} s"
        self.reporter.log(f"seed {key.seed}, {key.labels:>5} labels, {key.protocol:<14} {score}")
        return result

    def _train(self, key: CellKey) -> Measurement:
        images, rows = self.images, self.images.subset(key.labels, key.seed)
        with redirect_output(self.log):
            probe = fit_probe(key, *self.frozen, images)
            module, data = training.classification(
                INIT, images, rows, self.preset, key.seed, self.encoder.weights, probe, protocol=key.protocol
            )
            self.reporter.start_task(key.name, data.batch_size)
            epochs = -(-self.steps // data.batches_per_epoch)
            trained = training.train(module, data, epochs, key.seed, self.reporter.update)
            answer = training.probabilities(module, images, self.preset.side(INIT))
        if (key.seed, key.labels) in KEPT:
            training.save_classifier(self.store.folder / f"{key.name}.safetensors", module)
        return Measurement(answer, trained.steps)
