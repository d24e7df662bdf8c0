"""A training of a study starts from its linear probe."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lit_vision.backbones.backbone import Backbone
from lit_vision.evaluation.linear import LinearProbe
from lit_vision.study.frozen import features
from lit_vision.study.presets import Network, preset_for
from lit_vision.study.training import classification, measure_step, pretraining, probabilities, train
from lit_vision.weights.load import load_backbone, save_backbone


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


@pytest.mark.parametrize("method", ["mae", "simclr", "lejepa"])
def test_pretraining__goes_on_from_the_weights_and_statistics_of_a_file(images, tmp_path, method: str) -> None:
    vit = Network("timm", "vit_tiny_patch16_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}, 32)
    preset = replace(preset_for(16), networks={"file": vit})
    backbone = Backbone(vit.backbone, **vit.args)  # of 224 pixels: its positions are resized
    weights = save_backbone(tmp_path / "file.safetensors", backbone, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    module, data = pretraining(f"{method}@file", images, preset, 0, 32, weights=weights)
    assert data.views.spec.height == 32
    torch.testing.assert_close(module.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(module.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    before, after = backbone.model.state_dict(), module.backbone.model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["pos_embed"]
    module = train(module, data, seed=0, steps=1).module
    out = save_backbone(tmp_path / "out.safetensors", module.backbone, module.mean, module.std)
    assert load_backbone(out)[1].mean == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(("limit", "steps"), [(0.0, 1), (1000.0, 3)])
def test_measure_step__runs_one_to_three_steps_of_any_training(images, limit: float, steps: int) -> None:
    seen: list[int] = []
    cost = measure_step(*pretraining("simclr", images, preset_for(16), 0), limit, lambda step, *_: seen.append(step))
    assert seen == list(range(1, steps + 1))
    assert cost.step > 0
    assert cost.setup >= 0
    assert cost.epoch == 0
