"""Training methods: one file or folder each, imported when first used."""

from importlib import import_module

_HOMES = {
    "MAE": "lit_vision.methods.mae.mae",
    "LeJEPA": "lit_vision.methods.lejepa.lejepa",
    "SimCLR": "lit_vision.methods.simclr.simclr",
    "Classifier": "lit_vision.methods.classifier",
    "Detector": "lit_vision.methods.detection.detector",
    "Segmenter": "lit_vision.methods.segmentation.segmenter",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
