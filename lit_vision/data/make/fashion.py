"""`lit-vision data NAME`: make a data set as an ImageFolder.

`fashion` is the embedded part of Fashion-MNIST (10,000 images of its training file, MIT; data/fashion-mnist/), stratified into 8,000 / 1,000 /
1,000, or with `--full` the official 60,000 / 10,000. `--rotated` turns, scales and shifts every garment once, as the rotated-MNIST benchmarks
do: upright, logistic regression on raw pixels does as well as anything learned, which says nothing about pre-training.
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
DATASET_NOTE = "lit_vision_data.json"  # in the folder that we made: what it is, so that a second call can tell
SPLIT_SIZES = {"train": 8000, "val": 1000, "test": 1000}

# Chosen for what logistic regression on pixels then gets: 26.7 % at 80 labels and 38.9 % at 800 (upright 69.8 and 79.2; C = 0.1, 3 seeds and 1).
ROTATION = 180.0  # degrees either way
SCALE = (0.8, 1.0)
SHIFT = 1.0  # pixels either way
SIDE = 32


def read_idx(path: Path) -> np.ndarray:
    """An IDX file (Yann LeCun's MNIST format), gzipped, of bytes: uint8 of the shape in its header.

    Raises:
        UserError: missing, damaged, or of another type.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: {error}; fetch it again") from None
    except Exception as error:  # zlib.error has no public home
        raise UserError(f"{path}: damaged ({error}); fetch it again") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise UserError(f"{path}: no IDX file of bytes; fetch it again")
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4).astype(int)
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if len(body) != math.prod(shape.tolist()):
        raise UserError(f"{path}: cut off: {len(body)} bytes for shape {tuple(shape)}; fetch it again")
    return body.reshape(shape)


def embedded_fashion() -> tuple[np.ndarray, np.ndarray]:
    """The embedded images (10000, 28, 28) uint8 and their labels (10000,) int64."""
    if not EMBEDDED.is_dir():
        raise UserError(
            f"{EMBEDDED}: the embedded images come with the repository, not with the wheel; install from a clone (pip install -e .)"
        )
    images = read_idx(EMBEDDED / "train10k-images-idx3-ubyte.gz")
    return images, read_idx(EMBEDDED / "train10k-labels-idx1-ubyte.gz").astype(np.int64)


def full_fashion() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The official train (60,000) and test (10,000) images, from Debian's files, else downloaded by torchvision."""
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
    """Sorted positions per split; each split has the classes in the set's proportions, and no image is in two.

    Every class is shuffled by (seed, class) and laid out evenly over [0, 1); the splits are cut from that line.
    """
    place = np.empty(len(labels))
    for number in np.unique(labels):
        of_class = np.flatnonzero(labels == number)
        order = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, int(number), 2])).permutation(
            len(of_class)
        )
        place[of_class[order]] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    line, cut, splits = np.argsort(place, kind="stable"), 0, {}
    for name, size in sizes.items():
        splits[name], cut = np.sort(line[cut : cut + size]), cut + size
    return splits


def rotate_images(image: np.ndarray, seed: int, index: int) -> np.ndarray:
    """One garment turned by U(-180, 180) degrees, scaled by U(0.8, 1) and shifted by U(-1, 1) pixels each way, on 32 x 32 black.

    Args:
        image: (28, 28) uint8.
        seed: of the whole set; index: of the image in its source: together they fix the parameters.

    Returns:
        (32, 32) uint8, bilinear.
    """
    import cv2

    u = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, index, 3])).random(4)
    angle = ROTATION * (2 * u[0] - 1)
    scale = SCALE[0] + u[1] * (SCALE[1] - SCALE[0])
    side = image.shape[0]
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), angle, scale)
    matrix[:, 2] += (SIDE - side) / 2 + SHIFT * (2 * u[2:] - 1)
    return cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)


def write_folder(
    out: Path, splits: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], alter: Callable | None, note: dict
) -> None:
    """Write PNGs as `out/<split>/<class>/<index>.png` with a progress bar; the note comes last, so half a folder is never taken for whole.

    Args:
        out: an empty, missing or half-made folder.
        splits: name -> (images (N, H, W) uint8, labels (N,), index in the source (N,)).
        alter: (image, index) -> image, or None.
        note: what is written to DATASET_NOTE.
    """
    import cv2
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    total = sum(len(part[1]) for part in splits.values())
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as bar:
        task = bar.add_task(f"writing {out.name}", total=total)
        for split, (images, labels, places) in splits.items():
            for name in GARMENT_CLASSES:
                (out / split / name).mkdir(parents=True, exist_ok=True)
            for done, (image, label, place) in enumerate(zip(images, labels.tolist(), places.tolist()), 1):
                image = alter(image, place) if alter else image
                good, png = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 3])
                assert good
                with open(f"{out}/{split}/{GARMENT_CLASSES[label]}/{place:05d}.png", "wb") as file:
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
    """A note without the counts, which are known only once the set is made."""
    made = json.loads(text)
    return {key: value for key, value in made.items() if key != "images"} if isinstance(made, dict) else made


def make_fashion(out: Path, rotated: bool = False, full: bool = False, seed: int = 0) -> dict[str, int]:
    """Make the set in `out`; nothing happens if it is there already.

    Args:
        out: the folder to make; it must be missing, empty, or one that an earlier call with the same options made.
        rotated: rotate, scale and shift every garment once.
        full: the official 60,000 / 10,000 (train, test; no val).
        seed: of the split and of the rotation, in [0, 2**64).

    Returns:
        Images per split.

    Raises:
        UserError: the folder holds something else or cannot be written, or the source is missing.
    """
    note = dataset_note(rotated, full, seed)
    with report_write_errors(out, "--out "):
        if is_complete(out, DATASET_NOTE, note, "--out ", _identity):
            counts = json.loads((out / DATASET_NOTE).read_text()).get("images")
            if (
                isinstance(counts, dict)
                and counts
                and counts == {split: sum(1 for _ in (out / split).glob("*/*.png")) for split in counts}
            ):
                return counts
        mark_started(out, DATASET_NOTE, json.dumps(note))
    if full:
        first = {
            "train": 0,
            "test": 60_000,
        }  # the test file's images are numbered on, so that they turn in their own way
        splits = {name: (*part, first[name] + np.arange(len(part[1]))) for name, part in full_fashion().items()}
    else:
        images, labels = embedded_fashion()
        share = len(labels) / sum(SPLIT_SIZES.values())
        sizes = {name: round(size * share) for name, size in SPLIT_SIZES.items()}
        splits = {name: (images[at], labels[at], at) for name, at in stratified_splits(labels, sizes, seed).items()}
    note["images"] = {name: len(part[1]) for name, part in splits.items()}
    with report_write_errors(out, "--out "):
        write_folder(out, splits, (lambda image, place: rotate_images(image, seed, place)) if rotated else None, note)
    return note["images"]
