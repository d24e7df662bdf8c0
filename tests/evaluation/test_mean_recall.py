"""Mean per class against scikit-learn; that processes add counts up is in test_distributed.py."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torchmetrics.classification import MulticlassAccuracy

from lit_vision.evaluation.mean_recall import MeanClassRecall
from lit_vision.evaluation.metrics import confusion_matrix, per_class_accuracy


@pytest.mark.parametrize("seed", range(3))
def test_mean_per_class__as_scikit_learn_over_unequal_batches_and_classes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(6, 101, p=[0.5, 0.3, 0.1, 0.06, 0.04, 0.0])  # class 5 never occurs, but is predicted
    found = np.where(rng.random(101) < 0.6, labels, rng.integers(0, 6, 101))
    metric = MeanClassRecall(6)
    for rows in np.split(np.arange(101), [1, 50, 97]):
        metric.update(torch.tensor(found[rows] == labels[rows]), torch.tensor(labels[rows]))
    with pytest.warns(UserWarning, match="classes not in y_true"):
        expected = balanced_accuracy_score(labels, found)
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-7)
    assert expected == pytest.approx(np.nanmean(per_class_accuracy(confusion_matrix(found, labels, 6))))


def test_torchmetrics_counts_an_absent_class_that_is_predicted_differently() -> None:
    """The reason for a metric of our own; if this fails, torchmetrics can replace it."""
    labels, found = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 1])  # class 2 is predicted but never occurs
    metric = MeanClassRecall(3)
    metric.update(found == labels, labels)
    assert float(metric.compute()) == pytest.approx(0.75)
    assert float(MulticlassAccuracy(3, average="macro")(found, labels)) == pytest.approx(0.5)
