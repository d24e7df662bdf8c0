"""YOLO text files: one per image, a line per object: class x_centre y_centre width height, as fractions of the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lit_vision.data.annotations.files import image_files, read_lines, read_text, size_of
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable, AnnotationTableBuilder
from lit_vision.errors import UserError


def yolo_classes(root: Path) -> list[str]:
    """Class names from `names:` (list or mapping) of ROOT/data.yaml (or the only other .yaml), else the lines of ROOT/classes.txt."""
    found = [root / "data.yaml"] if (root / "data.yaml").is_file() else sorted(root.glob("*.y*ml"))
    if len(found) == 1:
        import yaml

        try:
            names = (yaml.safe_load(read_text(found[0], "YAML file")) or {}).get("names")
        except (yaml.YAMLError, AttributeError, ValueError, RecursionError) as error:  # ValueError: a date that is none
            raise UserError(f"{found[0]}: no YAML mapping ({str(error).splitlines()[0]}); correct it") from None
        if isinstance(names, dict):
            if set(names) != set(range(len(names))):
                raise UserError(f"{found[0]}: 'names' must number the classes from 0 without gaps; correct it")
            names = [names[i] for i in range(len(names))]
        if not isinstance(names, list) or not names:
            raise UserError(f"{found[0]}: no list 'names'; add it")
        for name in names:
            if isinstance(name, bool) or not isinstance(name, (str, int, float)):  # YAML reads no and off as false
                raise UserError(f"{found[0]}: class name {str(name)[:60]!r} in 'names' is no text; put it in quotes")
        return [str(name) for name in names]
    if (root / "classes.txt").is_file():
        return read_lines(root / "classes.txt", "list of classes")
    raise UserError(f"{root}: neither data.yaml nor classes.txt, so the classes have no names; add one")


def read_yolo(
    root: Path, labels: str, images: str, *, class_names: list[str] | None = None, on_bad_box: str = "error"
) -> AnnotationTable:
    """A split in YOLO's format. An image without a text file, or with an empty one, has no object.

    A line with more than five numbers is a polygon (YOLO's segmentation format); its bounding box is taken.

    Args:
        root: folder of the set.
        labels: folder of the text files, relative to it.
        images: folder of the images, relative to it.
        class_names: None reads them from the root.
        on_bad_box: see AnnotationTableBuilder.

    Raises:
        UserError: a folder is missing. AnnotationError: a line cannot be right; names file and line.
    """
    if not (root / labels).is_dir():
        raise UserError(f"{root / labels}: no such folder of labels; check data.root and data.annotations")
    builder = AnnotationTableBuilder(root, class_names or yolo_classes(root), on_bad_box)
    paths = image_files(root, images)
    stems = {Path(path).relative_to(images).with_suffix("").as_posix() for path in paths}
    for file in sorted((root / labels).rglob("*.txt")):
        stem = file.relative_to(root / labels).with_suffix("").as_posix()
        if stem not in stems and file.name != "classes.txt":
            raise AnnotationError(
                f"{file}: there is no image {stem} in {root / images}; remove the file or bring the image"
            )
    for path in paths:
        file = root / labels / Path(path).relative_to(images).with_suffix(".txt")
        lines = read_text(file, "labels").splitlines() if file.is_file() else []
        height, width = size_of(root / path)
        builder.image(path, (height, width))
        for place, line in enumerate(lines, 1):
            if line.strip():
                label, box = _parsed(line, f"{file}:{place}", len(builder.class_names))
                builder.box(f"{file}:{place}", tuple(box * [width, height, width, height]), label)
    return builder.table()


def _parsed(line: str, where: str, classes: int) -> tuple[int, np.ndarray]:
    words = line.split()
    try:
        label, numbers = int(words[0]), np.array([float(word) for word in words[1:]])
    except ValueError:
        raise AnnotationError(f"{where}: {line.strip()[:60]!r} holds something else than numbers; correct it") from None
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise AnnotationError(f"{where}: {len(numbers)} numbers after the class, expected 4 (or a polygon); correct it")
    if not 0 <= label < classes:
        raise AnnotationError(
            f"{where}: class {label} is unknown, the set has 0 to {classes - 1}; correct it or name the class"
        )
    if len(numbers) > 4:
        points = numbers.reshape(-1, 2)
        return label, np.concatenate([points.min(0), points.max(0)])
    x, y, w, h = numbers
    return label, np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
