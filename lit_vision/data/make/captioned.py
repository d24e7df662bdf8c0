"""Make a folder of pictures with captions: squares on white, a table of captions, and splits by concept.

A concept stands in one split, so that the test asks for what was never seen in training: not for another picture of a
cat, but for cats. Also usable as a set of classes (`data.label_file: captions.csv`, `data.label_column: class`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.folder import check_within_root
from lit_vision.data.make.archives import Package
from lit_vision.data.make.fashion import DATASET_NOTE
from lit_vision.errors import UserError
from lit_vision.io.completion_marker import is_complete, mark_complete, mark_started, report_write_errors
from lit_vision.io.text import is_text

TABLE = "captions.csv"
COLUMNS = ("path", "caption", "split", "concept", "class")
SHARES = {"test": 0.2, "val": 0.1}  # of the pictures, in whole concepts
SIDE = 256  # pixels
LONGEST_CAPTION = 10_000  # characters
SMALLEST = 48  # pixels: pictures whose longer side is shorter are left out
MOST_PIXELS = 25_000_000  # of a picture in an archive
_BLANK = 8  # gray levels: a picture that has no larger difference anywhere shows nothing on white


@dataclass(frozen=True)
class Picture:
    """A picture and its words.

    Attributes:
        path: below the data set's folder.
        data: content of the image file.
        captions: at least one.
        concept: never in two splits.
        class_name: a coarser group.
    """

    path: str
    data: bytes
    captions: Sequence[str]
    concept: str
    class_name: str


class LeftOutError(Exception):
    """A picture that is left out; its text is the reason, which is counted."""


def make_captioned(
    name: str,
    packages: Sequence[Package],
    pictures: Callable[[Counter[str]], Iterable[Picture]],
    license_text: Callable[[], str],
    out: Path,
    side: int,
    seed: int,
) -> dict[str, int]:
    """Write the pictures to `out` with captions.csv and LICENSE.txt, unless it is complete.

    Args:
        name: of the data set.
        packages: that it is made of.
        pictures: yields them, and counts what it leaves out in the counter, by reason.
        license_text: returns it.
        out: folder that is missing, empty, complete (then nothing happens), or incomplete after an interrupted call.
        side: of the squares, pixels.
        seed: of the splits, in [0, 2**64).

    Returns:
        Pictures per split.

    Raises:
        UserError: an archive is damaged or another one than it should be, or the folder holds other files or cannot be
            written.
    """
    versions = [f"{package.name} {package.version}" for package in packages]
    note: dict[str, Any] = {"name": name, "side": side, "seed": seed, "packages": versions}
    with report_write_errors(out, "--out "):
        if not is_complete(out, DATASET_NOTE, note, "--out ", _identity):
            mark_started(out, DATASET_NOTE, json.dumps(note))
            left_out: Counter[str] = Counter()
            kept = _write_pictures(pictures(left_out), out, side, left_out)
            if len({picture.concept for picture in kept}) < 3:
                raise UserError(f"--archive {packages[0].path}: holds too few pictures with words; fetch it again")
            split_of = draw_concepts([picture.concept for picture in kept], seed)
            _write_table(out / TABLE, kept, split_of)
            (out / "LICENSE.txt").write_text(license_text(), encoding="utf-8")
            counts = Counter(split_of[picture.concept] for picture in kept)
            note["images"] = {split: counts[split] for split in ("train", "val", "test")}
            note["sha256"] = [package.sha256 for package in packages]
            note["left_out"] = dict(left_out.most_common())
            mark_complete(out, DATASET_NOTE, json.dumps(note, indent=1) + "\n")
        counted: dict[str, int] = json.loads((out / DATASET_NOTE).read_text(encoding="utf-8"))["images"]
        return counted


def _identity(text: str) -> object:
    """Return a note without what is written when the set is complete; a damaged archive may be fetched again."""
    note = json.loads(text)
    last = ("images", "left_out", "sha256")
    return {key: value for key, value in note.items() if key not in last} if isinstance(note, dict) else note


def _write_pictures(pictures: Iterable[Picture], out: Path, side: int, left_out: Counter[str]) -> list[Picture]:
    """Write each picture that shows something and has no equal before it; return them without their pixels."""
    from PIL import Image
    from rich.progress import track

    kept: list[Picture] = []
    seen: set[bytes] = set()
    paths: set[str] = set()
    for picture in track(pictures, f"writing {out.name}", total=None, transient=True):
        try:
            if not is_text(picture.path):
                raise LeftOutError("its name is not UTF-8")
            if picture.path in paths:
                raise LeftOutError("the same name as another picture")
            square = on_white(picture.data, side)
            digest = hashlib.sha256(square.tobytes()).digest()
            if digest in seen:
                raise LeftOutError("the same as another picture")
        except LeftOutError as reason:
            left_out[str(reason)] += 1
            continue
        seen.add(digest)
        paths.add(picture.path)
        path = out / check_within_root(picture.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(square).save(path, "PNG", compress_level=3)
        kept.append(Picture(picture.path, b"", picture.captions, picture.concept, picture.class_name))
    return sorted(kept, key=lambda picture: picture.path)


def on_white(data: bytes, side: int) -> np.ndarray:
    """Return an image file's picture on white, as large as fits into a square and in its middle.

    Transparent parts are white: a data module drops alpha, and shows whatever color stands behind it.

    Returns:
        (side, side, 3) uint8.

    Raises:
        LeftOutError: it cannot be read, is very small or very large, or nothing is seen on white.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels, which are counted below
            image: Image.Image = Image.open(io.BytesIO(data))
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise LeftOutError(f"more than {MOST_PIXELS / 1e6:g} million pixels")
        if max(width, height) < SMALLEST:
            raise LeftOutError(f"both sides below {SMALLEST} pixels")
        image = image.convert("RGBA")
    except LeftOutError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds for a broken file
        if isinstance(error, MemoryError):
            raise
        raise LeftOutError("not readable") from None
    scale = side / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Pillow weights the colors by alpha when it resizes RGBA as premultiplied "RGBa"
    image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    pixels = np.asarray(square.convert("RGB"))
    if int(pixels.max()) - int(pixels.min()) < _BLANK:
        raise LeftOutError("nothing to see on white")
    return pixels


