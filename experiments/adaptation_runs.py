"""The trainings behind table_adaptation.py: one MAE pre-training, then every protocol on the same labels, piece by piece on disk."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from ablation_runs import frozen_features, probe
from adaptation_costs import costs
from adaptation_protocols import INIT, NAME, PROTOCOLS, preset_of

EPOCHS = 40  # of the pre-training
LABELS, SEEDS = ("1%", "10%", "all"), 5
STEPS = 240  # of each training on labels, rounded up to whole epochs
KEPT = ((0, 800),)  # (seed, labels) whose weights are committed


class Runner:
    """Trains and measures what is not on disk yet.

    Args:
        images: from `lit_vision.study.images.read_images`.
        folder: under runs/.
        report: `lit_vision.study.progress.Reporter`.
        epochs, steps, seeds, labels: see the constants.
    """

    def __init__(self, images, folder: Path, report, epochs=EPOCHS, steps=STEPS, seeds=SEEDS, labels=LABELS) -> None:
        from lit_vision.study.cells import CellStore, hash_inputs, parse_labels

        self.images, self.folder, self.report = images, folder, report
        self.epochs, self.steps, self.seeds = epochs, steps, seeds
        self.labels = parse_labels(",".join(labels), images.per_class)
        self.preset = preset_of(images.size)
        self.store, self.base = CellStore(folder / "cells"), hash_inputs(images.fingerprint, images.size)

    def pretrain(self) -> tuple[Path, str, float]:
        """(weights, their sha256, seconds): trained now, or found from an earlier run of the same recipe."""
        from lit_vision.io.atomic import write_json
        from lit_vision.io.hashing import sha256_of_file
        from lit_vision.study.cells import hash_inputs
        from lit_vision.study.training import pretraining, redirect_output, train
        from lit_vision.weights.load import save_backbone

        preset = self.preset
        inputs = hash_inputs(self.base, self.epochs, preset.mae, preset.mae_views, preset.network(INIT).args)
        weights = self.folder / "weights" / "mae-0.safetensors"
        note = weights.with_suffix(".json")
        known = json.loads(note.read_text()) if note.exists() and weights.exists() else {}
        if known.get("inputs") != inputs or known.get("sha256") != sha256_of_file(weights):
            with redirect_output(self.folder / "table.log"):
                module, data = pretraining(INIT, self.images, preset, 0)
                self.report.begin("pre-training", data.batch_size)
                trained = train(module, data, self.epochs, 0, self.report.tick)
                save_backbone(weights, module.backbone, module.mean, module.std, half=True, table=NAME)
            known = {"inputs": inputs, "sha256": sha256_of_file(weights), "seconds": trained.seconds}
            write_json(note, known)
        return weights, known["sha256"], known["seconds"]

    def run(self) -> tuple[list, dict[str, dict], float]:
        """Outcomes, the cost of each protocol, and seconds of pre-training; seeds outermost, so that a stop leaves whole pairs."""
        weights, sha256, seconds = self.pretrain()
        found = costs(self.images, self.preset, weights)
        outcomes = []
        for seed in range(self.seeds):
            for labels in self.labels:
                for protocol in PROTOCOLS:
                    outcomes.append(self._measure(protocol, labels, seed, weights, sha256))
        return outcomes, found, seconds

    def _measure(self, protocol: str, labels: int, seed: int, weights: Path, sha256: str) -> Any:
        from lit_vision.study.cells import CellKey, CellResult, hash_inputs

        preset, key = self.preset, CellKey(INIT, protocol, labels, seed)
        own = (
            "frozen"
            if PROTOCOLS[protocol] is None
            else (self.steps, preset.options(INIT, protocol), preset.train_views["vit"])
        )
        inputs = hash_inputs(self.base, sha256, own)
        if (outcome := self.store.get(key, inputs)) is None:
            if not hasattr(self, "_frozen"):
                self._frozen = frozen_features(weights, self.images, preset.side(INIT))
            begin = time.perf_counter()
            if PROTOCOLS[protocol] is None:
                (answer, chosen), steps = probe("linear", *self._frozen, self.images, key), 0
            else:
                (answer, steps), chosen = self._train(key, weights), "fixed recipe"
            top1 = float((answer.argmax(1) == self.images.test_labels).mean())
            outcome = CellResult(key, top1, round(time.perf_counter() - begin, 3), steps, chosen, None)
            self.store.put(outcome, inputs, answer)
        self.report.say(
            f"seed {seed}, {labels:>5} labels, {protocol:<14} {100 * outcome.top1:5.1f} %  {outcome.seconds:5.1f} s"
        )
        return outcome

    def _train(self, key: Any, weights: Path) -> tuple[np.ndarray, int]:
        from lit_vision.evaluation.linear import logistic_regression
        from lit_vision.study.training import classification, probabilities, redirect_output, save_classifier, train

        images, rows = self.images, self.images.subset(key.labels, key.seed)
        with redirect_output(self.folder / "table.log"):
            known = self._frozen[0][rows], images.labels[rows], self._frozen[1], len(images.classes)
            head = logistic_regression(*known, seed=key.seed)
            module, data = classification(
                INIT, images, rows, self.preset, key.seed, weights, head, protocol=key.protocol
            )
            self.report.begin(key.name, data.batch_size)
            trained = train(module, data, -(-self.steps // data.batches_per_epoch), key.seed, self.report.tick)
            answer = probabilities(module, images, self.preset.side(INIT))
        if (key.seed, key.labels) in KEPT:
            save_classifier(self.store.folder / f"{key.name}.safetensors", module)
        return answer, trained.steps
