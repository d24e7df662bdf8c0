"""LeJEPA (Balestriero and LeCun 2025); names are imported when first used."""

from importlib import import_module

_HOMES = {
    "LeJEPA": "lit_vision.methods.lejepa.lejepa",
    "LeJEPANetwork": "lit_vision.methods.lejepa.network",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
