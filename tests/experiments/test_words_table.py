"""The table of pictures and words: splits, baselines and trainings on a set where the answer is known, and verdicts."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lit_vision.results.schema import read_result

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import table_words
from studies import words_baselines, words_photographs, words_rows, words_runs, words_sets, words_tables


def toy_set(noise: float = 0.0, width: int = 10, text_width: int = 6) -> words_sets.WordSet:
    """Return a set whose vectors of words are a linear function of the pictures' features; two captions a picture."""
    rng = np.random.default_rng(0)
    features, weight = rng.normal(size=(120, width)), rng.normal(size=(width, text_width))
    vectors = np.repeat(features @ weight, 2, axis=0)
    texts = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    shown = features / np.linalg.norm(features @ weight, axis=1, keepdims=True)  # linear in the unit vectors too
    shown += noise * rng.normal(size=shown.shape)
    owner, concepts = np.repeat(np.arange(120), 2), [f"c{i % 20}" for i in range(120)]
    captions = [[f"a {i}", f"b {i}"] for i in range(120)]
    return words_sets.WordSet(shown.astype(np.float32), texts.astype(np.float32), owner, concepts, "", captions)


def test_splits_share_no_concept_and_have_their_shares() -> None:
    concepts = toy_set().concepts
    rows = words_sets.draw_split(concepts, "concept", 3)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(120))
    assert [len(rows[split]) for split in ("train", "val", "test")] == [84, 12, 24]
    of_split = [{concepts[i] for i in rows[split]} for split in rows]
    assert len(set.union(*of_split)) == sum(map(len, of_split)) == 20
    by_picture = words_sets.draw_split(concepts, "picture", 3)
    assert len({concepts[i] for i in by_picture["test"]} & {concepts[i] for i in by_picture["train"]}) > 10


def test_ridge_is_least_squares_with_a_penalty() -> None:
    rng = np.random.default_rng(0)
    x, targets, queries = rng.normal(size=(12, 30)), rng.normal(size=(12, 4)), rng.normal(size=(5, 30))
    centered = x - x.mean(0)
    inverse = np.linalg.inv(centered.T @ centered + 0.1 * (centered**2).sum() * np.eye(30))
    expected = (queries - x.mean(0)) @ inverse @ centered.T @ (targets - targets.mean(0)) + targets.mean(0)
    np.testing.assert_allclose(words_baselines.ridge(x, targets, queries, 0.1), expected, atol=1e-10)


def test_what_is_linear_is_found_and_what_is_noise_is_not(monkeypatch) -> None:
    monkeypatch.setattr(words_baselines, "PENALTIES", (1e-9, 1.0))
    found, strength = words_baselines.measure(toy_set(), "ridge", "concept", 0)
    assert set(found.values()) == {1.0}
    assert len(found) == 6
    assert strength == 1e-9
    chance, _ = words_baselines.measure(toy_set(noise=1000), "ridge", "concept", 0)
    assert chance["picture of words R@1"] < 0.2
    near, _ = words_baselines.measure(toy_set(), "neighbors", "picture", 0)
    assert near["picture of words R@5"] > chance["picture of words R@5"]


def test_the_nearest_pictures_words_are_averaged() -> None:
    x = np.array([[1.0, 0], [2, 0.1], [0, 1]])
    targets = np.array([[1.0], [3.0], [10.0]])
    assert words_baselines.neighbors(x, targets, np.array([[5.0, 0]]), 2).tolist() == [[2.0]]


def test_joined_sets_keep_captions_with_their_pictures_and_concepts_apart() -> None:
    one = toy_set()
    both = words_sets.join_sets([one, one])
    assert both.owner.tolist() == [*one.owner.tolist(), *(one.owner + 120).tolist()]
    assert len(set(both.concepts)) == 40
    assert both.captions[121] == one.captions[1]


class Reporter:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, text: str) -> None:
        self.said.append(text)


