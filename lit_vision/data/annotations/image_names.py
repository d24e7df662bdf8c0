"""Find the image file that an annotation file names.

Tools write the path as it was on the machine that labeled: with a prefix of folders, from a drive of Windows, or as a
URL. The longest end of such a name that is a file in the folder of images is taken.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

from lit_vision.data.annotations.files import join_path
from lit_vision.data.datasets import BAD_SHARE
from lit_vision.data.folder import Paths
from lit_vision.data.longest_end import longest_end
from lit_vision.errors import UserError

log = logging.getLogger(__name__)


class ImageFinder:
    """Find image files by the names in annotations: `finder(name)` returns the path relative to the root.

    Args:
        root: folder of the set.
        images: folder of the images, relative to the root.
    """

    def __init__(self, root: Path, images: str):
        self.root, self.images = root, images
        top = root / images
        self._files = {
            os.path.relpath(os.path.join(parent, name), top).replace(os.sep, "/")
            for parent, _, names in os.walk(top)
            for name in names
        }
        self._shortened: Counter[str] = Counter()
        self._example = ("", "")

    def __call__(self, name: str) -> str:
        """Return the path of the file; of a name that leads to none, images/name."""
        if name in self._files or self._is_file(name):
            return join_path(self.images, name)
        if end := longest_end(name, self._files):
            prefix = name[: max(0, len(name) - len(end))]
            self._shortened[prefix] += 1
            self._example = self._example if self._example[0] else (name, end)
            return join_path(self.images, end)
        return join_path(self.images, name)

    def _is_file(self, name: str) -> bool:
        """True if a name stays below the images and is a file, in a linked folder perhaps."""
        if name[:1] in "/\\" or ".." in name or "\0" in name:
            return False
        return os.path.isfile(f"{self.root}/{self.images}/{name}")

    def report(self, source: Path) -> None:
        """Log how many names of an annotation file were found without their prefix."""
        if self._shortened:
            prefixes = ", ".join(repr(prefix) for prefix, _ in self._shortened.most_common(3))
            log.warning(
                "%s: %d file names found in %s without their prefix (%s): %r is %r",
                source, self._shortened.total(), self.root / self.images, prefixes, *self._example,
            )  # fmt: skip


def require_files(root: Path, paths: Paths, source: str, allow_few: bool) -> None:
    """Raise a UserError if images do not exist.

    Args:
        root: folder of the set.
        paths: of the images, relative to the root.
        source: where the paths are from, for the message.
        allow_few: one image, or up to 1 %, may be missing: training replaces broken images (data.on_bad_image: skip).
    """
    missing = [path for path in paths if not os.path.isfile(f"{root}/{path}")]
    if not missing:
        return
    text = f"{source}: {len(missing)} of the {len(paths)} images that it names are not there, first {missing[0]!r}"
    if allow_few and len(missing) <= max(1, BAD_SHARE * len(paths)) and len(missing) < len(paths):
        log.warning("%s; training replaces them by others", text)
        return
    raise UserError(f"{text}; correct file_name, set data.images to the folder of the images, or bring the files")
