"""Make a folder of garments per class from Fashion-MNIST: `lit-vision data fashion`.

The source is the embedded part of Fashion-MNIST (10,000 images of its training file, MIT; data/fashion-mnist/),
stratified into 8,000 / 1,000 / 1,000, or with `--full` the official 60,000 / 10,000. `--rotated` rotates, scales and
shifts every garment once, as the rotated-MNIST benchmarks do: on upright garments logistic regression on raw pixels
does as well as anything learned, so that they cannot show a gain of pre-training.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.errors import UserError
from lit_vision.io.completion_marker import is_complete, mark_complete, mark_started, report_write_errors

GARMENT_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
EMBEDDED = Path(__file__).parents[3] / "data" / "fashion-mnist"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
DATASET_NOTE = "lit_vision_data.json"  # file in a generated folder: options that it was made with, for a second call
SPLIT_SIZES = {"train": 8000, "val": 1000, "test": 1000}

# Chosen by the accuracy of logistic regression on pixels: 26.7 % at 80 labels and 38.9 % at 800
# (upright 69.8 and 79.2; C = 0.1, 3 seeds and 1).
ROTATION = 180.0  # degrees either way
SCALE = (0.8, 1.0)
SHIFT = 1.0  # pixels either way
SIDE = 32  # pixels of a rotated image


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of bytes (Yann LeCun's MNIST format) as uint8 of the shape in its header.

    Raises:
        UserError: the file is missing, damaged, or of another type.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: {error}; fetch it again") from None
    except Exception as error:  # zlib.error, which gzip does not wrap
        raise UserError(f"{path}: damaged ({error}); fetch it again") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise UserError(f"{path}: not an IDX file of bytes; fetch it again")
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4).astype(int)
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if len(body) != math.prod(shape.tolist()):
        raise UserError(f"{path}: cut off: {len(body)} bytes for shape {tuple(shape)}; fetch it again")
    return body.reshape(shape)


def embedded_fashion() -> tuple[np.ndarray, np.ndarray]:
    """Return the embedded images (10000, 28, 28) uint8 and their labels (10000,) int64."""
    if not EMBEDDED.is_dir():
        raise UserError(
            f"{EMBEDDED}: no such folder; the embedded images come with the repository, not with the wheel; "
            "install from a clone (pip install -e .)"
        )
    images = read_idx(EMBEDDED / "train10k-images-idx3-ubyte.gz")
    return images, read_idx(EMBEDDED / "train10k-labels-idx1-ubyte.gz").astype(np.int64)


def full_fashion() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the official train (60,000) and test (10,000) images, from Debian's files or downloaded by torchvision."""
    if DEBIAN.is_dir():
        names = {"train": "train", "test": "t10k"}
        return {
            split: (
                read_idx(DEBIAN / f"{name}-images-idx3-ubyte.gz"),
                read_idx(DEBIAN / f"{name}-labels-idx1-ubyte.gz").astype(np.int64),
            )
            for split, name in names.items()
        }
    from torchvision.datasets import FashionMNIST

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lit_vision"
    try:
        sets = {split: FashionMNIST(str(cache), train=split == "train", download=True) for split in ("train", "test")}
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"Fashion-MNIST: cannot be downloaded ({error}); install Debian's dataset-fashion-mnist"
        ) from None
    return {split: (data.data.numpy(), data.targets.numpy().astype(np.int64)) for split, data in sets.items()}


