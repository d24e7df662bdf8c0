"""Find the image files that a label table lists, and their sizes."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from stat import S_ISREG

from lit_vision.data.folder import check_within_root
from lit_vision.data.label_table import LabeledImages
from lit_vision.data.longest_end import longest_end
from lit_vision.errors import UserError

log = logging.getLogger(__name__)


def file_sizes(root: Path, paths: Sequence[str]) -> dict[str, int]:
    """Return {path: bytes} of those paths that are files below a root; if some are not, of all files below it."""
    found = {}
    for path in paths:
        try:
            check_within_root(path)
            stat = os.stat(os.path.join(root, path))
        except (OSError, ValueError, UserError):
            continue
        if S_ISREG(stat.st_mode):
            found[path] = stat.st_size
    if len(found) < len(paths):
        for parent, _, names in os.walk(root):
            for file in (os.path.join(parent, name) for name in names):
                if os.path.isfile(file):
                    found[os.path.relpath(file, root).replace(os.sep, "/")] = os.stat(file).st_size
    return found


def _composed(name: str) -> str:
    """Return a name in the Unicode form that most keyboards give; macOS's files have accents of their own."""
    return unicodedata.normalize("NFC", name)


def find_listed(root: Path, images: LabeledImages, file: str | Path, sizes: Mapping[str, int]) -> list[str]:
    """Return the path below the root of each image of a table.

    Of a path with folders of another machine, a drive or a URL, the longest end that is a file is taken; a warning
    says how many.

    Args:
        root: for messages.
        images: from `read_label_table`.
        file: the table, for messages.
        sizes: {path below the root: bytes} of the files that there are.

    Raises:
        UserError: an image is missing, or two paths are one file.
    """
    paths = [path if path in sizes else longest_end(path, sizes) for path in images.paths]
    if missing := [i for i, path in enumerate(paths) if not path]:
        first = images.paths[missing[0]]
        name = first.rsplit("/", 1)[-1]
        near = next((path for path in sorted(sizes) if name in (Path(path).name, Path(path).stem)), "")
        advice = f"{near} is there, so write it like that" if near else "correct the path column or data.root"
        if not near and any(_composed(name) == _composed(Path(path).name) for path in sizes):  # they look the same
            advice = "its name is there with accents in another Unicode form (NFC, NFD); write it as the file's is"
        raise UserError(
            f"{file}, line {images.lines[missing[0]]}: there is no {first} below {root} ({len(missing)} of "
            f"{len(paths)} images are missing); {advice}"
        )
    if shortened := [i for i, path in enumerate(paths) if path != images.paths[i]]:
        example = shortened[0]
        log.warning(
            "%s: %d paths found below %s without their prefix: %r is %r",
            file, len(shortened), root, images.paths[example], paths[example],
        )  # fmt: skip
    first_with: dict[str, int] = {}
    for i, path in enumerate(paths):
        if (other := first_with.setdefault(path, i)) != i:
            raise UserError(
                f"{file}, line {images.lines[i]}: {path} is also on line {images.lines[other]}, under another path; "
                "remove one of the two"
            )
    return paths
