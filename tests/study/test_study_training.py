"""A training of a study starts from its linear probe."""

import numpy as np
import pytest
import torch

from lit_vision.evaluation.linear import LinearProbe
from lit_vision.study.encoders import features
from lit_vision.study.presets import preset_for
from lit_vision.study.training import classification, pretraining, probabilities
from lit_vision.weights.load import save_backbone


@pytest.mark.parametrize("init", ["mae", "simclr"])
def test_classification__begins_with_the_answers_of_the_probe(images, tmp_path, init: str) -> None:
    """Features far from zero give biases far below that of a class without labels; all of them must arrive."""
    preset, rng = preset_for(16), np.random.default_rng(0)
    encoder, _ = pretraining(init, images, preset, seed=0)
    weights = tmp_path / "encoder.safetensors"
    save_backbone(weights, encoder.backbone, encoder.mean, encoder.std)
    pool, test = features(encoder.backbone, encoder.mean.flatten(), encoder.std.flatten(), images, 16)
    weight = rng.normal(0, 5, (2, pool.shape[1])).astype(np.float32)
    bias = np.array([-90.0, -75.0], np.float32) - test.mean(0) @ weight.T
    logits = test @ weight.T + bias
    want = torch.from_numpy(logits).softmax(1).numpy()
    probe = LinearProbe(want, want.argmax(1), weight, bias, 1.0, "test", {}, True)
    module, _ = classification(init, images, np.arange(8), preset, 0, weights, probe)
    np.testing.assert_allclose(probabilities(module, images, 16), want, atol=1e-4)


def test_classification__a_class_that_without_labels_is_never_predicted(images, tmp_path) -> None:
    preset = preset_for(16)
    encoder, _ = pretraining("simclr", images, preset, seed=0)
    weights = tmp_path / "encoder.safetensors"
    save_backbone(weights, encoder.backbone, encoder.mean, encoder.std)
    weight, bias = np.zeros((2, encoder.backbone.width), np.float32), np.array([0.5, -np.inf], np.float32)
    probe = LinearProbe(np.zeros((0, 2)), np.zeros(0), weight, bias, 1.0, "test", {}, True)
    module, _ = classification("simclr", images, np.arange(8), preset, 0, weights, probe)
    assert module.head.bias.isfinite().all()
    assert (probabilities(module, images, 16).argmax(1) == 0).all()
