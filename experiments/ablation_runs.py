"""Trainings and measurements behind the tables of ablation.py; finished pieces are stored and not run again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lit_vision.study import training
from lit_vision.study.cells import CellKey, CellResult, CellStore, Measurement, hash_inputs, measure_once
from lit_vision.study.encoders import PretrainedEncoder, pretrain_once
from lit_vision.study.frozen import fit_probe, frozen_features, measure_frozen
from lit_vision.study.weight_files import redirect_output

if TYPE_CHECKING:
    from ablation_spec import Ablation, Variant

    from lit_vision.study.images import StudyImages
    from lit_vision.study.presets import StudyPreset
    from lit_vision.study.progress import Reporter


class Runner:
    """Trains and measures what is not stored yet.

    Args:
        table: specification of the table.
        images: from `lit_vision.study.images.read_images`.
        folder: for weights and cells, under runs/.
        reporter: prints the progress.
    """

    def __init__(self, table: Ablation, images: StudyImages, folder: Path, reporter: Reporter) -> None:
        self.table, self.images, self.folder, self.reporter = table, images, folder, reporter
        self.store, self.data_hash = CellStore(folder / "cells"), hash_inputs(images.fingerprint, images.size)
        self.log = folder / "table.log"
        self.seconds: dict[str, float] = {}  # of pre-training, by init

    def run(self) -> list[CellResult]:
        """Return all results; all variants of a seed run before the next, so that pairs are complete after a stop."""
        results = []
        runs = [(variant, seed) for seed in range(self.table.seeds) for variant in self.table.variants]
        for number, (variant, seed) in enumerate(runs, 1):
            self.reporter.log(f"{variant.label}, seed {seed} ({number} of {len(runs)})")
            results += self._measure(variant, seed, self._pretrain(variant, seed))
        return results

    def _pretrain(self, variant: Variant, seed: int) -> PretrainedEncoder:
        table, preset = self.table, self.table.preset(self.images.size, variant)
        epochs = table.epochs if variant.trained else 0
        inputs = hash_inputs(self.data_hash, table.init, epochs, preset.pretraining_fields(table.init), seed)
        encoder = pretrain_once(
            self.folder / "weights" / f"{variant.label}-{seed}.safetensors",
            inputs,
            lambda: training.pretraining(table.init, self.images, preset, seed),
            epochs,
            seed,
            self.reporter,
            f"{variant.label}, seed {seed}",
            self.log,
            half=True,
            metadata={"method": table.init, "table": table.name, "data_fingerprint": self.images.fingerprint},
        )
        init = self._init(variant)
        self.seconds[init] = self.seconds.get(init, 0.0) + encoder.seconds
        return encoder

    def _init(self, variant: Variant) -> str:
        return f"{self.table.init}-{variant.label}"

    def _measure(self, variant: Variant, seed: int, encoder: PretrainedEncoder) -> list[CellResult]:
        table, images, preset = self.table, self.images, self.table.preset(self.images.size, variant)
        results = []
        frozen: list[tuple[np.ndarray, np.ndarray]] = []  # computed for the first measurement that needs it

        def measure(key: CellKey) -> Measurement:
            if key.protocol == "finetune":
                return self._finetune(key, preset, encoder.weights, *frozen[0])
            return measure_frozen(key, *frozen[0], images)

        for protocol, labels in table.columns:
            key = CellKey(self._init(variant), protocol, labels, seed)
            settings = (table.tune_epochs, preset.training_fields(table.init)) if protocol == "finetune" else "frozen"
            inputs = hash_inputs(self.data_hash, encoder.sha256, settings)
            if not frozen and self.store.get(key, inputs) is None:
                frozen.append(frozen_features(encoder.weights, images, preset.side(table.init)))
            result = measure_once(self.store, key, inputs, images.test_labels, partial(measure, key))
            self.reporter.log(f"  {protocol:<9} {labels:>6} labels: {100 * result.value:5.1f} %")
            results.append(result)
        return results

    def _finetune(
        self, key: CellKey, preset: StudyPreset, weights: Path, pool: np.ndarray, test: np.ndarray
    ) -> Measurement:
        images, init = self.images, self.table.init
        rows = images.subset(key.labels, key.seed)
        with redirect_output(self.log):
            probe = fit_probe(key, pool, test, images)
            module, data = training.classification(init, images, rows, preset, key.seed, weights, probe)
            self.reporter.start_task(key.name, data.batch_size)
            trained = training.train(module, data, self.table.tune_epochs, key.seed, self.reporter.update)
            answer = training.probabilities(module, images, preset.side(init))
        if key.seed < self.table.committed_seeds:
            training.save_classifier(self.store.folder / f"{key.name}.safetensors", module)
        return Measurement(answer, trained.steps)
