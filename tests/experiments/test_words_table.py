"""The table of pictures and words: its splits, its regression, and the recalls of a set where the answer is known."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import table_words


def toy_set(noise: float = 0.0) -> table_words.WordSet:
    """Return a set whose vectors of words are a linear function of the pictures' features; two captions a picture."""
    rng = np.random.default_rng(0)
    features, weight = rng.normal(size=(120, 10)), rng.normal(size=(10, 6))
    vectors = np.repeat(features @ weight, 2, axis=0)
    texts = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    shown = features / np.linalg.norm(features @ weight, axis=1, keepdims=True)  # linear in the unit vectors too
    shown += noise * rng.normal(size=shown.shape)
    owner, concepts = np.repeat(np.arange(120), 2), [f"c{i % 20}" for i in range(120)]
    return table_words.WordSet(shown.astype(np.float32), texts.astype(np.float32), owner, concepts, "")


def test_splits_share_no_concept_and_have_their_shares() -> None:
    concepts = toy_set().concepts
    rows = table_words.draw_split(concepts, "concept", 3)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(120))
    assert [len(rows[split]) for split in ("train", "val", "test")] == [84, 12, 24]
    of_split = [{concepts[i] for i in rows[split]} for split in rows]
    assert len(set.union(*of_split)) == sum(map(len, of_split)) == 20
    by_picture = table_words.draw_split(concepts, "picture", 3)
    assert len({concepts[i] for i in by_picture["test"]} & {concepts[i] for i in by_picture["train"]}) > 10


def test_ridge_is_least_squares_with_a_penalty() -> None:
    rng = np.random.default_rng(0)
    x, targets, queries = rng.normal(size=(12, 30)), rng.normal(size=(12, 4)), rng.normal(size=(5, 30))
    centered = x - x.mean(0)
    inverse = np.linalg.inv(centered.T @ centered + 0.1 * (centered**2).sum() * np.eye(30))
    expected = (queries - x.mean(0)) @ inverse @ centered.T @ (targets - targets.mean(0)) + targets.mean(0)
    np.testing.assert_allclose(table_words.ridge(x, targets, queries, 0.1), expected, atol=1e-10)


def test_what_is_linear_is_found_and_what_is_noise_is_not(monkeypatch) -> None:
    monkeypatch.setattr(table_words, "PENALTIES", (1e-9, 1.0))
    found = table_words.measure(toy_set(), "ridge", "concept", 0)
    assert set(found.values()) == {1.0}
    assert len(found) == 6
    chance = table_words.measure(toy_set(noise=1000), "ridge", "concept", 0)
    assert chance["picture of words R@1"] < 0.2
    near = table_words.measure(toy_set(), "neighbors", "picture", 0)
    assert near["picture of words R@5"] > chance["picture of words R@5"]


def test_the_nearest_pictures_words_are_averaged() -> None:
    x = np.array([[1.0, 0], [2, 0.1], [0, 1]])
    targets = np.array([[1.0], [3.0], [10.0]])
    assert table_words.neighbors(x, targets, np.array([[5.0, 0]]), 2).tolist() == [[2.0]]
