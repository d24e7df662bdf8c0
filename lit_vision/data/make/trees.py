"""Cut tree crowns and background out of aerial photographs: `lit-vision data trees`.

The photographs and their boxes (VOC) are those that the Python package deepforest ships: `pip download --no-deps
deepforest==2.1.0`. Its wheel is read as an archive and never installed (it asks for older versions of other packages).
Whole photographs are held out for the test: other places, forests and light. Source: Weinstein et al. 2020,
doi:10.1111/2041-210X.13472; photographs of the National Ecological Observatory Network (NEON), about 0.1 m a pixel.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from lit_vision.data.make.fashion import DATASET_NOTE
from lit_vision.errors import UserError
from lit_vision.io.completion_marker import is_complete, mark_complete, mark_started, report_write_errors
from lit_vision.io.hashing import sha256_of_file

if TYPE_CHECKING:
    from PIL import Image

WHEEL = "deepforest-2.1.0-py3-none-any.whl"
WHEEL_SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
PHOTOGRAPHS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2",),  # Yellowstone, a meadow with groups of conifers
    "test": ("2019_YELL_2_541000_4977000_image_crop", "OSBS_029", "SOAP_061"),  # Yellowstone, Florida, California
}
SMALLEST = 16  # pixels: crowns below are left out
DRAWS = 2000  # places tried for one square of background


def make_trees(archive: Path, out: Path, seed: int = 0) -> dict[str, int]:
    """Make the data set in `out`, as OUT/<split>/{tree,background}/<photograph>-<x>-<y>.png, unless it is complete.

    An image is a square: around a crown as wide as the longer side of its box, moved into the photograph where it
    crosses the border; or a square of background that touches no box. For each crown there is one square of
    background of the same size in the same photograph, if a place is found for it, so that size and photograph say
    nothing of the class. x and y are the upper left corner in the photograph, in pixels.

    Args:
        archive: the wheel WHEEL.
        out: folder that is missing, empty, complete (then nothing happens), or incomplete after an interrupted call.
        seed: of the background's places, in [0, 2**64).

    Returns:
        Images per split.

    Raises:
        UserError: the archive is missing or another file, or the folder holds other files or cannot be written.
    """
    _check(archive)
    note = {"name": "trees", "smallest": SMALLEST, "seed": seed}
    with report_write_errors(out, "--out "):
        if not is_complete(out, DATASET_NOTE, note, "--out "):
            mark_started(out, DATASET_NOTE, json.dumps(note))
            with zipfile.ZipFile(archive) as files:
                for number, (split, name) in enumerate((s, name) for s, names in PHOTOGRAPHS.items() for name in names):
                    random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, number, 4]))
                    _write_squares(files, name, out / split, random)
                (license_file,) = (name for name in files.namelist() if name.endswith("/licenses/LICENSE"))
                (out / "LICENSE.txt").write_bytes(files.read(license_file))
            mark_complete(out, DATASET_NOTE, json.dumps(note, indent=1) + "\n")
    return {split: sum(1 for _ in (out / split).glob("*/*.png")) for split in PHOTOGRAPHS}


def _check(archive: Path) -> None:
    """Refuse every file other than the known wheel, so that nothing unknown is unpacked."""
    fetch = "pip download --no-deps deepforest==2.1.0"
    try:
        known = sha256_of_file(archive) == WHEEL_SHA256
    except FileNotFoundError:
        raise UserError(f"--archive {archive}: no such file; {fetch}") from None
    except OSError as error:
        raise UserError(f"--archive {archive}: cannot be read ({error.strerror or error}); {fetch}") from None
    if not known:
        raise UserError(f"--archive {archive}: is not {WHEEL} (sha256 {WHEEL_SHA256[:12]}...); {fetch}")


def _write_squares(files: zipfile.ZipFile, name: str, folder: Path, random: np.random.Generator) -> None:
    from PIL import Image

    image = Image.open(io.BytesIO(files.read(f"deepforest/data/{name}.png"))).convert("RGB")
    boxes = _boxes(files.read(f"deepforest/data/{name}.xml"))
    for place in ("tree", "background"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for left, top, right, bottom in boxes.tolist():
        side = max(right - left, bottom - top)
        if side < SMALLEST:
            continue
        x = min(max((left + right - side) // 2, 0), image.width - side)
        y = min(max((top + bottom - side) // 2, 0), image.height - side)
        _save(image, x, y, side, folder / "tree" / f"{name}-{x}-{y}.png")
        corner = _free_corner(boxes, image.width, image.height, side, random)
        if corner is not None:
            _save(image, *corner, side, folder / "background" / f"{name}-{corner[0]}-{corner[1]}.png")


def _boxes(xml: bytes) -> np.ndarray:
    """Return (N, 4) int64: left, top, right, bottom in pixels counted from 0, the last pixel excluded."""
    rows = []
    for one in ElementTree.fromstring(xml).iterfind("object/bndbox"):
        xmin, ymin, xmax, ymax = (int(one.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax"))
        rows.append((xmin - 1, ymin - 1, xmax, ymax))
    return np.array(rows, np.int64)


def _free_corner(
    boxes: np.ndarray, width: int, height: int, side: int, random: np.random.Generator
) -> tuple[int, int] | None:
    """Return the upper left corner of a random square that touches no box; None if none is found."""
    draws = random.random((DRAWS, 2))
    corners = (draws * (width - side + 1, height - side + 1)).astype(np.int64)  # (DRAWS, 2)
    x, y = corners[:, :1], corners[:, 1:]
    touches = (x < boxes[:, 2]) & (boxes[:, 0] < x + side) & (y < boxes[:, 3]) & (boxes[:, 1] < y + side)
    free = np.flatnonzero(~touches.any(axis=1))
    return (int(x[free[0], 0]), int(y[free[0], 0])) if len(free) else None


def _save(image: Image.Image, x: int, y: int, side: int, path: Path) -> None:
    image.crop((x, y, x + side, y + side)).save(path, compress_level=3)
