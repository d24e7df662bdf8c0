"""Layout of a folder of images: which of its folders are splits, and layouts that would be misread.

People name splits in many ways (Train, valid, testing, train_images); a folder of such a name that was taken for a
class would give a classifier of "Train" against "Test", and a score. So every name that `role_of` knows is a split, or
the folder is refused by that name; it is never a class beside others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from lit_vision.errors import UserError
from lit_vision.io.text import join_names

ROLES = ("train", "val", "test")
UNLABELED = "unlabeled"
_WORDS = {
    "train": {"train", "training", "trn", "trainval"},
    "val": {"val", "valid", "validation", "validate", "validating", "dev", "eval", "evaluation"},
    "test": {"test", "testing", "tst"},
}
_FILLERS = {"set", "data", "dataset", "image", "images", "img", "imgs", "pictures", "photos", "split", "seg", "folder"}
_PARTS = {"fold", "kfold", "cv", "part", "batch", "split", "chunk", "shard", "subset", "set", "images", "image", "img"}
_IMAGES = {"image", "images", "img", "imgs", "jpegimages", "photos", "pictures"}
_MASKS = {
    "mask",
    "masks",
    "segmentation",
    "segmentations",
    "segmentationclass",
    "segmentationobject",
    "semantic",
    "trimaps",
}
_ANNOTATIONS = {*_MASKS, "label", "labels", "annotation", "annotations", "groundtruth", "ground_truth", "gt"}


@cache
def role_of(name: str) -> str:
    """Return the role ("train", "val", "test") that the name of a folder shows, "" if it shows none.

    Case, digits and words such as "set" or "images" do not count: Train, valid, test1, train_images, TestSet.
    """
    words = re.findall(r"[a-z]+", name.lower())
    for filler in sorted(_FILLERS, key=len, reverse=True):  # TestImages is one word
        words = [word.removesuffix(filler) for word in words]
    words = [word for word in words if word]
    return next((role for role, known in _WORDS.items() if len(words) == 1 and words[0] in known), "")


def _role_and_rest(name: str) -> tuple[str, str]:
    """Return the role that one word of a longer name shows, and the rest: asl_train, trainA, val_another."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    for i, word in enumerate(words):
        if role := next((role for role, known in _WORDS.items() if word in known), ""):
            return role, " ".join(words[:i] + words[i + 1 :])
    return "", ""


def _check_no_parts(root: Path, classes: Sequence[str]) -> None:
    """Raise if class folders differ only in the name of a split (trainA, testA) or in a number (fold1, fold2)."""
    by_rest: dict[str, dict[str, str]] = {}
    for name in classes:
        role, rest = _role_and_rest(name)
        if role:
            by_rest.setdefault(rest, {}).setdefault(role, name)
    splits = next((by_role for by_role in by_rest.values() if len(by_role) > 1), None)
    if splits:
        named = ", ".join(f"data.{role}_split: {splits[role]}" for role in ROLES if role in splits)
        raise UserError(
            f"{root}: {' and '.join(splits.values())} have the names of splits, not of classes; name them ({named}) or "
            f"rename them to {', '.join(role for role in ROLES if role in splits)}; put classes into {root / 'train'}"
        )
    rests = {" ".join(re.findall(r"[^\W\d_]+", name.lower())) for name in classes}
    if len(classes) > 1 and len(rests) == 1 and {*rests.pop().split()} & _PARTS:
        raise UserError(
            f"{root}: {', '.join(classes[:3])} are numbered parts of one set, not classes; join them into a folder per "
            f"class, or move them into {root / UNLABELED} to pre-train; if they are classes, move them into "
            f"{root / 'train'}"
        )


def is_unlabeled(name: str) -> bool:
    """True for the folder of unlabeled images, in either spelling and any case."""
    return name.lower() in (UNLABELED, "unlabelled")


def is_image_folder(name: str) -> bool:
    """True for a name such as images or JPEGImages, which sets with boxes or masks give to the folder of images."""
    return name.lower() in _IMAGES


