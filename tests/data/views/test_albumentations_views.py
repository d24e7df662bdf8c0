"""Albumentations pipelines: random state set per sample, so that no worker or epoch repeats crops of another."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lit_vision.data.views.albumentations_views import (
    PIPELINES,
    AlbumentationsViews,
    import_albumentations,
    mild,
    register_pipeline,
)
from lit_vision.errors import UserError

# every pixel is its coordinates, so that different crops have different pixels
PLACES = np.stack([*np.indices((64, 64)) * 3, np.zeros((64, 64))], 2).astype(np.uint8)
KEYS = [[(epoch, i, 0)] for epoch in range(2) for i in range(8)]


class _Plain(Dataset):
    """Usual use of albumentations: one pipeline, called per sample, with or without a fixed seed."""

    def __init__(self, pipeline):
        self.pipeline = pipeline

    def __getitem__(self, key) -> np.ndarray:
        return self.pipeline(image=PLACES)["image"]


class _Keyed(Dataset):
    def __init__(self):
        self.views = AlbumentationsViews("light", 32, seed=0)

    def __getitem__(self, key) -> np.ndarray:
        return self.views.from_array(PLACES, *key)[0]


def _epochs(dataset: Dataset, workers: int) -> list[bytes]:
    """Return the crops of two epochs of eight samples; new workers start each epoch, as they do by default."""
    crops = []
    for epoch in range(2):
        keys = [key for key in KEYS if key[0][0] == epoch]
        loader = DataLoader(dataset, batch_sampler=keys, num_workers=workers, collate_fn=lambda batch: batch)
        crops += [batch[0].tobytes() for batch in loader]
    return crops


def _never_repeats(dataset: Dataset) -> bool:
    crops = _epochs(dataset, workers=2)
    return len(set(crops)) == len(crops)


def test_keyed_pipeline__never_repeats_a_crop_over_workers_and_epochs_and_plain_ones_do() -> None:
    A = import_albumentations()
    assert A.__version__ == "2.0.8"
    assert _never_repeats(_Keyed())
    fixed = A.Compose([A.RandomResizedCrop((32, 32), scale=(0.08, 1.0)), A.HorizontalFlip(p=0.5)], seed=0)
    assert not _never_repeats(_Plain(fixed))
    assert not _never_repeats(_Plain(mild(32)))  # if this fails, albumentations has fixed it


def test_keyed_pipeline__gives_the_same_pixels_on_any_worker_count() -> None:
    assert _epochs(_Keyed(), 0) == _epochs(_Keyed(), 2)


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_pipelines__are_pure_functions_of_the_key(name: str) -> None:
    views = AlbumentationsViews(name, 24, seed=1)
    first = views.from_array(PLACES, 1, 2)
    assert first.shape == (1, 24, 24, 3)
    assert first.dtype == np.uint8
    torch.manual_seed(3), np.random.seed(3)
    views.from_array(PLACES, 5, 5)
    assert (views.from_array(PLACES, 1, 2) == first).all()
    for other in ((2, 2), (1, 3), (1, 2, 1)):
        assert (views.from_array(PLACES, *other) != first).any()


def test_pipelines__of_ones_own_and_wrong_names() -> None:
    register_pipeline("mine", mild)
    assert AlbumentationsViews("mine", 16, 0).from_array(PLACES, 0, 0).shape == (1, 16, 16, 3)
    del PIPELINES["mine"]
    with pytest.raises(UserError, match="albumentations:mine"):
        AlbumentationsViews("mine", 16, 0)
    with pytest.raises(UserError, match="flip"):
        AlbumentationsViews("light", 16, 0, flip=0.5)
