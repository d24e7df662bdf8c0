"""Prototypes and k-shot episodes: slow loops, scikit-learn's nearest centroid, paired draws, faults."""

import numpy as np
import pytest
import torch

from lit_vision.errors import UserError
from lit_vision.evaluation.features import Features
from lit_vision.evaluation.few_shot import class_prototypes, few_shot, nearest_prototype, summarize_episodes


def blobs(n: int, seed: int, classes: int = 4, width: int = 6) -> Features:
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(9)) * 3
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    keys = torch.stack((torch.zeros(n), torch.arange(n), torch.zeros(n)), dim=1).long()
    return Features(centers[labels] + torch.randn(n, width, generator=generator), labels, keys)


def test_euclidean__is_scikit_learns_nearest_centroid_and_the_papers_softmax() -> None:
    from sklearn.neighbors import NearestCentroid

    train, test = blobs(40, 1), blobs(30, 2)
    prototypes = class_prototypes(train.features, train.labels, metric="euclidean")
    scores = nearest_prototype(prototypes, test.features, metric="euclidean")
    other = NearestCentroid().fit(train.features.numpy(), train.labels.numpy())
    np.testing.assert_array_equal(scores.argmax(1).numpy(), other.predict(test.features.numpy()))
    row, weights = test.features[0], []
    for k in range(4):
        center = torch.stack([f for f, y in zip(train.features, train.labels) if y == k]).mean(0)
        weights.append(torch.exp(-((row - center) ** 2).sum()).item())
    torch.testing.assert_close(scores[0], torch.tensor(weights) / sum(weights), rtol=1e-4, atol=1e-6)


def test_cosine__ignores_the_length_of_every_feature() -> None:
    train, test = blobs(12, 1), blobs(30, 2)
    stretch = torch.rand(12, 1, generator=torch.Generator().manual_seed(3)) * 9 + 1
    plain = nearest_prototype(class_prototypes(train.features, train.labels), test.features)
    scaled = nearest_prototype(class_prototypes(train.features * stretch, train.labels), test.features * 7)
    torch.testing.assert_close(plain, scaled)
    torch.testing.assert_close(plain.sum(1), torch.ones(30))


def test_a_class_without_samples_is_never_chosen() -> None:
    prototypes = class_prototypes(torch.eye(2), torch.tensor([0, 2]), num_classes=3)
    assert prototypes[1].isnan().all()
    for metric in ("cosine", "euclidean"):
        scores = nearest_prototype(prototypes, torch.randn(5, 2), metric)
        assert not scores.isnan().any()
        assert (scores[:, 1] == 0).all()


def test_few_shot__more_shots_help_and_draws_are_paired() -> None:
    train, test = blobs(80, 1), blobs(200, 2)
    episodes = few_shot(train, test, shots=(1, 10), seeds=range(3))
    assert len(episodes) == 2 * 3 * 2
    assert episodes == few_shot(train, test, shots=(1, 10), seeds=range(3))
    found = summarize_episodes(episodes)
    for method in ("prototypes", "logreg"):
        assert found[method, 10][0] > 0.9
        assert found[method, 10][0] >= found[method, 1][0]
        assert found[method, 10][2] == 3
    one = few_shot(train, test, shots=(1,), seeds=[0], methods=["prototypes"], metric="euclidean")
    assert one[0].value > 0.5


def test_bad_input_is_refused() -> None:
    train = blobs(8, 1)
    with pytest.raises(UserError, match=r"shots=3: class 0 has 2 image\(s\)"):
        few_shot(train, train, shots=(3,))
    with pytest.raises(UserError, match="6 labels"):
        class_prototypes(train.features, train.labels - 1)
    with pytest.raises(UserError, match="wide"):
        nearest_prototype(class_prototypes(train.features, train.labels), torch.randn(2, 5))
    with pytest.raises(ValueError, match="metric must be"):
        class_prototypes(train.features, train.labels, metric="l1")
    with pytest.raises(ValueError, match="methods must be"):
        few_shot(train, train, methods=("svm",))
