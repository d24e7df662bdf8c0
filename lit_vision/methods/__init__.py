"""Training methods: a folder each, imported when first used.

In a folder, network.py has the network without Lightning, and what it declares: PARTS (the modules in a checkpoint),
TRAIN_VIEW, and DEFAULTS of the hyper-parameters that the network reads. The file beside it trains the network. In
generation/, which holds two methods, these are flow_matching_network.py and gan_network.py.
"""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_HOMES = {
    "MAE": "lit_vision.methods.mae.mae",
    "LeJEPA": "lit_vision.methods.lejepa.lejepa",
    "SimCLR": "lit_vision.methods.simclr.simclr",
    "Classifier": "lit_vision.methods.classifier.classifier",
    "MultiLabelClassifier": "lit_vision.methods.multilabel.multilabel",
    "VideoClassifier": "lit_vision.methods.video_classifier.video_classifier",
    "Detector": "lit_vision.methods.detection.detector",
    "Segmenter": "lit_vision.methods.segmentation.segmenter",
    "ImageText": "lit_vision.methods.image_text.image_text",
    "Captioner": "lit_vision.methods.captioner.captioner",
    "Restorer": "lit_vision.methods.restoration.restorer",
    "FlowMatching": "lit_vision.methods.generation.flow_matching",
    "GAN": "lit_vision.methods.generation.gan",
}
# where a folder holds several methods; else network.py beside the method
_NETWORKS = {
    "FlowMatching": "lit_vision.methods.generation.flow_matching_network",
    "GAN": "lit_vision.methods.generation.gan_network",
}
# training of another method's network, whose files it writes: imported by name as the methods are, and none of them
TRAINERS = {"Distiller": "lit_vision.methods.distiller.distiller"}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if home := _HOMES.get(name) or TRAINERS.get(name):
        return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def network_class(method: str) -> type[nn.Module]:
    """Return the network of a method, `<method>Network` of network.py in its folder; imports no Lightning."""
    module = import_module(_NETWORKS.get(method, f"{_HOMES[method].rpartition('.')[0]}.network"))
    network: type[nn.Module] = getattr(module, f"{method}Network")
    return network


def lightning_module(network: nn.Module) -> nn.Module:
    """Return the LightningModule of a network with its weights, for a Trainer; LoRA must be merged or not trained.

    It is in evaluation mode, which Trainer.fit keeps: call train() before a training.

    Args:
        network: of `network_class`, or from `predict.models.load_method`.
    """
    arguments = {**network.hparams, "backbone_checkpoint": None}
    if arguments.get("tune") == "lora":  # the network was merged
        arguments["tune"] = "full"
    kind = getattr(import_module(_HOMES[network.method_name]), network.method_name)
    accepted = signature(kind).parameters
    method: nn.Module = kind(**{name: value for name, value in arguments.items() if name in accepted})
    method.load_state_dict(network.state_dict())
    return method.eval()
