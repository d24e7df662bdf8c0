"""Cut patches of photographs, a class for each photograph: `lit-vision data patches`.

The photographs are those that the Python package scikit-image ships. Which photograph is a patch from? The right part
of each photograph is the test split. Between it and the training part lies a patch's width, so that no pixel is in both
and no patch of one adjoins one of the other.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from importlib import metadata
from pathlib import Path

import numpy as np

from lit_vision.data.make.fashion import DATASET_NOTE
from lit_vision.errors import UserError
from lit_vision.io.completion_marker import is_complete, mark_complete, mark_started, report_write_errors

SIDE = 96  # pixels of a patch
COUNTS = {"train": 100, "test": 40}  # patches of each photograph
TEST_SHARE = 0.3  # of a photograph's width, on its right

# File: what scikit-image's documentation and license file say of its origin. The package also ships drawings
# (logo, phantom, chessboard, color wheel, horse), the second image of a stereo pair, and two small cuts.
PHOTOGRAPHS = {
    "astronaut.png": "NASA, public domain",
    "brick.png": "CC0, CC0Textures",
    "camera.png": "CC0, Lav Varshney",
    "cell.png": "CC0, Paul Mueller and others, doi:10.1364/OE.26.010729",
    "chelsea.png": "CC0, Stefan van der Walt",
    "clock_motion.png": "public domain, Stefan van der Walt",
    "coffee.png": "CC0, Rachel Michetti",
    "coins.png": "no known copyright restrictions, Brooklyn Museum Collection",
    "grass.png": "CC0, linolafett",
    "gravel.png": "CC0, CC0Textures",
    "hubble_deep_field.jpg": "NASA, public domain",
    "ihc.png": "no known copyright restrictions, Center for Microscopy and Molecular Imaging",
    "moon.png": "part of scikit-image, whose license follows",
    "motorcycle_left.png": "Middlebury 2014 stereo benchmark, doi:10.1007/978-3-319-11752-2_3",
    "page.png": "part of scikit-image, whose license follows",
    "retina.jpg": "CC0, Mikael Haeggstroem",
    "rocket.jpg": "SpaceX, public domain",
    "text.png": "public domain, Wikipedia",
}


def make_patches(out: Path) -> dict[str, int]:
    """Make the data set in `out`, as OUT/<split>/<photograph>/<x>-<y>.png; do nothing if it is complete already.

    x and y are the patch's upper left corner in the photograph, in pixels. The file LICENSE.txt says where each
    photograph is from.

    Returns:
        Patches per split.

    Raises:
        UserError: scikit-image is not installed or lacks a photograph, or the folder holds other files or cannot be
            written.
    """
    files = photograph_files()
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    note = {"name": "patches", "side": SIDE, "patches": COUNTS, "photographs_sha256": digest}
    counts = {split: count * len(files) for split, count in COUNTS.items()}
    with report_write_errors(out, "--out "):
        if not is_complete(out, DATASET_NOTE, note, "--out "):
            mark_started(out, DATASET_NOTE, json.dumps(note))
            for path in files:
                _write_patches(path, out)
            (out / "LICENSE.txt").write_text(_license_text(), encoding="utf-8")
            mark_complete(out, DATASET_NOTE, json.dumps(note, indent=1) + "\n")
    return counts


def spread_corners(region: np.ndarray, side: int, count: int) -> list[tuple[int, int]]:
    """Return `count` upper left corners (x, y) of squares in a region (H, W, C), spread evenly.

    They stand on the square grid with the widest step that has enough places. Squares of one color are left out: the
    black corners of two photographs would be the same image.

    Raises:
        ValueError: the region has fewer places.
    """
    height, width = region.shape[:2]
    for step in range(side, 0, -1):
        xs, ys = range(0, width - side + 1, step), range(0, height - side + 1, step)
        if len(xs) * len(ys) < count:
            continue
        grid = [(x, y) for x in xs for y in ys if np.ptp(region[y : y + side, x : x + side], axis=(0, 1)).any()]
        if len(grid) >= count:
            return [grid[i * len(grid) // count] for i in range(count)]
    raise ValueError(f"{width} x {height} pixels have no {count} different squares of {side} pixels")


def photograph_files() -> list[Path]:
    """Return the photographs' files; the package is located and not imported."""
    package = importlib.util.find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        raise UserError("patches: scikit-image, which has the photographs, is not installed; pip install scikit-image")
    folder = Path(package.submodule_search_locations[0]) / "data"
    for name in PHOTOGRAPHS:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such photograph in this version; pip install scikit-image==0.26.0")
    return [folder / name for name in PHOTOGRAPHS]


def _write_patches(path: Path, out: Path) -> None:
    from PIL import Image

    with Image.open(path) as file:
        pixels = np.asarray(file.convert("RGB"))  # (H, W, 3)
    border = round(pixels.shape[1] * (1 - TEST_SHARE))
    for split, left, right in (("train", 0, border - SIDE), ("test", border, pixels.shape[1])):
        folder = out / split / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        for x, y in spread_corners(pixels[:, left:right], SIDE, COUNTS[split]):
            patch = Image.fromarray(pixels[y : y + SIDE, left + x : left + x + SIDE])
            patch.save(folder / f"{left + x}-{y}.png", compress_level=3)


def _license_text() -> str:
    """Return the photographs' origins and, below them, scikit-image's license file."""
    lines = [f"{name}: {origin}" for name, origin in PHOTOGRAPHS.items()]
    package = metadata.distribution("scikit-image")
    texts = [file.read_text() for file in package.files or () if "LICENSE" in file.name and ".dist-info" in str(file)]
    head = f"Patches of photographs of scikit-image {package.version}. Their origins, as its documentation says:"
    return "\n".join([head, *lines, "", *(text for text in texts if text)])
