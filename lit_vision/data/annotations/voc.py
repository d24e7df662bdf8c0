"""Read Pascal VOC: one XML file per image.

Source: Everingham et al. 2010, https://doi.org/10.1007/s11263-009-0275-4
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from xml.etree import ElementTree

from lit_vision.data.annotations.files import image_files, read_split_list, size_of, with_suffix
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable
from lit_vision.data.annotations.table_builder import AnnotationTableBuilder
from lit_vision.data.views.decode import PIXEL_CAP
from lit_vision.errors import UserError

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def read_voc(
    root: Path,
    annotations: str,
    images: str,
    *,
    split_list: str | None = None,
    class_names: list[str] | None = None,
    crowd_as_objects: bool = False,
    on_bad_box: str = "error",
    excluded: Set[str] = frozenset(),
    faults: list[tuple[str, str]] | None = None,
) -> AnnotationTable:
    """Read a split in VOC's format.

    Its pixels count from 1 and boxes include their last pixel: 1 is subtracted from xmin and ymin. Objects marked
    `difficult` become crowd: they are not trained on, and detections on them do not count as wrong.

    Args:
        root: folder of the set (VOCdevkit/VOC2012).
        annotations: folder of the XML files, relative to the root.
        images: folder of the images, relative to the root.
        split_list: file with a name per line, relative to the root; None takes every image of the folder.
        class_names: names of the classes; None is VOC's twenty.
        crowd_as_objects: take `difficult` objects for objects like others.
        on_bad_box: see AnnotationTableBuilder. "fix" also takes a size of 0 from the image file.
        excluded, faults: see AnnotationTableBuilder.

    Raises:
        UserError: a file is missing. AnnotationError: an annotation is invalid; names the file.
    """
    builder = AnnotationTableBuilder(root, class_names or list(VOC_CLASSES), on_bad_box, excluded, faults)
    if split_list:
        paths = [with_suffix(root, images, name) for name in sorted(read_split_list(root, split_list))]
    else:
        paths = image_files(root, images)
    for path in paths:
        if builder.is_excluded(path):
            continue
        with builder.entry(path):
            file = root / annotations / Path(path).relative_to(images).with_suffix(".xml")
            tree = _parse(file)
            builder.image(path, _size(tree, builder, root / path, file))
            for number, entry in enumerate(tree.iterfind("object"), 1):
                _add(entry, builder, crowd_as_objects, f"{file}: object {number}", root / annotations)
    return builder.table()


def _parse(file: Path) -> ElementTree.ElementTree[ElementTree.Element]:
    try:
        return ElementTree.parse(file)
    except OSError:
        raise UserError(f"{file}: no such annotation file; bring it, or list the image in data.quarantine") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise AnnotationError(f"{file}: not a VOC annotation with a size ({error}); correct or remove it") from None


def _size(
    tree: ElementTree.ElementTree[ElementTree.Element], builder: AnnotationTableBuilder, image: Path, file: Path
) -> tuple[int, int]:
    """Return height and width; under `fix` those of the image where the annotation has none, or 0."""
    texts = [(tree.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    if builder.fix and any(text in ("", "0") for text in texts):
        return size_of(image)
    try:
        height, width = map(int, texts)
        if not (0 < height <= PIXEL_CAP and 0 < width <= PIXEL_CAP):
            raise ValueError(f"{width} x {height}")
    except ValueError as error:
        raise AnnotationError(
            f"{file}: not a VOC annotation with a size ({error}); correct or remove it, "
            "or set data.on_bad_box to fix, which takes a missing size from the image"
        ) from None
    return height, width


def _add(
    entry: ElementTree.Element, builder: AnnotationTableBuilder, crowd_as_objects: bool, where: str, folder: Path
) -> None:
    name = (entry.findtext("name") or "").strip()
    if name not in builder.class_names:
        names = voc_names(folder) if name and builder.faults is None else []  # reads all files: once
        hint = f"; the files name {', '.join(n[:24] for n in names[:10])}" if names else ""
        raise AnnotationError(f"{where}: class {name[:60]!r} is unknown; correct it, or give data.class_names{hint}")
    try:
        corners = [float(entry.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError:
        raise AnnotationError(f"{where}: no bndbox with four numbers; correct or remove it") from None
    difficult = (entry.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise AnnotationError(f"{where}: difficult is {difficult[:60]!r}, not 0 or 1; correct it")
    crowd = difficult == "1" and not crowd_as_objects
    box = (corners[0] - 1, corners[1] - 1, corners[2], corners[3])
    builder.box(where, box, builder.class_names.index(name), crowd)


def voc_names(folder: Path) -> list[str]:
    """Return the class names in the XML files of a folder, sorted; files that cannot be read have none."""
    names: set[str] = set()
    for file in sorted(folder.rglob("*.xml")):
        try:
            objects = ElementTree.parse(file).iterfind("object")
            names |= {(entry.findtext("name") or "").strip() for entry in objects}
        except (OSError, ElementTree.ParseError, ValueError, LookupError):
            continue
    return sorted(names - {""})
