"""Read semantic masks: one PNG file of class numbers per image, with values that are ignored."""

from __future__ import annotations

import io
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_vision.data.annotations.colors import color_numbers, numbers_of_colors, read_colors
from lit_vision.data.annotations.files import image_files, join_path, read_lines, read_split_list, with_suffix
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable
from lit_vision.data.annotations.table_builder import AnnotationTableBuilder
from lit_vision.errors import UserError

IGNORE = 255  # in a batch: the pixel counts neither in the loss nor in a metric


MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
_BESIDE = "_mask.png"  # Roboflow puts NAME_mask.png beside NAME.jpg


@dataclass(frozen=True)
class MaskValues:
    """Meaning of the pixel values of a set's masks.

    Attributes:
        first_value: pixel value of class 0.
        ignore_values: pixel values that are not a class.
        colors: class number by color, from `color_numbers`; None where masks hold class numbers.
    """

    first_value: int = 0
    ignore_values: tuple[int, ...] = (IGNORE,)
    colors: dict[int, int] | None = None

    def read(self, path: Path, size: tuple[int, int], classes: int) -> np.ndarray:
        """Return one mask of K classes, see `read_mask`."""
        return read_mask(path, size, classes, self.first_value, list(self.ignore_values), self.colors)


def mask_values(first_value: int, ignore_values: list[int], colors: str | None, class_names: list[str]) -> MaskValues:
    """Return the meaning of pixel values from the arguments of the data module.

    Args:
        first_value: pixel value of class 0.
        ignore_values: pixel values that are not a class.
        colors: file of names and colors, see `read_colors`; None where masks hold class numbers.
        class_names: K names, class 0 first.

    Raises:
        UserError: as `read_colors` and `color_numbers`.
    """
    numbers = color_numbers(read_colors(colors), class_names, IGNORE) if colors else None
    return MaskValues(first_value, tuple(ignore_values), numbers)


def read_masks(
    root: Path,
    annotations: str,
    images: str,
    *,
    split_list: str | None = None,
    class_names: list[str] | None = None,
    colors: str | None = None,
    excluded: Set[str] = frozenset(),
    faults: list[tuple[str, str]] | None = None,
) -> AnnotationTable:
    """Read a split of images with one mask each: images/NAME.jpg and annotations/NAME.png (also .bmp, .tif or .gif).

    Args:
        root: folder of the set.
        annotations: folder of the masks, relative to the root.
        images: folder of the images, relative to the root.
        split_list: file with a name per line, relative to the root; None takes every image of the folder.
        class_names: K names, class 0 first; None takes those of `colors`, else the lines of ROOT/classes.txt.
        colors: file of names and colors, see `read_colors`.
        excluded, faults: see AnnotationTableBuilder.

    Raises:
        UserError: a file is missing.
    """
    if class_names is None:
        class_names = list(read_colors(colors)) if colors else _class_names(root)
    if len(class_names) > IGNORE:
        raise UserError(f"data.class_names: {len(class_names)} classes, at most {IGNORE} fit an 8-bit mask; merge some")
    builder = AnnotationTableBuilder(root, class_names, excluded=excluded, faults=faults)
    if split_list:
        paths = [with_suffix(root, images, name) for name in sorted(read_split_list(root, split_list))]
    else:
        paths = image_files(root, images)
        if images == annotations:
            paths = [path for path in paths if not path.endswith(_BESIDE)]
    for path in paths:
        if builder.is_excluded(path):
            continue
        with builder.entry(path):
            builder.image(path, mask=_mask_of(root, path, images, annotations))
    return builder.table()


def _class_names(root: Path) -> list[str]:
    file = root / "classes.txt"
    for names in (file, root / "class_names.txt"):  # labelme2voc writes the second
        if names.is_file():
            return read_lines(names, "list of classes")
    if (root / "_classes.csv").is_file():  # Roboflow: pixel value, class; from 0 without gaps
        rows = [line.split(",", 1) for line in read_lines(root / "_classes.csv", "list of classes")[1:]]
        if rows and all(len(row) == 2 and row[0].strip() == str(i) for i, row in enumerate(rows)):
            return [row[1].strip() for row in rows]
    hint = f", or set data.colors to {root / 'labelmap.txt'}" if (root / "labelmap.txt").is_file() else ""
    raise UserError(
        f"{file}: no such file, so the classes have no names; "
        f"add it (one name per line), or give data.class_names{hint}"
    )


