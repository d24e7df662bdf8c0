"""Frozen features of files: the values of lit-vision embed, kept by content, and continued after a stop."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_files import encode, picture

from lit_vision.backbones.backbone import Backbone
from lit_vision.data.folder import scan
from lit_vision.errors import UserError
from lit_vision.predict import feature_cache
from lit_vision.predict.api import load
from lit_vision.predict.feature_cache import cached_features
from lit_vision.weights.load import save_backbone

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])


@pytest.fixture
def encoder() -> Backbone:
    torch.manual_seed(0)
    return Backbone("resnet18", channels=[8, 8, 16, 24], stem="small", layers=[1, 1, 1, 1]).eval()


def _folder(root: Path, count: int = 70):
    for i in range(count):
        path = root / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(i, 30 + i % 5, 41), "PNG"))
    folder = scan(root)
    return folder, list(folder.splits["train"].paths)


def test_features__are_those_of_embed_with_and_without_a_cache(tmp_path, encoder, monkeypatch) -> None:
    monkeypatch.setattr(feature_cache, "_LARGEST_BATCH", 32)  # several blocks
    folder, paths = _folder(tmp_path / "images")
    weights = save_backbone(tmp_path / "encoder.safetensors", encoder, MEAN, STD)
    steps = []
    cached, memory = (
        cached_features(
            folder, paths, encoder, MEAN, STD, 24, 0.8, cache, on_batch=lambda done, total: steps.append((done, total))
        )
        for cache in (tmp_path / "cache", None)
    )
    model = load(weights, "cpu")
    model.metadata.size, model.metadata.crop_pct = [24, 24], 0.8
    wanted = model.embed([str(tmp_path / "images" / path) for path in paths]).features
    np.testing.assert_allclose(cached, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(cached, memory)
    assert isinstance(cached, np.memmap)
    assert steps[:3] == [(32, 70), (64, 70), (70, 70)]


def test_a_stopped_call__goes_on_after_its_last_block_to_the_same_bits(tmp_path, encoder, monkeypatch) -> None:
    monkeypatch.setattr(feature_cache, "_LARGEST_BATCH", 32)
    folder, paths = _folder(tmp_path / "images")
    cache = tmp_path / "cache"

    def features(on_batch=None) -> np.ndarray:
        return cached_features(folder, paths, encoder, MEAN, STD, 24, 0.8, cache, on_batch=on_batch)

    whole = np.array(features())
    (file,) = cache.iterdir()
    size = file.stat().st_size
    for kept in (0, 50, 128 + 24 * 4 * 32, 128 + 24 * 4 * 40, size):  # no header, half of one, a block, more, all
        part = file.with_suffix(".part")
        file.rename(part)
        os.truncate(part, kept)
        steps = []
        np.testing.assert_array_equal(features(lambda done, _, steps=steps: steps.append(done)), whole)
        assert steps == ([64, 70] if 128 + 24 * 4 * 64 > kept > 128 else [70] if kept == size else [32, 64, 70])
        assert [path.name for path in cache.iterdir()] == [file.name]
    features(lambda *_: pytest.fail("computed again"))


def test_another_content_view_or_weights__is_another_file(tmp_path, encoder) -> None:
    folder, paths = _folder(tmp_path / "images", 4)
    cache = tmp_path / "cache"

    def features(paths=paths, size=16, crop_pct=1.0, mean=MEAN) -> np.ndarray:
        return cached_features(folder, paths, encoder, mean, STD, size, crop_pct, cache)

    features()
    first = tmp_path / "images" / paths[0]
    first.write_bytes(encode(picture(99, 30, 41), "PNG"))
    changed = features()
    features(size=20)
    features(crop_pct=0.9)
    features(mean=MEAN + 0.1)
    assert len(list(cache.iterdir())) == 5
    np.testing.assert_array_equal(features(paths[::-1]), changed[::-1])
    encoder.model.conv1.weight.data *= 2
    features()
    assert len(list(cache.iterdir())) == 7
    first.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"000\.png"):
        features()
    first.unlink()
    with pytest.raises(UserError, match=r"000\.png"):
        features()
