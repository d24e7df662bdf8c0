"""lit_vision: pre-train on unlabeled images, fine-tune with few labels, reproduce the tables, deploy.

load: a model to predict and embed with. run_study, choose_images, export_model, prune_model, check_folder,
restore_images, stylize: as the commands study, choose, export, prune, doctor, restore and stylize, with their options.
Each is imported when it is first used, so that `import lit_vision` is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_vision.convert.export_model import export_model
    from lit_vision.convert.prune import prune_model
    from lit_vision.data.check.check_folder import check_folder
    from lit_vision.predict.api import load
    from lit_vision.predict.restore import restore_images
    from lit_vision.predict.stylize import stylize
    from lit_vision.study.choose import choose_images
    from lit_vision.study.run_study import run_study

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "check_folder",
    "choose_images",
    "export_model",
    "load",
    "prune_model",
    "restore_images",
    "run_study",
    "stylize",
]

_HOMES = {
    "check_folder": "lit_vision.data.check.check_folder",
    "choose_images": "lit_vision.study.choose",
    "export_model": "lit_vision.convert.export_model",
    "load": "lit_vision.predict.api",
    "prune_model": "lit_vision.convert.prune",
    "restore_images": "lit_vision.predict.restore",
    "run_study": "lit_vision.study.run_study",
    "stylize": "lit_vision.predict.stylize",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
