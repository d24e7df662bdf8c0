"""Write result images as PNG under names that are unique and never overwrite an input."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from lit_vision.errors import UserError
from lit_vision.predict.inputs import Inputs


class PictureWriter(Protocol):
    """Takes the result image of each image: `ImageWriter`, or what keeps them in memory."""

    def write(self, name: str, pixels: np.ndarray) -> None:
        """Take the result of an image: (H, W, 3) RGB or (H, W), 8 or 16 bit."""


class ImageWriter:
    """Folder of PNG files: sub/a.png for the image sub/a.jpg, which is where `format: masks` looks for its mask.

    If two images of the list would get the same name (a.jpg and a.png), both keep their extension: a.jpg.png and
    a.png.png. Names depend on the complete list only, so a resumed run uses the same ones.

    Args:
        flag: of the command, for messages.
        folder: created when the first file is written.
        inputs: the list; None if no two images can get the same name.

    Raises:
        UserError: the folder cannot be created, two images would get the same name even so, or a file would overwrite
            one of the images.
    """

    def __init__(self, flag: str, folder: str | os.PathLike[str], inputs: Inputs | None = None) -> None:
        self.flag, self.folder = flag, Path(folder)
        existing = next(p for p in (self.folder, *self.folder.parents) if os.path.exists(p))
        if not existing.is_dir():
            raise UserError(f"{flag} {folder}: {existing} is a file; name a folder")
        if not os.access(existing, os.W_OK):
            raise UserError(f"{flag} {folder}: no permission to write to {existing}; choose another folder")
        self._with_extension: set[str] = set()  # images that keep their extension
        if inputs is not None:
            self._resolve_collisions(inputs.names)
            self._refuse_inputs(inputs)

    def path(self, name: str) -> Path:
        """Return the path of an image's PNG: below the folder, never outside."""
        *parents, file = (part for part in Path(name).parts if part not in ("..", "/"))
        return self.folder.joinpath(*parents, (file if name in self._with_extension else Path(file).stem) + ".png")

    def write(self, name: str, pixels: np.ndarray) -> None:
        """Write the PNG of an image: (H, W, 3) RGB or (H, W), 8 or 16 bit.

        Raises:
            UserError: it cannot be written.
        """
        import cv2

        path = self.path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", pixels[:, :, ::-1] if pixels.ndim == 3 else pixels)[1].tobytes())
        except OSError as error:
            raise UserError(
                f"{self.flag} {path}: cannot be written ({error.strerror}); choose another folder"
            ) from error

    def _resolve_collisions(self, names: Sequence[str]) -> None:
        """Let images with the same name keep their extension; a.png.png may then collide with a.png.jpg, so repeat."""
        while True:
            first: dict[Path, str] = {}
            colliding: set[str] = set()
            for name in names:
                if (other := first.setdefault(self.path(name), name)) != name:
                    if {name, other} <= self._with_extension:
                        raise UserError(
                            f"{self.flag} {self.folder}: {other} and {name} would both be written to "
                            f"{self.path(name)}; run predict on each of them"
                        )
                    colliding |= {name, other}
            if not colliding:
                return
            self._with_extension |= colliding

    def _refuse_inputs(self, inputs: Inputs) -> None:
        """Refuse to overwrite an image of the list, whatever link or path leads to it."""
        existing: dict[tuple[int, int], Path] = {}
        for name in inputs.names:
            target = self.path(name)
            if os.path.exists(target):
                stat = os.stat(target)
                existing[stat.st_dev, stat.st_ino] = target
        for i in range(len(inputs) if existing else 0):
            if os.path.exists(path := inputs.path(i)):
                stat = os.stat(path)
                if overwritten := existing.get((stat.st_dev, stat.st_ino)):
                    raise UserError(f"{self.flag} {overwritten}: is one of the images; name another folder")


def upscale_for_text(pixels: np.ndarray, min_side: int = 384) -> tuple[np.ndarray, int]:
    """Enlarge (H, W, 3) by an integer so that text drawn on it is readable; return the image and the factor."""
    factor = max(1, -(-min_side // max(pixels.shape[:2])))
    return pixels.repeat(factor, 0).repeat(factor, 1), factor
