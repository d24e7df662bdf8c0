"""Keyed randomness: the same key gives the same numbers anywhere, and global generators come back as they were."""

import pickle
import random

import numpy as np
import torch

from lit_vision.data.views.keyed_rng import PhiloxStreams, derive_seed, temporary_seed


def test_derive_seed__is_stable_across_processes_and_sensitive_to_order() -> None:
    assert derive_seed(0, 1, 2) == 9058871843155686531
    assert len({derive_seed(1, 2), derive_seed(2, 1), derive_seed(12), derive_seed(1, 2, 0), derive_seed(-1, 2)}) == 5


def test_temporary_seed__gives_the_same_draws_and_restores_all_three_generators() -> None:
    def draws() -> tuple:
        return random.random(), np.random.rand(), torch.rand(()).item()

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected_after = draws()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    with temporary_seed(2**63 + 11):
        first = draws()
    assert draws() == expected_after
    with temporary_seed(2**63 + 11):
        assert draws() == first
    with temporary_seed(2**63 + 12):
        assert draws() != first


def test_streams__equal_a_fresh_numpy_philox_in_any_order_of_keys() -> None:
    streams = PhiloxStreams(2**64 - 3, domain=9)
    for epoch, index, copy, view in [(3, 5, 1, 1), (0, 0, 0, 0), (3, 5, 1, 1), (2**40, 2**33, 0, 1)]:
        fresh = np.random.Philox(key=np.array([2**64 - 3, 9], np.uint64), counter=[0, copy * 256 + view, index, epoch])
        assert streams.uniforms(epoch, index, copy, view, 30) == np.random.Generator(fresh).random(30).tolist()


def test_streams__survive_pickling_and_differ_by_seed_and_domain() -> None:
    streams = PhiloxStreams(1, 2)
    numbers = streams.uniforms(1, 2, 0, 0, 4)
    assert pickle.loads(pickle.dumps(streams)).uniforms(1, 2, 0, 0, 4) == numbers
    assert PhiloxStreams(2, 2).uniforms(1, 2, 0, 0, 4) != numbers != PhiloxStreams(1, 3).uniforms(1, 2, 0, 0, 4)
