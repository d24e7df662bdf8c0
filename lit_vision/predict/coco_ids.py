"""Ids of images and categories in the COCO files that predict writes: those of the user's own truth where it is known.

pycocotools matches predictions to a truth file by these ids alone, so ids that merely count the images would measure
one image's detections on another.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError
from lit_vision.io.text import join_names
from lit_vision.weights.model_metadata import ModelMetadata

Id = int | float | str
_NUMBER = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{1,15})\Z", re.ASCII)  # 000000000139, COCO_val2014_000000000042


@dataclass(frozen=True)
class CocoIds:
    """Ids of a list of images and of a model's classes.

    Attributes:
        images: of the N images of the list, in order.
        categories: of the K classes, in order.
        note: where the ids are from, one line.
        usual: images count from 1, and categories are those of the training data.
    """

    images: Sequence[Id]
    categories: Sequence[Id]
    note: str
    usual: bool = False

    def digest(self) -> str:
        """Return the sha256 (hex) of all ids; a stopped run is continued only with the same ones."""
        return hashlib.sha256(json.dumps([list(self.images), list(self.categories)]).encode()).hexdigest()


def usual_category_ids(metadata: ModelMetadata) -> list[int]:
    """Return the category ids of the data that a model was trained on, 1 to K if they are not known.

    A segmenter's are the class numbers, 0 to K - 1, as in its masks.
    """
    if metadata.task == "segmentation":
        return list(range(len(metadata.class_names)))
    return metadata.category_ids or list(range(1, len(metadata.class_names) + 1))


def coco_ids(names: Sequence[str], metadata: ModelMetadata, truth: str | None = None) -> CocoIds:
    """Return the ids for COCO files of some images.

    With a truth file, images are matched by their names and classes by theirs. Without one, image ids are the numbers
    in the file names if each name is another number, as COCO's own are; names that only count (0, 1, 2, ...) and other
    names get 1 to N in the order of the list.

    Args:
        names: of the images, from `find_images`.
        metadata: of the model.
        truth: a COCO JSON file with `images` and `categories`, or None.

    Raises:
        UserError: the file is missing or not COCO JSON, an image of the list is not in it or has several entries, or it
            has none of the model's classes.
    """
    if truth is not None:
        return _from_truth(Path(truth), names, metadata)
    categories = usual_category_ids(metadata)
    numbers = [_NUMBER.match(Path(name).stem) for name in names]
    found = [int(match[1]) for match in numbers if match]
    if len(set(found)) == len(names) and sorted(found) != list(range(len(names))):
        note = "image ids: the numbers in the file names; --truth FILE takes those of a COCO file"
        return CocoIds(found, categories, note)
    note = f"image ids: 1 to {len(names)} in the order of the list; --truth FILE takes those of a COCO file"
    return CocoIds(range(1, len(names) + 1), categories, note, usual=True)


def _from_truth(path: Path, names: Sequence[str], metadata: ModelMetadata) -> CocoIds:
    content = _read(path)
    images = [(_plain(entry["file_name"]), entry["id"]) for entry in content["images"]]
    ids, by_folder = _match_images(path, [_plain(name) for name in names], images)
    of_name = {str(entry["name"]): entry["id"] for entry in content["categories"]}
    classes = metadata.class_names
    unknown = [name for name in classes if name not in of_name]
    if len(unknown) == len(classes):
        raise UserError(
            f"--truth {path}: has the categories {join_names(of_name)}, the model has {join_names(classes)}, and none "
            "is in both; give the truth of this model's classes"
        )
    first_free = 1 + max([i for i in of_name.values() if isinstance(i, int)], default=0)
    new = {name: first_free + i for i, name in enumerate(unknown)}
    categories = [of_name[name] if name in of_name else new[name] for name in classes]
    note = [f"image ids and category ids: those of {path}"]
    if by_folder:
        note.append(f"{by_folder} images matched by name without folder")
    if len(images) > len(names):
        note.append(f"{len(images) - len(names)} of its {len(images)} images are not in the list")
    if absent := [name for name in of_name if name not in classes]:
        note.append(f"the model has no {join_names(absent)}")
    if unknown:
        note.append(f"it has no {join_names(unknown)}, which get new ids")
    return CocoIds(ids, categories, "; ".join(note))


def _match_images(path: Path, names: list[str], images: list[tuple[str, Id]]) -> tuple[list[Id], int]:
    """Return the id of each name, and how many were found in another folder than the truth names.

    An entry is that of an image if one of their paths ends in the other; else if no other entry and no other image has
    this file name.
    """
    entries: dict[str, list[tuple[str, Id]]] = {}
    for file_name, image_id in images:
        entries.setdefault(_base(file_name), []).append((file_name, image_id))
    count: dict[str, int] = {}
    for name in names:
        count[_base(name)] = count.get(_base(name), 0) + 1
    ids, missing, by_folder = [], [], 0
    for name in names:
        here = entries.get(_base(name), [])
        found = [e for e in here if e[0] == name] or [e for e in here if _ends_in(e[0], name) or _ends_in(name, e[0])]
        if not found and len(here) == count[_base(name)] == 1:
            found, by_folder = here, by_folder + 1
        if len(found) > 1:
            raise UserError(
                f"--truth {path}: {found[0][0]} and {found[1][0]} could both be {name}; run the command in or on the "
                "folder that the file's names start from"
            )
        if found:
            ids.append(found[0][1])
        else:
            missing.append(name)
    if missing:
        raise UserError(
            f"--truth {path}: has no image {join_names(missing)} of the list; give the truth of these images, or only "
            "the images that it has"
        )
    if len(set(ids)) != len(ids):
        twice = next(name for name, image_id in zip(names, ids) if ids.count(image_id) > 1)
        raise UserError(f"--truth {path}: two images of the list have the id of {twice}; name each image once")
    return ids, by_folder


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a COCO file, whose images and categories have the fields that are read here."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"--truth {path}: {error.strerror}; name a COCO JSON file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--truth {path}: cannot be read as JSON ({error}); take another copy") from None
    for key, field in (("images", "file_name"), ("categories", "name")):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"--truth {path}: has no list '{key}'; give a COCO file with images and categories")
        for i, entry in enumerate(entries):
            good = isinstance(entry, dict) and isinstance(entry.get(field), str)
            if not good or isinstance(entry.get("id"), bool) or not isinstance(entry.get("id"), Id):
                raise UserError(f"--truth {path}: {key}[{i}] has no id or no {field}; correct the file")
        if len({entry["id"] for entry in entries}) != len(entries):
            raise UserError(f"--truth {path}: two of its {key} have the same id; make the ids unique")
    return content


def _plain(name: str) -> str:
    """Return a path with forward slashes and without "./" and "..", as names are compared."""
    return os.path.normpath(name.replace("\\", "/")).lstrip("/")


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _ends_in(long: str, short: str) -> bool:
    return long.endswith("/" + short)
