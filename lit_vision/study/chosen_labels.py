"""Measure in a study what choosing the images to label gains: a strategy against labels drawn at random, paired.

For each seed a part of the labeled pool is drawn, the same for all strategies, from which labels are bought in rounds
that end at the numbers of labels of the study. Here random is a plain draw: the study's own subsets have every class,
which whoever labels a folder cannot arrange. Rows follow from features, labels, strategy and seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.evaluation.acquisition import RANDOM
from lit_vision.evaluation.linear import logistic_regression
from lit_vision.evaluation.suggestions import suggest
from lit_vision.predict.feature_cache import OnBatch
from lit_vision.results.schema import make_cell
from lit_vision.study.cells import CellKey, CellResult, CellStore, Measurement, hash_inputs, measure_once
from lit_vision.study.images import StudyImages
from lit_vision.study.pixel_cache import Rows

PROTOCOL = "linear"
POOL_SHARE, LARGEST_POOL = 0.8, 5000  # of the labeled images, for one seed to choose from
MOST_CHOSEN = 0.5  # of these: where most are chosen, no choice is left


def pool_of_seed(known: int, seed: int) -> np.ndarray:
    """Return the ascending rows, of `known` labeled images, that one seed chooses from."""
    size = min(LARGEST_POOL, max(1, round(POOL_SHARE * known)))
    return np.sort(np.random.default_rng([seed, known]).permutation(known)[:size])


def counts_to_choose(counts: Sequence[int], known: int) -> list[int]:
    """Return those numbers of labels that leave a choice."""
    return [count for count in counts if count <= MOST_CHOSEN * len(pool_of_seed(known, 0))]


def note_on_left_out(counts: Sequence[int], known: int) -> str:
    """Return a sentence about the numbers of labels that leave no choice, or ""."""
    left_out = sorted({*counts} - {*counts_to_choose(counts, known)})
    if not left_out:
        return ""
    return (
        f"Choosing what to label was not measured with {', '.join(map(str, left_out))} labels: a seed chooses from "
        f"{len(pool_of_seed(known, 0))} of the {known} labeled images, and more than half of them leave no choice."
    )


def choose_rounds(
    strategy: str, features: Rows, labels: np.ndarray, classes: Sequence[str], counts: Sequence[int], seed: int
) -> Iterator[np.ndarray]:
    """Yield the rows that are labeled after each round, in the order of their choice; each begins with those before.

    Args:
        strategy: one of `acquisition.STRATEGIES`.
        features: (n, D) of the labeled pool.
        labels: (n,) class numbers, of which a round sees those that it has bought.
        classes: names.
        counts: numbers of labels, ascending.
        seed: of the part to choose from, and of all that is drawn.
    """
    rows = pool_of_seed(len(labels), seed)
    x, known, chosen = np.asarray(features[rows]), np.full(len(rows), -1), np.array([], np.int64)
    for count in counts:
        new = [one.row for one in suggest(strategy, x, known, classes, count - len(chosen), seed=seed)]
        chosen = np.concatenate([chosen, np.array(new, np.int64)])
        known[chosen] = labels[rows[chosen]]
        yield rows[chosen]


@dataclass(frozen=True)
class ChosenLabels:
    """Measures strategies on the frozen features of one init.

    Attributes:
        init: of the features.
        origin: what they depend on, to be hashed.
        pool, test: features of the labeled pool and of the test split.
        images: of the study.
        counts: numbers of labels, ascending.
        seeds_at: returns the seeds at a number of labels.
        folder: of the results that are found again.
        data_hash: of the images.
    """

    init: str
    origin: str
    pool: Rows
    test: Rows
    images: StudyImages
    counts: Sequence[int]
    seeds_at: Callable[[int], int]
    folder: Path
    data_hash: str

    def measure(self, strategies: Sequence[str], on_seed: OnBatch | None = None) -> list[dict[str, Any]]:
        """Return the cells of random and of strategies: those of results.json, with the key "strategy" besides.

        Args:
            strategies: of `acquisition.STRATEGIES`.
            on_seed: called with (seeds done, all seeds) of all strategies.
        """
        counts = counts_to_choose(self.counts, self.images.labeled)
        cells, names = [], list(dict.fromkeys((RANDOM, *strategies)))
        seeds = max(map(self.seeds_at, counts), default=0)
        for number, strategy in enumerate(names):
            results: list[CellResult] = []
            for seed in range(seeds):
                here = [count for count in counts if seed < self.seeds_at(count)]
                results += self._measure_seed(strategy, here, seed)
                if on_seed:
                    on_seed(number * seeds + seed + 1, len(names) * seeds)
            for count in counts:
                group = [result for result in results if result.key.labels == count]
                further = {
                    "strategy": strategy,
                    "seeds": [result.key.seed for result in group],
                    "balanced_values": [result.balanced for result in group],
                    "seconds": sum(result.seconds for result in group),
                }
                cells.append(make_cell(self.init, PROTOCOL, count, [result.value for result in group], **further))
        return cells

    def _measure_seed(self, strategy: str, counts: list[int], seed: int) -> list[CellResult]:
        images, results, rounds = self.images, [], dict[int, np.ndarray]()
        labels = images.labels[: images.labeled]  # they come first in the pool

        def measure(count: int) -> Measurement:
            if not rounds:
                chosen = choose_rounds(strategy, self.pool, labels, images.classes, counts, seed)
                rounds.update(zip(counts, chosen))
            return answer(self.pool, self.test, labels, rounds[count], len(images.classes), seed)

        for i, count in enumerate(counts):
            inputs = hash_inputs(self.data_hash, self.origin, "chosen", strategy, counts[: i + 1])
            key = CellKey(self.init, PROTOCOL, count, seed)
            store = CellStore(self.folder / strategy)
            results.append(measure_once(store, key, inputs, images.test_labels, partial(measure, count)))
        return results


def answer(pool: Rows, test: Rows, labels: np.ndarray, rows: np.ndarray, num_classes: int, seed: int) -> Measurement:
    """Fit logistic regression on some rows and answer for the test split; labels of one class answer that class.

    Args:
        pool: (n, D) features of the labeled pool.
        test: (M, D) features of the test split.
        labels: (n,) class numbers.
        rows: of the pool, that have been labeled; at least one.
        num_classes: K.
        seed: of the folds in which the strength is chosen.
    """
    seen = np.unique(labels[rows])
    if len(seen) < 2:
        return Measurement(np.eye(num_classes, dtype=np.float32)[np.full(len(test), seen[0])], chosen_on="one class")
    probe = logistic_regression(pool[rows], labels[rows], test, num_classes, seed=seed)
    return Measurement(probe.probabilities, chosen_on=probe.chosen_on)
