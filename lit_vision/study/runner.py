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
from lit_vision.io.atomic import write_json
from lit_vision.io.processes import cores
from lit_vision.io.text import clock
from lit_vision.results.environment import device_name
from lit_vision.study.cells import Ask, CellStore, Outcome, digest
from lit_vision.study.encoders import Encoder, Encoders
from lit_vision.study.images import Images
from lit_vision.study.presets import TIMM, Recipe
from lit_vision.study.progress import Reporter
from lit_vision.study.schedule import (
    LATE,
    MEASURE_SHARE,
    PRETRAIN_SHARE,
    REPORT_SECONDS,
    SCRATCH,
    START_SHARE,
    Plan,
    measure_all,
    plan_labels,
    plan_pretraining,
)
from lit_vision.study.training import (
    classification,
    probabilities,
    quiet,
    save_classifier,
    train,
)


class Study:
    """All cells of one folder.

    Args:
        images: from `read_images`.
        recipe: from `recipe_for`.
        starts: pre-trained starts to try: "mae", "simclr", "timm:NAME".
        plan: numbers of labels, seeds, and any epochs that are fixed beforehand.
        budget: seconds in all, counted from the reporter's start.
        folder: the run's folder.
        report: what the person sees.
        keep_weights: classifiers of so many seeds are kept, as cells/<cell>.safetensors in half precision.
        source: images to pre-train on, labels unseen; None: the folder's own.
        optional: those of `starts` that are left out, with the reason in `not_tried`, where their weights cannot be had.
    """

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        starts: list[str],
        plan: Plan,
        budget: float,
        folder: Path,
        report: Reporter,
        optional: Collection[str] = (),
        keep_weights: int = 0,
        source: Images | None = None,
    ):
        self.images, self.recipe, self.starts, self.plan = images, recipe, starts, plan
        self.budget, self.folder, self.report = budget, folder, report
        self.store = CellStore(folder / "cells")
        self.log = folder / "study.log"
        self.base = digest(images.fingerprint, images.size)
        self.optional, self.keep_weights, self.not_tried, self.licences = optional, keep_weights, {}, {}
        self.make, self.encoders = Encoders(images, recipe, folder, report, source), {}
        self.outcomes: list[Outcome] = []

    def run(self) -> list[Outcome]:
        """Everything, in the order: plan, baselines without a network, pre-training, frozen features, trainings on labels."""
        self._fetch_public()
        paces = self._plan()
        self._frozen("pixels", ("logreg", "knn"), *flat_pixels(self.images), "pixels")
        for start in self.starts:
            self.encoders[start] = encoder = self._encoder(start)
            self._frozen(start, ("linear", "knn"), encoder.pool, encoder.test, encoder.sha256)
        missing = [count for count in self.plan.labels if count not in self.plan.tune]
        if missing:
            left = self.budget - self.report.elapsed - REPORT_SECONDS
            plan_labels(self.plan, paces, self.recipe, self.starts, left)
            self._keep_plan()
        self._label_trainings()
        return self.outcomes

    # plan

    def _fetch_public(self) -> None:
        """Public weights first: whether they can be had decides what the plan holds."""
        for start in [start for start in self.starts if start.startswith(TIMM)]:
            try:
                self.licences[start] = self.make.fetch(start)
            except UserError as error:
                if start not in self.optional:
                    raise
                self.starts = [other for other in self.starts if other != start]
                self.not_tried[start] = "no network" if "network" in str(error) else str(error)
                self.report.say(f"{start}: not tried, {self.not_tried[start]}")

    def _plan(self) -> dict:
        inputs = digest(
            self.base,
            self.make.source.fingerprint,
            self.recipe.as_dict(),
            self.starts,
            self.plan.fewer,
            self.plan.protocols,
            self.plan.labels,
            self.plan.seeds,
            self.budget,
            self.plan.pretrain,
            self.plan.tune,
        )
        self._plan_inputs = inputs
        known = Plan.load(self.folder / "plan.json", inputs)
        paces: dict = {}
        if known:
            self.plan = known
            self.report.say("going on with the plan of this folder's earlier run")
        complete = set(self.starts) & set(START_SHARE) <= set(self.plan.pretrain) and set(self.plan.labels) <= set(
            self.plan.tune
        )
        if not complete:
            self.report.say("measuring a step of each training")
            with quiet(self.log):
                seconds = self.budget * MEASURE_SHARE
                paces = measure_all(self.images, self.make.source, self.recipe, self.starts, self.plan.labels, seconds)
            left = self.budget - self.report.elapsed - REPORT_SECONDS
            plan_pretraining(self.plan, paces, self.make.source, self.recipe, left * PRETRAIN_SHARE)
            draft = replace(self.plan, tune=dict(self.plan.tune), scratch=dict(self.plan.scratch), seconds={})
            plan_labels(draft, paces, self.recipe, self.starts, left * (1 - PRETRAIN_SHARE))
            self.plan.seeds = {count: draft.most_seeds(count) for count in draft.seeds}
            self.plan.fewer, self.plan.cut = draft.fewer, draft.cut
            self._say_plan(draft)
            self._keep_plan()
        return paces

    def _keep_plan(self) -> None:
        self.plan.save(self.folder / "plan.json", self._plan_inputs)

    def _say_plan(self, draft: Plan) -> None:
        say = self.report.say
        say(f"plan for {clock(self.budget)} on {device_name()}, {cores()} cores:")
        for start in self.plan.pretrain:
            network, count = self.recipe.network(start).name, self.plan.pool.get(start, len(self.make.source.pool))
            seconds = self.plan.seconds.get(start)
            took = f", about {clock(seconds)}" if seconds else ""
            say(f"  {start} ({network}): {self.plan.pretrain[start]} epochs of {count} images{took}")
        for count in self.plan.labels:
            say(
                f"  {count} labels, {self.plan.seeds[count]} seeds: about {draft.tune[count]} epochs from pre-trained "
                f"weights, {draft.scratch[count]} from scratch"
            )
        if "labels" in draft.seconds:
            say(f"  trainings on labels: about {clock(draft.seconds['labels'])}")
        for cut in self.plan.cut:
            say(f"  too little time for all: {cut}")

    # pieces

    def _asks(self, start: str, protocol: str) -> Iterator[Ask]:
        for count in self.plan.labels:
            for seed in range(self.plan.seeds[count]):  # cheap: `fewer` is for trainings
                yield Ask(start, protocol, count, seed)

    def _encoder(self, start: str) -> Encoder:
        if start.startswith(TIMM):
            return self.make.public(start)
        return self.make.pretrain(start, self.plan.pretrain[start], self.plan.pool.get(start))

    def _frozen(self, start: str, protocols: tuple[str, ...], pool: np.ndarray, test: np.ndarray, origin: str) -> None:
        """Protocols that train no network: logistic regression (named `logreg` on pixels, `linear` on features) and k-NN."""
        classes, done = len(self.images.classes), []
        for protocol in protocols:
            for ask in self._asks(start, protocol):
                inputs = digest(self.base, origin, "frozen")
                outcome = self.store.get(ask, inputs)
                if outcome is None:
                    begin = time.perf_counter()
                    rows = self.images.subset(ask.labels, ask.seed)
                    held = None
                    if protocol == "knn":
                        chosen = "fixed recipe"
                        answer = weighted_knn(pool[rows], self.images.labels[rows], test, classes).numpy()
                    else:
                        probe = self._probe(pool, test, ask)
                        answer, chosen = probe.probabilities, probe.chosen_on
                        held = probe.scores.get(probe.strength)
                    outcome = self._outcome(ask, answer, time.perf_counter() - begin, 0, chosen, held)
                    self.store.put(outcome, inputs, answer)
                done.append(outcome)
        self.outcomes += done
        self._say_scores(done)

    def _probe(self, pool: np.ndarray, test: np.ndarray, ask: Ask) -> LinearProbe:
        """Logistic regression on the frozen features of an ask's labels."""
        rows = self.images.subset(ask.labels, ask.seed)
        return logistic_regression(pool[rows], self.images.labels[rows], test, len(self.images.classes), seed=ask.seed)

    def probe(self, ask: Ask) -> LinearProbe:
        """The linear probe on a pre-trained start's frozen features."""
        encoder = self.encoders[ask.start]
        return self._probe(encoder.pool, encoder.test, ask)

    def _label_trainings(self) -> None:
        """Every training on labels, fewest labels first; within a seed all starts, so that a stop leaves whole pairs."""
        for count in self.plan.labels:
            done: list[Outcome] = []
            for seed in range(self.plan.most_seeds(count)):
                begin = self.report.elapsed
                for start in (*SCRATCH, *self.starts):
                    if seed < self.plan.seeds_of(start, count):
                        protocols = self.recipe.protocols(start, self.plan.protocols)
                        done += [self._on_labels(Ask(start, protocol, count, seed)) for protocol in protocols]
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

    def _on_labels(self, ask: Ask) -> Outcome:
        encoder = self.encoders.get(ask.start)
        epochs = (self.plan.tune if encoder else self.plan.scratch)[ask.labels]
        network = self.recipe.network(ask.start)
        own = (
            asdict(network),
            self.recipe.options(ask.start, ask.protocol, epochs * self.recipe.steps_per_epoch(ask.labels)),
            self.recipe.train_views[network.name],
            self.recipe.batch_size,
        )
        origin = (encoder.sha256, "the probe's own head") if encoder else None
        inputs = digest(self.base, origin, epochs, own)
        outcome = self.store.get(ask, inputs)
        if outcome is None:
            rows = self.images.subset(ask.labels, ask.seed)
            with quiet(self.log):
                weights, probe = None, None
                if encoder:
                    weights, probe = encoder.weights, self.probe(ask)
                module, data = classification(
                    ask.start, self.images, rows, self.recipe, ask.seed, weights, probe, ask.protocol, epochs
                )
                self.report.begin(f"{ask.start}, {ask.protocol}, {ask.labels} labels, seed {ask.seed}", data.batch_size)
                trained = train(module, data, epochs, ask.seed, self.report.tick)
                answer = probabilities(module, self.images, self.recipe.side(ask.start))
            if ask.seed < self.keep_weights:
                save_classifier(self.store.folder / f"{ask.name}.safetensors", module)
            outcome = self._outcome(ask, answer, trained.seconds, trained.steps, "fixed recipe", None)
            self.store.put(outcome, inputs, answer)
            write_json(self.store.folder / f"{ask.name}.losses.json", [round(loss, 5) for loss in trained.losses])
        return outcome

    def _outcome(
        self, ask: Ask, answer: np.ndarray, seconds: float, steps: int, chosen: str, held: float | None
    ) -> Outcome:
        top1 = float((answer.argmax(1) == self.images.test_labels).mean())
        return Outcome(ask, top1, round(seconds, 3), steps, chosen, held)

    def _say_scores(self, outcomes: list[Outcome]) -> None:
        groups: dict[tuple, list[float]] = {}
        for outcome in outcomes:
            groups.setdefault((outcome.ask.start, outcome.ask.protocol, outcome.ask.labels), []).append(outcome.top1)
        for (start, protocol, labels), values in groups.items():
            self.report.say(
                f"  {start:<12} {protocol:<14} {labels:>6} labels: {100 * np.mean(values):5.1f} %  ({len(values)} seeds)"
            )


def flat_pixels(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Labelled pool and test split as rows of pixels in 0..1, at the size of the test split."""
    pool, side = images.pool[: int((images.labels >= 0).sum())], images.test.shape[1]
    if pool.shape[1] != side:
        pool = np.stack([resize(image, side, side) for image in pool])
    return tuple(pixels.reshape(len(pixels), -1).astype(np.float32) / 255 for pixels in (pool, images.test))
