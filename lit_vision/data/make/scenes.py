"""Make scenes of garments on textured backgrounds, with exact boxes, instance masks and semantic masks.

`lit-vision data scenes`: each 128 x 128 image holds two to seven Fashion-MNIST garments, tinted, rotated, scaled and
partly hidden by one another, on a background of noise, stripes or checks. Color and texture are independent of the
class. A scene is a pure function of (seed, split, index). A garment of the training split (that of `lit-vision data
fashion` with its default seed) appears only in training scenes, and likewise for the other splits.

    DIR/<split>/images/000000.png        RGB
    DIR/<split>/annotations.json         COCO: boxes of visible parts, run-length masks, "item" = index in the source
    DIR/<split>/semantic/000000.png      8-bit: 0 background, 1 to 10 the garment
    DIR/<split>/instances/000000.png     8-bit: 0 background, 1 to n the n-th annotation of this image
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.annotations.coco_masks import run_lengths
from lit_vision.data.make.fashion import DATASET_NOTE, GARMENT_CLASSES, SPLIT_SIZES, embedded_fashion, stratified_splits
from lit_vision.io.completion_marker import is_complete, mark_complete, mark_started, report_write_errors

SCENE_SIDE = 128
SIZES = {"train": 2000, "val": 250, "test": 500}  # scenes
ITEMS = (2, 7)  # fewest and most garments in a scene
GROW = (1.1, 2.0)  # scale of a garment's 28 pixels
GARMENT_ROTATION = 25.0  # degrees either way
VISIBLE = 0.35  # smallest visible part of a garment that later ones overlap
PLACEMENT_TRIES = 12  # positions tried before a garment is left out
SCENE_FOLDERS = ("images", "semantic", "instances")  # folders of a split


@dataclass(frozen=True)
class Scene:
    """One scene with its annotations.

    Attributes:
        image: (128, 128, 3) uint8, RGB.
        instances: (128, 128) uint8; 0 background, i + 1 garment i.
        labels: (n,) class numbers, 0 to 9.
        items: (n,) indices of the garments in the embedded file.
    """

    image: np.ndarray
    instances: np.ndarray
    labels: list[int]
    items: list[int]

    @property
    def semantic(self) -> np.ndarray:
        """Semantic mask, (128, 128) uint8: 0 background, class + 1 a garment."""
        value_of = np.array([0, *(label + 1 for label in self.labels)], np.uint8)
        mask: np.ndarray = value_of[self.instances]
        return mask


def _random_color(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    return rng.uniform(low, high, 3)


def background(rng: np.random.Generator, side: int = SCENE_SIDE) -> np.ndarray:
    """Return a texture of two colors, (side, side, 3) float in [0, 255]: smooth noise, stripes, checks or a mixture."""
    import cv2

    weight = np.zeros((side, side), np.float32)
    for cells, strength in ((4, 1.0), (12, 0.5), (36, 0.3)):
        noise = rng.random((cells, cells), dtype=np.float32) - 0.5
        weight += strength * cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    angle, period, kind = rng.uniform(0, np.pi), rng.uniform(6, 28), int(rng.integers(0, 4))
    y, x = np.mgrid[:side, :side].astype(np.float32)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if kind in (1, 3):
        weight += 0.4 * np.sin(2 * np.pi * along / period).astype(np.float32)
    if kind in (2, 3):
        weight += 0.4 * np.sign(np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period))
    weight = np.clip(weight + 0.5, 0, 1)[..., None]
    picture = weight * _random_color(rng, 20, 235) + (1 - weight) * _random_color(rng, 20, 235)
    texture: np.ndarray = np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255)
    return texture


def foreground_mask(garment: np.ndarray) -> np.ndarray:
    """Return the mask of a garment, (H, W) uint8 of 0 and 1, from its (H, W) uint8 image.

    Small gaps and holes are closed, loose specks dropped.
    """
    import cv2

    solid = cv2.morphologyEx((garment > 12).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    outlines, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(outlines, key=cv2.contourArea, default=None)
    filled: np.ndarray = np.zeros_like(solid)
    if largest is not None:
        cv2.drawContours(filled, [largest], -1, 1, cv2.FILLED)
    return filled


def _augment_garment(garment: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rotate and enlarge a garment; returns gray (h, w) float and mask (h, w) bool, cropped to the mask."""
    import cv2

    grow, angle = rng.uniform(*GROW), rng.uniform(-GARMENT_ROTATION, GARMENT_ROTATION)
    if rng.random() < 0.5:
        garment = garment[:, ::-1]
    side = int(np.ceil(garment.shape[0] * grow * 1.5))
    middle = (garment.shape[0] - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), angle, grow)
    matrix[:, 2] += (side - 1) / 2 - middle
    solid = np.ascontiguousarray(foreground_mask(garment).astype(np.float32))
    mask = cv2.warpAffine(solid, matrix, (side, side), flags=cv2.INTER_LINEAR) > 0.5
    gray = cv2.warpAffine(np.ascontiguousarray(garment), matrix, (side, side), flags=cv2.INTER_LINEAR)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return gray[cut].astype(np.float64), mask[cut]


