"""Every network has the state keys and the defaults of its LightningModule.

That none imports Lightning is seen in tests/cli/test_sockets.py.
"""

import inspect
from importlib import import_module

import pytest
import torch
import toy_dense
import toy_models
import toy_restorer

from lit_vision import methods

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}


def modules():
    """A small LightningModule of each method."""
    name = "vit_tiny_patch16_224"
    yield methods.MAE(name, VIT, decoder_width=16, decoder_depth=1, decoder_heads=2)
    yield methods.SimCLR(name, VIT, projection_width=8)
    yield methods.LeJEPA(name, VIT, projection_width=8, projection_hidden=16)
    yield toy_models.make_classifier("vit", head_norm=True)
    yield toy_models.make_classifier("cnn", tune="linear")
    yield from (toy_dense.make_detector(head) for head in ("fcos", "mask_rcnn"))
    yield toy_dense.make_segmenter()
    yield methods.MultiLabelClassifier(name, 5, VIT)
    yield toy_restorer.make_restorer("resnet")
    sizes = {"img_size": toy_dense.SIZE, "num_classes": 3, "width": 8, "multipliers": (1, 2)}
    yield methods.FlowMatching(**sizes, blocks=1)
    yield methods.GAN(**sizes, noise_width=4, discriminator_width=8)
    yield methods.ImageText(name, VIT, **toy_models.TEXT, loss="sigmoid", lock_image=True)
    yield methods.Captioner(name, VIT, **toy_models.CAPTIONER)
    yield methods.VideoClassifier(name, 3, "attention", temporal_width=8, backbone_args=VIT)
    yield methods.VideoClassifier("resnet18", 3, "tsm", backbone_args=toy_models.CNN)


@pytest.mark.parametrize("module", list(modules()), ids=lambda module: type(module).__name__)
def test_a_network_has_the_keys_and_outputs_of_its_module(module) -> None:
    network = methods.network_class(type(module).__name__)(dict(module.hparams))
    assert list(network.state_dict()) == list(module.state_dict())
    network.load_state_dict(module.state_dict())
    assert [name for name, p in network.named_parameters() if p.requires_grad] == [
        name for name, p in module.named_parameters() if p.requires_grad
    ]
    assert {key.split(".")[0] for key in network.state_dict()} - {"mean", "std"} <= network.parts
    size = toy_dense.SIZE if "img_size" in module.hparams else 16
    images = torch.rand(2, 3, size, size)
    if isinstance(module, methods.VideoClassifier):
        images = torch.rand(2, 4, 3, size, size)
    with torch.no_grad():
        torch.manual_seed(0)
        ours = network.eval()(images)
        torch.manual_seed(0)
        torch.testing.assert_close(ours, module.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", methods.__all__)
def test_defaults_are_those_of_the_constructor(name: str) -> None:
    arguments = inspect.signature(getattr(methods, name)).parameters
    network = methods.network_class(name)
    declared = import_module(network.__module__)
    assert (network.method_name, network.parts, network.train_view) == (name, declared.PARTS, declared.TRAIN_VIEW)
    given = {key: arguments[key].default for key in declared.DEFAULTS}
    assert given == dict(declared.DEFAULTS)
