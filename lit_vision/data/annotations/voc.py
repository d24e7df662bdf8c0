"""Read Pascal VOC: one XML file per image.

Source: Everingham et al. 2010, https://doi.org/10.1007/s11263-009-0275-4
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from lit_vision.data.annotations.files import image_files, read_split_list, with_suffix
from lit_vision.data.annotations.table import AnnotationError, AnnotationTable, AnnotationTableBuilder
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
    on_bad_box: str = "error",
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
        on_bad_box: see AnnotationTableBuilder.

    Raises:
        UserError: a file is missing. AnnotationError: an annotation is invalid; names the file.
    """
    builder = AnnotationTableBuilder(root, class_names or list(VOC_CLASSES), on_bad_box)
    if split_list:
        paths = [with_suffix(root, images, name) for name in sorted(read_split_list(root, split_list))]
    else:
        paths = image_files(root, images)
    for path in paths:
        file = root / annotations / Path(path).relative_to(images).with_suffix(".xml")
        try:
            tree = ElementTree.parse(file)
            height, width = (int(tree.findtext(f"size/{side}", "")) for side in ("height", "width"))
            if not (0 < height <= PIXEL_CAP and 0 < width <= PIXEL_CAP):
                raise ValueError(f"{width} x {height}")
        except OSError:
            raise UserError(f"{file}: no such annotation file; bring it, or remove the image from the split") from None
        except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
            raise AnnotationError(f"{file}: not a VOC annotation with a size ({error}); correct or remove it") from None
        builder.image(path, (height, width))
        for number, entry in enumerate(tree.iterfind("object"), 1):
            where, name = f"{file}: object {number}", (entry.findtext("name") or "").strip()
            if name not in builder.class_names:
                raise AnnotationError(f"{where}: class {name!r} is unknown; correct it, or give data.class_names")
            try:
                corners = [float(entry.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
            except ValueError:
                raise AnnotationError(f"{where}: no bndbox with four numbers; correct or remove it") from None
            difficult = (entry.findtext("difficult") or "0").strip()
            if difficult not in ("0", "1"):
                raise AnnotationError(f"{where}: difficult is {difficult[:60]!r}, not 0 or 1; correct it")
            box = (corners[0] - 1, corners[1] - 1, corners[2], corners[3])
            builder.box(where, box, builder.class_names.index(name), difficult == "1")
    return builder.table()
