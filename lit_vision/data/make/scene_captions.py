"""Captions of the scenes of garments, from their annotations: which garments there are, and their order.

`lit-vision data scenes --captions` writes DIR/captions.csv with two captions an image, for `PairsDataModule`:

    path,caption,split
    train/images/000000.png,"a photo of a bag, two coats and a sandal",train
    train/images/000000.png,"from left to right: coat, bag, sandal, coat",train
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lit_vision.data.make.fashion import GARMENT_CLASSES
from lit_vision.io.atomic import atomic_write

CAPTIONS_FILE = "captions.csv"
_COUNTS = ("no", "a", "two", "three", "four", "five", "six", "seven")


def scene_captions(names: Sequence[str]) -> list[str]:
    """Return both captions of a scene.

    Args:
        names: of its garments, two or more, as GARMENT_CLASSES has them, from left to right.
    """
    plain = [name if name == "t-shirt" else name.replace("-", " ") for name in names]
    parts = []
    for name, count in sorted(Counter(plain).items()):
        one = f"an {name}" if name[0] in "aeiou" else f"a {name}"
        several = f"{name}es" if name.endswith(("s", "sh", "ch")) else f"{name}s"
        parts.append(one if count == 1 else f"{_COUNTS[count]} {several}")
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return [f"a photo of {listed}", f"from left to right: {', '.join(plain)}"]


def write_scene_captions(out: Path, splits: Iterable[str]) -> Path:
    """Write captions.csv of the splits of a folder of `make_scenes`; return its path."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("path", "caption", "split"))
    for split in splits:
        note = json.loads((out / split / "annotations.json").read_bytes())
        found: dict[int, list[tuple[float, str]]] = {image["id"]: [] for image in note["images"]}
        for one in note["annotations"]:
            left, _, width, _ = one["bbox"]
            found[one["image_id"]].append((left + width / 2, GARMENT_CLASSES[one["category_id"] - 1]))
        for image in note["images"]:
            path = f"{split}/images/{image['file_name']}"
            names = [name for _, name in sorted(found[image["id"]])]
            table.writerows((path, caption, split) for caption in scene_captions(names))
    atomic_write(out / CAPTIONS_FILE, lambda part: part.write_text(text.getvalue(), encoding="utf-8"))
    return out / CAPTIONS_FILE
