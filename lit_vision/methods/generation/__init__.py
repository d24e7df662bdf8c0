"""Images made from noise: flow matching, and a GAN; names are imported when first used."""

from importlib import import_module

_HOMES = {
    "FlowMatching": "lit_vision.methods.generation.flow_matching",
    "FlowMatchingNetwork": "lit_vision.methods.generation.flow_matching_network",
    "GAN": "lit_vision.methods.generation.gan",
    "GANNetwork": "lit_vision.methods.generation.gan_network",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
