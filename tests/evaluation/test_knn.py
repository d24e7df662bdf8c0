"""Weighted k-NN against a slow loop, and its rules for ties and edges."""

import math

import pytest
import torch

from lit_vision.errors import UserError
from lit_vision.evaluation import knn
from lit_vision.evaluation.knn import weighted_knn


def slow_knn(train, labels, queries, classes, k, t):
    out = []
    for q in queries.double().tolist():
        sims = []
        for i, row in enumerate(train.double().tolist()):
            dot = sum(a * b for a, b in zip(q, row))
            sims.append((-dot / (math.hypot(*q) * math.hypot(*row)), i))
        votes = [0.0] * classes
        for minus, i in sorted(sims)[:k]:
            votes[int(labels[i])] += math.exp(-minus / t)
        out.append([v / sum(votes) for v in votes])
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize(("k", "t"), [(1, 0.1), (5, 0.1), (20, 0.07), (500, 1.0)])
def test_equals_the_slow_loop_whatever_the_chunk(k, t, monkeypatch):
    g = torch.Generator().manual_seed(k)
    train, labels, queries = torch.randn(60, 8, generator=g), torch.arange(60) % 4, torch.randn(33, 8, generator=g)
    truth = slow_knn(train, labels, queries, 5, k, t)
    for chunk in (1 << 24, 60 * 7, 1):
        monkeypatch.setattr(knn, "CHUNK", chunk)
        torch.testing.assert_close(weighted_knn(train, labels, queries, 5, k, t).double(), truth, rtol=1e-4, atol=1e-5)


def test_ties_go_to_the_earlier_row_and_the_lower_class():
    train = torch.tensor([[1.0, 0.0]] * 30)
    labels = torch.tensor([2] * 3 + [1] * 27)
    assert weighted_knn(train, labels, train[:1], k=4)[0].tolist() == pytest.approx([0, 0.25, 0.75])
    assert weighted_knn(train, labels, train[:1], k=6).argmax(1).item() == 1


def test_small_temperature_and_zero_vectors_stay_finite():
    train, labels = torch.eye(3), torch.arange(3)
    assert weighted_knn(train, labels, torch.eye(3), temperature=1e-3, k=3).argmax(1).tolist() == [0, 1, 2]
    assert weighted_knn(train, labels, torch.zeros(1, 3)).isfinite().all()


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="no label"):
        weighted_knn(torch.eye(2), torch.tensor([0, -1]), torch.eye(2))
    with pytest.raises(UserError, match="wide"):
        weighted_knn(torch.eye(2), torch.tensor([0, 1]), torch.eye(3))
    with pytest.raises(UserError, match="0 training"):
        weighted_knn(torch.empty(0, 2), torch.empty(0), torch.eye(2))
    with pytest.raises(ValueError, match="temperature"):
        weighted_knn(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), temperature=0)
