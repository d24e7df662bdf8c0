"""ImageFolderDataModule: loaders of keyed batches from a folder of images, resumable at any step."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from lit_vision.data.batch import Batch
from lit_vision.data.class_names import match_class_names
from lit_vision.data.datasets import ImageFileDataset, ImageReader, InMemoryDataset, load_into_memory
from lit_vision.data.fitness import require_training_images
from lit_vision.data.folder import Folder, Paths
from lit_vision.data.keyed_datamodule import KeyedDataModule
from lit_vision.data.labeled_folder import label_options, open_labeled
from lit_vision.data.order import WINDOW_BLOCKS, check_order
from lit_vision.data.sampler import keys_in_batches
from lit_vision.data.shards.cache import cache_bytes
from lit_vision.data.splits import evenly_spaced, has_label, read_list, read_or_sample
from lit_vision.data.value_range import MeasuredRange, measure_folder_range
from lit_vision.data.views.batch_views import make_batch_views
from lit_vision.data.views.degraded import DegradedViews
from lit_vision.data.views.image_size import height_and_width, plain_size
from lit_vision.data.views.keyed_rng import derive_seed
from lit_vision.data.views.pixel_values import FULL_16_BIT, PixelFormat, check_range
from lit_vision.data.views.views import ImageViewsFunction, make_views
from lit_vision.errors import UsageError, UserError

BAD_IMAGES_FILE = "bad_images.csv"  # in the run's folder
# of the seed: local views are drawn apart from the global ones, degradations of evaluation apart from training's
LOCAL_STREAM, EVALUATION_STREAM = 1, 2
_SELF_SUPERVISED = ("simclr", "mae", "lejepa", "crop")  # views that need no label


class ImageFolderDataModule(KeyedDataModule):
    """Batches (see batch.py) from a folder of labeled or unlabeled images, or both (layouts: folder.py).

    Works with and without a Trainer. Known after `setup()`: `class_names`, `num_classes`, `fingerprint`, `num_train`,
    `batches_per_epoch`, `global_batch_size`.

    Args:
        root: the folder, or one of shards (tar files), as `lit-vision pack` writes it; also s3://, gs:// or https://.
        img_size: of the views, pixels: side of a square, or [height, width].
        batch_size: samples per device and batch.
        train_view: `simclr`, `mae`, `lejepa`, `train`, `crop`, `eval` or `albumentations:<name>`.
        eval_view: as train_view.
        crop_scale, crop_aspect, flip, rotation, scale, strength, brightness, contrast, saturation, hue, grayscale,
            blur, exact, quick, rand_augment, random_erasing: options of the training view (`params.ViewSpec`). None is
            the view's default; an option that the view does not have is refused.
        crop_pct: option of the evaluation view.
        local_views: further, smaller views of each training image (`local_images` of the batch), for train_view lejepa.
        local_size: their side, pixels.
        local_scale: their crop area; None is 0.05 to 0.3.
        degraded: what makes worse versions of all views (`degraded` of the batch) for restoration, in this order:
            "downsample F" by 2, 3 or 4, "jpeg Q" of a quality from 1 to 100, or "jpeg LOW HIGH"
            (data/views/degraded.py).
        train_split, val_split, test_split: names of the splits' folders.
        label_file: CSV or JSON lines file with the images' labels, instead of folders' names (see label_table.py).
        path_column, label_column, split_column: its columns, if they have unusual names.
        label_columns: columns with 0 and 1, one a label, for several labels an image; instead of label_column.
        label_separator: between several labels in one cell of the label column.
        group_by: what must not stand on both sides of a split: a column of label_file, or the level of a folder in the
            images' paths (-1: the folder that holds the image).
        val_fraction, test_fraction: share of the training images that becomes a split that is not there, drawn by
            label_seed; whole groups with group_by.
        labels: keep the labels of a stratified subset only: a fraction if it is a float up to 1, a count if an int.
        shots: keep the labels of so many images per class only.
        label_seed: seed of that subset; the subsets of one seed are nested.
        split_file: file with the subset's paths: read if it exists (then `labels` and `shots` must be unset or agree
            with its length), else written.
        use_unlabeled: train on unlabeled images too, those of `unlabeled/` and those whose label `labels` or `shots`
            hides; "auto": true for `simclr`, `mae`, `lejepa` and `crop`, else false.
        copies: repeated augmentation, see `TrainBatches`.
        seed: of the order and the views, in [0, 2**64).
        num_workers: worker processes per training process and loader; "auto": 0 for images in memory, else the cores
            of this process, 16 at most.
        in_memory: hold the images as uint8 and augment by the batch; "auto": if they are small and of one size.
        on_bad_image: "error" or "skip" (use another image instead, always the same one); "auto": skip in training,
            error in evaluation. Skipped images are counted per epoch and listed in bad_images.csv in the run's folder;
            more than 1 % of them stop the run.
        range: values of images deeper than 8 bits (16-bit, float, ...) that become 0 and 255; None measures them once,
            in a sample (value_range.py). 8-bit images are taken as they are.
        channels: 3, or 1 for gray images and a model with `in_chans: 1`; color images are then converted.
        quarantine: file with paths to leave out of every split, as `lit-vision doctor` writes it.
        hash_content: let the fingerprint cover the files' bytes too.
        cache_gb: limit of the local cache of images at s3://, gs:// or https://, 10^9 bytes; 0 stores none; None: 10.
        order: of the training images in an epoch: "full" permutes all, "windowed" windows of them, see data/order.py;
            "auto": windowed above 10 million images.
        window_blocks: blocks of 1,024 images that are permuted together in the windowed order.

    Raises:
        UsageError: an argument is out of its range.
        UserError: the view does not have an option.
    """

    def __init__(
        self,
        root: str,
        *,
        img_size: int | list[int] = 224,
        batch_size: int = 64,
        train_view: str = "train",
        eval_view: str = "eval",
        crop_scale: list[float] | None = None,
        crop_aspect: list[float] | None = None,
        flip: float | None = None,
        rotation: float | None = None,
        scale: list[float] | None = None,
        strength: float | None = None,
        brightness: float | None = None,
        contrast: float | None = None,
        saturation: float | None = None,
        hue: float | None = None,
        grayscale: float | None = None,
        blur: float | None = None,
        exact: bool | None = None,
        quick: bool | None = None,
        rand_augment: str | None = None,
        random_erasing: float | None = None,
        crop_pct: float | None = None,
        local_views: int = 0,
        local_size: int = 96,
        local_scale: list[float] | None = None,
        degraded: list[str] | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        label_file: str | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        label_columns: list[str] | None = None,
        label_separator: str | None = None,
        split_column: str | None = None,
        group_by: int | str | None = None,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        labels: int | float | None = None,
        shots: int | None = None,
        label_seed: int = 0,
        split_file: str | None = None,
        use_unlabeled: bool | str = "auto",
        copies: int = 1,
        seed: int = 0,
        num_workers: int | str = "auto",
        in_memory: bool | str = "auto",
        on_bad_image: str = "auto",
        range: list[float] | None = None,
        channels: int = 3,
        quarantine: str | None = None,
        hash_content: bool = False,
        cache_gb: float | None = None,
        order: str = "auto",
        window_blocks: int = WINDOW_BLOCKS,
    ):
        super().__init__(batch_size, copies, seed, num_workers)
        train_options = {
            "crop_scale": crop_scale,
            "crop_aspect": crop_aspect,
            "flip": flip,
            "rotation": rotation,
            "scale": scale,
            "strength": strength,
            "brightness": brightness,
            "contrast": contrast,
            "saturation": saturation,
            "hue": hue,
            "grayscale": grayscale,
            "blur": blur,
            "exact": exact,
            "quick": quick,
            "rand_augment": rand_augment,
            "random_erasing": random_erasing,
        }
        self.root = os.path.expanduser(root)
        height_and_width(img_size, "data.img_size")
        self.img_size = plain_size(img_size)
        self.train_view, self.eval_view = train_view, eval_view
        self.train_options: dict[str, Any] = {key: value for key, value in train_options.items() if value is not None}
        self.local_views, self.local_size = local_views, local_size
        self.local_options: dict[str, Any] = {
            **self.train_options,
            "crop_scale": [0.05, 0.3] if local_scale is None else local_scale,
            "num_views": local_views,
        }
        if local_views < 0 or (local_views and train_view != "lejepa"):
            raise UsageError(f"data.local_views: {local_views}; give 0 or more, with train_view lejepa only")
        self.degraded = list(degraded or [])
        self.factor = DegradedViews(self.degraded, seed).factor_of(img_size)
        self.eval_options: dict[str, Any] = {"crop_pct": crop_pct} if crop_pct is not None else {}
        self.split_names = {"train": train_split, "val": val_split, "test": test_split}
        self.label_options = label_options(
            label_file,
            path_column=path_column,
            label_column=label_column,
            label_columns=label_columns,
            label_separator=label_separator,
            split_column=split_column,
            group_by=group_by,
            fractions={"val": val_fraction, "test": test_fraction},
            seed=label_seed,
        )
        self.labels, self.shots, self.label_seed, self.split_file = labels, shots, label_seed, split_file
        for key, value in (("use_unlabeled", use_unlabeled), ("in_memory", in_memory)):
            if not isinstance(value, bool) and value != "auto":
                raise UsageError(f"data.{key}: {value!r}; give auto, true or false")
        if on_bad_image not in ("auto", "error", "skip"):
            raise UsageError(f"data.on_bad_image: {on_bad_image!r}; give auto, error or skip")
        if channels not in (1, 3):
            raise UsageError(f"data.channels: {channels!r}; give 3, or 1 for gray (images in a folder have no others)")
        if num_workers != "auto" and not (isinstance(num_workers, int) and num_workers >= 0):
            raise UsageError(f"data.num_workers: {num_workers!r}; give auto or an integer of at least 0")
        for key, number in (("batch_size", batch_size), ("copies", copies)):
            if number < 1:
                raise UsageError(f"data.{key}: {number}; give at least 1")
        for key, number in (("seed", seed), ("label_seed", label_seed)):
            if number < 0:
                raise UsageError(f"data.{key}: {number}; give 0 or more")
        self.use_unlabeled = train_view in _SELF_SUPERVISED if use_unlabeled == "auto" else use_unlabeled
        self.in_memory, self.on_bad_image = in_memory, on_bad_image
        self.hash_content, self.quarantine, self.cache_gb = hash_content, quarantine, cache_gb
        cache_bytes(cache_gb)  # refuse a wrong limit now
        self.order, self.window_blocks = check_order(order, window_blocks), window_blocks
        self.channels, self.declared_range = channels, check_range(range)
        self.folder: Folder | None = None
        self._class_numbers: np.ndarray | None = None  # of `number_classes_as`
        # refuse wrong options now, before the folder is scanned
        make_views(train_view, img_size, seed, **self.train_options)
        make_views(eval_view, img_size, seed, **self.eval_options)
        if local_views:
            make_views(train_view, local_size, seed, **self.local_options)

    # ------------------------------------------------------------------ content of the folder

    def setup(self, stage: str | None = None) -> None:
        """Scan the folder and choose the labeled subset, once; check that it is fit for the stage.

        Args:
            stage: of Lightning. "validate", "test" and "predict" need no training split: a folder of test images alone
                can be measured.

        Raises:
            UserError: the folder is missing, empty or of no supported layout; it has too few classes, labels or images
                for the arguments.
        """
        folder = self._scanned_folder()
        if stage in (None, "fit"):
            purpose = f"train_view={self.train_view}"
            require_training_images(folder, self.split_names["train"], not self.use_unlabeled, purpose)

    def _scanned_folder(self) -> Folder:
        if self.folder is not None:
            return self.folder
        folder = self._open()
        if self.quarantine:
            listed = read_list(self.quarantine)
            if not folder.exclude(listed) and listed:
                raise UserError(
                    f"data.quarantine: {self.quarantine}: none of its {len(listed)} paths is in {self.root}; "
                    "it belongs to other data"
                )
        self.class_names, self.num_classes = folder.classes, len(folder.classes)
        self._paths: dict[str, Paths] = {}
        self._labels: dict[str, np.ndarray] = {}
        for role, name in self.split_names.items():
            if name in folder.splits:
                self._paths[role], self._labels[role] = folder.splits[name].paths, folder.splits[name].labels
        self._choose_labels(folder)
        self.folder = folder
        if self.trainer is not None and self.trainer.is_global_zero:
            print(*self._lines(folder), sep="\n", flush=True)
        return folder

    def _lines(self, folder: Folder) -> list[str]:
        """Return the lines to print about the data."""
        return folder.lines()

    def _open(self) -> Folder:
        """Return the splits, classes and labels of the data."""
        return open_labeled(self.root, self.split_names, self.label_options, self.cache_gb)

    def _choose_labels(self, folder: Folder) -> None:
        """Hide the labels outside the labeled subset; then add the unlabeled images or drop them."""
        paths = list(self._paths.get("train", ()))
        labels = self._labels.get("train", np.zeros(0, np.int64)).copy()
        first = self.trainer is None or self.trainer.is_global_zero
        chosen = None
        if has_label(labels).any() or (
            self.use_unlabeled and len(labels)
        ):  # else `setup` raises, or it is an evaluation
            chosen = read_or_sample(
                paths, labels, self.labels, self.shots, self.label_seed, folder.classes, self.split_file, first
            )
        if chosen is not None:
            labels[np.setdiff1d(np.arange(len(labels)), chosen)] = -1 if labels.ndim == 1 else np.nan
        if self.use_unlabeled and len(folder.unlabeled):
            paths = [*paths, *folder.unlabeled.paths]
            labels = np.concatenate([labels, folder.unlabeled.labels])
        elif not self.use_unlabeled and not has_label(labels).all():
            labeled = np.flatnonzero(has_label(labels))
            paths, labels = [paths[i] for i in labeled], labels[labeled]
        self._paths["train"], self._labels["train"] = Paths(paths), labels

    def number_classes_as(self, names: Sequence[str], by_number: bool = False) -> str:
        """Give each class the number that it has in a model, for all loaders made from now on.

        `class_names` and `num_classes` become the model's. The fingerprint and the position in the training data do not
        change.

        Args:
            names: of the model's classes, in order.
            by_number: see `match_class_names`.

        Returns:
            A line about the differences, "" if there are none.

        Raises:
            UserError: as `match_class_names`.
        """
        own = self._scanned_folder().classes
        self._class_numbers, note = match_class_names(names, own, f"data.root {self.root}", by_number)
        self.class_names, self.num_classes = list(names), len(names)
        return note

    def _numbered_labels(self, role: str) -> np.ndarray:
        """Return the labels of a split, (N,) int64, -1 without one, or (N, K) float32, numbered as `class_names`."""
        labels = self._labels[role]
        if self._class_numbers is None or not len(self._class_numbers):
            return labels
        if labels.ndim == 2:
            numbered = np.full((len(labels), self.num_classes), np.nan, np.float32)
            numbered[:, self._class_numbers] = labels
            return numbered
        return np.where(labels < 0, -1, self._class_numbers[labels])

    def _measure_range(self) -> MeasuredRange:
        return measure_folder_range(self._scanned_folder(), self.split_names["train"])

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 (hex) of the folder, see `Folder.fingerprint`; the same for every subset of labels."""
        return self._scanned_folder().fingerprint(self.hash_content)

    @property
    def num_train(self) -> int:
        """Images that training draws from."""
        self._scanned_folder()
        return len(self._labels["train"])

    # ------------------------------------------------------------------ loaders

    def val_dataloader(self) -> DataLoader | list[Any]:
        """Return the loader of the validation split, each image once.

        Without such a split it is an empty list for self-supervised views, and a UserError for others.
        """
        return self._eval_dataloader("val")

    def test_dataloader(self) -> DataLoader | list[Any]:
        """Return the loader of the test split, each image once; UserError if there is none."""
        self._scanned_folder().require_split(self.split_names["test"], "testing")
        return self._eval_dataloader("test")

    def _eval_dataloader(self, role: str) -> DataLoader | list[Any]:
        folder = self._scanned_folder()
        if role not in self._paths:
            if self.train_view in _SELF_SUPERVISED:
                return []
            folder.require_split(self.split_names[role], "validation")
        if self.train_view not in _SELF_SUPERVISED:
            folder.require_labels(self.split_names[role], "validation" if role == "val" else "testing")
        return self._each_image_once(role, len(self._paths[role]))

    def eval_loader(self, split: str, limit: int | None = None, unlabeled: bool = False) -> DataLoader:
        """Return the loader of a split under the evaluation view, in order, each image once, in this process alone.

        Features and k-NN are computed from it.

        Args:
            split: "train", "val" or "test"; "train" means the labeled subset.
            limit: at most so many images, evenly spaced over the split (so over its classes).
            unlabeled: include unlabeled images.

        Raises:
            UserError: there is no such split, or no labeled image in it.
        """
        folder = self._scanned_folder()
        if split not in self.split_names:
            raise UserError(f"split {split!r}: choose from {', '.join(self.split_names)}")
        if split not in self._paths:
            folder.require_split(self.split_names[split], "this evaluation")
        rows = np.arange(len(self._labels[split]))
        if not unlabeled:
            rows = rows[has_label(self._labels[split])]
        if not len(rows):
            raise UserError(f"{self.root}: no labeled image in {self.split_names[split]}, which this evaluation needs")
        if limit is not None:
            rows = rows[evenly_spaced(len(rows), limit)]
        return self._loader(self._dataset(split, train=False), keys_in_batches(rows, self.batch_size), persistent=False)

    def example_batch(self, num_labels: int = 1) -> Batch:
        """Return a training batch of one black image, with the fields and shapes of a real one; no data are read.

        Args:
            num_labels: of an image, for data with several labels an image.
        """
        several = bool(self.label_options.columns.labels or self.label_options.columns.separator)
        labels = np.zeros((1, num_labels), np.float32) if several else np.zeros(1, np.int64)
        with tempfile.TemporaryDirectory() as folder:
            cv2.imwrite(f"{folder}/black.png", np.zeros((*height_and_width(self.img_size), 3), np.uint8))
            files = ImageReader(Path(folder), ["black.png"], "error", self.seed)
            return self._of_files(files, labels, train=True)[0, 0, 0]

    def _dataset(self, role: str, train: bool) -> Dataset:
        on_bad = self.on_bad_image if self.on_bad_image != "auto" else ("skip" if train else "error")
        view, options = (self.train_view, self.train_options) if train else (self.eval_view, self.eval_options)
        if (role, on_bad) not in self._datasets:
            self._datasets[role, on_bad] = self._read_split(role, on_bad, train)
        files, in_memory = self._datasets[role, on_bad]
        if in_memory is None:
            return self._of_files(files, self._numbered_labels(role), train)
        pixels, source = in_memory
        local_seed = self._local_seed(train)
        more = None if local_seed is None else make_batch_views(view, self.local_size, local_seed, **self.local_options)
        of_batch = make_batch_views(view, self.img_size, self.seed, **options)
        labels = self._numbered_labels(role)[source]
        return InMemoryDataset(pixels, labels, of_batch, more, self.channels, self._degraded_views(train))

    def _of_files(self, files: ImageReader, labels: np.ndarray, train: bool) -> ImageFileDataset:
        """Return the data set of some files under the training or the evaluation view."""
        local_seed, local = self._local_seed(train), None
        if local_seed is not None:
            local = make_views(self.train_view, self.local_size, local_seed, files.pixel_format, **self.local_options)
        views = self._views(train, files.pixel_format)
        return ImageFileDataset(files, labels, views, local, self.channels, self._degraded_views(train))

    def _local_seed(self, train: bool) -> int | None:
        """Return the seed of the local views; None without them."""
        return derive_seed(self.seed, LOCAL_STREAM) if train and self.local_views else None

    def _degraded_views(self, train: bool) -> DegradedViews | None:
        if not self.degraded:
            return None
        return DegradedViews(self.degraded, self.seed if train else derive_seed(self.seed, EVALUATION_STREAM))

    def _views(self, train: bool, pixel_format: PixelFormat) -> ImageViewsFunction:
        """Return the views of what the reader of a split gives: the bytes of an image file."""
        view, options = (self.train_view, self.train_options) if train else (self.eval_view, self.eval_options)
        return make_views(view, self.img_size, self.seed, pixel_format, **options)

    def _reader(self, *arguments: Any) -> ImageReader:
        """Return the reader of a split; arguments as `ImageReader`."""
        return ImageReader(*arguments)

    def _read_split(
        self, role: str, on_bad: str, train: bool
    ) -> tuple[ImageReader, tuple[np.ndarray, np.ndarray] | None]:
        """Return the reader of a split, and its images from `load_into_memory`; None if they stay on disk."""
        run_folder = getattr(self.trainer, "default_root_dir", None) if train else None
        bad_images_file = Path(run_folder) / BAD_IMAGES_FILE if run_folder else None
        files = self._reader(
            self._scanned_folder(),
            self._paths[role],
            on_bad,
            self.seed,
            bad_images_file,
            self.world[1],
            self._pixel_format,
        )
        other_rule = role, "error" if on_bad == "skip" else "skip"
        if other_rule in self._datasets:
            other_files, loaded = self._datasets[other_rule]
            if loaded is not None and not other_files.broken.any():
                return files, loaded  # without a broken image both rules load the same pixels
        if not self.in_memory:
            return files, None
        return files, load_into_memory(files, required=self.in_memory is True, size=self.img_size)

    def _identity(self) -> str:
        """Return the sha256 (hex) of the folder, the labeled subset and the range of values if it is not 16 bits."""
        digest = hashlib.sha256(
            self.fingerprint.encode() + self._labels["train"].tobytes() + str(self.num_train).encode()
        )
        if self.value_range not in (None, FULL_16_BIT):  # as in runs that began before there was a range
            digest.update(str(self.value_range).encode())
        return digest.hexdigest()
