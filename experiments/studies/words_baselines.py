"""Baselines of the table of pictures and words, and the recalls that all its rows are measured by. No network trains.

Ridge regression from frozen features of pictures to the vectors of a frozen text encoder, and the mean vector of the
nearest training pictures. The strength of both is chosen on the validation pictures of a split.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from studies.words_sets import WordSet, draw_split

METHODS = ("ridge", "neighbors")
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # times the mean squared length of the features
NEIGHBORS = (1, 3, 10, 30)
DIRECTIONS = ("words of a picture", "picture of words")
RECALLS = (1, 5, 10)


def ridge(x: np.ndarray, targets: np.ndarray, queries: np.ndarray, penalty: float) -> np.ndarray:
    """Return (M, E): targets of the queries by least squares, with a penalty on the squared weights.

    Args:
        x: (N, D) features.
        targets: (N, E).
        queries: (M, D).
        penalty: times N and the mean squared length of the centered features.
    """
    mean, center = x.mean(0), targets.mean(0)
    centered = (x - mean).astype(np.float64)
    gram = centered @ centered.T  # (N, N)
    gram[np.diag_indices_from(gram)] += penalty * np.trace(gram)
    dual = np.linalg.solve(gram, targets - center)
    return np.asarray((queries - mean) @ (centered.T @ dual) + center)


def neighbors(x: np.ndarray, targets: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Return (M, E): the mean target of the nearest rows of x by cosine; arguments as `ridge`."""
    unit = [one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-12) for one in (x, queries)]
    nearest = np.argsort(-(unit[1] @ unit[0].T), axis=1, kind="stable")[:, :count]
    return np.asarray(targets[nearest].mean(1))


def recalls(pictures: np.ndarray, texts: np.ndarray, rows: np.ndarray, words: WordSet) -> dict[str, float]:
    """Return {"<direction> R@<k>": fraction} among some pictures and all their captions.

    Args:
        pictures: (n, E) vectors of the pictures `rows`.
        texts: (m, E) vectors of their captions, in the order of `words`.
        rows: (n,) ascending.
        words: the set.
    """
    import torch

    from lit_vision.evaluation.retrieval import retrieve

    place = np.full(len(words.concepts), -1)
    place[rows] = np.arange(len(rows))
    owner = torch.from_numpy(place[words.owner[captions_of(rows, words)]])
    found = retrieve(torch.from_numpy(pictures), torch.from_numpy(texts), owner)
    return {f"{name} R@{k}": one.recall[k] for name, one in zip(DIRECTIONS, found) for k in RECALLS}


def captions_of(rows: np.ndarray, words: WordSet) -> np.ndarray:
    """Return the numbers of the captions of some pictures, ascending."""
    return np.flatnonzero(np.isin(words.owner, rows))


def quality(found: dict[str, float]) -> float:
    """Return R@1 of both directions together, by which strengths are chosen on validation pictures."""
    return sum(found[f"{direction} R@1"] for direction in DIRECTIONS)


def mean_vectors(words: WordSet) -> np.ndarray:
    """Return (N, E): the mean vector of the captions of each picture."""
    counts = np.bincount(words.owner)[:, None]
    return np.asarray(np.add.reduceat(words.texts, np.searchsorted(words.owner, np.arange(len(counts)))) / counts)


def measure(words: WordSet, method: str, by: str, seed: int) -> tuple[dict[str, float], float]:
    """Return the recalls on the test pictures of one split, and the strength that was chosen on its val pictures."""
    rows = draw_split(words.concepts, by, seed)
    predict, strengths = (ridge, PENALTIES) if method == "ridge" else (neighbors, NEIGHBORS)
    train = words.features[rows["train"]], mean_vectors(words)[rows["train"]]

    def on(split: str, strength: Any) -> dict[str, float]:
        predicted = predict(*train, words.features[rows[split]], strength)
        return recalls(predicted, words.texts[captions_of(rows[split], words)], rows[split], words)

    chosen = max(strengths, key=lambda strength: quality(on("val", strength)))
    return on("test", chosen), chosen
