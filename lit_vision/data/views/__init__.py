"""Views: from image bytes and a key to pixels, as pure functions. Names are imported when first used."""

from importlib import import_module

_HOMES = {
    "make_views": "lit_vision.data.views.views",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
