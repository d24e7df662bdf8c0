"""Pieces of the ELPV table: each pre-training, feature file and cell is stored when it is finished, and found again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_vision.evaluation.features import extract_features
from lit_vision.evaluation.knn import weighted_knn
from lit_vision.evaluation.linear import LinearProbe, logistic_regression
from lit_vision.io.atomic import atomic_write
from lit_vision.io.hashing import sha256_of_file
from lit_vision.study import training
from lit_vision.study.cells import CellKey, CellResult, CellStore, Measurement, hash_inputs, measure_once
from lit_vision.study.encoders import PretrainedEncoder, pretrain_once
from lit_vision.study.images import StudyImages, eval_batches
from lit_vision.study.label_kinds import Scores
from lit_vision.study.progress import Reporter
from lit_vision.study.training_data import StudyData
from lit_vision.study.weight_files import redirect_output
from lit_vision.weights.load import load_backbone, save_backbone
from studies import elpv_rows
from studies.elpv_images import Protocol, SolarCells, make_protocol
from studies.elpv_rows import PUBLIC, Row

SEEDS = (5, 5, 3)  # at the fewest labels, at a tenth, at all
RESUMED = "simclr@"  # init that goes on from the public weights


@dataclass(frozen=True)
class Piece:
    """One cell that can be made by itself: its protocol (certain or paper), its key, and the function that makes it."""

    protocol: str
    key: CellKey
    make: Callable[[], CellResult]


class TimeOverError(Exception):
    """Raised instead of beginning a piece that is not stored after the time for the run is over."""


class Runner:
    """Makes and stores the cells.

    Args:
        cells: the photographs.
        folder: of the run.
        reporter: shows the progress.
        seconds: after which nothing is begun; what is stored is still found.
    """

    def __init__(self, cells: SolarCells, folder: Path, reporter: Reporter, seconds: float = float("inf")) -> None:
        self.cells, self.folder, self.reporter, self.seconds = cells, folder, reporter, seconds
        self.log = folder / "study.log"
        for name in ("weights", "features"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.protocols = {name: make_protocol(cells, name) for name in ("certain", "paper")}
        self.stores = {name: CellStore(folder / name) for name in self.protocols}
        self._images: dict[str, StudyImages] = {}
        self._features: dict[tuple[str, int], np.ndarray] = {}

    def images(self, protocol: str) -> StudyImages:
        """Return the images of a protocol at 96 pixels."""
        if protocol not in self._images:
            self._images[protocol] = self.protocols[protocol].images(self.cells, elpv_rows.SIZE)
        return self._images[protocol]

    def pieces(self) -> Iterator[Piece]:
        """Yield all cells: what trains no network, then row by row the few labels, then all labels seed by seed.

        The paper's protocol has all labels only; its trainings take turns with those on all certain labels.
        """
        frozen = [("pixels", "logreg"), ("pixels", "knn"), (PUBLIC, "linear"), (PUBLIC, "knn"), (PUBLIC, "linear-96")]
        for protocol in self.protocols:
            for place, count in self._counts(protocol):
                for init, kind in frozen:
                    for seed in range(SEEDS[place]):
                        yield self._piece(protocol, CellKey(init, kind, count, seed), place)
        for row in elpv_rows.ROWS:
            for place, count in self._counts("certain")[:-1]:
                for seed in range(SEEDS[place]):
                    yield from self._row_pieces("certain", row, count, seed, place)
        for seed in range(SEEDS[-1]):
            for row in elpv_rows.ROWS:
                for protocol in self.protocols:
                    place, count = self._counts(protocol)[-1]
                    yield from self._row_pieces(protocol, row, count, seed, place)

    def _row_pieces(self, protocol: str, row: Row, count: int, seed: int, place: int) -> Iterator[Piece]:
        for kind in ("linear", "knn", "finetune") if row.pretrain_epochs else ("finetune",):
            yield self._piece(protocol, CellKey(row.init, kind, count, seed), place)

    def _counts(self, protocol: str) -> list[tuple[int, int]]:
        counts = list(enumerate(elpv_rows.label_counts(self.protocols[protocol].labels)))
        return counts if protocol == "certain" else counts[2:]

    def _piece(self, protocol: str, key: CellKey, place: int) -> Piece:
        make = self._trained if key.protocol == "finetune" else self._frozen
        return Piece(protocol, key, partial(make, protocol, key, place))

    def _begin(self) -> None:
        if self.reporter.elapsed > self.seconds:
            raise TimeOverError

    # encoders and features

    def encoder(self, row: Row) -> PretrainedEncoder:
        """Return a row's encoder: the public one, or one pre-trained on the training cells without labels."""
        path = self.folder / "weights" / f"{row.init.replace(':', '_')}.safetensors"
        if not row.pretrain_epochs:
            if not path.exists():
                with redirect_output(self.log):
                    backbone = elpv_rows.public_backbone()
                    data = backbone.data_config
                    save_backbone(path, backbone, data["mean"], data["std"])
            return PretrainedEncoder(path, sha256_of_file(path), 0.0, 0, [], True)
        start = self.encoder(elpv_rows.ROWS[0]) if row.init.startswith(RESUMED) else None
        method, options, batch_size = elpv_rows.PRETRAINING[row.init]
        views = elpv_rows.VIEWS[row.init]
        images = self.images("certain")  # both protocols have the same pool

        def build() -> tuple[Any, StudyData]:
            self._begin()
            module = elpv_rows.pretraining(row, start.weights if start else None)
            return module, StudyData(images, np.arange(len(images.pool)), method.train_view, views, batch_size, 0)

        origin = start.sha256 if start else None
        network = elpv_rows.network(row)
        inputs = hash_inputs(images.fingerprint, network, options, views, batch_size, row.pretrain_epochs, origin)
        title = f"{row.init} pre-training"
        return pretrain_once(path, inputs, build, row.pretrain_epochs, 0, self.reporter, title, self.log)

    def features(self, init: str, side: int) -> np.ndarray:
        """Return the frozen features of all cells, (N, D) float32: of an init's encoder at `side`, or pixels."""
        if init == "pixels":
            return self.cells.pixels(side).reshape(len(self.cells.names), -1).astype(np.float32) / 255
        if (init, side) not in self._features:
            encoder = self.encoder(_row(init))
            path = self.folder / "features" / f"{encoder.sha256[:16]}-{side}.npy"
            if not path.exists():
                self._begin()
                self.reporter.log(f"features of {init} at {side} pixels")
                with redirect_output(self.log):
                    found = frozen_features(encoder.weights, self.cells.pixels(side))
                atomic_write(path, lambda file: np.save(file, found))
            self._features[init, side] = np.load(path)
        return self._features[init, side]

    # cells

    def _frozen(self, protocol: str, key: CellKey, place: int) -> CellResult:
        """Measure k-NN or logistic regression on frozen features."""
        rule, side = self.protocols[protocol], frozen_side(key)
        origin = "pixels" if key.init == "pixels" else self.encoder(_row(key.init)).sha256

        def measure() -> Measurement:
            self._begin()
            rows = self.images(protocol).subset(key.labels, key.seed)
            test = self.features(key.init, side)[rule.test]
            if key.protocol == "knn":
                pool = self.features(key.init, side)[rule.pool]
                return Measurement(weighted_knn(pool[rows], rule.labels[rows], test, 2).numpy())
            probe = self.probe(rule, key, rows, side)
            held_out = Scores(probe.scores[probe.strength], probe.balanced_scores[probe.strength])
            return Measurement(probe.probabilities, chosen_on=probe.chosen_on, held_out=held_out)

        inputs = hash_inputs(self.cells.fingerprint, origin, side, protocol)
        return measure_once(self.stores[protocol], key, inputs, rule.test_labels, measure)

    def probe(self, rule: Protocol, key: CellKey, rows: np.ndarray, side: int) -> LinearProbe:
        """Fit logistic regression on pool rows, its strength chosen on them; copies weight the last fit."""
        pool, test = (self.features(key.init, side)[part] for part in (rule.pool, rule.test))
        probe = logistic_regression(pool[rows], rule.labels[rows], test, 2, seed=key.seed)
        if rule.copies.max() == 1:
            return probe
        weighted = np.repeat(rows, rule.copies[rows])
        fitted = logistic_regression(pool[weighted], rule.labels[weighted], test, 2, strengths=[probe.strength])
        fitted.scores.update(probe.scores)
        fitted.balanced_scores.update(probe.balanced_scores)
        return fitted

    def _trained(self, protocol: str, key: CellKey, place: int) -> CellResult:
        """Train a network on the labels, from its encoder and the head of its probe, or from random weights."""
        rule, row = self.protocols[protocol], _row(key.init)
        encoder = None if row.init.startswith("scratch-") else self.encoder(row)
        subset = self.images(protocol).subset(key.labels, key.seed)
        rows = np.repeat(subset, rule.copies[subset])
        epochs = elpv_rows.epochs(row, place, len(rows))

        def measure() -> Measurement:
            self._begin()
            images = self.images(protocol)
            with redirect_output(self.log):
                probe = self.probe(rule, key, subset, elpv_rows.SIZE) if encoder else None
                module = elpv_rows.classifier(row, encoder.weights if encoder else None, probe, key.seed)
                data = StudyData(images, rows, "train", elpv_rows.TRAIN_VIEWS, row.batch, key.seed)
                title = f"{protocol}: {key.init}, {key.labels} labels, seed {key.seed}"
                self.reporter.start_task(title, data.batch_size)
                trained = training.train(module, data, epochs, key.seed, self.reporter.update)
                answer = training.probabilities(module, images, elpv_rows.SIZE)
            self.stores[protocol].put_losses(key, trained.losses)
            return Measurement(answer, trained.steps, seconds=trained.seconds)

        settings = elpv_rows.TUNE[row.network] if encoder else elpv_rows.FROM_SCRATCH
        origin = encoder.sha256 if encoder else None
        settings = [elpv_rows.network(row), settings, epochs, row.batch, elpv_rows.TRAIN_VIEWS]
        inputs = hash_inputs(self.cells.fingerprint, protocol, origin, settings)
        return measure_once(self.stores[protocol], key, inputs, rule.test_labels, measure)


def frozen_features(weights: Path, pixels: np.ndarray) -> np.ndarray:
    """Return the features of an encoder's file for images of one side: (N, D) float32."""
    backbone, report = load_backbone(weights)
    mean, std = (torch.as_tensor(values, dtype=torch.float32) for values in (report.mean, report.std))
    batches = eval_batches(pixels, np.full(len(pixels), -1), pixels.shape[1])
    return np.asarray(extract_features(backbone, batches, mean, std, progress=False).features)


def frozen_side(key: CellKey) -> int:
    """Return the side at which a cell's frozen features are taken."""
    if key.init == "pixels":
        return elpv_rows.PIXELS_SIZE
    return elpv_rows.PUBLIC_SIZE if key.init == PUBLIC and key.protocol != "linear-96" else elpv_rows.SIZE


def _row(init: str) -> Row:
    (row,) = (row for row in elpv_rows.ROWS if row.init == init)
    return row
