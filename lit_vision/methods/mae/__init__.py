"""Masked autoencoder (He et al. 2022); names are imported when first used."""

from importlib import import_module

_HOMES = {
    "MAE": "lit_vision.methods.mae.mae",
    "MAENetwork": "lit_vision.methods.mae.network",
    "masked_patch_loss": "lit_vision.methods.mae.network",
    "patchify": "lit_vision.methods.mae.network",
    "random_masking": "lit_vision.methods.mae.network",
    "unpatchify": "lit_vision.methods.mae.network",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
