"""Pictures of images that were given, a PNG each: where it goes, so that none lands on another or on an image, and how it is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_vision.errors import UserError
from lit_vision.predict.inputs import Inputs


class ImageWriter:
    """A folder of pictures: sub/a.png of the image sub/a.jpg, which is where `format: masks` looks for its mask.

    Where two images of the list would share a place (a.jpg and a.png), both keep their ending: a.jpg.png and a.png.png. That follows from
    the whole list, so a run that goes on names as one that was not stopped.

    Args:
        flag: of the command, for messages.
        folder: made when the first picture is written.
        inputs: the list; None where there are no two images that could share a place.

    Raises:
        UserError: the folder cannot be made, two images share a place for all that, or a picture would replace one of the images.
    """

    def __init__(self, flag: str, folder: str | os.PathLike, inputs: Inputs | None = None) -> None:
        self.flag, self.folder = flag, Path(folder)
        above = next(p for p in (self.folder, *self.folder.parents) if os.path.exists(p))
        if not above.is_dir():
            raise UserError(f"{flag} {folder}: {above} is a file; name a folder")
        if not os.access(above, os.W_OK):
            raise UserError(f"{flag} {folder}: {above} may not be written; choose another place")
        self.full_names: set[str] = set()  # images that keep their ending
        if inputs is not None:
            self._decide(inputs.names)
            self._spare(inputs)

    def place(self, name: str) -> Path:
        """Where the picture of an image goes: below the folder, never outside."""
        inside = [part for part in Path(name).parts if part not in ("..", "/")]
        return self.folder.joinpath(
            *inside[:-1], (inside[-1] if name in self.full_names else Path(inside[-1]).stem) + ".png"
        )

    def write(self, name: str, pixels: np.ndarray) -> None:
        """The picture of an image, (H, W, 3) RGB or (H, W), 8 or 16 bit.

        Raises:
            UserError: it cannot be written.
        """
        import cv2

        path = self.place(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", pixels[:, :, ::-1] if pixels.ndim == 3 else pixels)[1].tobytes())
        except OSError as error:
            raise UserError(
                f"{self.flag} {path}: cannot be written ({error.strerror}); choose another folder"
            ) from error

    def _decide(self, names: Sequence[str]) -> None:
        """Which images keep their ending. An ending that is kept can meet another image (a.png.jpg), hence the rounds."""
        while True:
            first: dict[Path, str] = {}
            sharing: set[str] = set()
            for name in names:
                if (other := first.setdefault(self.place(name), name)) != name:
                    if {name, other} <= self.full_names:
                        raise UserError(
                            f"{self.flag} {self.folder}: {other} and {name} would share {self.place(name)}; predict them apart"
                        )
                    sharing |= {name, other}
            if not sharing:
                return
            self.full_names |= sharing

    def _spare(self, inputs: Inputs) -> None:
        """Refuse to write over what is to be read, under whatever name it is there."""
        there = {}
        for name in inputs.names:
            place = self.place(name)
            if os.path.exists(place):
                stat = os.stat(place)
                there[stat.st_dev, stat.st_ino] = place
        for i in range(len(inputs) if there else 0):
            if os.path.exists(path := inputs.path(i)):
                stat = os.stat(path)
                if place := there.get((stat.st_dev, stat.st_ino)):
                    raise UserError(f"{self.flag} {place}: is one of the images; name a folder of its own")


def upscale_for_text(pixels: np.ndarray, least: int = 384) -> tuple[np.ndarray, int]:
    """(H, W, 3) blown up by a whole number so that texts can be read on it, and that number."""
    times = max(1, -(-least // max(pixels.shape[:2])))
    return pixels.repeat(times, 0).repeat(times, 1), times
