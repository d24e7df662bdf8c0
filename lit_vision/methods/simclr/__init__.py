"""SimCLR (Chen et al. 2020); names are imported when first used."""

from importlib import import_module

_HOMES = {
    "SimCLR": "lit_vision.methods.simclr.simclr",
    "SimCLRNetwork": "lit_vision.methods.simclr.network",
    "nt_xent": "lit_vision.methods.simclr.network",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
