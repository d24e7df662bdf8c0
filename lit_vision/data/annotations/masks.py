"""Semantic masks as PNG files of class numbers, one per image, with a value that is ignored."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from lit_vision.data.annotations.files import image_files, read_lines, read_split_list, with_suffix
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable, AnnotationTableBuilder
from lit_vision.errors import UserError

IGNORE = 255  # in a batch: the pixel counts neither in the loss nor in a measure


def read_masks(
    root: Path, masks: str, images: str, split_list: str | None, class_names: list[str] | None
) -> AnnotationTable:
    """A split of images with a mask each: images/NAME.jpg and masks/NAME.png.

    Args:
        root: folder of the set.
        masks: folder of the PNG files, relative to it.
        images: folder of the images, relative to it.
        split_list: file with a name per line, relative to the root; None takes every image of the folder.
        class_names: K names, class 0 first; None takes the lines of ROOT/classes.txt.

    Raises:
        UserError: a file is missing.
    """
    if class_names is None:
        file = root / "classes.txt"
        if not file.is_file():
            raise UserError(
                f"{file}: missing, so the classes have no names; add it (a name per line), or give data.class_names"
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
        mask = f"{masks}/{Path(path).relative_to(images).with_suffix('.png').as_posix()}"
        if not (root / mask).is_file():
            raise UserError(
                f"{root / mask}: no mask of this name for {path}; bring it, or remove the image from the split"
            )
        builder.image(path, mask=mask)
    return builder.table()


def read_mask(
    path: Path, size: tuple[int, int], classes: int, first_value: int, ignore_values: list[int]
) -> np.ndarray:
    """One mask: pixel values v to class v - first_value, ignored values to IGNORE.

    Args:
        path: a PNG with one channel (gray or palette, 8 or 16 bit).
        size: (height, width) of the image.
        classes: K.
        first_value: of class 0.
        ignore_values: pixel values that are no class.

    Returns:
        (H, W) uint8, 0 to K - 1 or IGNORE.

    Raises:
        AnnotationError: no such mask, of another size than the image, more than one channel, or an unknown value.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # damaged files raise whatever they like
        raise AnnotationError(
            f"{path}: cannot be read as a mask ({type(error).__name__}: {error}); replace it"
        ) from None
    if values.ndim != 2:
        raise AnnotationError(
            f"{path}: {mode} has several channels; a mask holds class numbers in one (gray or palette)"
        )
    if values.shape != tuple(size):
        raise AnnotationError(
            f"{path}: the mask is {values.shape[1]} x {values.shape[0]}, its image {size[1]} x {size[0]}; make them equal"
        )
    values = values.astype(np.int64)
    ignored = np.isin(values, ignore_values)
    numbers = values - first_value
    wrong = ~ignored & ((numbers < 0) | (numbers >= classes))
    if wrong.any():
        value = int(values[wrong][0])
        raise AnnotationError(
            f"{path}: value {value} is no class (there are {first_value} to {first_value + classes - 1}, ignored {ignore_values}); "
            "correct the mask, data.class_names, data.first_value or data.ignore_values"
        )
    return np.where(ignored, IGNORE, numbers).astype(np.uint8)
