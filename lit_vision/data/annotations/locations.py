"""Recognize annotated sets: which formats a folder holds, and where the images and annotations of a split are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from lit_vision.data.annotations.formats import FORMATS, Location
from lit_vision.data.annotations.other_tools import describe_export
from lit_vision.data.annotations.yolo_yaml import yolo_split
from lit_vision.data.image_files import image_extensions
from lit_vision.errors import UserError

# other names of a split, tried in this order where its own is not there; each has this role in layout.role_of, too
OTHER_NAMES = {
    "train": ("training", "Train", "train2017", "trainval"),
    "val": ("valid", "validation", "dev", "Val", "Valid", "Validation", "val2017"),
    "test": ("testing", "Test", "test2017"),
}
_LOOKED_AT = 5000  # files of a folder among which an annotation must be
_TRIED = 20  # annotations of which one must have its image beside it


def locate(root: Path, annotation_format: str, split: str, only_split: bool = True) -> Location | None:
    """Return where a split is, or None.

    YOLO's YAML file decides if it names the split and leads to a folder; else the usual places of the format are
    tried, with the split's name and then with its other names (val: valid, validation, ...).

    Args:
        root: folder of the set.
        annotation_format: a key of FORMATS.
        split: its name.
        only_split: a set that is not split may be this split: true for the one that trains.

    Raises:
        UserError: YOLO's YAML file leads to nothing, and neither do the usual places.
    """
    names = (split, *OTHER_NAMES.get(split, ()))
    problem: UserError | None = None
    if annotation_format == "yolo":
        try:
            found = yolo_split(root, names)
            if found:
                return Location(*found)
        except UserError as error:
            problem = error
    places = FORMATS[annotation_format].locations
    for name in names:
        for place in places:
            if any("{split}" in (text or "") for text in place) and _is_there(
                root, place.of_split(name), annotation_format
            ):
                return place.of_split(name)
    if only_split:
        for place in places:
            if not any("{split}" in (text or "") for text in place) and _is_there(root, place, annotation_format):
                return place
    if annotation_format == "coco" and (only := _only_coco_file(root, names, only_split)):
        return only
    if problem:
        raise problem
    return None


def _only_coco_file(root: Path, names: Sequence[str], only_split: bool) -> Location | None:
    """Return the only JSON file of a split's folder, or of the root, if it is COCO's (VIA names it after a project)."""
    for folder in (*names, *([""] if only_split else [])):
        files = list(_files(root / folder, (".json",), below=False))
        if len(files) == 1 and _names_coco(root / folder / files[0], 3):
            for images in (f"{folder}/images", f"{folder}/data", folder or "."):
                place = Location(images.lstrip("/"), f"{folder}/{files[0]}".lstrip("/"))
                if _is_there(root, place, "coco"):
                    return place
    return None


def recognize(root: Path, *splits: str) -> list[str]:
    """Return the formats in which a folder holds annotations, boxes first; empty for a folder without any, or a file.

    A folder of class folders is none. A YAML file of YOLO that leads to nothing counts as yolo.

    Args:
        root: the folder.
        splits: names of the splits, the one that trains first; none is train, val, test.
    """
    found = []
    for name in FORMATS:
        try:
            if any(
                locate(root, name, split, only_split=number == 0)
                for number, split in enumerate(splits or ("train", "val", "test"))
            ):
                found.append(name)
        except UserError:
            found.append(name)
    return found


def explain_missing(root: Path, annotation_format: str, split: str, trains: bool) -> str:
    """Return why a set in this format is not found in a folder and what to do, or "" if nothing is known.

    Args:
        root: the folder.
        annotation_format: a key of FORMATS.
        split: name of the split that is not found.
        trains: it is the split that trains.
    """
    if not trains:
        return (
            f"{root}: no {split} split of the format {annotation_format}; bring it, name it by data.val_split or "
            "data.test_split, or set data.hold_out: 0.1 to keep a tenth of the training images for validation"
        )
    others = recognize(root, split)
    if others:
        return f"{root}: its annotations are of the format {others[0]}, not {annotation_format}; set data.format"
    return explain_unread(root, split, (annotation_format,))


def explain_unread(root: Path, split: str, formats: Sequence[str] = tuple(FORMATS)) -> str:
    """Return why no annotations are read from a folder and what to do, or "" if it holds none.

    They are there without their images, are of a tool's own format, or stand in the only folder of the folder.

    Args:
        root: the folder, in which `recognize` found none.
        split: name of the split that trains.
        formats: keys of FORMATS.
    """
    for name in formats:
        for usual in FORMATS[name].locations:
            place = usual.of_split(split)
            if not (root / place.images).is_dir() and _has_annotations(root, place, name):
                return (
                    f"{root / place.annotations}: is there, but the folder of its images, {root / place.images}, is "
                    "not; bring the images, or set data.images and data.annotations"
                )
    if export := describe_export(root):
        return export
    inner = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith((".", "__MACOSX"))]
    if len(inner) == 1 and recognize(inner[0], split):
        return f"{root}: the set is in its folder {inner[0].name}; set data.root: {inner[0]}"
    return ""


def _is_there(root: Path, place: Location, annotation_format: str) -> bool:
    """True if a location has images, its list if it names one, and annotations of the format."""
    images = root / place.images
    return images.is_dir() and _has_annotations(root, place, annotation_format) and bool(next(_image_files(images), ""))


def _has_annotations(root: Path, place: Location, annotation_format: str) -> bool:
    """True if a location has the file of annotations, or a folder with one for an image; its list must be there."""
    if place.split_list and not (root / place.split_list).is_file():
        return False
    suffixes, annotations = FORMATS[annotation_format].suffixes, root / place.annotations
    if suffixes == (".json",):
        # a file with a general name in the root may be anything
        return annotations.is_file() and ("/" in place.annotations or _names_coco(annotations, 2))
    beside = place.images == place.annotations
    if beside and FORMATS[annotation_format].semantic:
        suffixes = ("_mask.png",)
    for name in islice(_files(annotations, suffixes, below=not beside), _TRIED):
        stem = name[: -len(next(suffix for suffix in suffixes if name.endswith(suffix)))]
        if not beside or any((root / place.images / f"{stem}.{ending}").is_file() for ending in image_extensions()):
            return True
    return False


def _names_coco(file: Path, keys: int) -> bool:
    """True if so many of COCO's three lists are named in a file; it may be cut short."""
    try:
        content = file.read_bytes()
    except OSError:
        return False
    return sum(key in content for key in (b'"images"', b'"annotations"', b'"categories"')) >= keys


def _image_files(folder: Path) -> Iterator[str]:
    return _files(folder, tuple(f".{ending}" for ending in image_extensions()))


def _files(folder: Path, suffixes: tuple[str, ...], below: bool = True) -> Iterator[str]:
    """Yield the names of files with a suffix among the first files of a folder, relative to it.

    Args:
        folder: may be missing.
        suffixes: in lower case.
        below: look into the folders in it, too.
    """
    seen = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(folders) if below else []
        for name in sorted(names):
            seen += 1
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield os.path.relpath(os.path.join(parent, name), folder)
        if seen > _LOOKED_AT:
            return
