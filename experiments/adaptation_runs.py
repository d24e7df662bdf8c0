"""The trainings behind table_adaptation.py: one MAE pre-training, then every protocol on the same labels, piece by piece on disk."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from ablation_runs import frozen_features, probe
from adaptation_costs import costs
from adaptation_protocols import NAME, PROTOCOLS, START, recipe_of

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
        from lit_vision.study.cells import CellStore, digest, parse_labels

        self.images, self.folder, self.report = images, folder, report
        self.epochs, self.steps, self.seeds = epochs, steps, seeds
        self.labels = parse_labels(",".join(labels), images.per_class)
        self.recipe = recipe_of(images.size)
        self.store, self.base = CellStore(folder / "cells"), digest(images.fingerprint, images.size)

    def pretrain(self) -> tuple[Path, str, float]:
        """(weights, their sha256, seconds): trained now, or found from an earlier run of the same recipe."""
        from lit_vision.io.atomic import write_json
        from lit_vision.study.cells import digest
        from lit_vision.study.training import pretraining, quiet, train
        from lit_vision.weights.load import save_backbone, sha256_of

        recipe = self.recipe
        inputs = digest(self.base, self.epochs, recipe.mae, recipe.mae_views, recipe.network(START).args)
        weights = self.folder / "weights" / "mae-0.safetensors"
        note = weights.with_suffix(".json")
        known = json.loads(note.read_text()) if note.exists() and weights.exists() else {}
        if known.get("inputs") != inputs or known.get("sha256") != sha256_of(weights):
            with quiet(self.folder / "table.log"):
                module, data = pretraining(START, self.images, recipe, 0)
                self.report.begin("pre-training", data.batch_size)
                trained = train(module, data, self.epochs, 0, self.report.tick)
                save_backbone(weights, module.backbone, module.mean, module.std, half=True, table=NAME)
            known = {"inputs": inputs, "sha256": sha256_of(weights), "seconds": trained.seconds}
            write_json(note, known)
        return weights, known["sha256"], known["seconds"]

    def run(self) -> tuple[list, dict[str, dict], float]:
        """Outcomes, the cost of each protocol, and seconds of pre-training; seeds outermost, so that a stop leaves whole pairs."""
        weights, sha256, seconds = self.pretrain()
        found = costs(self.images, self.recipe, weights)
        outcomes = []
        for seed in range(self.seeds):
            for labels in self.labels:
                for protocol in PROTOCOLS:
                    outcomes.append(self._measure(protocol, labels, seed, weights, sha256))
        return outcomes, found, seconds

    def _measure(self, protocol: str, labels: int, seed: int, weights: Path, sha256: str) -> Any:
        from lit_vision.study.cells import Ask, Outcome, digest

        recipe, ask = self.recipe, Ask(START, protocol, labels, seed)
        own = (
            "frozen"
            if PROTOCOLS[protocol] is None
            else (self.steps, recipe.options(START, protocol), recipe.train_views["vit"])
        )
        inputs = digest(self.base, sha256, own)
        if (outcome := self.store.get(ask, inputs)) is None:
            if not hasattr(self, "_frozen"):
                self._frozen = frozen_features(weights, self.images, recipe.side(START))
            begin = time.perf_counter()
            if PROTOCOLS[protocol] is None:
                (answer, chosen), steps = probe("linear", *self._frozen, self.images, ask), 0
            else:
                (answer, steps), chosen = self._train(ask, weights), "fixed recipe"
            top1 = float((answer.argmax(1) == self.images.test_labels).mean())
            outcome = Outcome(ask, top1, round(time.perf_counter() - begin, 3), steps, chosen, None)
            self.store.put(outcome, inputs, answer)
        self.report.say(
            f"seed {seed}, {labels:>5} labels, {protocol:<14} {100 * outcome.top1:5.1f} %  {outcome.seconds:5.1f} s"
        )
        return outcome

    def _train(self, ask: Any, weights: Path) -> tuple[np.ndarray, int]:
        from lit_vision.evaluation.linear import logistic_regression
        from lit_vision.study.training import classification, probabilities, quiet, save_classifier, train

        images, rows = self.images, self.images.subset(ask.labels, ask.seed)
        with quiet(self.folder / "table.log"):
            known = self._frozen[0][rows], images.labels[rows], self._frozen[1], len(images.classes)
            head = logistic_regression(*known, seed=ask.seed)
            module, data = classification(
                START, images, rows, self.recipe, ask.seed, weights, head, protocol=ask.protocol
            )
            self.report.begin(ask.name, data.batch_size)
            trained = train(module, data, -(-self.steps // data.batches_per_epoch), ask.seed, self.report.tick)
            answer = probabilities(module, images, self.recipe.side(START))
        if (ask.seed, ask.labels) in KEPT:
            save_classifier(self.store.folder / f"{ask.name}.safetensors", module)
        return answer, trained.steps
