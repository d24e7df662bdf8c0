"""Read YOLO text files: one per image, one line per object.

A line is: class x_center y_center width height, as fractions of the image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lit_vision.data.annotations.files import image_files, read_lines, read_text, size_of
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable, AnnotationTableBuilder
from lit_vision.errors import UserError


def yolo_classes(root: Path) -> list[str]:
    """Return the class names of a data set.

    They are `names:` (list or mapping) of ROOT/data.yaml (or of the only other .yaml), else the lines of
    ROOT/classes.txt.
    """
    found = [root / "data.yaml"] if (root / "data.yaml").is_file() else sorted(root.glob("*.y*ml"))
    if len(found) == 1:
        import yaml

        try:
            names = (yaml.safe_load(read_text(found[0], "YAML file")) or {}).get("names")
        except (yaml.YAMLError, AttributeError, ValueError, RecursionError) as error:  # ValueError: an invalid date
            raise UserError(f"{found[0]}: not a YAML mapping ({str(error).splitlines()[0]}); correct it") from None
        if isinstance(names, dict):
            if set(names) != set(range(len(names))):
                raise UserError(f"{found[0]}: 'names' must number the classes from 0 without gaps; correct it")
            names = [names[i] for i in range(len(names))]
        if not isinstance(names, list) or not names:
            raise UserError(f"{found[0]}: no list 'names'; add it")
        for name in names:
            if isinstance(name, bool) or not isinstance(name, (str, int, float)):  # YAML reads no and off as false
                raise UserError(f"{found[0]}: class name {str(name)[:60]!r} in 'names' is not text; put it in quotes")
        return [str(name) for name in names]
    if (root / "classes.txt").is_file():
        return read_lines(root / "classes.txt", "list of classes")
    raise UserError(f"{root}: neither data.yaml nor classes.txt exists, so the classes have no names; add one")


def read_yolo(
    root: Path, annotations: str, images: str, *, class_names: list[str] | None = None, on_bad_box: str = "error"
) -> AnnotationTable:
    """Read a split in YOLO's format; an image without a text file, or with an empty one, has no object.

    A line with more than five numbers is a polygon (YOLO's segmentation format); its bounding box is taken.

    Args:
        root: folder of the set.
        annotations: folder of the text files, relative to the root.
        images: folder of the images, relative to the root.
        class_names: names of the classes; None reads them from the root.
        on_bad_box: see AnnotationTableBuilder.

    Raises:
        UserError: a folder is missing. AnnotationError: a line is invalid; names file and line.
    """
    if not (root / annotations).is_dir():
        raise UserError(f"{root / annotations}: no such folder of labels; check data.root and data.annotations")
    builder = AnnotationTableBuilder(root, class_names or yolo_classes(root), on_bad_box)
    paths = image_files(root, images)
    stems = {Path(path).relative_to(images).with_suffix("").as_posix() for path in paths}
    for file in sorted((root / annotations).rglob("*.txt")):
        stem = file.relative_to(root / annotations).with_suffix("").as_posix()
        if stem not in stems and file.name != "classes.txt":
            raise AnnotationError(
                f"{file}: there is no image {stem} in {root / images}; remove the file or bring the image"
            )
    for path in paths:
        file = root / annotations / Path(path).relative_to(images).with_suffix(".txt")
        lines = read_text(file, "labels").splitlines() if file.is_file() else []
        height, width = size_of(root / path)
        builder.image(path, (height, width))
        for number, line in enumerate(lines, 1):
            if line.strip():
                label, box = _parse_line(line, f"{file}:{number}", len(builder.class_names))
                x1, y1, x2, y2 = box * [width, height, width, height]
                builder.box(f"{file}:{number}", (x1, y1, x2, y2), label)
    return builder.table()


def _parse_line(line: str, where: str, classes: int) -> tuple[int, np.ndarray]:
    """Return class and box (x1, y1, x2, y2), as fractions of the image."""
    fields = line.split()
    try:
        label, numbers = int(fields[0]), np.array([float(text) for text in fields[1:]])
    except ValueError:
        raise AnnotationError(f"{where}: {line.strip()[:60]!r} is not a list of numbers; correct it") from None
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
