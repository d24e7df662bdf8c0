"""Data modules, data sets, samplers and views. Names are imported on first use, so that light modules stay light."""

from importlib import import_module

_HOMES = {
    "AnnotatedDataModule": "lit_vision.data.annotations.datamodule",
    "DatasetDataModule": "lit_vision.data.dataset_datamodule",
    "ImageFolderDataModule": "lit_vision.data.datamodule",
    "PairsDataModule": "lit_vision.data.pairs.datamodule",
    "VideoFolderDataModule": "lit_vision.data.video.datamodule",
    "make_views": "lit_vision.data.views.views",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
