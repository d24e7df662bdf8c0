"""Run a study: baselines, pre-training, few labels. Each finished piece is on disk, so a stopped study goes on."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from lit_vision.data.views.views import resize
from lit_vision.errors import UserError
from lit_vision.evaluation.knn import weighted_knn
from lit_vision.evaluation.linear import LinearProbe, logistic_regression
from lit_vision.io.processes import cores
from lit_vision.io.text import format_duration
from lit_vision.results.environment import device_name
from lit_vision.study.cells import CellKey, CellResult, CellStore, hash_inputs
from lit_vision.study.encoders import Encoder, Encoders
from lit_vision.study.images import StudyImages
from lit_vision.study.presets import TIMM, StudyPreset
from lit_vision.study.progress import Reporter
from lit_vision.study.schedule import (
    INIT_SHARE,
    LATE,
    MEASURE_SHARE,
    PRETRAIN_SHARE,
    REPORT_SECONDS,
    SCRATCH,
    StudyPlan,
    measure_all,
    plan_labels,
    plan_pretraining,
)
from lit_vision.study.training import (
    classification,
    probabilities,
    redirect_output,
    save_classifier,
    train,
)


class Study:
    """All cells of one folder.

    Args:
        images: from `read_images`.
        preset: from `preset_for`.
        inits: pre-trained starts to try: "mae", "simclr", "timm:NAME".
        plan: numbers of labels, seeds, and any epochs that are fixed beforehand.
        budget: seconds in all, counted from the reporter's start.
        folder: the run's folder.
        report: what the person sees.
        keep_weights: classifiers of so many seeds are kept, as cells/<cell>.safetensors in half precision.
        source: images to pre-train on, labels unseen; None: the folder's own.
        optional: those of `inits` that are left out, with the reason in `not_tried`, where their weights cannot be had.
    """

    def __init__(
        self,
        images: StudyImages,
        preset: StudyPreset,
        inits: list[str],
        plan: StudyPlan,
        budget: float,
        folder: Path,
        report: Reporter,
        optional: Collection[str] = (),
        keep_weights: int = 0,
        source: StudyImages | None = None,
    ):
        self.images, self.preset, self.inits, self.plan = images, preset, inits, plan
        self.budget, self.folder, self.report = budget, folder, report
        self.store = CellStore(folder / "cells")
        self.log = folder / "study.log"
        self.base = hash_inputs(images.fingerprint, images.size)
        self.optional, self.keep_weights, self.not_tried, self.licenses = optional, keep_weights, {}, {}
        self.make, self.encoders = Encoders(images, preset, folder, report, source), {}
        self.outcomes: list[CellResult] = []

    def run(self) -> list[CellResult]:
        """Everything, in the order: plan, baselines without a network, pre-training, frozen features, trainings on labels."""
        self._fetch_public()
        costs = self._plan()
        self._frozen("pixels", ("logreg", "knn"), *flat_pixels(self.images), "pixels")
        for init in self.inits:
            self.encoders[init] = encoder = self._encoder(init)
            self._frozen(init, ("linear", "knn"), encoder.pool, encoder.test, encoder.sha256)
        missing = [count for count in self.plan.labels if count not in self.plan.tune]
        if missing:
            left = self.budget - self.report.elapsed - REPORT_SECONDS
            plan_labels(self.plan, costs, self.preset, self.inits, left)
            self._keep_plan()
        self._label_trainings()
        return self.outcomes

    # plan

    def _fetch_public(self) -> None:
        """Public weights first: whether they can be had decides what the plan holds."""
        for init in [init for init in self.inits if init.startswith(TIMM)]:
            try:
                self.licenses[init] = self.make.fetch(init)
            except UserError as error:
                if init not in self.optional:
                    raise
                self.inits = [other for other in self.inits if other != init]
                self.not_tried[init] = "no network" if "network" in str(error) else str(error)
                self.report.say(f"{init}: not tried, {self.not_tried[init]}")

    def _plan(self) -> dict:
        inputs = hash_inputs(
            self.base,
            self.make.source.fingerprint,
            self.preset.fields([*SCRATCH, *self.inits], self.plan.protocols),
            self.plan.max_seeds,
            self.plan.protocols,
            self.plan.labels,
            self.plan.seeds,
            self.budget,
            self.plan.pretrain,
            self.plan.tune,
        )
        self._plan_inputs = inputs
        known = StudyPlan.load(self.folder / "plan.json", inputs)
        costs: dict = {}
        if known:
            self.plan = known
            self.report.say("going on with the plan of this folder's earlier run")
        complete = set(self.inits) & set(INIT_SHARE) <= set(self.plan.pretrain) and set(self.plan.labels) <= set(
            self.plan.tune
        )
        if not complete:
            self.report.say("measuring a step of each training")
            with redirect_output(self.log):
                seconds = self.budget * MEASURE_SHARE
                costs = measure_all(self.images, self.make.source, self.preset, self.inits, self.plan.labels, seconds)
            left = self.budget - self.report.elapsed - REPORT_SECONDS
            plan_pretraining(self.plan, costs, self.make.source, self.preset, left * PRETRAIN_SHARE)
            draft = replace(self.plan, tune=dict(self.plan.tune), scratch=dict(self.plan.scratch), seconds={})
            plan_labels(draft, costs, self.preset, self.inits, left * (1 - PRETRAIN_SHARE))
            self.plan.seeds = {count: draft.most_seeds(count) for count in draft.seeds}
            self.plan.max_seeds, self.plan.cut = draft.max_seeds, draft.cut
            self._say_plan(draft)
            self._keep_plan()
        return costs

    def _keep_plan(self) -> None:
        self.plan.save(self.folder / "plan.json", self._plan_inputs)

    def _say_plan(self, draft: StudyPlan) -> None:
        say = self.report.say
        say(f"plan for {format_duration(self.budget)} on {device_name()}, {cores()} cores:")
        for init in self.plan.pretrain:
            network, count = self.preset.network(init).name, self.plan.pool.get(init, len(self.make.source.pool))
            seconds = self.plan.seconds.get(init)
            took = f", about {format_duration(seconds)}" if seconds else ""
            say(f"  {init} ({network}): {self.plan.pretrain[init]} epochs of {count} images{took}")
        for count in self.plan.labels:
            say(
                f"  {count} labels, {self.plan.seeds[count]} seeds: about {draft.tune[count]} epochs from pre-trained "
                f"weights, {draft.scratch[count]} from scratch"
            )
        if "labels" in draft.seconds:
            say(f"  trainings on labels: about {format_duration(draft.seconds['labels'])}")
        for cut in self.plan.cut:
            say(f"  too little time for all: {cut}")

    # pieces

    def _cell_keys(self, init: str, protocol: str) -> Iterator[CellKey]:
        for count in self.plan.labels:
            for seed in range(self.plan.seeds[count]):  # cheap: `fewer` is for trainings
                yield CellKey(init, protocol, count, seed)

    def _encoder(self, init: str) -> Encoder:
        if init.startswith(TIMM):
            return self.make.public(init)
        return self.make.pretrain(init, self.plan.pretrain[init], self.plan.pool.get(init))

    def _frozen(self, init: str, protocols: tuple[str, ...], pool: np.ndarray, test: np.ndarray, origin: str) -> None:
        """Protocols that train no network: logistic regression (named `logreg` on pixels, `linear` on features) and k-NN."""
        classes, done = len(self.images.classes), []
        for protocol in protocols:
            for key in self._cell_keys(init, protocol):
                inputs = hash_inputs(self.base, origin, "frozen")
                outcome = self.store.get(key, inputs)
                if outcome is None:
                    begin = time.perf_counter()
                    rows = self.images.subset(key.labels, key.seed)
                    held = None
                    if protocol == "knn":
                        chosen = "fixed recipe"
                        answer = weighted_knn(pool[rows], self.images.labels[rows], test, classes).numpy()
                    else:
                        probe = self._probe(pool, test, key)
                        answer, chosen = probe.probabilities, probe.chosen_on
                        held = probe.scores.get(probe.strength)
                    outcome = self._outcome(key, answer, time.perf_counter() - begin, 0, chosen, held)
                    self.store.put(outcome, inputs, answer)
                done.append(outcome)
        self.outcomes += done
        self._say_scores(done)

    def _probe(self, pool: np.ndarray, test: np.ndarray, key: CellKey) -> LinearProbe:
        """Logistic regression on the frozen features of an ask's labels."""
        rows = self.images.subset(key.labels, key.seed)
        return logistic_regression(pool[rows], self.images.labels[rows], test, len(self.images.classes), seed=key.seed)

    def probe(self, key: CellKey) -> LinearProbe:
        """The linear probe on a pre-trained start's frozen features."""
        encoder = self.encoders[key.init]
        return self._probe(encoder.pool, encoder.test, key)

    def _label_trainings(self) -> None:
        """Every training on labels, fewest labels first; within a seed all starts, so that a stop leaves whole pairs."""
        for count in self.plan.labels:
            done: list[CellResult] = []
            for seed in range(self.plan.most_seeds(count)):
                begin = self.report.elapsed
                for init in (*SCRATCH, *self.inits):
                    if seed < self.plan.seeds_of(init, count):
                        protocols = self.preset.protocols(init, self.plan.protocols)
                        done += [self._on_labels(CellKey(init, protocol, count, seed)) for protocol in protocols]
                if self._late(count, self.report.elapsed - begin) and seed + 1 < self.plan.most_seeds(count):
                    self._stop_after(count, seed + 1)
                    break
            self.outcomes += done
            self._say_scores(done)

    def _late(self, count: int, seconds: float) -> bool:
        """Whether `seconds` more would take the time of the larger numbers of labels. Epochs that were asked for are never cut."""
        later = sum(self.plan.seconds.get(str(other), 0.0) for other in self.plan.labels if other > count)
        left = LATE * self.budget - REPORT_SECONDS - later - self.report.elapsed
        return count not in self.plan.fixed and seconds > left

    def _stop_after(self, count: int, seeds: int) -> None:
        self.plan.trained[count] = seeds
        self.plan.cut.append(f"{seeds} trainings of a kind at {count} labels, since steps took longer than measured")
        self.report.say(f"too little time for all: {self.plan.cut[-1]}")
        self._keep_plan()

    def _on_labels(self, key: CellKey) -> CellResult:
        encoder = self.encoders.get(key.init)
        epochs = (self.plan.tune if encoder else self.plan.scratch)[key.labels]
        network = self.preset.network(key.init)
        own = (
            asdict(network),
            self.preset.options(key.init, key.protocol, epochs * self.preset.steps_per_epoch(key.labels)),
            self.preset.train_views[network.name],
            self.preset.batch_size,
        )
        origin = (encoder.sha256, "the probe's own head") if encoder else None
        inputs = hash_inputs(self.base, origin, epochs, own)
        outcome = self.store.get(key, inputs)
        if outcome is None:
            rows = self.images.subset(key.labels, key.seed)
            with redirect_output(self.log):
                weights, probe = None, None
                if encoder:
                    weights, probe = encoder.weights, self.probe(key)
                module, data = classification(
                    key.init, self.images, rows, self.preset, key.seed, weights, probe, key.protocol, epochs
                )
                self.report.begin(f"{key.init}, {key.protocol}, {key.labels} labels, seed {key.seed}", data.batch_size)
                trained = train(module, data, epochs, key.seed, self.report.tick)
                answer = probabilities(module, self.images, self.preset.side(key.init))
            if key.seed < self.keep_weights:
                save_classifier(self.store.folder / f"{key.name}.safetensors", module)
            outcome = self._outcome(key, answer, trained.seconds, trained.steps, "fixed recipe", None)
            self.store.put(outcome, inputs, answer)
            self.store.put_losses(key, trained.losses)
        return outcome

    def _outcome(
        self, key: CellKey, answer: np.ndarray, seconds: float, steps: int, chosen: str, held: float | None
    ) -> CellResult:
        top1 = float((answer.argmax(1) == self.images.test_labels).mean())
        return CellResult(key, top1, round(seconds, 3), steps, chosen, held)

    def _say_scores(self, outcomes: list[CellResult]) -> None:
        groups: dict[tuple, list[float]] = {}
        for outcome in outcomes:
            groups.setdefault((outcome.key.init, outcome.key.protocol, outcome.key.labels), []).append(outcome.top1)
        for (init, protocol, labels), values in groups.items():
            self.report.say(
                f"  {init:<12} {protocol:<14} {labels:>6} labels: {100 * np.mean(values):5.1f} %  ({len(values)} seeds)"
            )


def flat_pixels(images: StudyImages) -> tuple[np.ndarray, np.ndarray]:
    """Labelled pool and test split as rows of pixels in 0..1, at the size of the test split."""
    pool, side = images.pool[: int((images.labels >= 0).sum())], images.test.shape[1]
    if pool.shape[1] != side:
        pool = np.stack([resize(image, side, side) for image in pool])
    return tuple(pixels.reshape(len(pixels), -1).astype(np.float32) / 255 for pixels in (pool, images.test))
