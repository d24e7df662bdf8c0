"""DatasetDataModule: one's own torch Dataset behind keyed batches, views and exact resume."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image

from lit_vision.data.datamodule import ImageFolderDataModule
from lit_vision.data.folder import Folder, Paths, Split
from lit_vision.data.holdout import leave_out_unlabeled
from lit_vision.data.labeled_folder import draw_splits
from lit_vision.errors import UserError

# arguments of ImageFolderDataModule that mean nothing without a folder
_OF_FOLDERS = ("root", "label_file", "group_by", "split_file", "quarantine", "train_split", "val_split", "test_split")


class ImageDataset(Protocol):
    """Map-style data set, as torch.utils.data.Dataset: `dataset[i]` is (image, label), the same at every call.

    The image is a PIL image, an (H, W, 3) or (H, W) uint8 array (RGB), an (H, W) array of uint16, int32 or float32 (see
    `data.range`), or the bytes of an image file; it must not be augmented, which the views do. The label is a class
    number, -1 without one, or an array (K,) of 0, 1 and NaN.
    """

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return image and label."""


class DatasetFolder(Folder):
    """Splits of data sets as a `Folder`, so that all that reads folders reads them; the paths are `<split>/<index>`.

    Args:
        datasets: by split.
        labels: of each split, (N,) int64 or (N, K) float32.
        classes: names of the classes.
    """

    def __init__(
        self, datasets: Mapping[str, ImageDataset], labels: Mapping[str, np.ndarray], classes: Sequence[str]
    ) -> None:
        self.datasets = dict(datasets)
        splits = {
            name: Split(Paths(f"{name}/{i:09d}" for i in range(len(data))), labels[name], np.zeros(len(data), np.int64))
            for name, data in self.datasets.items()
        }
        super().__init__(Path("dataset"), list(classes), splits)

    def read(self, path: str) -> bytes:
        """Return an image as the bytes of a file without loss, or as the data set gave them.

        Raises:
            UserError: the data set gave something else than an image.
        """
        name, _, index = path.partition("/")
        image = self.datasets[name][int(index)][0]
        if isinstance(image, (bytes, bytearray)):
            return bytes(image)
        if isinstance(image, Image.Image):
            deep = image.mode == "F" or image.mode.startswith("I")  # which convert("RGB") would clip at 255
            pixels = np.asarray(image if deep else image.convert("RGB"))
        else:
            pixels = np.asarray(image)
        if pixels.dtype in (np.uint16, np.int32, np.float32) and pixels.ndim == 2 and pixels.size:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "TIFF")
            return file.getvalue()
        if pixels.dtype != np.uint8 or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
            raise UserError(
                f"data: item {int(index)} of the {name} data set is {pixels.dtype} {pixels.shape}; give a PIL image, "
                "(H, W, 3) or (H, W) uint8, (H, W) uint16, int32 or float32, or the bytes of a file"
            )
        encoded = cv2.imencode(".bmp", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1]  # BGR; BMP costs no time
        return bytes(encoded)


class DatasetDataModule(ImageFolderDataModule):
    """Batches from one's own data sets, with the views, sampler, workers and exact resume of `ImageFolderDataModule`.

        from torchvision.datasets import Food101
        data = DatasetDataModule(Food101("data", "train"), test=Food101("data", "test"), img_size=224)

    For Python only: a recipe cannot name an object. Resuming compares names, lengths and labels of the data sets, not
    their pixels.

    Args:
        train: the training data set.
        val: the validation data set, or None.
        test: the test data set, or None.
        class_names: names of the classes; None takes `train.classes`, else the numbers.
        labels: {split: labels}, to save reading every item once; None takes `targets` or `_labels` of a data set if it
            has them, and else reads all items.
        options: further arguments of ImageFolderDataModule, such as img_size, batch_size, train_view, seed,
            val_fraction.

    Raises:
        UserError: an empty data set, or labels that do not fit the classes.
    """

    def __init__(
        self,
        train: ImageDataset,
        val: ImageDataset | None = None,
        test: ImageDataset | None = None,
        *,
        class_names: Sequence[str] | None = None,
        labels: Mapping[str, Sequence[Any]] | None = None,
        **options: Any,
    ) -> None:
        for name in _OF_FOLDERS:
            if name in options:
                raise UserError(f"data.{name}: is for folders; a DatasetDataModule has data sets")
        super().__init__("dataset", **options)
        self.datasets = {n: d for n, d in (("train", train), ("val", val), ("test", test)) if d is not None}
        self._given_names, self._given_labels = class_names, dict(labels or {})

    def _open(self) -> Folder:
        """Return the data sets as a folder."""
        labels = {name: self._labels_of(name, data) for name, data in self.datasets.items()}
        names = self._given_names or getattr(self.datasets["train"], "classes", None)
        two_dimensional = labels["train"].ndim == 2
        count = labels["train"].shape[1] if two_dimensional else 1 + max(int(v.max()) for v in labels.values())
        names = [str(name) for name in names] if names else [str(i) for i in range(count)]
        if count > len(names) or (two_dimensional and count != len(names)):
            raise UserError(f"data: the data sets have {count} classes and {len(names)} names; correct class_names")
        folder = DatasetFolder(self.datasets, labels, names)
        draw_splits(folder, self.split_names, self.label_options)
        leave_out_unlabeled(folder, "train")
        return folder

    def _labels_of(self, name: str, data: ImageDataset) -> np.ndarray:
        """Return the labels of a data set, (N,) int64 or (N, K) float32."""
        if not len(data):
            raise UserError(f"data: the {name} data set is empty")
        found = self._given_labels.get(name)
        if found is None:
            found = getattr(data, "targets", getattr(data, "_labels", None))
        if found is None:
            found = [data[i][1] for i in range(len(data))]
        labels = np.asarray([np.asarray(label) for label in found])
        if len(labels) != len(data) or labels.ndim not in (1, 2) or labels.dtype.kind not in "iufb":
            raise UserError(
                f"data: the {name} data set has {len(data)} images and labels of shape {labels.shape}; give a class "
                "number or (K,) numbers for each"
            )
        return labels.astype(np.int64 if labels.ndim == 1 else np.float32)

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) of the names, lengths and labels of the data sets."""
        folder = self._scanned_folder()
        digest = hashlib.sha256("\0".join(folder.classes).encode())
        for name, split in folder.splits.items():
            digest.update(f"{name}\0{len(split)}\0".encode() + split.labels.tobytes())
        return digest.hexdigest()
