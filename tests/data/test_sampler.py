"""Batch samplers: permutations, slices by rank, epochs, resume, and evaluation without repeats."""

import numpy as np
import pytest

from lit_vision.data.sampler import EvalBatches, TrainBatches


def test_train_batches__are_a_permutation_and_change_with_epoch_and_seed() -> None:
    order = TrainBatches(103, 10, 0, 1, 1, seed=3)
    first = list(order)
    indices = [i for batch in first for _, i, _ in batch]
    assert len(first) == len(order) == 10
    assert len(set(indices)) == 100
    assert set(indices) <= set(range(103))
    assert list(order) == first  # reading changes nothing
    order.set_epoch(1)
    second = list(order)
    assert {key[0] for batch in second for key in batch} == {1}
    assert [k[1] for b in second for k in b] != indices
    assert list(TrainBatches(103, 10, 0, 1, 1, seed=4)) != first


@pytest.mark.parametrize(("size", "world", "accumulate"), [(12, 1, 1), (6, 2, 1), (3, 2, 2), (4, 1, 3), (2, 3, 2)])
def test_train_batches__every_layout_of_a_global_batch_has_the_same_samples_per_step(
    size: int, world: int, accumulate: int
) -> None:
    whole = [sorted(batch) for batch in TrainBatches(100, 12, 0, 1, 1, seed=0)]
    ranks = [list(TrainBatches(100, size, rank, world, accumulate, seed=0)) for rank in range(world)]
    assert len(ranks[0]) == len(whole) * accumulate
    for step, expected in enumerate(whole):
        parts = [rank[step * accumulate + a] for rank in ranks for a in range(accumulate)]
        assert sorted(key for part in parts for key in part) == expected


def test_train_batches__ranks_join_to_the_one_process_batch_in_order() -> None:
    whole = list(TrainBatches(50, 8, 0, 1, 1, seed=1))
    left, right = (list(TrainBatches(50, 4, rank, 2, 1, seed=1)) for rank in range(2))
    assert [a + b for a, b in zip(left, right)] == whole


def test_train_batches__start_leaves_out_what_a_resumed_epoch_has_had() -> None:
    order = TrainBatches(64, 4, 0, 2, 2, seed=0)
    whole = list(order)
    order.first_batch = 3
    assert list(order) == whole[3:]
    assert len(order) == len(whole)
    order.set_epoch(0)
    assert order.first_batch == 3
    order.set_epoch(1)
    assert order.first_batch == 0


def test_train_batches__copies_come_together_with_their_own_numbers() -> None:
    order = TrainBatches(40, 6, 0, 1, 1, seed=0, copies=3)
    for batch in order:
        for a in range(0, 6, 3):
            assert len({index for _, index, _ in batch[a : a + 3]}) == 1
            assert [copy for _, _, copy in batch[a : a + 3]] == [0, 1, 2]
    assert len(order) == 40 // 6


def test_train_batches__first_places_are_uniform_over_epochs() -> None:
    order = TrainBatches(5, 1, 0, 1, 1, seed=0)
    firsts = []
    for epoch in range(1000):
        order.set_epoch(epoch)
        firsts.append(next(iter(order))[0][1])
    assert (np.bincount(firsts, minlength=5) > 150).all()


@pytest.mark.parametrize(("n", "world"), [(10, 1), (11, 2), (3, 4), (100, 3)])
def test_eval_batches__each_sample_once_over_all_ranks_in_order(n: int, world: int) -> None:
    ranks = [EvalBatches(n, 4, rank, world) for rank in range(world)]
    keys = [key for rank in ranks for batch in rank for key in batch]
    assert keys == [(0, i, 0) for i in range(n)]
    assert [len(list(rank)) for rank in ranks] == [len(rank) for rank in ranks]


def test_samplers__refuse_impossible_layouts() -> None:
    with pytest.raises(ValueError, match="rank=2"):
        TrainBatches(10, 2, 2, 2, 1, 0)
    with pytest.raises(ValueError, match="batch_size=0"):
        EvalBatches(10, 0)
