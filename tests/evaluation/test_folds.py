"""Folds that hold out whole groups: no group on both sides, each class spread over them."""

import numpy as np

from lit_vision.evaluation.folds import grouped_folds


def test_grouped_folds__hold_out_whole_groups_and_spread_each_class() -> None:
    rng = np.random.default_rng(0)
    groups = np.array([f"patient {i}" for i in rng.integers(0, 30, 200)])
    members = rng.random((200, 3)) < [0.5, 0.2, 0.03]
    fold = grouped_folds(members, 4, 0, groups)
    assert set(fold) == {0, 1, 2, 3}
    assert all(len(set(fold[groups == group])) == 1 for group in groups)
    assert np.ptp(np.bincount(fold)) < 40
    counts = np.array([members[fold == f].sum(0) for f in range(4)])
    assert (counts.max(0) - counts.min(0) <= [16, 12, 3]).all()
    assert (grouped_folds(members, 4, 1, groups) != fold).any()
    assert (grouped_folds(members[:3], 4, 0, ["a"] * 3) == -1).all()
