"""Images whose results would mislead: classes without a test image, copies in the test, long ones, own figures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from statistics import median_low

import numpy as np

from lit_vision.data.folder import Folder
from lit_vision.data.layout import role_of
from lit_vision.data.splits import evenly_spaced
from lit_vision.data.views.decode import ImageDecodeError, read_header
from lit_vision.errors import UsageError
from lit_vision.io.text import join_names
from lit_vision.study.images import SAMPLE, StudyImages
from lit_vision.study.pixel_cache import PixelRows

SEEN = 0.6  # share of an image in its middle square; below it (longer than 5:3) a note says so
_AT_ONCE = 1024  # images whose pixels are in memory at the same time


def check_run_dir(folder: Path, *roots: str | Path) -> None:
    """Refuse a run's folder whose figures would be images of a class when the study is continued.

    That is so inside a folder of images, unless it has split folders: what lies beside these is left out.

    Args:
        folder: of the run.
        roots: folders whose images are taken as they lie there.

    Raises:
        UsageError: `folder` lies in one of them.
    """
    for root in map(Path, roots):
        splits = root.is_dir() and any(role_of(path.name) for path in root.iterdir() if path.is_dir())
        if not splits and folder.resolve().is_relative_to(root.resolve()):
            raise UsageError(
                f"--run_dir {folder}: lies in {root}, where the figures of the report would be taken for images; name "
                "a folder outside"
            )


def image_notes(images: StudyImages) -> list[str]:
    """Return sentences about images of a study whose results need a second look; no file is decoded again."""
    seen = "" if images.files is None else _seen_in_part(images.files.folder, images.paths)
    return [note for note in (_untested_classes(images), _copies(images), seen) if note]


def _untested_classes(images: StudyImages) -> str:
    counts = images.kind.count(images.test_labels, len(images.classes))
    missing = [name for name, count in zip(images.classes, counts) if not count]
    if not missing:
        return ""
    return f"Without a test image, so that the results say nothing of them: {join_names(missing)}."


def _copies(images: StudyImages) -> str:
    """Return a note if test images have the pixels of labeled training images, compared at the size that is kept."""
    pool, test = images.flat_pixels()
    known = set(_digests(pool))
    found = sum(digest in known for digest in _digests(test))
    if not found:
        return ""
    return (
        f"{found} of the {len(test)} test images {'has' if found == 1 else 'have'} the same pixels as a labeled "
        "training image, so accuracy on new images is lower than measured: remove the copies (lit-vision doctor lists "
        "them), or keep pictures that belong together on one side by --group_by."
    )


def _digests(rows: PixelRows) -> Iterator[bytes]:
    """Yield a digest of each image whose pixels are kept; those that would be decoded again are left out."""
    kept = rows.pixels if isinstance(rows.pixels, np.ndarray) else rows.pixels.kept
    places = np.arange(len(rows)) if isinstance(rows.pixels, np.ndarray) else rows.pixels.rows[: len(rows)]
    places = places[places < len(kept)]
    for first in range(0, len(places), _AT_ONCE):
        for image in kept[places[first : first + _AT_ONCE]]:
            yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _seen_in_part(folder: Folder, paths: list[str]) -> str:
    """Return a note if the typical image is so long that its middle square, all that is seen, is a small part of it."""
    sizes = []
    for i in evenly_spaced(len(paths), SAMPLE).tolist():
        try:
            header = read_header(folder.read(paths[i]))
        except (ImageDecodeError, OSError):
            continue
        sizes.append((min(header.width, header.height) / max(header.width, header.height), header.width, header.height))
    share, width, height = median_low(sizes) if sizes else (1.0, 0, 0)
    if share >= SEEN:
        return ""
    return (
        f"The images are typically {width} x {height} pixels, of which networks see the square in the middle, "
        f"{share:.0%}: cut them into pieces first if what matters may lie outside."
    )
