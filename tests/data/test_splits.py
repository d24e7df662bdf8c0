"""Label subsets: stratified, nested, and stored in files; evenly spaced rows."""

import numpy as np
import pytest

from lit_vision.data.splits import (
    evenly_spaced,
    read_split,
    sample_fraction,
    sample_per_class,
    sample_stratified,
    sample_subset,
    write_split,
)
from lit_vision.errors import UserError

LABELS = np.repeat([0, 1, 2, -1], [50, 30, 20, 40])


@pytest.mark.parametrize("count", [3, 10, 17, 99, 100])
def test_stratified__keeps_proportions_and_has_each_class(count: int) -> None:
    chosen = sample_stratified(LABELS, count, seed=0)
    got = np.bincount(LABELS[chosen], minlength=3)
    assert len(np.unique(chosen)) == count
    assert (got >= 1).all()
    assert (np.abs(got - count * np.array([0.5, 0.3, 0.2])) <= 1).all()


def test_subsets__are_nested_and_depend_on_the_seed() -> None:
    small, large = set(sample_stratified(LABELS, 10, 1)), set(sample_stratified(LABELS, 50, 1))
    assert small < large
    assert small != set(sample_stratified(LABELS, 10, 2))
    assert set(sample_per_class(LABELS, 2, 1)) < set(sample_per_class(LABELS, 5, 1))


def test_sample_subset__float_is_a_fraction_and_int_a_count() -> None:
    assert sample_subset(LABELS, None, None, 0) is None
    assert len(sample_subset(LABELS, 0.1, None, 0)) == 10 == len(sample_subset(LABELS, 10, None, 0))
    assert len(sample_subset(LABELS, 1.0, None, 0)) == 100
    assert len(sample_subset(LABELS, 10.0, None, 0)) == 10
    assert len(sample_fraction(LABELS, 0.001, 0)) == 3  # never less than one of each class
    assert np.bincount(LABELS[sample_subset(LABELS, None, 4, 0)]).tolist() == [4, 4, 4]


def test_impossible_subsets__say_which_key_and_how_many() -> None:
    with pytest.raises(UserError, match=r"labels=2.* 3 classes"):
        sample_stratified(LABELS, 2, 0)
    with pytest.raises(UserError, match=r"labels=101.* 100 "):
        sample_stratified(LABELS, 101, 0)
    with pytest.raises(UserError, match=r"shots=21.*cat.*20"):
        sample_per_class(LABELS, 21, 0, ["ant", "bee", "cat"])
    with pytest.raises(UserError, match="labels and shots"):
        sample_subset(LABELS, 0.1, 4, 0)
    with pytest.raises(UserError, match=r"labels=1\.5"):
        sample_subset(LABELS, 1.5, None, 0)


def test_split_files__round_trip_and_refuse_other_data(tmp_path) -> None:
    names = [f"train/é {i}.png" for i in range(9)]
    file = tmp_path / "deep" / "split.txt"
    write_split(file, [names[7], names[2]], "labels=2")
    assert read_split(file, names).tolist() == [2, 7]
    with pytest.raises(UserError, match=r"split\.txt.* 2 .*train/é"):
        read_split(file, ["train/x.png"])
    with pytest.raises(UserError, match=r"none\.txt.*split_file"):
        read_split(tmp_path / "none.txt", names)
    write_split(file, [], "nothing")
    with pytest.raises(UserError, match=r"split\.txt"):
        read_split(file, names)


@pytest.mark.parametrize(("n", "limit"), [(0, 3), (1, 1), (7, 1), (7, 3), (10, 10), (10, 99), (1000, 37), (12, 9)])
def test_evenly_spaced__is_ascending_without_repeats_from_the_first_to_the_last(n: int, limit: int) -> None:
    rows = evenly_spaced(n, limit)
    assert len(rows) == min(n, limit)
    assert (np.diff(rows) >= 1).all()
    if n and limit > 1:
        assert (rows[0], rows[-1]) == (0, n - 1)
        assert np.ptp(np.diff(rows)) <= 1 if len(rows) > 1 else True