def find_splits(root: Path, folders: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return {name of a split: its folder} for the splits that a folder has.

    A folder of the split's very name comes first. Without one, and if the name is the default, it is the only folder
    whose name shows that role.

    Args:
        root: for messages.
        folders: names of the folders in it.
        names: of the training, validation and test splits.

    Raises:
        UserError: several folders may be the same split.
    """
    found = {name: name for name in dict.fromkeys(names) if name in folders}
    for name, role in zip(names, ROLES):
        if name in found or name != role:
            continue
        candidates = [folder for folder in sorted(folders) if role_of(folder) == role and folder not in found.values()]
        same = [folder for folder in candidates if folder.lower() == name]
        candidates = same if len(same) == 1 else candidates
        if len(candidates) > 1:
            raise UserError(
                f"{root}: {' and '.join(candidates)} may each be the {role} split; "
                f"set data.{role}_split to one of them, or rename the other"
            )
        if candidates:
            found[name] = candidates[0]
    return {name: found[name] for name in names if name in found}


def check_beside_splits(root: Path, splits: Mapping[str, str], train: str, beside: Sequence[str]) -> None:
    """Raise if a folder with the name of a split may be a class like the folders with images that stand beside it.

    Args:
        root: for messages.
        splits: from `find_splits`.
        train: name of the training split.
        beside: other folders that hold images.

    Raises:
        UserError: there are such folders, and either no training split or only one that an unusual name shows.
    """
    if not splits or not beside or (train in splits and (splits[train] == train or len(splits) > 1)):
        return
    named = next(iter(splits.values()))
    raise UserError(
        f"{root}: {named} is the name of a split, but {join_names(beside, 2)} stand(s) beside it; move the class "
        f"folders into {root / train} ({named} too, if it is a class), or name the training folder by data.train_split"
    )


def check_class_folders(root: Path, by_class: Mapping[str, Sequence[tuple[str, int]]], prefix: str) -> None:
    """Raise if folders that would become classes are something else.

    Args:
        root: for messages.
        by_class: {class: [(path, bytes)]} of one split.
        prefix: of the split's paths, such as "train/".

    Raises:
        UserError: splits inside the class folders, parts of a set as classes, images beside their masks, unlabeled
            images as a class, or file names with backslashes.
    """
    classes = sorted(name for name, files in by_class.items() if name and files)
    if not prefix:
        _check_no_parts(root, classes)
    for name in classes:
        if name != UNLABELED and not prefix:
            inner = sorted(_subfolders(path for path, _ in by_class[name]))
            if len({role_of(folder) for folder in inner} - {""}) > 1:
                raise UserError(
                    f"{root / name}: holds the splits {', '.join(f for f in inner if role_of(f))}; put the splits "
                    f"first ({root}/train/{name}/...), or give {root / name} if it is a set of its own"
                )
    kinds = {name.lower() for name in classes}
    if kinds & _IMAGES and kinds & _ANNOTATIONS and kinds <= _IMAGES | _ANNOTATIONS:
        images = next(name for name in classes if name.lower() in _IMAGES)
        raise UserError(
            f"{root / prefix}: {' and '.join(sorted(classes))} are images and their annotations, not classes; use "
            f"lit_vision.data.AnnotatedDataModule, or give {root / prefix / images} for the images alone"
        )
    if prefix and (unlabeled := next(filter(is_unlabeled, classes), None)):
        raise UserError(f"{root / prefix / unlabeled}: unlabeled images are no class; move the folder to {root}")
    check_names(root, (path for files in by_class.values() for path, _ in files))


def check_names(root: Path, paths: Iterable[str]) -> None:
    """Raise a UserError if a path holds a backslash: the names of folders are in the names of the files."""
    path = min((path for path in paths if "\\" in path), default="")
    if path:
        raise UserError(
            f"{root}: the name {path} holds backslashes, as a zip file from Windows gives it; unpack it again with a "
            "program that makes folders of them (7z x, bsdtar -xf), or rename the files"
        )


def _subfolders(paths: Iterable[str]) -> set[str]:
    """Return the names of the folders directly in a class folder, of paths that begin with the class."""
    return {path.split("/", 2)[1] for path in paths if path.count("/") > 1}
