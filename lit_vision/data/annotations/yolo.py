"""Read YOLO text files: one per image, one line per object.

A line is: class x_center y_center width height, as fractions of the image.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import numpy as np

from lit_vision.data.annotations.files import image_files, join_path, read_lines, read_text, size_of
from lit_vision.data.annotations.image_names import ImageFinder
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable
from lit_vision.data.annotations.table_builder import AnnotationTableBuilder
from lit_vision.data.annotations.yolo_yaml import keypoint_numbers, label_path, yolo_classes
from lit_vision.errors import UserError


def read_yolo(
    root: Path,
    annotations: str,
    images: str,
    *,
    split_list: str | None = None,
    class_names: list[str] | None = None,
    on_bad_box: str = "error",
    excluded: Set[str] = frozenset(),
    faults: list[tuple[str, str]] | None = None,
) -> AnnotationTable:
    """Read a split in YOLO's format; an image without a text file, or with an empty one, has no object.

    A line with more than five numbers is a polygon (YOLO's segmentation format); its bounding box is taken. Where the
    set's YAML file has `kpt_shape`, lines are poses: class, box, keypoints; the box is taken.

    Args:
        root: folder of the set.
        annotations: folder of the text files, relative to the root; "": the images' paths with `images` replaced by
            `labels`.
        images: folder of the images, relative to the root.
        split_list: file with an image per line, relative to the root; None takes every image of the folder.
        class_names: names of the classes; None reads them from the root.
        on_bad_box: see AnnotationTableBuilder.
        excluded, faults: see AnnotationTableBuilder.

    Raises:
        UserError: a folder is missing. AnnotationError: a line is invalid; names file and line.
    """
    if not (root / annotations).is_dir():
        raise UserError(f"{root / annotations}: no such folder of labels; check data.root and data.annotations")
    names = class_names or yolo_classes(root, annotations)
    builder = AnnotationTableBuilder(root, names, on_bad_box, excluded, faults)
    paths = _listed_images(root, images, split_list) if split_list else image_files(root, images)
    files = [_label_file(root, path, images, annotations) for path in paths]
    if not split_list:
        _refuse_stray_labels(root, annotations, images, paths)
    if not any(file.is_file() for file in files):
        raise UserError(
            f"{root / (annotations or images)}: none of the {len(paths)} images has a text file of labels, "
            f"first looked for {files[0]}; check data.annotations"
        )
    keypoints = keypoint_numbers(root)
    for path, file in zip(paths, files):
        if builder.is_excluded(path):
            continue
        with builder.entry(path):
            lines = read_text(file, "labels").splitlines() if file.is_file() else []
            height, width = size_of(root / path)
            builder.image(path, (height, width))
            for number, line in enumerate(lines, 1):
                if line.strip():
                    label, box = _parse_line(line, f"{file}:{number}", len(builder.class_names), keypoints)
                    x1, y1, x2, y2 = box * [width, height, width, height]
                    builder.box(f"{file}:{number}", (x1, y1, x2, y2), label)
    return builder.table()


def _listed_images(root: Path, images: str, split_list: str) -> list[str]:
    """Return the images of a list, relative to the root, sorted; prefixes of other machines are dropped."""
    find, lines = ImageFinder(root, images), read_lines(root / split_list, "list of images; check data.split_list")
    paths = sorted(find(line) for line in lines if not line.startswith("#"))
    if not paths:
        raise UserError(f"{root / split_list}: the list is empty; list one image per line")
    find.report(root / split_list)
    return paths


def _label_file(root: Path, path: str, images: str, annotations: str) -> Path:
    if not annotations:
        return root / Path(label_path(path)).with_suffix(".txt")
    return root / join_path(annotations, Path(path).relative_to(images).with_suffix(".txt").as_posix())


def _refuse_stray_labels(root: Path, annotations: str, images: str, paths: list[str]) -> None:
    """Raise an AnnotationError for a text file of labels without an image; notes beside the images may stand."""
    stems = {Path(path).relative_to(images).with_suffix("").as_posix() for path in paths}
    for file in sorted((root / annotations).rglob("*.txt")):
        stem = file.relative_to(root / annotations).with_suffix("").as_posix()
        if stem in stems or file.name == "classes.txt" or (annotations == images and not _is_label_file(file)):
            continue
        raise AnnotationError(
            f"{file}: there is no image {stem} in {root / images}; remove the file or bring the image"
        )


def _is_label_file(file: Path) -> bool:
    """True if the first line of a text file is made of five or more numbers."""
    try:
        with file.open(encoding="utf-8-sig") as text:
            fields = next((line.split() for line in text if line.strip()), [])
        return len([float(field) for field in fields]) >= 5
    except (OSError, ValueError):
        return False


def _parse_line(line: str, where: str, classes: int, keypoints: int) -> tuple[int, np.ndarray]:
    """Return class and box (x1, y1, x2, y2), as fractions of the image.

    Args:
        line: of a text file.
        where: names file and line, for messages.
        classes: K.
        keypoints: numbers after the box; 0 where lines are boxes or polygons.
    """
    fields = line.split()
    try:
        number, numbers = float(fields[0]), np.array([float(text) for text in fields[1:]])
        label = int(fields[0]) if number != int(number) or "e" in fields[0] else int(number)  # some tools write 1.0
    except (ValueError, OverflowError):
        raise AnnotationError(f"{where}: {line.strip()[:60]!r} is not a list of numbers; correct it") from None
    if not 0 <= label < classes:
        raise AnnotationError(
            f"{where}: class {label} is unknown, the set has 0 to {classes - 1}; correct it or name the class"
        )
    if keypoints and len(numbers) not in (4, 4 + keypoints):
        raise AnnotationError(
            f"{where}: {len(numbers)} numbers after the class, expected 4 and {keypoints} of keypoints "
            "(kpt_shape of the YAML file); correct it"
        )
    if keypoints or len(numbers) == 4:
        x, y, w, h = numbers[:4]
        return label, np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    if _is_pose(numbers):
        raise AnnotationError(
            f"{where}: reads as a box with {(len(numbers) - 4) // 3} keypoints, not as a polygon; "
            f"add kpt_shape: [{(len(numbers) - 4) // 3}, 3] to data.yaml"
        )
    if len(numbers) < 6 or len(numbers) % 2:
        hint = "; a fifth is a confidence: export labels, not predictions" if len(numbers) == 5 else "; correct it"
        raise AnnotationError(f"{where}: {len(numbers)} numbers after the class, expected 4 (or a polygon){hint}")
    points = numbers.reshape(-1, 2)
    return label, np.concatenate([points.min(0), points.max(0)])


def _is_pose(numbers: np.ndarray) -> bool:
    """True if the numbers are a box in the image and keypoints (x, y, visibility 0, 1 or 2) inside it."""
    if len(numbers) < 7 or (len(numbers) - 4) % 3:
        return False
    points = numbers[4:].reshape(-1, 3)
    center, half = numbers[:2], numbers[2:4] / 2
    visible = points[points[:, 2] > 0, :2]
    return bool(
        np.isin(points[:, 2], (0, 1, 2)).all()
        and (half > 0).all()
        and (center - half >= -0.01).all()
        and (center + half <= 1.01).all()
        and (np.abs(visible - center) <= half + 0.05).all()
    )
