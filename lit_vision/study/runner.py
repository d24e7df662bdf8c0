"""Run a study: baselines, pre-training, few labels. Each finished piece is stored, so that a study can be continued."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from lit_vision.evaluation.linear import LinearProbe
from lit_vision.io.processes import cores
from lit_vision.io.text import format_duration
from lit_vision.results.environment import device_name
from lit_vision.study import training
from lit_vision.study.cells import (
    CellKey,
    CellResult,
    CellStore,
    Measurement,
    hash_inputs,
    measure_once,
    refuse_older_study,
)
from lit_vision.study.encoders import Encoder, EncoderStore, fit_probe, measure_frozen
from lit_vision.study.images import StudyImages
from lit_vision.study.init_weights import open_inits
from lit_vision.study.inits import Init, init_of
from lit_vision.study.pixel_cache import Rows
from lit_vision.study.presets import SCRATCH, StudyPreset, method_of
from lit_vision.study.progress import Reporter
from lit_vision.study.schedule import (
    INIT_SHARE,
    LATE,
    MEASURE_SHARE,
    PRETRAIN_SHARE,
    REPORT_SECONDS,
    Costs,
    StudyPlan,
    measure_all,
    plan_labels,
    plan_pretraining,
)


class Study:
    """All cells of one folder.

    Args:
        images: from `read_images`.
        preset: from `preset_for`.
        inits: to try beside the baselines: of `parse_inits`, or names such as "mae", "timm:NAME", "simclr@timm:NAME".
        plan: numbers of labels, seeds, and epochs that are fixed beforehand.
        budget: seconds in all, counted from the reporter's start.
        folder: the run's folder.
        reporter: prints the progress.
        optional: those of `inits` that are left out, with the reason in `not_tried`, if their weights cannot be
            downloaded.
        keep_weights: number of seeds whose classifiers are stored, as cells/<cell>.safetensors in half precision.
        source: images to pre-train on, labels unseen; None: the folder's own.

    Raises:
        UserError: `folder` holds a study of an earlier version.
    """

    def __init__(
        self,
        images: StudyImages,
        preset: StudyPreset,
        inits: Sequence[str | Init],
        plan: StudyPlan,
        budget: float,
        folder: Path,
        reporter: Reporter,
        optional: Collection[str] = (),
        keep_weights: int = 0,
        source: StudyImages | None = None,
    ):
        refuse_older_study(folder)
        self.images, self.preset, self.plan = images, preset, plan
        self.budget, self.folder, self.reporter = budget, folder, reporter
        self.store = CellStore(folder / "cells")
        self.log = folder / "study.log"
        # cells of an earlier version, which enlarged and cut the stored copies instead, are measured again
        self.data_hash = hash_inputs(images.fingerprint, images.size, "pixels of the files")
        self.given = [init if isinstance(init, Init) else init_of(init) for init in inits]
        self.inits = [init.name for init in self.given]
        self.optional, self.keep_weights = optional, keep_weights
        self.not_tried: dict[str, str] = {}  # reason, by init
        self.licenses: dict[str, str] = {}  # of public weights, by init
        self.origins: dict[str, str] = {}  # package, license and sha256 of weights that a package shipped, by init
        self.encoder_store = EncoderStore(images, preset, folder, reporter, source)
        self.encoders: dict[str, Encoder] = {}
        self.results: list[CellResult] = []

    def run(self) -> list[CellResult]:
        """Run everything: plan, baselines without a network, pre-training, frozen features, trainings on labels."""
        self._download_public()
        costs = self._make_plan()
        self._measure_frozen("pixels", ("logreg", "knn"), *self.images.flat_pixels(), "pixels")
        for init in self.inits:
            self.encoders[init] = encoder = self._encoder(init)
            self._measure_frozen(init, ("linear", "knn"), encoder.pool, encoder.test, encoder.sha256)
        if any(count not in self.plan.tune for count in self.plan.labels):
            seconds = self.budget - self.reporter.elapsed - REPORT_SECONDS
            plan_labels(self.plan, costs, self.preset, self.inits, seconds)
            self._save_plan()
        self._train_on_labels()
        return self.results

    # plan

    def _download_public(self) -> None:
        """Bring all given weights into the folder first: the plan depends on which of them there are."""
        opened = open_inits(self.given, self.encoder_store, self.optional)
        self.preset, self.given, self.inits = opened.preset, opened.inits, [init.name for init in opened.inits]
        for init, reason in opened.not_tried.items():
            self._not_tried(init, reason)
        for old, new in opened.renamed.items():
            if old in self.plan.max_seeds:
                self.plan.max_seeds[new] = self.plan.max_seeds.pop(old)
        for init, origin in opened.origins.items():
            self.reporter.log(f"{init}: weights of {origin}")
        self.origins = opened.origins
        self.licenses = {init.name: init.license for init in opened.inits if init.license}

    def _not_tried(self, init: str, reason: str) -> None:
        self.not_tried[init] = reason
        self.reporter.log(f"{init}: not tried, {reason}")

    def _make_plan(self) -> Costs:
        plan = self.plan
        self._plan_inputs = hash_inputs(
            self.data_hash,
            self.encoder_store.source.fingerprint,
            self.preset.fields([*SCRATCH, *self.inits], plan.protocols),
            plan.max_seeds,
            plan.labels,
            plan.seeds,
            self.budget,
            plan.pretrain,
            plan.tune,
        )
        if stored := StudyPlan.load(self.folder / "plan.json", self._plan_inputs):
            self.plan = plan = stored
            self.reporter.log("continuing with the plan of this folder's earlier run")
        pretrained = set(self.inits) & set(INIT_SHARE)
        if pretrained <= set(plan.pretrain) and set(plan.labels) <= set(plan.tune):
            return {}
        self.reporter.log("measuring a few steps of each training")
        source = self.encoder_store.source
        with training.redirect_output(self.log):
            seconds = self.budget * MEASURE_SHARE
            costs = measure_all(self.images, source, self.preset, self.inits, plan.labels, seconds)
        remaining = self.budget - self.reporter.elapsed - REPORT_SECONDS
        plan_pretraining(plan, costs, source, self.preset, remaining * PRETRAIN_SHARE)
        draft = replace(plan, tune=dict(plan.tune), scratch=dict(plan.scratch), seconds={})
        plan_labels(draft, costs, self.preset, self.inits, remaining * (1 - PRETRAIN_SHARE))
        plan.seeds = {count: draft.most_seeds(count) for count in draft.seeds}
        plan.max_seeds, plan.omitted = draft.max_seeds, draft.omitted
        self._log_plan(draft)
        self._save_plan()
        return costs

    def _save_plan(self) -> None:
        self.plan.save(self.folder / "plan.json", self._plan_inputs)

    def _log_plan(self, draft: StudyPlan) -> None:
        log, plan = self.reporter.log, self.plan
        log(f"plan for {format_duration(self.budget)} on {device_name()}, {cores()} cores:")
        for init in plan.pretrain:
            network = self.preset.network(init).name
            count = plan.pretrain_images.get(init, len(self.encoder_store.source.pool))
            seconds = plan.seconds.get(init)
            duration = f", about {format_duration(seconds)}" if seconds else ""
            log(f"  {init} ({network}): {plan.pretrain[init]} epochs of {count} images{duration}")
        for count in plan.labels:
            log(
                f"  {count} labels, {plan.seeds[count]} seeds: about {draft.tune[count]} epochs from pre-trained "
                f"weights, {draft.scratch[count]} from scratch"
            )
        if "labels" in draft.seconds:
            log(f"  trainings on labels: about {format_duration(draft.seconds['labels'])}")
        for sentence in plan.omitted:
            log(f"  too little time for all: {sentence}")

    # pieces

    def _cell_keys(self, init: str, protocol: str) -> Iterator[CellKey]:
        for count in self.plan.labels:
            for seed in range(self.plan.seeds[count]):  # all seeds: max_seeds limits only trainings
                yield CellKey(init, protocol, count, seed)

    def _encoder(self, init: str) -> Encoder:
        if not method_of(init):
            return self.encoder_store.load_public(init)
        return self.encoder_store.pretrain(init, self.plan.pretrain[init], self.plan.pretrain_images.get(init))

    def _measure_frozen(self, init: str, protocols: tuple[str, ...], pool: Rows, test: Rows, origin: str) -> None:
        """Measure protocols that train no network: k-NN and logistic regression ("logreg" on pixels, "linear" else)."""
        results = []
        for protocol in protocols:
            for key in self._cell_keys(init, protocol):
                inputs = hash_inputs(self.data_hash, origin, "frozen")
                measure = partial(measure_frozen, key, pool, test, self.images)
                results.append(measure_once(self.store, key, inputs, self.images.test_labels, measure))
        self.results += results
        self._log_scores(results)

    def probe(self, key: CellKey) -> LinearProbe:
        """Fit the linear probe of a cell's labels on the frozen features of its pre-trained init."""
        encoder = self.encoders[key.init]
        return fit_probe(key, encoder.pool, encoder.test, self.images)

    def _first_head(self, key: CellKey) -> LinearProbe:
        """Fit the head that a training begins with, on features of the images as the training sees them."""
        return fit_probe(key, *self.encoder_store.head_features(key.init), self.images)

    def _train_on_labels(self) -> None:
        """Run the trainings on labels, fewest labels first; all inits of a seed before the next, for complete pairs."""
        for count in self.plan.labels:
            results: list[CellResult] = []
            for seed in range(self.plan.most_seeds(count)):
                begin = self.reporter.elapsed
                for init in (*SCRATCH, *self.inits):
                    if seed < self.plan.seeds_of(init, count):
                        protocols = self.preset.protocols(init, self.plan.protocols)
                        results += [self._train_cell(CellKey(init, protocol, count, seed)) for protocol in protocols]
                if self._is_late(count, self.reporter.elapsed - begin) and seed + 1 < self.plan.most_seeds(count):
                    self._omit_seeds_from(count, seed + 1)
                    break
            self.results += results
            self._log_scores(results)

    def _is_late(self, count: int, seconds: float) -> bool:
        """True if `seconds` more would take time of the larger numbers of labels; False if the user set the epochs."""
        later = sum(self.plan.seconds.get(str(other), 0.0) for other in self.plan.labels if other > count)
        remaining = LATE * self.budget - REPORT_SECONDS - later - self.reporter.elapsed
        return count not in self.plan.fixed and seconds > remaining

    def _omit_seeds_from(self, count: int, seeds: int) -> None:
        self.plan.trained_seeds[count] = seeds
        sentence = f"{seeds} trainings of a kind at {count} labels, since steps took longer than measured"
        self.plan.omitted.append(sentence)
        self.reporter.log(f"too little time for all: {sentence}")
        self._save_plan()

    def _train_cell(self, key: CellKey) -> CellResult:
        encoder = self.encoders.get(key.init)
        epochs = (self.plan.tune if encoder else self.plan.scratch)[key.labels]
        steps = epochs * self.preset.steps_per_epoch(key.labels)
        origin = (encoder.sha256, "head of the probe") if encoder else None
        fields = self.preset.training_fields(key.init, key.protocol, steps)
        inputs = hash_inputs(self.data_hash, origin, epochs, fields)
        measure = partial(self._train_classifier, key, encoder, epochs)
        return measure_once(self.store, key, inputs, self.images.test_labels, measure)

    def _train_classifier(self, key: CellKey, encoder: Encoder | None, epochs: int) -> Measurement:
        images, preset = self.images, self.preset
        rows = images.subset(key.labels, key.seed)
        with training.redirect_output(self.log):
            weights, probe = (encoder.weights, self._first_head(key)) if encoder else (None, None)
            module, data = training.classification(
                key.init, images, rows, preset, key.seed, weights, probe, key.protocol, epochs
            )
            title = f"{key.init}, {key.protocol}, {key.labels} labels, seed {key.seed}"
            self.reporter.start_task(title, data.batch_size)
            trained = training.train(module, data, epochs, key.seed, self.reporter.update)
            answer = training.probabilities(module, images, preset.side(key.init))
        if key.seed < self.keep_weights:
            training.save_classifier(self.store.folder / f"{key.name}.safetensors", module)
        self.store.put_losses(key, trained.losses)
        return Measurement(answer, trained.steps, seconds=trained.seconds)

    def _log_scores(self, results: list[CellResult]) -> None:
        groups: dict[tuple[str, str, int], list[float]] = {}
        for result in results:
            groups.setdefault((result.key.init, result.key.protocol, result.key.labels), []).append(result.top1)
        for (init, protocol, labels), values in groups.items():
            score = f"{100 * np.mean(values):5.1f} %  ({len(values)} seeds)"
            self.reporter.log(f"  {init:<12} {protocol:<14} {labels:>6} labels: {score}")
