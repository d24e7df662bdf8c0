"""The trainings and measurements behind the tables of ablation.py, piece by piece: what is on disk is not done again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lit_vision.evaluation.knn import weighted_knn
from lit_vision.evaluation.linear import logistic_regression
from lit_vision.io.atomic import write_json
from lit_vision.io.hashing import sha256_of_file
from lit_vision.study import training
from lit_vision.study.cells import CellKey, CellResult, CellStore, hash_inputs
from lit_vision.study.images import StudyImages
from lit_vision.study.progress import Reporter
from lit_vision.weights.load import load_backbone, save_backbone

if TYPE_CHECKING:
    from ablation_spec import Ablation, Variant


class Runner:
    """Trains and measures what is not on disk yet.

    Args:
        table: which.
        images: from `lit_vision.study.images.read_images`.
        folder: under runs/.
        report: `lit_vision.study.progress.Reporter`.
    """

    def __init__(self, table: Ablation, images: StudyImages, folder: Path, report: Reporter) -> None:
        self.table, self.images, self.folder, self.report = table, images, folder, report
        self.store, self.base = CellStore(folder / "cells"), hash_inputs(images.fingerprint, images.size)
        self.seconds: dict[str, float] = {}
        (folder / "weights").mkdir(exist_ok=True)

    def run(self) -> list:
        """All outcomes; seeds outermost, so that a stop leaves whole pairs."""
        table, outcomes = self.table, []
        for seed in range(table.seeds):
            for number, variant in enumerate(table.variants):
                done = seed * len(table.variants) + number
                self.report.say(f"{variant.label}, seed {seed} ({done + 1} of {table.seeds * len(table.variants)})")
                outcomes += self._measure(variant, seed, self._pretrain(variant, seed))
        return outcomes

    def _pretrain(self, variant: Variant, seed: int) -> tuple[Path, str]:
        """(weights, their sha256): trained now, or found from an earlier run of the same recipe."""
        table, preset = self.table, self.table.preset(self.images.size, variant)
        epochs = table.epochs if variant.trained else 0
        inputs = hash_inputs(self.base, table.init, epochs, preset.used_by(table.init), seed)
        weights = self.folder / "weights" / f"{variant.label}-{seed}.safetensors"
        note = weights.with_suffix(".json")
        known = json.loads(note.read_text()) if note.exists() and weights.exists() else {}
        if known.get("inputs") != inputs or known.get("sha256") != sha256_of_file(weights):
            with training.redirect_output(self.folder / "table.log"):
                module, data = training.pretraining(table.init, self.images, preset, seed)
                seconds, losses = 0.0, []
                if epochs:
                    self.report.begin(f"{variant.label}, seed {seed}", data.batch_size)
                    trained = training.train(module, data, epochs, seed, self.report.tick)
                    seconds, losses = trained.seconds, [round(loss, 5) for loss in trained.losses]
                origin = {"method": table.init, "table": table.name, "data_fingerprint": self.images.fingerprint}
                save_backbone(weights, module.backbone, module.mean, module.std, half=True, **origin)
            known = {"inputs": inputs, "sha256": sha256_of_file(weights), "seconds": seconds, "losses": losses}
            write_json(note, known)
        init = self._init(variant)
        self.seconds[init] = self.seconds.get(init, 0.0) + known["seconds"]
        return weights, known["sha256"]

    def _init(self, variant: Variant) -> str:
        return f"{self.table.init}-{variant.label}"

    def _measure(self, variant: Variant, seed: int, encoder: tuple[Path, str]) -> list:
        weights, sha256 = encoder
        preset, found, frozen = self.table.preset(self.images.size, variant), [], None
        for protocol, labels in self.table.columns:
            key = CellKey(self._init(variant), protocol, labels, seed)
            own = self.table.tune_epochs, preset.tune, preset.train_views
            inputs = hash_inputs(self.base, sha256, own if protocol == "finetune" else "frozen")
            outcome = self.store.get(key, inputs)
            if outcome is None:
                frozen = frozen or frozen_features(weights, self.images, preset.side(self.table.init))
                begin = time.perf_counter()
                if protocol == "finetune":
                    answer, steps = self._finetune(key, preset, weights, frozen)
                    outcome = self._outcome(key, answer, time.perf_counter() - begin, steps, "fixed recipe")
                else:
                    answer, chosen = probe(protocol, *frozen, self.images, key)
                    outcome = self._outcome(key, answer, time.perf_counter() - begin, 0, chosen)
                self.store.put(outcome, inputs, answer)
            self.report.say(f"  {protocol:<9} {labels:>6} labels: {100 * outcome.top1:5.1f} %")
            found.append(outcome)
        return found

    def _finetune(self, key, preset, weights: Path, frozen: tuple) -> tuple[np.ndarray, int]:
        images, init = self.images, self.table.init
        rows = images.subset(key.labels, key.seed)
        with training.redirect_output(self.folder / "table.log"):
            known = frozen[0][rows], images.labels[rows], frozen[1], len(images.classes)
            head = logistic_regression(*known, seed=key.seed)
            module, data = training.classification(init, images, rows, preset, key.seed, weights, head)
            self.report.begin(key.name, data.batch_size)
            trained = training.train(module, data, self.table.tune_epochs, key.seed, self.report.tick)
            answer = training.probabilities(module, images, preset.side(init))
        if key.seed < self.table.kept:
            training.save_classifier(self.store.folder / f"{key.name}.safetensors", module)
        return answer, trained.steps

    def _outcome(self, key, answer: np.ndarray, seconds: float, steps: int, chosen: str):
        top1 = float((answer.argmax(1) == self.images.test_labels).mean())
        return CellResult(key, top1, round(seconds, 3), steps, chosen, None)


def frozen_features(weights: Path, images, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of the labelled pool and the test split from an encoder's file: as published, in half precision."""
    backbone, report = load_backbone(weights)
    return training.features(backbone, report.mean, report.std, images, size)


def probe(protocol: str, pool: np.ndarray, test: np.ndarray, images, key) -> tuple[np.ndarray, str]:
    """Class probabilities (M, K) of the test split by a linear probe or k-NN on an ask's labels, and how its strength was chosen."""
    rows = images.subset(key.labels, key.seed)
    known = pool[rows], images.labels[rows], test, len(images.classes)
    if protocol == "knn":
        return weighted_knn(*known).numpy(), "fixed recipe"
    fitted = logistic_regression(*known, seed=key.seed)
    return fitted.probabilities, fitted.chosen_on
