"""Read the YAML file of a YOLO set: class names, keypoints, and the folders of its splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_vision.data.annotations.files import read_lines, read_text
from lit_vision.errors import UserError


def read_yaml(root: Path) -> tuple[Path | None, dict[str, Any]]:
    """Return the set's YAML file and its content; (None, {}) without one.

    It is ROOT/data.yaml, else the only .yaml file in ROOT.

    Raises:
        UserError: it is not a YAML mapping.
    """
    found = [root / "data.yaml"] if (root / "data.yaml").is_file() else sorted(root.glob("*.y*ml"))
    if len(found) != 1:
        return None, {}
    import yaml

    try:
        content = yaml.safe_load(read_text(found[0], "YAML file")) or {}
        if not isinstance(content, dict):
            raise ValueError("a mapping with 'names' is needed")
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an invalid date
        raise UserError(f"{found[0]}: not a YAML mapping ({str(error).splitlines()[0]}); correct it") from None
    return found[0], content


def yolo_classes(root: Path, labels: str = "") -> list[str]:
    """Return the class names of a data set.

    They are `names:` (list or mapping) of its YAML file, else the lines of classes.txt in the root or beside the
    labels (labelImg), or of ROOT/obj.names (CVAT).

    Args:
        root: folder of the set.
        labels: folder of the labels, relative to the root.

    Raises:
        UserError: none of these files is there, or its names are no list of texts.
    """
    file, content = read_yaml(root)
    if file is None:
        for other in (root / "classes.txt", root / labels / "classes.txt", root / "obj.names"):
            if other.is_file():
                return read_lines(other, "list of classes")
        raise UserError(f"{root}: neither data.yaml nor classes.txt exists, so the classes have no names; add one")
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise UserError(f"{file}: 'names' must number the classes from 0 without gaps; correct it")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: no list 'names'; add it")
    for name in names:
        if isinstance(name, bool) or not isinstance(name, (str, int, float)):  # YAML reads no and off as false
            raise UserError(f"{file}: class name {str(name)[:60]!r} in 'names' is not text; put it in quotes")
    if isinstance(content.get("nc"), int) and content["nc"] != len(names):
        raise UserError(f"{file}: nc is {content['nc']}, but 'names' has {len(names)}; make them agree")
    return [str(name) for name in names]


def keypoint_numbers(root: Path) -> int:
    """Return how many numbers of a line are keypoints, after class and box: `kpt_shape` of the YAML file; 0 without.

    Raises:
        UserError: it is not [points, 2 or 3].
    """
    file, content = read_yaml(root)
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)):
        raise UserError(f"{file}: kpt_shape is {str(shape)[:60]}, not [points, 2 or 3]; correct it")
    if not 1 <= shape[0] <= 10_000 or shape[1] not in (2, 3):
        raise UserError(f"{file}: kpt_shape is {shape}, not [points, 2 or 3]; correct it")
    return int(shape[0] * shape[1])


def yolo_split(root: Path, names: Sequence[str]) -> tuple[str, str, str | None] | None:
    """Return where the YAML file says that a split is: images, labels, and list of images (or None).

    The entry may be relative to the file or to `path`, begin with ../ as Roboflow's, or lead to the machine that wrote
    it: the longest end of it that exists below the root is taken, of two names at least if it has several. Labels
    stand where `images` in the path is replaced by `labels`, else beside the images, as Ultralytics reads them.

    Args:
        root: folder of the set.
        names: keys to look for, in this order: "val", "valid".

    Returns:
        None without such an entry.

    Raises:
        UserError: the entry leads to nothing below the root; names file and entry.
    """
    file, content = read_yaml(root)
    key = next((name for name in names if content.get(name)), None)
    if file is None or key is None:
        return None
    entry = content[key]
    if isinstance(entry, list) and len(entry) == 1:
        entry = entry[0]
    if not isinstance(entry, str):
        raise UserError(f"{file}: {key} is {str(entry)[:60]}, not one folder or list of images; move them into one")
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if any("\0" in part for part in parts):
        raise UserError(f"{file}: {key} is {entry[:60]!r}, no path; correct it")
    top = content.get("path")
    tops = [part for part in str(top or "").replace("\\", "/").split("/") if part not in ("", ".", "..")]
    full = [*tops, *parts]
    for start in range(len(full) - min(2, len(parts)) + 1):
        path = "/".join(full[start:])
        try:
            if path.endswith(".txt") and (root / path).is_file():
                return ".", "", path
            if path and (root / path).is_dir():
                return path, label_path(path), None
        except OSError:  # a name that is too long
            continue
    raise UserError(
        f"{file}: {key}: {entry[:100]!r} does not lead to a folder below {root}; correct it, or set data.images and "
        "data.annotations"
    )


def label_path(images: str) -> str:
    """Return where the labels of a folder (or file) of images are: its last `images` becomes `labels`."""
    parts = images.split("/")
    for place in range(len(parts) - 1, -1, -1):
        if parts[place] == "images":
            return "/".join([*parts[:place], "labels", *parts[place + 1 :]])
    return images
