"""The images of a labeling: found once below a folder, known by number, read again at each use; nothing is written."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lit_vision.data.folder import Folder, Paths
from lit_vision.data.value_range import measure_range, require_range
from lit_vision.data.views.decode import ImageDecodeError, decode, read_header
from lit_vision.data.views.pixel_values import DEFAULT_FORMAT, PixelFormat
from lit_vision.errors import UserError
from lit_vision.predict.inputs import find_images
from lit_vision.serve.pictures import PREVIEW_SIDE, jpeg

KEPT_PREVIEWS = 64  # in memory, about 150 KB each
MOST_PIXELS = 178_956_970  # of an image, by its header: more is not decoded anywhere here (data/views/decode.py)
_READERS = 2


class ImageReadError(Exception):
    """An image cannot be read, or is none."""


@dataclass(frozen=True)
class FileState:
    """Size in bytes, time of the last change, and blake2b (hex) of a file's bytes."""

    size: int
    mtime_ns: int
    blake2b: str


class LabelImages:
    """Images below a folder, sorted by path; their numbers stay the same while the server runs.

    Args:
        root: the folder. Links that lead out of it are left out.

    Attributes:
        paths: relative to the folder, with forward slashes.
        left_out: what the search passed over.
        links_out: number of images left out because a link to them leads out of the folder.
        unreadable: reason by number of images that could not be read since the server started.
        sent: blake2b of each file when its picture was last made, by number.

    Raises:
        UserError: no such folder, or no image in it.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            what = "is a file" if root.exists() else "no such folder"
            raise UserError(f"{root}: {what}; name a folder of images")
        self.root = root.resolve()
        self.folder = Folder(self.root, [], {})  # for what reads images by their paths
        found = find_images([str(self.root)])
        kept = _without_links_out(self.root, found.names)
        if not kept:
            raise UserError(f"{root}: its images are links that lead out of it; name the folder where they are")
        self.paths, self.left_out = Paths(kept), found.left_out
        self.links_out = len(found) - len(kept)
        self.unreadable: dict[int, str] = {}
        self.sent: dict[int, str] = {}
        self.pixel_format = DEFAULT_FORMAT
        self._previews: OrderedDict[int, tuple[bytes, str]] = OrderedDict()
        self._preparing: set[int] = set()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_READERS, "preview")

    def __len__(self) -> int:
        return len(self.paths)

    def close(self) -> None:
        """End the threads that prepare pictures."""
        self._threads.shutdown(cancel_futures=True)

    def measure_pixels(self) -> PixelFormat:
        """Return the conversion to 8 bits of images deeper than that, from a sample; pictures are made with it.

        Raises:
            UserError: no range of values fits the images.
        """
        measured = measure_range(self.folder.read, self.paths)
        self.pixel_format = PixelFormat(require_range(measured, str(self.root)))
        return self.pixel_format

    def read(self, number: int) -> tuple[bytes, FileState]:
        """Return the bytes of a file and its state.

        Raises:
            ImageReadError: it is gone, cannot be read, or has become a link that leads out of the folder.
        """
        try:
            path = (self.root / self.paths[number]).resolve(strict=True)
            if not path.is_relative_to(self.root):
                raise ImageReadError("it is a link that leads out of the folder")
            with open(path, "rb") as file:
                mtime_ns = os.fstat(file.fileno()).st_mtime_ns
                data = file.read()
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, until Python 3.12
            raise ImageReadError(getattr(error, "strerror", None) or str(error)) from None
        return data, FileState(len(data), mtime_ns, digest(data))

    def preview(self, number: int, side: int = PREVIEW_SIDE) -> tuple[bytes, str]:
        """Return an image as a JPEG, upright, made smaller where a side is longer than `side`; and the file's blake2b.

        Raises:
            ImageReadError: the file cannot be read, or is no image.
        """
        if side == PREVIEW_SIDE:
            with self._lock:
                if number in self._previews:
                    self._previews.move_to_end(number)
                    return self._previews[number]
        try:
            data, state = self.read(number)
            header = read_header(data)
            if header.width * header.height > MOST_PIXELS:
                raise ImageDecodeError(f"it has {header.width} x {header.height} pixels, which are too many")
            made = jpeg(decode(data, self.pixel_format), side), state.blake2b
        except (ImageDecodeError, ImageReadError) as error:
            self.unreadable[number] = str(error)
            raise ImageReadError(str(error)) from None
        with self._lock:
            self.unreadable.pop(number, None)  # it was being written
            if number in self._previews and self._previews[number][1] != state.blake2b:
                del self._previews[number]
            self.sent[number] = state.blake2b
            if side == PREVIEW_SIDE:
                self._previews[number] = made
                while len(self._previews) > KEPT_PREVIEWS:
                    self._previews.popitem(last=False)
        return made

    def prepare(self, numbers: Sequence[int]) -> None:
        """Make the pictures of images in the background, so that they are there when they are asked for."""
        with self._lock:
            new = [number for number in numbers if number not in self._previews and number not in self._preparing]
            self._preparing.update(new)
        for number in new:
            self._threads.submit(self._prepare, number)

    def _prepare(self, number: int) -> None:
        try:
            self.preview(number)
        except ImageReadError:  # said when it is asked for
            pass
        finally:
            with self._lock:
                self._preparing.discard(number)

    def forget(self, number: int) -> None:
        """Drop the picture of a file that has changed."""
        with self._lock:
            self._previews.pop(number, None)
            self.sent.pop(number, None)


def digest(data: bytes) -> str:
    """Return the blake2b of bytes, 64 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def _without_links_out(root: Path, names: Sequence[str]) -> list[str]:
    """Return the names of files that lie below the folder in truth, links followed."""
    folders: dict[str, bool] = {}  # True for one that lies below the root
    kept = []
    for name in names:
        folder, _, _ = name.rpartition("/")
        if folder not in folders:
            folders[folder] = (root / folder).resolve().is_relative_to(root)
        path = os.path.join(root, name)
        if folders[folder] and not (os.path.islink(path) and not _leads_below(path, root)):
            kept.append(name)
    return kept


def _leads_below(path: str, root: Path) -> bool:
    try:
        return Path(path).resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a loop of links
        return False
