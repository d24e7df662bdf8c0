"""Retrieval against sorted lists, with several captions an image; ties and values that are not finite find nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lit_vision.errors import UserError
from lit_vision.evaluation import retrieval
from lit_vision.evaluation.retrieval import recall_in_batch, retrieve


def slow_recalls(images: np.ndarray, texts: np.ndarray, owner: list[int], k: int) -> tuple[float, float]:
    """As MS-COCO's papers count: sort all candidates of each query, look whether a right one is among the first k."""
    similarity = images @ texts.T
    to_text = [any(owner[j] == i for j in np.argsort(-row, kind="stable")[:k]) for i, row in enumerate(similarity)]
    to_image = [owner[j] in np.argsort(-column, kind="stable")[:k] for j, column in enumerate(similarity.T)]
    return float(np.mean(to_text)), float(np.mean(to_image))


@pytest.mark.parametrize("rows", [7, 1024])
def test_recall_and_median_rank_are_those_of_sorted_lists(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "ROWS", rows)
    rng = np.random.default_rng(0)
    owner = sorted([*range(60), *rng.integers(0, 60, 180).tolist()])  # one to many captions an image
    owner = [owner[i] for i in rng.permutation(len(owner))]
    images = F.normalize(torch.from_numpy(rng.normal(size=(60, 8))).float(), dim=1)
    texts = F.normalize(images[owner] + torch.from_numpy(rng.normal(size=(240, 8))).float() / 2, dim=1)
    to_texts, to_images = retrieve(images, 3 * texts, owner)
    assert (to_texts.candidates, to_images.candidates) == (240, 60)
    for k in (1, 5, 10):
        expected = slow_recalls(images.numpy(), texts.numpy(), owner, k)
        assert (to_texts.recall[k], to_images.recall[k]) == pytest.approx(expected)
        assert 0.1 < expected[1] < 1
    order = np.argsort(-(texts @ images.T).numpy(), axis=1)
    ranks = [1 + order[j].tolist().index(owner[j]) for j in range(240)]
    assert to_images.ranks.tolist() == ranks
    assert to_images.median_rank == np.median(ranks)


def test_a_collapsed_or_broken_model_finds_nothing() -> None:
    for vectors in (torch.ones(12, 4), torch.full((12, 4), torch.nan)):
        for found in retrieve(vectors, vectors, range(12)):
            assert set(found.recall.values()) == {0.0}
            assert found.median_rank == 12


def test_refused_rows() -> None:
    x = torch.eye(3)
    for owner in ([0, 1], [0, 1, 3], [0, 1, -1], [0, 1, 1]):
        with pytest.raises(UserError, match="retrieval"):
            retrieve(x, x, owner)


def test_recall_in_batch__by_hand() -> None:
    images, texts = torch.eye(4), torch.eye(4)[[0, 2, 1, 3]]
    assert recall_in_batch(images, texts).item() == 0.5
    texts[3] = 2 * texts[0]  # this one is nearest to image 0, and of the images 0 is nearest to it
    assert recall_in_batch(images, texts).item() == pytest.approx((0 + 1) / 8)