def test_cells_are_stored_published_shown_and_verified(tmp_path, monkeypatch) -> None:
    words = toy_set(width=1280, text_width=384)
    words = replace(words, features=np.repeat(words.features[:20], 6, axis=0))  # a picture of each concept, six times
    words = replace(words, texts=np.repeat(words.texts[:40:2], 12, axis=0), concepts=[f"c{i // 6}" for i in range(120)])
    row = words_rows.Row("lite0", "frozen", "frozen", (1, 20), 84, 3e-3, {"emoji": 1}, by_picture=True)
    for module in (words_runs, table_words):
        monkeypatch.setattr(module, "read_set", lambda name, encoder: words)
    monkeypatch.setattr(words_rows, "ROWS", (row,))
    monkeypatch.setattr(words_runs, "ENCODERS", ("lite0",))
    monkeypatch.setattr(words_runs, "SPLITS", {"picture": ""})
    monkeypatch.setattr(table_words, "SETS", ("emoji",))
    monkeypatch.setattr(table_words, "results_file", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(words_photographs, "verify", lambda tally: 0)

    reporter = Reporter()
    runner = words_runs.Runner("emoji", tmp_path, reporter)  # type: ignore[arg-type]
    cells = list(runner.cells(splits=2))
    assert [cell.row for cell in cells] == [None] * 4 + [row]
    assert runner.stored(cells[4]) is None
    found = cells[4].make()
    # each concept's pictures are equal and stand on both sides, so that what was learned is right there
    assert found["recalls"]["picture of words R@10"] > 0.7  # by chance 0.4 of 24
    assert found["chosen"] in row.steps
    for cell in cells[:4]:
        cell.make()
    with monkeypatch.context() as patch:
        patch.setattr(words_runs, "fit", partial(pytest.fail, "trained again"))
        assert cells[4].make() == found
    assert len(reporter.said) == 5

    table_words.publish(runner)
    result = read_result(tmp_path / "emoji.json")
    assert {cell["protocol"] for cell in result["cells"]} == {"ridge", "neighbors", "frozen"}
    recalls, gains, _ = words_tables.set_tables(result)
    assert f"| frozen    | 1      | {100 * found['recalls']['words of a picture R@1']:.1f}" in recalls
    assert gains.count("too few splits") == 1
    assert table_words.verify() == 0
    for cell in result["cells"]:
        if cell["protocol"] == "frozen":
            cell["values"] = [1 - cell["values"][0]]
            cell["mean"] = cell["values"][0]
    (tmp_path / "emoji.json").write_text(json.dumps(result))
    assert table_words.verify() == 1


def test_a_gain_counts_above_two_standard_errors_of_the_paired_splits() -> None:
    def cells(first: list[float], second: list[float]) -> dict:
        return {
            f"{name} R@1": {"seeds": [0, 1, 2], "values": values}
            for name, values in zip(words_baselines.DIRECTIONS, (first, second))
        }

    against = cells([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])
    assert words_tables.verdict(cells([0.12, 0.22, 0.33], [0.22, 0.32, 0.43]), against).startswith("met: +2.3")
    assert words_tables.verdict(cells([0.12, 0.18, 0.3], [0.2, 0.3, 0.4]), against).startswith("missed: +0.0")
    fewer = {name: {"seeds": [0, 1], "values": cell["values"][:2]} for name, cell in against.items()}
    assert words_tables.verdict(fewer, against).startswith("too few splits")


def test_rows_without_a_result_are_known() -> None:
    assert tuple((row.init, row.protocol) for row in words_rows.ROWS) == words_tables.TRAINED


def test_draws_are_nested_and_leave_the_test_alone() -> None:
    labels = np.repeat([0, 1, 2], [40, 40, 6])
    rows, test = words_photographs.draw(labels, 1)
    assert [len(rows[k]) for k in (1, 2, 4, 8, 16)] == [3, 6, 12, 20, 36]  # the third class has four that are left
    assert not set(rows[16].tolist()) & set(test.tolist())
    assert set(rows[4].tolist()) < set(rows[8].tolist())
