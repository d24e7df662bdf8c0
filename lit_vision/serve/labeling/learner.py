"""A thread that learns from the answers: the model, its accuracy on the random sample, the curve, what to ask next.

No answer waits for it. What measures accuracy is never learned from, see queue.py.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from lit_vision.errors import UserError
from lit_vision.evaluation.acquisition import NEED_PROBABILITIES, strategy_now
from lit_vision.evaluation.clinical import wilson_interval
from lit_vision.evaluation.label_law import LabelLaw, fit_law
from lit_vision.evaluation.suggestions import AUTO, BEST, suggest
from lit_vision.serve.labeling.exports import write_table
from lit_vision.serve.labeling.features import FeatureReader
from lit_vision.serve.labeling.probe import ProbeModel, fit_probe_model
from lit_vision.serve.labeling.session import Labeling
from lit_vision.study.more_labels import round_number

POOL = 10_000  # images among which the next ones are chosen; of more, a random part
CHOSEN = 100  # images that are chosen at a time
FEWEST_CHOSEN = 20  # of them left when new ones are chosen, by a strategy that does not ask the model
FIRST_COUNT, COUNT_FACTOR = 8, 1.5  # numbers of labels of the curve's points
FEWEST_AUDITED, FEWEST_POINTS = 20, 4  # images of the sample and points of the curve for a word on more labels
SEARCH_AGAIN = 1.25  # the strength of L2 is searched again when there are this many times as many labels
_LEVELS = 7
_Labeled = tuple[int, tuple[str, ...]]  # number of an image, its labels


@dataclass(frozen=True)
class Accuracy:
    """Answers of a model to the random sample.

    Attributes:
        images: of the sample that are labeled.
        right: of them, those that the model answers as labeled.
    """

    images: int
    right: int

    def shown(self) -> dict[str, float] | None:
        """Return what a page gets of it, with the Wilson interval (95 %); None without an image."""
        if not self.images:
            return None
        low, high = wilson_interval(self.right, self.images)
        return {
            "images": self.images,
            "right": self.right,
            "accuracy": self.right / self.images,
            "low": low,
            "high": high,
        }


class Learner:
    """Learns along with a labeling, on a thread of its own.

    Args:
        labeling: gives the answers, and gets the images to ask next.
        features: of its images.
        strategy: one of `lit_vision.evaluation.acquisition.STRATEGIES` or "auto".

    Attributes:
        model: the newest; None until the labels show two classes.
        curve: models of the first 8, 12, 18, ... labels; they and the newest give the curve.
        more: sentence on more labels, "" if nothing can be said.
        now: the strategy that is followed now; "random" until there are features.
    """

    def __init__(self, labeling: Labeling, features: FeatureReader, strategy: str = "auto") -> None:
        self.labeling, self.features, self.strategy = labeling, features, strategy
        self.model: ProbeModel | None = None
        self.curve: list[ProbeModel] = []
        self.more, self.now = "", "random"
        self._searched_at = 0  # labels at which the strength was searched
        self._learned: list[_Labeled] = []
        self._fits = 0
        self._chosen_with: tuple[object, ...] = ()
        self._accuracies: dict[int, tuple[object, ProbeModel, Accuracy]] = {}  # by id of the model, which is kept alive
        self._lock = threading.Lock()  # of the kept accuracies
        self._news, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="learner", daemon=True)
        features.on_block = self.notify

    def start(self) -> None:
        """Begin to read features and to learn."""
        self.features.start()
        self._thread.start()

    def stop(self) -> None:
        """End when the fit and the batch of features that run are done."""
        self.features.stop()
        self._stopping.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join()

    def notify(self) -> None:
        """Say that there are new answers or features."""
        self._news.set()

    def rename_class(self, name: str, to: str) -> None:
        """Take over the new name of a class; where two were joined, learn anew."""
        self.curve = []
        self.model = self.model.renamed(name, to) if self.model else None
        self.notify()

    def propose(self, number: int) -> dict[str, Any] | None:
        """Return {"labels", "confidence"} for an image; None without a model or its feature."""
        model, feature = self.model, self.features.of(number)
        return model.propose(feature) if model is not None and feature is not None else None

    def state(self) -> dict[str, Any]:
        """Return what a page gets of the model and its accuracy."""
        model = self.model
        return {
            "strategy": self.now,
            "features": {"done": self.features.done, "total": len(self.labeling.images)},
            "problem": self.features.problem,
            "model": {"labels": model.images, "classes": len(model.classes)} if model else None,
            "audit": self.accuracy().shown(),
            "curve": self.curve_points(),
            "more": self.more,
        }

    def accuracy(self, model: ProbeModel | None = None) -> Accuracy:
        """Return the accuracy of a model, the newest by default, on the random sample as far as it is labeled."""
        model = model or self.model
        sample = [(n, labels) for n, labels in self.labeling.audited() if self.features.of(n) is not None]
        if model is None or not sample or self.features.rows is None:
            return Accuracy(0, 0)
        with self._lock:
            known = self._accuracies.get(id(model))
            if known and known[0] == sample:
                return known[2]
            probabilities = model.probabilities(self.features.rows[[number for number, _ in sample]])
            right = sum(set(model.labels_of(p)) == set(labels) for p, (_, labels) in zip(probabilities, sample))
            present = (*self.curve, self.model)
            self._accuracies = {key: value for key, value in self._accuracies.items() if value[1] in present}
            self._accuracies[id(model)] = (sample, model, Accuracy(len(sample), right))
            return self._accuracies[id(model)][2]

    def curve_points(self) -> list[dict[str, float]]:
        """Return the accuracy at each number of labels, of models that learned from the first labels."""
        models = [*self.curve, *([self.model] if self.model else [])]
        points = [(model.images, self.accuracy(model)) for model in models]
        return [{"labels": labels, "accuracy": a.right / a.images} for labels, a in points if a.images]

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._news.wait()
            self._news.clear()
            start = time.perf_counter()
            try:
                self._write_table()
                self.learn()
            except Exception:  # the labeling goes on without it
                traceback.print_exc()
            self._stopping.wait(min(5.0, time.perf_counter() - start))  # leaves half of a core to others

    def _write_table(self) -> None:
        """Write labels.csv; the answers are in the store, whether it can be written or not."""
        try:
            write_table(self.labeling)
        except UserError as error:
            print(error, flush=True)

    def learn(self) -> None:
        """Fit the model to the answers, choose what to ask next, and go on with the curve."""
        if self.features.rows is None:
            return
        curve = self.curve  # before the answers: a class may be renamed from now on
        known = [(n, labels) for n, labels in self.labeling.learned_from() if self.features.of(n) is not None]
        if known != self._learned:
            self._fit(known)
        self._choose(known)
        self._extend_curve(known, curve)
        self.more = self._say_more()

    def _fit(self, known: list[_Labeled]) -> None:
        """Fit the model; the strength of L2 is kept while there are not many more labels."""
        names = {name for _, labels in known for name in labels}
        same = self.model is not None and set(self.model.classes) == names
        keep = same and len(known) < SEARCH_AGAIN * self._searched_at
        self.model = self._fit_to(known, self.model.strengths if self.model and keep else None)
        self._searched_at = self._searched_at if keep else len(known)
        self._learned = known
        self._fits += 1

    def _fit_to(self, known: list[_Labeled], strengths: Mapping[str, float] | None = None) -> ProbeModel | None:
        if not known or self.features.rows is None:
            return None
        rows = self.features.rows[[number for number, _ in known]]
        return fit_probe_model(rows, [labels for _, labels in known], self.labeling.store.multiple, strengths)

    def _choose(self, known: list[_Labeled]) -> None:
        """Give the queue the images to ask next, unless those that it has still do."""
        model, there = self.model, self.features.are_there()
        strategy = BEST if self.strategy == AUTO else self.strategy
        self.now = strategy_now(strategy, len(known), len(model.classes) if model else None)
        asks_model = self.now in NEED_PROBABILITIES
        left = sum(not self.labeling.is_done(number) for number, _ in self.labeling.queue.chosen)
        state = (self.now, self._fits if asks_model else 0, len(there) // 1000)
        if state == self._chosen_with and left >= FEWEST_CHOSEN:
            return
        self._chosen_with = state
        numbers = self._pool(there)
        codes = self._codes(numbers, dict(known))
        done = self.labeling.done()[numbers]
        num = min(CHOSEN, -(-int((~done).sum()) // 2))  # all that are left would have no order
        if num == 0:
            self.labeling.queue.chosen = []
            return
        x = np.asarray(self.features.rows)[numbers]
        if self.labeling.store.multiple and model and asks_model:
            self.labeling.queue.chosen = _least_sure(model, x, numbers, done)[:num]
            return
        found = suggest(
            self.now,
            x,
            codes,
            model.classes if model else list(self.labeling.store.classes) or ["one"],
            num,
            excluded=np.flatnonzero(done & (codes < 0)),
            probabilities=model.probabilities(x) if model and asks_model else None,
        )
        self.labeling.queue.chosen = [(int(numbers[one.row]), one.reason) for one in found]

    def _pool(self, there: np.ndarray) -> np.ndarray:
        """Return the numbers of the images to choose among and of answered ones; none of the random sample."""
        has, done = np.zeros(len(self.labeling.images), bool), self.labeling.done()
        has[there] = True
        others = np.array(self.labeling.queue.random_order, np.int64)
        others = others[has[others]]
        answered, free = others[done[others]], others[~done[others]]
        return np.concatenate([answered, free[: max(CHOSEN, POOL - len(answered))]])

    def _codes(self, numbers: np.ndarray, labels: Mapping[int, Sequence[str]]) -> np.ndarray:
        """Return class numbers of the images, -1 without a label; with several labels an image 0 for any."""
        names = list(self.model.classes if self.model else self.labeling.store.classes)
        codes = np.full(len(numbers), -1)
        for position, number in enumerate(numbers.tolist()):
            if number in labels:
                known = labels[number]
                codes[position] = names.index(known[0]) if known and not self.labeling.store.multiple else 0
        return codes

    def _extend_curve(self, known: list[_Labeled], curve: list[ProbeModel]) -> None:
        """Fit models to the first labels, for the numbers of labels that the curve does not have.

        When a class is renamed meanwhile, the curve is another list, which a model of the old names must not enter.
        """
        have, count = {model.images for model in curve}, float(FIRST_COUNT)
        while round(count) < len(known) and not self._stopping.is_set():
            model = self._fit_to(known[: round(count)]) if round(count) not in have else None
            if self.curve is not curve:
                return
            if model is not None:
                self.curve = curve = sorted([*curve, model], key=lambda one: one.images)
            count *= COUNT_FACTOR

    def _say_more(self) -> str:
        """Return the sentence on more labels; "" where the sample or the curve is too small to say anything."""
        if self.model is None:
            return ""
        models = [*self.curve, self.model]
        right = [self.accuracy(model) for model in models]
        if len({model.images for model in models}) < FEWEST_POINTS or right[-1].images < FEWEST_AUDITED:
            return ""
        labels = self.model.images
        return more_labels_law([model.images for model in models], right).sentence(labels, round_number(labels))


def more_labels_law(counts: Sequence[int], accuracies: Sequence[Accuracy]) -> LabelLaw:
    """Return the law of the error over the number of labels, measured on one random sample of images.

    The sample is the same at all numbers of labels, so that its error moves the whole curve up or down. Each law that
    fits is therefore taken with seven levels of the error, quantiles of the distribution that a sample with the fitted
    error leaves (Jeffreys: Beta(wrong + 1/2, right + 1/2)), relative to its mean.

    Args:
        counts: numbers of labels, at least three different ones.
        accuracies: at these.
    """
    wrong = np.array([one.images - one.right for one in accuracies], np.float64)
    images = accuracies[-1].images
    errors = (wrong + 0.5) / (images + 1)  # mean of the same distribution: never 0, which no sample shows
    law = fit_law(counts, errors[None])
    fitted = images * float(law.predict(counts[-1]).median)  # images of the sample that are wrong
    sample = stats.beta(fitted + 0.5, images - fitted + 0.5)
    levels = sample.ppf((np.arange(_LEVELS) + 0.5) / _LEVELS) / sample.mean()
    a, b = (np.outer(levels, part).ravel() for part in (law.a, law.b))
    return replace(law, a=a, b=b, c=np.tile(law.c, _LEVELS), weights=np.tile(law.weights, _LEVELS) / _LEVELS)


def _least_sure(model: ProbeModel, x: np.ndarray, numbers: np.ndarray, done: np.ndarray) -> list[tuple[int, str]]:
    """Return images with the class of several labels that the model is least sure of, the least sure ones first."""
    p = model.probabilities(x)
    distance = np.abs(p - 0.5)
    least = np.where(done, np.inf, distance.min(1))
    found = []
    for row in np.argsort(least, kind="stable")[: int((~done).sum())].tolist():
        k = int(distance[row].argmin())
        found.append((int(numbers[row]), f"the model is least sure here: {model.classes[k]} ({p[row, k]:.0%})"))
    return found
