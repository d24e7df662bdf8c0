"""Plug-ins of Pillow that decode further formats, where they are installed: HEIC, JPEG XL, AVIF."""

from __future__ import annotations

import importlib
import warnings
from importlib.util import find_spec

PLUGINS = {
    "pillow_heif": ("pillow-heif", ("heic", "heif", "hif")),
    "pillow_jxl": ("pillow-jxl-plugin", ("jxl",)),
    "pillow_avif": ("pillow-avif-plugin", ("avif", "avifs")),
}  # module: (name of the package, endings that it adds)


def register_plugins() -> None:
    """Let Pillow decode what its installed plug-ins can. One that cannot be imported is as if it was not installed."""
    for module in filter(find_spec, PLUGINS):
        try:
            plugin = importlib.import_module(module)
            if hasattr(plugin, "register_heif_opener"):
                plugin.register_heif_opener()
        except Exception as error:  # of a package that was built for another version
            warnings.warn(f"{module} cannot be used: {error}", stacklevel=2)
