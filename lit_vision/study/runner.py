"""Run a study: baselines, pre-training, few labels. Each finished piece is stored, so that a study can be continued.

Measured first are frozen features of raw pixels and of given weights; then come the units of the plan, cheapest first.
All that depends on the clock goes through `Decisions`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.backbones.create import patch_side
from lit_vision.evaluation.linear import LinearProbe
from lit_vision.study.cells import (
    CellKey,
    CellResult,
    CellStore,
    hash_inputs,
    measure_once,
    refuse_older_study,
    to_cells,
)
from lit_vision.study.chosen_labels import ChosenLabels, note_on_left_out
from lit_vision.study.costs import choose_frozen_side
from lit_vision.study.decisions import Decisions
from lit_vision.study.encoders import Encoder, EncoderStore
from lit_vision.study.frozen import fit_probe, measure_frozen, needed_rows
from lit_vision.study.images import StudyImages
from lit_vision.study.init_weights import open_inits
from lit_vision.study.inits import Init, init_of
from lit_vision.study.label_training import LabelTrainer
from lit_vision.study.metrics_of_cells import metric_for
from lit_vision.study.pace import Pace
from lit_vision.study.pixel_cache import Rows
from lit_vision.study.plan import Plan, Unit, frozen_counts, order
from lit_vision.study.planner import Planner
from lit_vision.study.presets import StudyPreset, method_of
from lit_vision.study.progress import Reporter
from lit_vision.study.settings import Settings
from lit_vision.study.verdict import choose_frozen
from lit_vision.weights.load import load_backbone

FROZEN_SHARE = 0.6  # of the budget: for features of given weights, which smaller images would spoil
ON_PIXELS, ON_FEATURES = ("logreg", "knn"), ("linear", "knn")


class Study:
    """All cells of one folder.

    Args:
        images: from `read_images`.
        preset: from `preset_for`.
        inits: to try beside the baselines: of `parse_inits`, or names such as "mae", "timm:NAME", "simclr@timm:NAME".
        settings: numbers of labels, seeds and protocols.
        budget: seconds in all, those of earlier runs of this folder's study included.
        folder: the run's folder.
        reporter: prints the progress.
        optional: those of `inits` that are left out, with the reason in `not_tried`, if their weights cannot be
            downloaded.
        keep_weights: number of seeds whose classifiers are stored, as cells/<cell>.safetensors in half precision.
        source: images to pre-train on, labels unseen; None: the folder's own.
        replay: plan.jsonl of an earlier study, whose decisions are taken instead of the clock's.
        clock: returns seconds that only grow; for tests.

    Attributes:
        labels: numbers of labels of the protocols that train no network; holds those of `settings`.
        plan: units and their planned steps, once `run` has made it.
        steps: of each unit that was run, by its name.
        chosen: cells of `ChosenLabels.measure`, if the settings ask for them.
        not_tried: reason, by init or name of a unit.

    Raises:
        UserError: `folder` holds a study of an earlier version, or `replay` does not fit.
    """

    def __init__(
        self,
        images: StudyImages,
        preset: StudyPreset,
        inits: Sequence[str | Init],
        settings: Settings,
        budget: float,
        folder: Path,
        reporter: Reporter,
        optional: Collection[str] = (),
        keep_weights: int = 0,
        source: StudyImages | None = None,
        replay: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        refuse_older_study(folder)
        self.images, self.preset, self.settings = images, preset, settings
        self.budget, self.folder, self.reporter, self.replay = budget, folder, reporter, replay
        self._clock = clock
        self.store = CellStore(folder / "cells")
        self.log = folder / "study.log"
        # cells of an earlier version, which enlarged and cut the stored copies instead, are measured again
        self.data_hash = hash_inputs(images.fingerprint, images.size, "pixels of the files")
        self.given = [init if isinstance(init, Init) else init_of(init) for init in inits]
        self.inits = [init.name for init in self.given]
        self.optional, self.keep_weights = optional, keep_weights
        self.not_tried: dict[str, str] = {}
        self.licenses: dict[str, str] = {}  # of public weights, by init
        self.origins: dict[str, str] = {}  # package, license and sha256 of weights that a package shipped, by init
        self.encoder_store = EncoderStore(images, preset, folder, reporter, source)
        self.encoders: dict[str, Encoder] = {}
        self.results: list[CellResult] = []
        self.labels = frozen_counts(settings.labels, len(images.classes), images.labeled)
        rows = needed_rows(images, dict(zip(self.labels, map(settings.seeds_at, self.labels))))
        self.encoder_store.rows = rows = None if settings.choose else rows  # strategies look at all of them
        needed = images.labeled if rows is None else len(rows)
        self._frozen_images = needed + len(images.test_labels)
        self.plan, self.steps = Plan(), dict[str, int]()
        self.chosen: list[dict[str, Any]] = []

    def run(self) -> list[CellResult]:
        """Run everything: given weights, plan, frozen features, then the plan's units. Returns the cells' results."""
        self._download_public()
        settings = self.settings
        inputs = hash_inputs(
            self.data_hash,
            self.encoder_store.source.fingerprint,
            self.preset.fields(order(self.inits), settings.protocols),
            [settings.labels, settings.seeds, settings.max_seeds, settings.epochs, settings.protocols],
            self.inits,
            *filter(None, [{init.name: init.sha256 for init in self.given if init.path}]),  # a name says too little
            *filter(None, [settings.choose]),
        )
        self.decisions = Decisions(self.folder / "plan.jsonl", inputs, self.budget, self.replay, self._clock)
        self.pace = Pace(self.decisions, self.budget)
        if self.replay:
            self.reporter.log(f"every decision is taken from {self.replay}")
        elif self.decisions.found:
            self.reporter.log("continuing with the plan of this folder's earlier run")
        given = [init for init in self.inits if not method_of(init)]
        for init in given:
            self._choose_frozen_side(init, FROZEN_SHARE * self.budget / len(given))
            self.reporter.log(f"{init}: frozen features")
            self.encoders[init] = self.encoder_store.load_public(init)
        self.plan = self._make_plan()
        self._label_trainer = LabelTrainer(
            self.images,
            self.preset,
            self.encoder_store,
            self.store,
            self.pace,
            self.reporter,
            self.data_hash,
            self.keep_weights,
        )
        self._measure_frozen("pixels", ON_PIXELS, *self.images.flat_pixels(), "pixels")
        for init, encoder in self.encoders.items():
            self._measure_frozen(init, ON_FEATURES, encoder.pool, encoder.test, self._origin(init))
        if settings.choose:
            self.chosen = self._measure_chosen()
        for index, unit in enumerate(self.plan.units):
            self._run_unit(unit, self.plan.units[index:])
        self.decisions.finish()
        return self.results

    # plan

    def _download_public(self) -> None:
        """Bring all given weights into the folder first: the plan depends on which of them there are."""
        opened = open_inits(self.given, self.encoder_store, self.optional)
        self.preset, self.given, self.inits = opened.preset, opened.inits, [init.name for init in opened.inits]
        for init, reason in opened.not_tried.items():
            self._not_tried(init, reason)
        for old, new in opened.renamed.items():
            for given in (self.settings.max_seeds, self.settings.epochs):
                if old in given:
                    given[new] = given.pop(old)
        for init, origin in opened.origins.items():
            self.reporter.log(f"{init}: weights of {origin}")
        self.origins = opened.origins
        self.licenses = {init.name: init.license for init in opened.inits if init.license}

    def _not_tried(self, name: str, reason: str) -> None:
        self.not_tried[name] = reason
        self.reporter.log(f"{name}: not tried, {reason}")

    def _choose_frozen_side(self, init: str, seconds: float) -> None:
        """Let given weights see smaller images where their features would take too long at the best side."""
        best = self.preset.frozen_side(init)
        images = self._frozen_images

        def compute() -> int:
            if self.settings.frozen_size is not None:
                return best
            path, smallest = self.encoder_store.path(init), min(best, self.preset.side(init))
            patch = patch_side(load_backbone(path)[0].model)
            return choose_frozen_side(lambda side: load_backbone(path, side)[0], best, smallest, images, seconds, patch)

        side = self.decisions.decide(f"{init}: side of frozen images", compute)
        if side != best:
            sides = {**self.preset.frozen_sides, init: side}
            self.preset = self.encoder_store.preset = replace(self.preset, frozen_sides=sides)
            note = f"{init}, frozen, sees {side} pixels instead of {best}: {images} images would take too long."
            self.images.notes.append(note)
            self.reporter.log(note)

    def _origin(self, init: str) -> str:
        """Return what an init's frozen features depend on, to be hashed."""
        return f"{self.encoders[init].sha256} at {self.preset.frozen_side(init)} pixels"

    def _make_plan(self) -> Plan:
        encoder = next(iter(self.encoders.values()), None)
        self._planner = Planner(
            self.images,
            self.encoder_store.source,
            self.preset,
            self.inits,
            self.settings,
            self.labels,
            (encoder.pool, encoder.test) if encoder else self.images.flat_pixels(),
            self.pace,
            self.reporter.log,
            self.log,
        )
        plan = self._planner.plan(len(self.encoders) + (1 + len(self.settings.choose) if self.settings.choose else 0))
        for name, reason in plan.not_tried.items():
            self._not_tried(name, reason)
        return plan

    def multiply_adds(self, result: CellResult) -> int:
        """Return the multiply-adds of one model of a cell, its pre-training here included; 0 for raw pixels."""
        return self._planner.multiply_adds(result, self.encoders)

    # pieces

    def _measure_frozen(self, init: str, protocols: tuple[str, ...], pool: Rows, test: Rows, origin: str) -> None:
        """Measure protocols that train no network: k-NN and logistic regression ("logreg" on pixels, "linear" else)."""
        results = []
        grouped = () if self.images.groups is None else ("whole groups",)
        for protocol in protocols:
            for count in self.labels:
                for seed in range(self.settings.seeds_at(count)):  # all: max_seeds limits only trainings
                    key = CellKey(init, protocol, count, seed)
                    inputs = hash_inputs(self.data_hash, origin, "frozen, judged, balanced", *grouped)
                    measure = partial(measure_frozen, key, pool, test, self.images)
                    results.append(measure_once(self.store, key, inputs, self.images.test_labels, measure))
        self.results += results
        self._log_scores(results)

    def _measure_chosen(self) -> list[dict[str, Any]]:
        """Measure strategies on the frozen features that cross-validation prefers at the most labels."""
        cells = [cell for cell in to_cells(self.results, {}) if cell["labels"] == self.labels[-1]]
        best = choose_frozen(cells, metric_for(cells, self.images.per_class))
        init = best["init"] if best else "pixels"
        encoder = self.encoders.get(init)
        pool, test = (encoder.pool, encoder.test) if encoder else self.images.flat_pixels()
        if note := note_on_left_out(self.labels, self.images.labeled):
            self.images.notes.append(note)
            self.reporter.log(note)
        self.reporter.log(f"choosing what to label, by features of {init}: {', '.join(self.settings.choose)}")
        self.reporter.start_task("choosing what to label")
        cells = ChosenLabels(
            init,
            self._origin(init) if encoder else init,
            pool,
            test,
            self.images,
            self.labels,
            self.settings.seeds_at,
            self.folder / "cells" / "chosen",
            self.data_hash,
        ).measure(self.settings.choose, self.reporter.update)
        for cell in cells:
            self.reporter.log(f"  {cell['strategy']:<24} {cell['labels']:>6} labels: {100 * cell['mean']:5.1f} %")
        return cells

    def probe(self, key: CellKey) -> LinearProbe:
        """Fit the linear probe of a cell's labels on the frozen features of its init."""
        encoder = self.encoders[key.init]
        return fit_probe(key, encoder.pool, encoder.test, self.images)

    def _run_unit(self, unit: Unit, rest: list[Unit]) -> None:
        """Run a unit whose length is decided now, from the time that is left for it and the units behind it."""
        if unit.init in self.not_tried:
            self._not_tried(unit.name, self.not_tried[unit.init])
            return
        steps = self.pace.steps(unit, rest)
        if not steps:
            self._not_tried(unit.name if unit.labels else unit.init, "the time ran out")
            return
        self.steps[unit.name] = steps
        deadline = self.pace.deadline(unit, rest)
        if unit.labels:
            results = self._label_trainer.train(unit, self.encoders.get(unit.init), steps, deadline)
            self.results += results
            self._log_scores(results)
        else:
            self._pretrain(unit, steps, deadline)

    def _pretrain(self, unit: Unit, steps: int, deadline: float) -> None:
        init = unit.init
        cool_down = None if unit.fixed else self.pace.cool_down(unit.name, deadline, unit)
        plan_id = "" if unit.fixed else self.decisions.id
        self.encoders[init] = encoder = self.encoder_store.pretrain(init, steps, cool_down, plan_id)
        if not encoder.found:
            self.pace.compare(encoder.seconds, unit.cost.seconds(encoder.images_seen))
        self._measure_frozen(init, ON_FEATURES, encoder.pool, encoder.test, self._origin(init))

    def _log_scores(self, results: list[CellResult]) -> None:
        groups: dict[tuple[str, str, int], list[float]] = {}
        for result in results:
            groups.setdefault((result.key.init, result.key.protocol, result.key.labels), []).append(result.value)
        for (init, protocol, labels), values in groups.items():
            score = f"{100 * np.mean(values):5.1f} %  ({len(values)} seed{'s' * (len(values) != 1)})"
            self.reporter.log(f"  {init:<12} {protocol:<14} {labels:>6} labels: {score}")
