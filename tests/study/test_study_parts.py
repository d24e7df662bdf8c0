"""The parts of a study that train nothing: labels, cells on disk, the plan's arithmetic."""

import numpy as np
import pytest

from lit_vision.errors import UsageError, UserError
from lit_vision.study.cells import (
    CellKey,
    CellResult,
    CellStore,
    Measurement,
    measure_once,
    notes_on_labels,
    parse_labels,
    refuse_older_study,
    to_cells,
)


@pytest.mark.parametrize(
    ("text", "counts"),
    [("1%,10%", [80, 800]), ("all", [8000]), ("5-shot", [50]), ("200, 200", [200]), ("0.01%", [10]), ("9999", [8000])],
)
def test_labels__are_counts_never_below_one_a_class_or_above_all(text: str, counts: list[int]) -> None:
    assert parse_labels(text, [800] * 10) == counts
    assert parse_labels("1%,10%", [4] * 12) == [12]  # 1 % of 48 labels rounds to none


def test_labels__that_became_another_number_are_named() -> None:
    assert notes_on_labels("", 10, 8000) == notes_on_labels("10%,all,2-shot,80", 10, 8000) == []
    assert notes_on_labels("1, 0.01%,9999,10", 10, 8000) == [
        "--labels: 1 became 10 labels, as many as there are classes; 0.01% became 10 labels, as many as there are "
        "classes; 9999 became 8000 labels, all that there are."
    ]


@pytest.mark.parametrize("text", ["ten", "0", "-3%", "1%,,", "2-shots"])
def test_labels__a_wrong_item_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="--labels"):
        parse_labels(text, [5, 5])


def test_cell_store__gives_back_only_what_was_made_from_the_same_inputs(tmp_path) -> None:
    store, key = CellStore(tmp_path), CellKey("mae", "linear", 80, 3)
    outcome = CellResult(key, 0.25, 1.5, 10, "fixed recipe", None)
    probabilities = np.array([[0.25, 0.75]], np.float32)
    store.put(outcome, "inputs", probabilities)
    assert store.get(key, "inputs") == outcome
    np.testing.assert_array_equal(store.probabilities(key), probabilities)
    assert store.get(key, "others") is None
    store.put_losses(key, [1.0, 0.5])
    assert CellStore(tmp_path).get(key, "inputs") == outcome
    (tmp_path / f"{key.name}.json").write_text("{")  # a kill in the middle of some other writer
    assert store.get(key, "inputs") is None


def test_cell_key__names_files_of_any_init() -> None:
    names = {CellKey(init, "knn", 8, 0).name for init in ("timm:hf-hub:a/b", "timm:vit", "simclr@timm:vit", "mae")}
    assert names == {"timm_hf-hub_a_b-knn-8-0", "timm_vit-knn-8-0", "simclr@timm_vit-knn-8-0", "mae-knn-8-0"}


def test_measure_once__measures_only_what_is_not_stored_for_these_inputs(tmp_path) -> None:
    store, key, calls = CellStore(tmp_path), CellKey("mae", "finetune", 8, 0), []
    answer = np.array([[0.2, 0.8], [0.6, 0.4]], np.float32)

    def measure() -> Measurement:
        calls.append(1)
        return Measurement(answer, steps=3, seconds=1.5)

    labels = np.array([1, 1])
    first = measure_once(store, key, "inputs", labels, measure)
    assert (first.value, first.steps, first.seconds, first.chosen_on) == (0.5, 3, 1.5, "fixed recipe")
    assert measure_once(store, key, "inputs", labels, measure) == first
    assert len(calls) == 1
    measure_once(store, key, "other inputs", labels, measure)
    assert len(calls) == 2
    assert store.get(key, "inputs") is None


@pytest.mark.parametrize("name", ["plan.json", "weights/simclr.json", "cells/pixels-knn-8-0.json"])
def test_a_folder_of_an_older_study_is_refused(tmp_path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for text in ("[0.5]", "{"):  # losses, and a damaged file
        path.write_text(text)
        refuse_older_study(tmp_path)
    path.write_text('{"schema": 2}')
    refuse_older_study(tmp_path)
    path.write_text('{"inputs": "0"}')
    with pytest.raises(UserError, match="--run_dir") as error:
        refuse_older_study(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_cells__hold_one_value_per_seed_in_order() -> None:
    outcomes = [CellResult(CellKey("pixels", "knn", 10, seed), seed / 10, 1.0, 0, "fixed", None) for seed in (2, 0, 1)]
    (cell,) = to_cells(outcomes, {})
    assert cell["values"] == [0.0, 0.1, 0.2]
    assert cell["seeds"] == [0, 1, 2]
    assert cell["mean"] == pytest.approx(0.1)
