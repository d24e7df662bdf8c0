"""Folders of images as people bring them: each a name and the files that it is made of."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class FolderShape:
    """Layout of a folder.

    Attributes:
        name: as the table shows it.
        files: {path: format of the picture in it as Pillow names it, or the file's bytes}.
        finish: further changes, called with the folder.
    """

    name: str
    files: Mapping[str, str | bytes]
    finish: Callable[[Path], object] = field(default=lambda root: None)

    def write(self, root: Path) -> Path:
        """Write the folder and return its path, which is that of a pack if the shape is one."""
        for number, (path, content) in enumerate(self.files.items()):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content if isinstance(content, bytes) else _picture(number, content))
        root.mkdir(exist_ok=True)
        made = self.finish(root)
        return made if isinstance(made, Path) else root


def _picture(seed: int, kind: str) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def images(*folders: str, count: int = 4, ending: str = "png", kind: str = "PNG") -> dict[str, str | bytes]:
    """Return `count` pictures in each folder."""
    return {f"{folder}/{i}.{ending}": kind for folder in folders for i in range(count)}


def split(*folders: str, inside: str = "", count: int = 4) -> dict[str, str | bytes]:
    """Return a folder of each class in each folder."""
    return images(*(f"{inside}{folder}/{name}" for folder in folders for name in CLASSES), count=count)


def _shards(root: Path) -> Path:
    from lit_vision.data.folder import scan
    from lit_vision.data.shard_writer import write_shards

    write_shards(scan(root), root.with_name("shards"), 1)
    return root.with_name("shards")


def _with_backslashes(root: Path) -> None:
    for path in sorted(root.rglob("*.png")):
        path.rename(root / str(path.relative_to(root)).replace("/", "\\"))
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()


SPLITS = split("train", "val", "test")
FOLDER_SHAPES = (
    FolderShape("train, val, test by class", SPLITS),
    FolderShape("Train, Test", split("Train", "Test")),
    FolderShape("TRAIN, VAL, TEST", split("TRAIN", "VAL", "TEST")),
    FolderShape("train, valid, test", split("train", "valid", "test")),
    FolderShape("training, validation, testing", split("training", "validation", "testing")),
    FolderShape("train, dev, eval", split("train", "dev", "eval")),
    FolderShape("train_images, test_images", split("train_images", "test_images")),
    FolderShape("seg_train/seg_train, seg_test/seg_test", split("seg_train/seg_train", "seg_test/seg_test")),
    FolderShape(
        "a zip's folder around the splits, __MACOSX",
        {**split("train", "val", inside="archive/"), **images("__MACOSX/archive/train", ending="jpg", kind="JPEG")},
    ),
    FolderShape("cat, dog", split(".")),
    FolderShape("a zip's folder around cat, dog", split("archive")),
    FolderShape("cat/train, cat/test", images("cat/train", "cat/test", "dog/train", "dog/test")),
    FolderShape("images without folders", images(".", count=8)),
    FolderShape("train without classes, val by class", {**images("train"), **split("val")}),
    FolderShape("train, val by class, test without classes", {**split("train", "val"), **images("test")}),
    FolderShape("cat, dog, Unlabelled", {**split("."), **images("Unlabelled")}),
    FolderShape("train/cat, train/dog, train/unlabeled", {**split("train", "val"), **images("train/unlabeled")}),
    FolderShape("test alone", split("test")),
    FolderShape("val alone", split("val")),
    FolderShape("cat, dog, test", {**split("."), **images("test")}),
    FolderShape("train, val, test, extra", {**SPLITS, **split("extra")}),
    FolderShape("train, val, test, images beside them", {**SPLITS, **images(".", count=2)}),
    FolderShape("names with backslashes", SPLITS, _with_backslashes),
    FolderShape(
        "thumbnails and system files",
        {
            **split("train", "val"),
            **{f"train/cat/@eaDir/{i}.png/SYNOPHOTO_THUMB_M.jpg": "JPEG" for i in range(3)},
            **{f"{folder}/x.jpg": "JPEG" for folder in ("$RECYCLE.BIN", ".thumbnails", "train/dog/#recycle")},
            **{"train/cat/Thumbs.db": b"x", "train/cat/._0.png": b"x", "val/dog/.DS_Store": b"x"},
        },
    ),
    FolderShape(
        ".jfif, .mpo, .jp2, .webp",
        {
            **split("val"),
            **images("train/cat", ending="jfif", kind="JPEG"),
            **images("train/dog", ending="jp2", kind="JPEG2000"),
            **{"train/cat/4.mpo": "MPO", "train/dog/4.WEBP": "WEBP"},
        },
    ),
    FolderShape(
        "nine in ten are .dng",
        {**split("train", "val", count=1), **{f"train/{c}/{i}.dng": b"II*\0" for c in CLASSES for i in range(1, 10)}},
    ),
    FolderShape(
        "a class of .psd only",
        {**split("train", "val"), **{f"train/bird/{i}.psd": b"8BPS" for i in range(4)}},
    ),
    FolderShape("files without an ending", {f"train/{c}/{i}": "PNG" for c in CLASSES for i in range(4)}),
    FolderShape("images, masks", images("images", "masks")),
    FolderShape("a class of val that train lacks", {**split("train", "val"), **images("val/bird")}),
    FolderShape("images beside class folders", {**split("train", "val"), "train/x.png": "PNG"}),
    FolderShape("an empty first file", {**split("train", "val"), "train/cat/0.png": b""}),
    FolderShape("an empty file in val", {**split("train", "val"), "val/cat/0.png": b""}),
    FolderShape("a link back to a folder above", SPLITS, lambda root: os.symlink(root, root / "train/cat/again")),
    FolderShape("an empty folder", {}),
    FolderShape("shards", SPLITS, _shards),
)