def compose(garments: np.ndarray, labels: np.ndarray, indices: np.ndarray, rng: np.random.Generator) -> Scene:
    """Compose one scene.

    Args:
        garments: (N, 28, 28) uint8, gray on 0.
        labels: (N,) class numbers.
        indices: (M,) those of the N that may be used.
        rng: source of all randomness.
    """
    picture = background(rng)
    owner = np.zeros((SCENE_SIDE, SCENE_SIDE), np.uint8)
    chosen: list[int] = []
    areas: list[int] = []  # pixels of each garment before another one covered it
    for item in rng.choice(indices, int(rng.integers(ITEMS[0], ITEMS[1] + 1)), replace=False).tolist():
        gray, mask = _augment_garment(garments[item], rng)
        tint = _random_color(rng, 0.45, 1.0)
        h, w = mask.shape
        for _ in range(PLACEMENT_TRIES):
            top, left = int(rng.integers(0, SCENE_SIDE - h + 1)), int(rng.integers(0, SCENE_SIDE - w + 1))
            trial = owner.copy()
            trial[top : top + h, left : left + w][mask] = len(chosen) + 1
            seen = np.bincount(trial.ravel(), minlength=len(chosen) + 2)[1:]
            if (seen[:-1] >= VISIBLE * np.array(areas)).all() and _all_visible(trial, len(chosen)):
                owner = trial
                patch = picture[top : top + h, left : left + w]
                patch[mask] = (gray[..., None] * tint + 10)[mask]
                chosen.append(item)
                areas.append(int(mask.sum()))
                break
    image = np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).round().astype(np.uint8)
    return Scene(image, owner, [int(labels[i]) for i in chosen], chosen)


def _all_visible(owner: np.ndarray, earlier: int) -> bool:
    """True if the visible part of each earlier garment has a box of at least three pixels in x and y."""
    for number in range(1, earlier + 1):
        rows, columns = np.nonzero(owner == number)
        if len(rows) == 0 or np.ptp(rows) < 2 or np.ptp(columns) < 2:
            return False
    return True


def _annotations(scene: Scene, image_id: int, first: int) -> list[dict[str, Any]]:
    found = []
    for number, (label, item) in enumerate(zip(scene.labels, scene.items)):
        mask = scene.instances == number + 1
        rows, columns = np.nonzero(mask)
        x, y = int(columns.min()), int(rows.min())
        box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
        common = {"id": first + number, "image_id": image_id, "category_id": label + 1, "iscrowd": 0, "item": item}
        found.append({**common, "bbox": box, "area": int(mask.sum()), "segmentation": run_lengths(mask)})
    return found


def _write(path: Path, image: np.ndarray) -> None:
    import cv2

    encoded, png = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)
    assert encoded
    path.write_bytes(png)


def write_scene_split(out: Path, split: str, indices: np.ndarray, count: int, seed: int) -> None:
    """Write the folder `out/<split>` with `count` scenes of the garments at `indices` of the embedded file."""
    from rich.progress import track

    garments, labels = embedded_fashion()
    folder = out / split
    for name in SCENE_FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    annotations: list[dict[str, Any]] = []
    number = list(SIZES).index(split)
    for index in track(range(count), f"scenes: {split}", transient=True):
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, number, index, 4]))
        scene, name = compose(garments, labels, indices, rng), f"{index:06d}.png"
        _write(folder / "images" / name, scene.image)
        _write(folder / "semantic" / name, scene.semantic)
        _write(folder / "instances" / name, scene.instances)
        annotations += _annotations(scene, index + 1, len(annotations) + 1)
    note = {
        "info": {"description": "Fashion-MNIST garments on textures, made by lit-vision data scenes", "seed": seed},
        "licenses": [{"id": 1, "name": "MIT (Fashion-MNIST, Zalando SE)", "url": ""}],
        "images": _images(count),
        "annotations": annotations,
        "categories": [
            {"id": i + 1, "name": name, "supercategory": "garment"} for i, name in enumerate(GARMENT_CLASSES)
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(note, separators=(",", ":")) + "\n")


def _images(count: int) -> list[dict[str, Any]]:
    return [{"id": i + 1, "file_name": f"{i:06d}.png", "width": SCENE_SIDE, "height": SCENE_SIDE} for i in range(count)]


def is_scene_set_complete(folder: Path, count: int, seed: int) -> bool:
    """True if a split has its annotations with this seed, and all PNG files, each with its head and its end."""
    try:
        note = json.loads((folder / "annotations.json").read_bytes())
        listed, objects = note["images"], [a["image_id"] for a in note["annotations"]]
        if listed != _images(count) or note["info"]["seed"] != seed or not set(objects) <= {*range(1, count + 1)}:
            return False
        return all(_is_png(folder / name / image["file_name"]) for image in listed for name in SCENE_FOLDERS)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _is_png(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(8)
        file.seek(-12, 2)
        return head == b"\x89PNG\r\n\x1a\n" and file.read()[4:8] == b"IEND"


def make_scenes(out: Path, sizes: dict[str, int] | None = None, seed: int = 0) -> dict[str, int]:
    """Make the scenes in `out`; do nothing if they are complete already. An incomplete set is made again.

    Args:
        out: folder to make; it must be missing, empty, or made by a call with the same options.
        sizes: scenes per split; SIZES if None. A split with 0 is left out.
        seed: of everything except the split of the garments, in [0, 2**64).

    Returns:
        Scenes per split.

    Raises:
        UserError: the folder holds other files or cannot be written, or the embedded images are missing.
    """
    sizes = {name: count for name, count in (sizes or SIZES).items() if count}
    note = {"name": "scenes", "seed": seed, "side": SCENE_SIDE, "images": sizes}
    with report_write_errors(out, "--out "):
        if is_complete(out, DATASET_NOTE, note, "--out ") and all(
            is_scene_set_complete(out / s, n, seed) for s, n in sizes.items()
        ):
            return sizes
        _, labels = embedded_fashion()
        parts = stratified_splits(labels, SPLIT_SIZES, seed=0)
        mark_started(out, DATASET_NOTE, json.dumps(note))
        for split, count in sizes.items():
            write_scene_split(out, split, parts[split], count, seed)
        mark_complete(out, DATASET_NOTE, json.dumps(note, indent=1) + "\n")
    return sizes