def draw_concepts(concepts: Sequence[str], seed: int) -> dict[str, str]:
    """Return {concept: "train", "val" or "test"}: whole concepts in random order, until a split has its share.

    Args:
        concepts: of each picture.
        seed: in [0, 2**64).
    """
    sizes = Counter(concepts)
    names = sorted(sizes)
    order = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, 7])).permutation(len(names))
    split_of, wanted = {}, {split: share * len(concepts) for split, share in SHARES.items()}
    for name in (names[i] for i in order):
        split = next((split for split, count in wanted.items() if count > 0), "train")
        split_of[name] = split
        if split in wanted:
            wanted[split] -= sizes[name]
    return split_of


def _write_table(path: Path, pictures: Iterable[Picture], split_of: dict[str, str]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for picture in pictures:
            for caption in picture.captions:
                writer.writerow((picture.path, caption, split_of[picture.concept], picture.concept, picture.class_name))


def plain_captions(texts: Iterable[object]) -> list[str]:
    """Return texts that can stand as captions: each in one line, none empty, none twice, none longer than a page."""
    lines = (" ".join(text.split()) for text in texts if isinstance(text, str) and "\0" not in text and is_text(text))
    return list(dict.fromkeys(line for line in lines if 0 < len(line) <= LONGEST_CAPTION))


def file_named(package: Package, name: str) -> bytes:
    """Return one file of a package; UserError if it has none."""
    found: Iterator[tuple[str, bytes]] = package.files(lambda other: other == name)
    for _, data in found:
        return data
    raise UserError(
        f"--archive {package.path}: {package.name} {package.version} has no {name}; fetch the named version"
    )
