"""Image classification; names are imported when first used."""

from importlib import import_module

_HOMES = {
    "Classifier": "lit_vision.methods.classifier.classifier",
    "ClassifierNetwork": "lit_vision.methods.classifier.network",
    "classification_loss": "lit_vision.methods.classifier.network",
    "soft_targets": "lit_vision.methods.classifier.network",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
