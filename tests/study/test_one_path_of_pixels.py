"""A study, predict and embed see the same pixels of a file, so that its model answers as the report says."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from lit_vision.backbones.backbone import Backbone
from lit_vision.predict.api import load
from lit_vision.study import frozen
from lit_vision.study.best_model import load_best, write_explanations, write_model
from lit_vision.study.cells import CellKey
from lit_vision.study.encoders import EncoderStore
from lit_vision.study.frozen import fit_probe, measure_frozen
from lit_vision.study.images import read_images
from lit_vision.study.presets import Network, preset_for
from lit_vision.study.progress import Reporter
from lit_vision.study.training import classification, probabilities
from lit_vision.weights.load import save_backbone

TINY = {"channels": [8, 8, 16, 24], "layers": [1, 1, 1, 1]}


def _photographs(root: Path, height: int, width: int, gray: bool) -> Path:
    """Write images whose classes differ in a stripe, of several sizes; the test split has the training images too."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 9)):
        for c, name in enumerate(("lying", "upright")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 90, (height + i, width - i, 1 if gray else 3)).astype(np.uint8)
                stripe = slice(3 * i % 12, 3 * i % 12 + 6)
                image[(stripe,) if c else (slice(None), stripe)] += 120
                cv2.imwrite(str(root / split / name / f"{split}-{i}.png"), image)
    for path in sorted(root.glob("train/*/*.png")):
        shutil.copy(path, root / "test" / path.parent.name / path.name)
    return root


def _answers(model: Path, root: Path, images) -> np.ndarray:
    """Return (M, K) probabilities of `lit-vision predict` for the test images of a study."""
    found = load(model, "cpu").predict([str(root / path) for path in images.test_paths], top_k=2)
    rows = np.empty((len(found), len(images.classes)))
    for row, one in zip(rows, found):
        row[one.labels] = one.probabilities
    return rows


CASES = {  # height and width of the images, gray, side of the trainings, side of frozen features
    "64 pixels of larger images": (90, 120, False, 64, 64),
    "96 pixels": (130, 100, False, 96, 96),
    "224 pixels frozen, 96 trained": (240, 260, False, 96, 224),
    "small gray images that are enlarged": (20, 24, True, 20, 96),
}


@pytest.mark.parametrize("case", CASES)
def test_model_of_a_study__answers_in_predict_as_it_was_measured(tmp_path, case) -> None:
    height, width, gray, size, frozen = CASES[case]
    root = _photographs(tmp_path / "data", height, width, gray)
    images = read_images(root, size)
    assert images.test.shape == (30, size, size, 1 if gray else 3)
    network = Network("cnn", "resnet18", TINY, max(size, 96) if gray else size)
    preset = replace(preset_for(size), networks={"toy": network, "scratch-cnn": network}, frozen=frozen)
    store = EncoderStore(images, preset, tmp_path, Reporter())
    torch.manual_seed(0)
    encoder = Backbone("resnet18", **TINY)
    for part in encoder.modules():  # statistics under which no feature dies
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.bias, 0, 0.5)
    save_backbone(store.path("toy"), encoder, [0.5] * 3, [0.25] * 3)
    frozen_encoder = store.load_public("toy")
    same = [images.test_paths.index(path.replace("train/", "test/")) for path in images.paths]
    np.testing.assert_array_equal(images.pool, images.test[same])
    np.testing.assert_allclose(frozen_encoder.pool, frozen_encoder.test[same], rtol=1e-4, atol=1e-5)
    key = CellKey("toy", "linear", 8, 0)
    study = SimpleNamespace(
        images=images,
        preset=preset,
        licenses={},
        log=tmp_path / "log",
        store=SimpleNamespace(folder=tmp_path),
        encoders={"toy": frozen_encoder},
        probe=lambda key: fit_probe(key, frozen_encoder.pool, frozen_encoder.test, images),
    )
    measured = measure_frozen(key, frozen_encoder.pool, frozen_encoder.test, images).probabilities
    model = write_model(tmp_path / "linear.safetensors", study, key, load_best(study, key))
    found = _answers(model, root, images)
    np.testing.assert_allclose(found, measured, atol=1e-3)
    assert (found.argmax(1) == measured.argmax(1)).all()

    key, rows = CellKey("toy", "finetune", 8, 0), images.subset(8, 0)
    head = fit_probe(key, *store.head_features("toy"), images)
    module, _ = classification("toy", images, rows, preset, 0, store.path("toy"), head)
    trained = probabilities(module, images, preset.side("toy"))
    found = _answers(write_model(tmp_path / "trained.safetensors", study, key, module), root, images)
    np.testing.assert_allclose(found, trained, atol=1e-4)
    np.testing.assert_allclose(trained, head.probabilities, atol=1e-3)  # it begins with the answers of its head
    assert write_explanations(tmp_path / "reasons.png", module, images, [0, 5], preset.side("toy")).exists()


def test_features__of_needed_rows_are_those_of_all(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(frozen, "CHECKED_LABELS", 4)
    images = read_images(_photographs(tmp_path / "data", 20, 20, True), 20)
    rows = frozen.needed_rows(images, {2: 2, 4: 1})
    assert set(rows) == {*images.subset(2, 0), *images.subset(2, 1), *images.subset(4, 0)}
    assert frozen.needed_rows(images, {12: 1}) is None
    encoder = save_backbone(tmp_path / "toy.safetensors", Backbone("resnet18", **TINY), [0.5] * 3, [0.25] * 3)
    every, test = frozen.frozen_features(encoder, images, 20)
    some, same_test = frozen.frozen_features(encoder, images, 20, rows=rows)
    assert some.shape == every.shape
    np.testing.assert_allclose(some[rows[::-1]], every[rows[::-1]], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(test, same_test)
    with pytest.raises(IndexError, match="were not computed"):
        some[:]
