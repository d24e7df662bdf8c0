"""Open a folder of images or a pack file."""

from __future__ import annotations

from pathlib import Path

from lit_vision.data.folder import Folder, scan
from lit_vision.data.pack import Pack


def is_pack(path: str | Path) -> bool:
    """True for a file that `lit-vision pack` wrote, by the ending of its name."""
    return Path(path).suffix == ".pack" and Path(path).is_file()


def open_images(root: str | Path, train: str = "train", val: str = "val", test: str = "test") -> Folder:
    """Return the splits, classes and paths below a root; no image is decoded.

    Args:
        root: the folder, or a file written by `lit-vision pack` (*.pack).
        train: name of the training split's folder. A pack has the split names that it was written with.
        val: name of the validation split's folder.
        test: name of the test split's folder.

    Raises:
        UserError: as `lit_vision.data.folder.scan` and `lit_vision.data.pack.Pack`.
    """
    root = Path(root)
    return Pack(root) if is_pack(root) else scan(root, train, val, test)
