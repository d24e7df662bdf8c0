"""Read semantic masks: one PNG file of class numbers per image, with values that are ignored."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from lit_vision.data.annotations.files import image_files, read_lines, read_split_list, with_suffix
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable, AnnotationTableBuilder
from lit_vision.errors import UserError

IGNORE = 255  # in a batch: the pixel counts neither in the loss nor in a metric


def read_masks(
    root: Path,
    annotations: str,
    images: str,
    *,
    split_list: str | None = None,
    class_names: list[str] | None = None,
) -> AnnotationTable:
    """Read a split of images with one mask each: images/NAME.jpg and annotations/NAME.png.

    Args:
        root: folder of the set.
        annotations: folder of the PNG masks, relative to the root.
        images: folder of the images, relative to the root.
        split_list: file with a name per line, relative to the root; None takes every image of the folder.
        class_names: K names, class 0 first; None takes the lines of ROOT/classes.txt.

    Raises:
        UserError: a file is missing.
    """
    if class_names is None:
        file = root / "classes.txt"
        if not file.is_file():
            raise UserError(
                f"{file}: no such file, so the classes have no names; "
                "add it (one name per line), or give data.class_names"
            )
        class_names = read_lines(file, "list of classes")
    if len(class_names) > IGNORE:
        raise UserError(f"data.class_names: {len(class_names)} classes, at most {IGNORE} fit an 8-bit mask; merge some")
    builder = AnnotationTableBuilder(root, class_names)
    if split_list:
        paths = [with_suffix(root, images, name) for name in sorted(read_split_list(root, split_list))]
    else:
        paths = image_files(root, images)
    for path in paths:
        mask = f"{annotations}/{Path(path).relative_to(images).with_suffix('.png').as_posix()}"
        if not (root / mask).is_file():
            raise UserError(
                f"{root / mask}: no mask of this name for {path}; bring it, or remove the image from the split"
            )
        builder.image(path, mask=mask)
    return builder.table()


def read_mask(
    path: Path, size: tuple[int, int], classes: int, first_value: int, ignore_values: list[int]
) -> np.ndarray:
    """Read one mask: pixel value v becomes class v - first_value, ignored values become IGNORE.

    Args:
        path: a PNG with one channel (gray or palette, 8 or 16 bit).
        size: (height, width) of the image.
        classes: K.
        first_value: pixel value of class 0.
        ignore_values: pixel values that are not a class.

    Returns:
        (H, W) uint8, 0 to K - 1 or IGNORE.

    Raises:
        AnnotationError: the mask cannot be read, differs in size from the image, or has several channels or an unknown
            value.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # damaged files raise exceptions of any type
        raise AnnotationError(
            f"{path}: cannot be read as a mask ({type(error).__name__}: {error}); replace it"
        ) from None
    if values.ndim != 2:
        raise AnnotationError(
            f"{path}: {mode} has several channels; a mask holds class numbers in one (gray or palette)"
        )
    if values.shape != tuple(size):
        raise AnnotationError(
            f"{path}: the mask is {values.shape[1]} x {values.shape[0]}, its image {size[1]} x {size[0]}; "
            "make them equal"
        )
    values = values.astype(np.int64)
    ignored = np.isin(values, ignore_values)
    numbers = values - first_value
    wrong = ~ignored & ((numbers < 0) | (numbers >= classes))
    if wrong.any():
        value = int(values[wrong][0])
        raise AnnotationError(
            f"{path}: value {value} is not a class (there are {first_value} to {first_value + classes - 1}, "
            f"ignored {ignore_values}); "
            "correct the mask, data.class_names, data.first_value or data.ignore_values"
        )
    return np.where(ignored, IGNORE, numbers).astype(np.uint8)