def stratified_splits(labels: np.ndarray, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Return sorted indices per split; all splits have the class proportions of the set, and no image is in two.

    The images of every class are shuffled by (seed, class) and spread evenly over [0, 1); the splits are consecutive
    intervals.
    """
    position = np.empty(len(labels))
    for number in np.unique(labels):
        of_class = np.flatnonzero(labels == number)
        order = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, int(number), 2])).permutation(
            len(of_class)
        )
        position[of_class[order]] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    ordered, start, splits = np.argsort(position, kind="stable"), 0, {}
    for name, size in sizes.items():
        splits[name], start = np.sort(ordered[start : start + size]), start + size
    return splits


def rotate_image(image: np.ndarray, seed: int, index: int) -> np.ndarray:
    """Rotate a garment by U(-180, 180) degrees, scale it by U(0.8, 1) and shift it by U(-1, 1) pixels in x and y.

    Args:
        image: (28, 28) uint8.
        seed: of the data set.
        index: of the image in its source; seed and index determine the parameters.

    Returns:
        (32, 32) uint8 on black, bilinear.
    """
    import cv2

    u = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, index, 3])).random(4)
    angle = ROTATION * (2 * u[0] - 1)
    scale = SCALE[0] + u[1] * (SCALE[1] - SCALE[0])
    side = image.shape[0]
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), angle, scale)
    matrix[:, 2] += (SIDE - side) / 2 + SHIFT * (2 * u[2:] - 1)
    rotated: np.ndarray = cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
    return rotated


def write_folder(
    out: Path,
    splits: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    alter: Callable[[np.ndarray, int], np.ndarray] | None,
    note: dict[str, Any],
) -> None:
    """Write PNGs as `out/<split>/<class>/<index>.png` with a progress bar.

    The note is written last, so that an incomplete folder is never taken for a complete one.

    Args:
        out: an empty, missing or incomplete folder.
        splits: name -> (images (N, H, W) uint8, labels (N,), index in the source (N,)).
        alter: (image, index) -> image, or None.
        note: content of the file DATASET_NOTE.
    """
    import cv2
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    total = sum(len(part[1]) for part in splits.values())
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as bar:
        task = bar.add_task(f"writing {out.name}", total=total)
        for split, (images, labels, indices) in splits.items():
            for name in GARMENT_CLASSES:
                (out / split / name).mkdir(parents=True, exist_ok=True)
            for done, (image, label, index) in enumerate(zip(images, labels.tolist(), indices.tolist()), 1):
                image = alter(image, index) if alter else image
                encoded, png = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 3])
                assert encoded
                with open(f"{out}/{split}/{GARMENT_CLASSES[label]}/{index:05d}.png", "wb") as file:
                    file.write(png)
                if done % 500 == 0 or done == len(labels):
                    bar.update(task, advance=500 if done % 500 == 0 else done % 500)
    mark_complete(out, DATASET_NOTE, json.dumps(note, indent=1) + "\n")


def dataset_note(rotated: bool, full: bool, seed: int) -> dict[str, Any]:
    """Return the note that identifies the set made by these options; its keys are those of sets made before."""
    note: dict[str, Any] = {"name": "fashion", "turned": rotated, "full": full, "seed": seed}
    if rotated:
        note["turn"] = {"degrees": ROTATION, "scale": list(SCALE), "shift": SHIFT, "side": SIDE}
    return note


def _identity(text: str) -> object:
    """Return a note without the counts, which are known only when the set is complete."""
    note = json.loads(text)
    return {key: value for key, value in note.items() if key != "images"} if isinstance(note, dict) else note


def make_fashion(out: Path, rotated: bool = False, full: bool = False, seed: int = 0) -> dict[str, int]:
    """Make the data set in `out`; do nothing if it is complete already.

    Args:
        out: folder to make; it must be missing, empty, or made by a call with the same options.
        rotated: rotate, scale and shift every garment once.
        full: the official 60,000 / 10,000 (train, test; no val).
        seed: of the splits and of the rotation, in [0, 2**64).

    Returns:
        Images per split.

    Raises:
        UserError: the folder holds other files or cannot be written, or the source is missing.
    """
    note = dataset_note(rotated, full, seed)
    with report_write_errors(out, "--out "):
        if is_complete(out, DATASET_NOTE, note, "--out ", _identity):
            found = json.loads((out / DATASET_NOTE).read_text()).get("images")
            if (
                isinstance(found, dict)
                and found
                and found == {split: sum(1 for _ in (out / split).glob("*/*.png")) for split in found}
            ):
                return found
        mark_started(out, DATASET_NOTE, json.dumps(note))
    if full:
        # images of the test file are numbered from 60,000 on, so that each has its own rotation
        first = {"train": 0, "test": 60_000}
        splits = {name: (*part, first[name] + np.arange(len(part[1]))) for name, part in full_fashion().items()}
    else:
        images, labels = embedded_fashion()
        share = len(labels) / sum(SPLIT_SIZES.values())
        sizes = {name: round(size * share) for name, size in SPLIT_SIZES.items()}
        splits = {name: (images[at], labels[at], at) for name, at in stratified_splits(labels, sizes, seed).items()}
    counts: dict[str, int] = {name: len(part[1]) for name, part in splits.items()}
    note["images"] = counts
    with report_write_errors(out, "--out "):
        write_folder(out, splits, (lambda image, index: rotate_image(image, seed, index)) if rotated else None, note)
    return counts