def _mask_of(root: Path, path: str, images: str, annotations: str) -> str:
    stem = join_path(annotations, Path(path).relative_to(images).with_suffix("").as_posix())
    for suffix in (*MASK_SUFFIXES, _BESIDE):
        mask = f"{stem}{suffix}"
        if mask != path and (root / mask).is_file():
            return mask
    if (root / f"{stem}.jpg").is_file() and f"{stem}.jpg" != path:
        raise UserError(f"{root / stem}.jpg: JPEG changes the values of a mask; save it again as PNG")
    raise UserError(
        f"{root / stem}.png: no mask of this name for {path}; bring it, or list the image in data.quarantine"
    )


def read_mask(
    path: Path,
    size: tuple[int, int],
    classes: int,
    first_value: int,
    ignore_values: list[int],
    colors: dict[int, int] | None = None,
) -> np.ndarray:
    """Read one mask: pixel value v becomes class v - first_value, ignored values become IGNORE.

    Args:
        path: an image with one channel (gray or palette, 8 or 16 bit), or with three equal ones; with `colors` also
            one in color.
        size: (height, width) of the image.
        classes: K.
        first_value: pixel value of class 0.
        ignore_values: pixel values that are not a class.
        colors: class number by color, from `color_numbers`; `first_value` and `ignore_values` then do not count.

    Returns:
        (H, W) uint8, 0 to K - 1 or IGNORE.

    Raises:
        AnnotationError: the mask cannot be read, differs in size from the image, or has an unknown value or color.
    """
    values = _read_pixels(path, colors is not None)
    if values.shape[:2] != tuple(size):
        raise AnnotationError(
            f"{path}: the mask is {values.shape[1]} x {values.shape[0]}, its image {size[1]} x {size[0]}; "
            "make them equal"
        )
    if colors is not None:
        return numbers_of_colors(values, colors, path)
    values = values.astype(np.int64)
    ignored = np.isin(values, ignore_values)
    numbers = values - first_value
    wrong = ~ignored & ((numbers < 0) | (numbers >= classes))
    if wrong.any():
        value = int(values[wrong][0])
        raise AnnotationError(
            f"{path}: value {value} is not a class (there are {first_value} to {first_value + classes - 1}, "
            f"ignored {ignore_values}); "
            "correct the mask, data.class_names, data.first_value or data.ignore_values, "
            "or name each value's class in a file for data.colors"
        )
    return np.where(ignored, IGNORE, numbers).astype(np.uint8)


def _read_pixels(path: Path, in_color: bool) -> np.ndarray:
    """Return a mask's values, (H, W), or its colors, (H, W, 3) uint8; alpha is dropped."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            mode = image.mode
            if in_color:
                return np.asarray(image.convert("RGB"))
            values = np.asarray(image)
    except Exception as error:  # damaged files raise exceptions of any type
        raise AnnotationError(
            f"{path}: cannot be read as a mask ({type(error).__name__}: {error}); replace it"
        ) from None
    if values.ndim == 3 and mode in ("LA", "La"):
        return values[..., 0]
    if values.ndim == 3 and mode in ("RGB", "RGBA", "RGBX", "RGBa"):
        if (values[..., :3] == values[..., :1]).all():  # a gray mask, as Paint and OpenCV save it
            return values[..., 0]
        raise AnnotationError(
            f"{path}: {mode} in color, so it holds no class numbers; set data.colors to a file with the lines "
            "'name red green blue' (CVAT's labelmap.txt is one)"
        )
    if values.ndim != 2:
        raise AnnotationError(
            f"{path}: {mode} has several channels; a mask holds class numbers in one (gray or palette)"
        )
    return values
