"""Files of the weights that the inits of a study begin with, in the run's folder. Imports no Lightning."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError
from lit_vision.study.cells import file_name
from lit_vision.study.presets import PACKAGED, TIMM, StudyPreset
from lit_vision.weights.load import load_backbone, save_backbone
from lit_vision.weights.pretrained import create_backbone
from lit_vision.weights.public_packages import is_installed


class WeightFiles:
    """Downloads or finds weights.

    Args:
        preset: of the study.
        folder: of the run; the files go to its weights/.
        log: file that gets what building networks prints.
    """

    def __init__(self, preset: StudyPreset, folder: Path, log: Path) -> None:
        self.preset, self.folder, self.log = preset, folder, log
        (folder / "weights").mkdir(exist_ok=True)

    def path(self, init: str) -> Path:
        """Return the file of an init's weights."""
        return self.folder / "weights" / f"{file_name(init)}.safetensors"

    def download(self, init: str) -> dict[str, str]:
        """Download public weights unless they are there, and return the metadata of the file, which has their license.

        Raises:
            UserError: the weights do not exist or cannot be downloaded.
        """
        path = self.path(init)
        with redirect_output(self.log):
            if not path.exists():
                public_weights(init, path)
            return load_backbone(path)[1].metadata

    def download_or_packaged(self, init: str) -> tuple[str, dict[str, str]]:
        """Download public weights or, where that fails, take PACKAGED if its package is installed.

        A study that began with PACKAGED keeps it, with a network too.

        Returns:
            The init whose weights were found, and the metadata of their file.

        Raises:
            UserError: as `download`, or the package is damaged.
        """
        packaged = f"{TIMM}{PACKAGED}"
        if self.path(packaged).exists() and not self.path(init).exists():
            return packaged, self.download(packaged)
        try:
            return init, self.download(init)
        except UserError:
            if not is_installed(PACKAGED):
                raise
        return packaged, self.download(packaged)


@contextlib.contextmanager
def redirect_output(log: Path) -> Iterator[None]:
    """Send what methods and the Trainer print to a log file, and silence warnings: a study prints its own progress."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning")
    levels = [logging.getLogger(name).level for name in names]
    with (
        open(log, "a", encoding="utf-8", errors="backslashreplace") as file,
        contextlib.redirect_stdout(file),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in zip(names, levels):
                logging.getLogger(name).setLevel(level)


def public_weights(init: str, path: Path) -> None:
    """Download a timm model's weights, or take them from the cache or a package, and write its encoder to `path`.

    The file's metadata has the license, as timm or the package states it, and the origin of a package's weights.

    Raises:
        UserError: there is no such model, or no network and no such file in the cache or a package.
    """
    name = init.removeprefix(TIMM)
    try:
        backbone, origin = create_backbone(name, pretrained=True)
    except UserError as error:  # that is no setting of a study
        raise type(error)(str(error).replace("use pretrained=false", "leave them out")) from error
    license = backbone.model.pretrained_cfg.get("license") or "not stated"
    data = backbone.data_config
    record: dict[str, Any] = {"license": license, **origin}
    save_backbone(path, backbone, data["mean"], data["std"], **record)
