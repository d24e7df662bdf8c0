"""Unpack a MedMNIST file (npz) to a folder per split and class: `lit-vision data medmnist`.

The user downloads the file from https://medmnist.com. Source: Yang et al. 2023, doi:10.1038/s41597-022-01721-8.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from lit_vision.errors import UserError
from lit_vision.io.completion_marker import is_complete, mark_complete, mark_started, report_write_errors

SPLITS = ("train", "val", "test")
MARK = ".unpacked"  # file in a complete folder: name and size of the npz file, and the names of the classes


def unpack_medmnist(file: Path, out: Path, class_names: list[str] | None = None) -> dict[str, int]:
    """Write the images of a MedMNIST file with one label per image as OUT/<split>/<class>/<index>.png.

    Args:
        file: npz with {train,val,test}_images (N, H, W) or (N, H, W, 3) uint8 and {train,val,test}_labels (N, 1) or
            (N,).
        out: folder that is missing, empty, complete (then nothing happens), or incomplete after an interrupted call.
        class_names: K names, class 0 first; None gives class-0, class-1, ...

    Returns:
        Images per split.

    Raises:
        UserError: the file is missing, not of this kind or has several labels per image, or the folder holds other
            files or cannot be written.
    """
    arrays = _read_arrays(file)
    classes = 1 + max(int(labels.max()) for _, labels in arrays.values())
    names = class_names or [f"class-{i}" for i in range(classes)]
    if len(names) != classes or len(set(names)) != classes:
        raise UserError(
            f"--class_names: {names} for {classes} classes of {file}; give one name for each, class 0 first"
        )
    counts = {split: len(labels) for split, (_, labels) in arrays.items()}
    note = f"{file.name} {file.stat().st_size} {' '.join(names)}\n"
    with report_write_errors(out):
        if is_complete(out, MARK, note, read=str):
            return counts
        mark_started(out, MARK, note)
        _write(arrays, out, names)
        mark_complete(out, MARK, note)
    return counts


def _write(arrays: dict[str, tuple[np.ndarray, np.ndarray]], out: Path, names: list[str]) -> None:
    from PIL import Image

    for split, (images, labels) in arrays.items():
        for name in names:
            (out / split / name).mkdir(parents=True, exist_ok=True)
        for index, (image, label) in enumerate(zip(images, labels.tolist())):
            Image.fromarray(image).save(out / split / names[label] / f"{index:06d}.png")


def _read_arrays(file: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {key: content[key] for key in content.files if key.endswith(("_images", "_labels"))}
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; download it from https://medmnist.com") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(f"{file}: is not a complete npz file of arrays ({error}); download it again") from None
    splits = {}
    for split in SPLITS:
        images, labels = arrays.get(f"{split}_images"), arrays.get(f"{split}_labels")
        if images is None or labels is None:
            raise UserError(
                f"{file}: lacks {split}_images or {split}_labels, so it is not a MedMNIST file; name another"
            )
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3):
            raise UserError(
                f"{file}: {split}_images are {images.dtype} {images.shape}; only 2-D images in uint8 are read"
            )
        labels = labels.reshape(len(labels), -1)
        if labels.shape[1] != 1 or len(labels) != len(images) or not len(labels) or labels.min() < 0:
            raise UserError(
                f"{file}: {split}_labels are {labels.shape} for {len(images)} images; one class per image is needed"
            )
        splits[split] = images, labels[:, 0].astype(np.int64)
    return splits
