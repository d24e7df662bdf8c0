"""Train the classifiers of a study on labels: every seed of a unit and, to judge it, on half of its labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lit_vision.evaluation.linear import LinearProbe
from lit_vision.optim import Schedule
from lit_vision.study import training
from lit_vision.study.cells import CellKey, CellResult, CellStore, Measurement, hash_inputs, measure_once
from lit_vision.study.encoders import Encoder, EncoderStore
from lit_vision.study.frozen import fit_probe
from lit_vision.study.images import StudyImages
from lit_vision.study.pace import Pace
from lit_vision.study.plan import HALF, Unit
from lit_vision.study.presets import StudyPreset
from lit_vision.study.progress import Reporter
from lit_vision.study.weight_files import redirect_output

SLACK = 1.3  # a training that takes this many times its share of the time is cooled down early


@dataclass
class LabelTrainer:
    """Trains on the labels of a study's subsets.

    Attributes:
        images: of the study.
        preset: of the study.
        encoder_store: gives the features that a first head is fitted on.
        store: of the cells; those of the halves go to its halves/.
        pace: of the study.
        reporter: shows the progress.
        data_hash: of the images as the study sees them.
        keep_weights: number of seeds whose classifiers are stored, as <cell>.safetensors in half precision.
    """

    images: StudyImages
    preset: StudyPreset
    encoder_store: EncoderStore
    store: CellStore
    pace: Pace
    reporter: Reporter
    data_hash: str
    keep_weights: int = 0

    def __post_init__(self) -> None:
        self.halves, self.log = CellStore(self.store.folder / "halves"), self.encoder_store.log

    def train(self, unit: Unit, encoder: Encoder | None, steps: int, deadline: float) -> list[CellResult]:
        """Return the results of a unit, one per seed.

        Args:
            unit: of trainings on labels.
            encoder: of its init; None: it has no pre-trained weights.
            steps: of each training.
            deadline: second of the study at which the unit should end.
        """
        results, decisions = [], self.pace.decisions
        for seed in range(unit.seeds):
            key = CellKey(unit.init, unit.protocol, unit.labels, seed)
            begin = decisions.elapsed
            until = begin + SLACK * (deadline - begin) / (unit.seeds - seed)
            results.append(self._train_cell(unit, key, encoder, steps, until))
        return results

    def _train_cell(self, unit: Unit, key: CellKey, encoder: Encoder | None, steps: int, deadline: float) -> CellResult:
        """Train a cell, and before it on half of its labels, whose other half judges the protocol."""
        origin = (encoder.sha256, "head of the probe") if encoder else None
        images, half = self.images, None
        rows = images.subset(key.labels, key.seed)
        length = "set" if unit.fixed else self.pace.decisions.id

        def inputs(steps: int, *more: Any) -> str:
            fields = self.preset.training_fields(key.init, key.protocol, steps)
            return hash_inputs(self.data_hash, origin, steps, length, fields, *more)

        grouped = () if images.groups is None else ("whole groups",)
        if halves := images.kind.halve(images.labels[rows], key.seed, images.groups_of(rows)) if unit.judged else None:
            fit, judge = (rows[positions] for positions in halves)
            fewer = max(1, int(HALF * steps))
            measure = partial(self._train_classifier, unit, key, encoder, fewer, deadline, fit, judge)
            half = measure_once(self.halves, key, inputs(fewer, "half", *grouped), images.labels[judge], measure)
        measure = partial(self._train_classifier, unit, key, encoder, steps, deadline, rows)
        result = measure_once(self.store, key, inputs(steps), images.test_labels, measure)
        return replace(result, judged=half.value, judged_balanced=half.balanced) if half else result

    def _train_classifier(
        self,
        unit: Unit,
        key: CellKey,
        encoder: Encoder | None,
        steps: int,
        deadline: float,
        rows: np.ndarray,
        judge: np.ndarray | None = None,
    ) -> Measurement:
        """Train on some pool rows, and answer for the test split, or for the rows of `judge`."""
        images, preset = self.images, self.preset
        half = "" if judge is None else ", half of the labels"
        title = f"{key.init}, {key.protocol}, {key.labels} labels, seed {key.seed}{half}"
        cool_down = None if unit.fixed else self.pace.cool_down(title, deadline, unit)
        with redirect_output(self.log):
            weights, probe = (encoder.weights, self._first_head(key, rows)) if encoder else (None, None)
            module, data = training.classification(
                key.init,
                images,
                rows,
                preset,
                key.seed,
                weights,
                probe,
                key.protocol,
                steps=steps,
                schedule=schedule_of(unit),
            )
            self.reporter.start_task(title, data.batch_size)
            trained = training.train(
                module, data, seed=key.seed, on_step=self.reporter.update, steps=steps, cool_down=cool_down
            )
            seen = images if judge is None else images.tested_on(judge)
            answer = training.probabilities(module, seen, preset.side(key.init))
        self.pace.compare(trained.seconds, unit.cost.seconds(trained.steps * data.batch_size))
        if judge is None:
            if key.seed < self.keep_weights:
                training.save_classifier(self.store.folder / f"{key.name}.safetensors", module)
            self.store.put_losses(key, trained.losses)
        return Measurement(answer, trained.steps, seconds=trained.seconds)

    def _first_head(self, key: CellKey, rows: np.ndarray) -> LinearProbe:
        """Fit the head that a training on some pool rows begins with, on features of them as the training sees them."""
        return fit_probe(key, *self.encoder_store.head_features(key.init), self.images, rows)


def schedule_of(unit: Unit) -> Schedule:
    """Return the schedule of a unit's trainings: a cosine if the user has set the length, else one that can be cut."""
    return "cosine" if unit.fixed else "warmup-stable-decay"
