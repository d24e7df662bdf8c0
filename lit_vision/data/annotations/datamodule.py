"""Data module of images with boxes, instance masks or semantic masks: keyed batches, resumable at any step.

A batch has `images`, `label` (all -1) and `key` as in batch.py, and in addition
- for boxes `targets`: a list of B dictionaries of tensors: `boxes` (n, 4) float32 x1, y1, x2, y2 in pixels of the view,
  `labels` (n,) int64, `iscrowd` (n,) bool, `masks` (n, S, S) uint8 if asked for. In evaluation also `scale` (2,):
  pixels of the view per pixel of the file in x and y, `size` (2,): height and width of the file, `original` (n, 4): the
  boxes in the file's pixels, `area` (n,): as annotated;
- for semantic masks `mask` (B, S, S) uint8, 255 where a pixel does not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_vision.data.annotations import usable
from lit_vision.data.annotations.dataset import AnnotatedImages
from lit_vision.data.annotations.formats import FORMATS, Location
from lit_vision.data.annotations.image_names import require_files
from lit_vision.data.annotations.locations import OTHER_NAMES, explain_missing, locate
from lit_vision.data.annotations.masks import IGNORE, MaskValues, mask_values
from lit_vision.data.annotations.table import AnnotationTable
from lit_vision.data.annotations.views import AnnotatedViews, AugmentationOptions
from lit_vision.data.batch import Batch
from lit_vision.data.class_names import match_class_names
from lit_vision.data.datamodule import BAD_IMAGES_FILE, ImageFolderDataModule
from lit_vision.data.datasets import MEMORY_BYTES, ImageReader
from lit_vision.data.folder import Folder
from lit_vision.data.splits import evenly_spaced, read_list
from lit_vision.data.value_range import MeasuredRange, measure_range
from lit_vision.data.views.pixel_values import FULL_16_BIT
from lit_vision.errors import UsageError, UserError

_ROLES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}  # splits that a stage reads


class AnnotatedDataModule(ImageFolderDataModule):
    """Batches for detection and segmentation.

    Order of samples, resuming and loaders are those of ImageFolderDataModule.

    Known after `setup()`: `class_names`, `num_classes`, `category_ids`, `fingerprint`, `num_train`,
    `batches_per_epoch`, `global_batch_size`.

    Args:
        root: folder of the set.
        format: coco, yolo, voc (boxes) or masks (semantic).
        images: folder of the images, below the root; `{split}` stands for the split's name. If images, annotations and
            split_list are None, the places are tried where tools put them, see formats.FORMATS and `locate`.
        annotations: file (coco) or folder of the annotations, likewise.
        split_list: file with an image name per line, likewise (yolo, voc and masks); None takes all images of the
            folder.
        with_masks: instance masks in addition to the boxes (coco).
        class_names: names of the classes; None takes those of the data set.
        first_value: pixel value of class 0 (masks).
        ignore_values: pixel values that are no class (masks); None is 255.
        colors: file with a line `name red green blue` per class, for masks in color or with other values than class
            numbers, such as 0 and 255; CVAT's labelmap.txt is one. From the working folder, else from the root.
        crowd_as_objects: train on objects marked as crowd (coco) or difficult (voc) like on others.
        quarantine: file with paths of images to leave out of every split, as `lit-vision doctor` writes it.
        labels: train on part of the images only: a fraction if it is a float up to 1, a count if an int. Parts of one
            seed are nested.
        label_seed: seed of the part and of the images that are held out.
        hold_out: share of the training split, below 1, that is left out of training and is "val" instead of
            `val_split`: for sets without a validation split, so that no choice is made on test data. 0 holds out none.
        img_size: side of the views, pixels.
        batch_size: samples per device and batch.
        train_view: flip, lsj, fit or a registered one; see lit_vision.data.annotations.views. Evaluation uses fit.
        jitter, flip, brightness, contrast, saturation, hue, min_visibility: see `views.AugmentationOptions`.
        train_split, val_split, test_split: names of the splits, inserted for {split}.
        seed: of order and views, in [0, 2**64).
        num_workers: per process and loader; "auto": the cores of this process, 16 at most.
        in_memory: keep decoded images: "auto" as many as fit in 1 GiB, shared among the workers; true all; false none.
        on_bad_image: as in ImageFolderDataModule.
        on_bad_box: "error", or "fix": cut boxes at the edge, drop those without area (with_masks: without a usable
            mask), take a size of 0 from the image, and log the counts ("mend" is the older name of "fix").
        range: as in ImageFolderDataModule.
        hash_content: the fingerprint covers the images' bytes too.
    """

    def __init__(
        self,
        root: str,
        *,
        format: str = "coco",
        images: str | None = None,
        annotations: str | None = None,
        split_list: str | None = None,
        with_masks: bool = False,
        class_names: list[str] | None = None,
        first_value: int = 0,
        ignore_values: list[int] | None = None,
        labels: int | float | None = None,
        label_seed: int = 0,
        hold_out: float = 0.0,
        img_size: int = 512,
        batch_size: int = 16,
        train_view: str = "flip",
        jitter: list[float] | None = None,
        flip: float = 0.5,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        min_visibility: float = 0.1,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        seed: int = 0,
        num_workers: int | str = "auto",
        in_memory: bool | str = "auto",
        on_bad_image: str = "auto",
        on_bad_box: str = "error",
        range: list[float] | None = None,
        hash_content: bool = False,
        colors: str | None = None,
        crowd_as_objects: bool = False,
        quarantine: str | None = None,
    ):
        if isinstance(img_size, Sequence):
            raise UsageError(f"data.img_size: {img_size}; views with boxes or masks are square: give one number")
        if img_size < 8:
            raise UsageError(f"data.img_size: {img_size}; give 8 or more")
        super().__init__(
            root,
            img_size=img_size,
            batch_size=batch_size,
            train_split=train_split,
            val_split=val_split,
            test_split=test_split,
            seed=seed,
            label_seed=label_seed,
            num_workers=num_workers,
            in_memory=in_memory,
            on_bad_image=on_bad_image,
            range=range,
            hash_content=hash_content,
            quarantine=quarantine,
        )
        if format not in FORMATS:
            raise UsageError(f"data.format: {format!r}; choose from {', '.join(FORMATS)}")
        if with_masks and "with_masks" not in FORMATS[format].options:
            raise UsageError(f"data.with_masks: {format} has no instance masks; use format coco, or set it to false")
        for key, value in (("split_list", split_list), ("colors", colors), ("crowd_as_objects", crowd_as_objects)):
            if value and key not in FORMATS[format].options:
                raise UsageError(f"data.{key}: {format} does not use it; leave it out")
        if on_bad_box not in ("error", "fix", "mend"):
            raise UsageError(f"data.on_bad_box: {on_bad_box!r}; give error or fix")
        if not 0 <= hold_out < 1:
            raise UsageError(f"data.hold_out: {hold_out} is not a share of the training split; give 0 to less than 1")
        self._side = img_size
        self.format, self.with_masks, self.class_names_given = format, with_masks, class_names
        self._explicit = bool(images or annotations or split_list)
        self.images = images or FORMATS[format].images
        self.annotations = annotations or FORMATS[format].annotations
        self.split_list, self.first_value, self.crowd_as_objects = split_list, first_value, crowd_as_objects
        self.colors = colors and (colors if Path(colors).expanduser().is_file() else str(Path(root, colors)))
        self.ignore_values = [IGNORE] if ignore_values is None else list(ignore_values)
        self.labels, self.hold_out, self.on_bad_box, self.train_view = labels, hold_out, on_bad_box, train_view
        low, high = jitter or (0.5, 2.0)
        self.options = AugmentationOptions((low, high), flip, brightness, contrast, saturation, hue, min_visibility)
        self._tables: dict[str, AnnotationTable] = {}
        self._excluded: set[str] = set()
        # by role: where the table is from; what of it trains; the roles whose line was printed
        self._sources: dict[str, str] = {}
        self._descriptions: dict[str, str] = {}
        self._printed: set[str] = set()
        # (role, on_bad_image): files, {train: dataset}
        self._datasets: dict[tuple[str, str], tuple[ImageReader, dict[bool, AnnotatedImages]]] = {}
        AnnotatedViews(train_view, img_size, seed, self.options)  # refuse a wrong name now, before anything is read

    # ------------------------------------------------------------------ annotations

    def setup(self, stage: str | None = None) -> None:
        """Read and check the training split's annotations, once; for a Trainer also those that its stage evaluates.

        With a Trainer, a line per split says what trains, what is crowd and what is dropped or ignored, by class.

        Raises:
            UserError: a file is missing, an annotation cannot be right, nothing of a split can be used, or `labels`
                asks for more than there is.
        """
        if not self._tables:
            self._set_up_training()
        trainer = self.trainer
        if trainer is None:
            return
        roles = next((roles for name, roles in _ROLES.items() if stage == name), ())  # stage may be Lightning's enum
        if stage == "fit" and not trainer.limit_val_batches:
            roles = ("train",)
        for role in roles:
            self.table(role)
            if trainer.is_global_zero and role not in self._printed:
                print(f"{self.root}: {self._descriptions[role]}", flush=True)
                self._printed.add(role)

    def _set_up_training(self) -> None:
        if not Path(self.root).is_dir():
            raise UserError(f"{self.root}: no such folder; check data.root")
        self._excluded = self._quarantined()
        table = self._read("train", self.class_names_given)
        self._own_class_names = self.class_names = table.class_names
        self.num_classes, self.category_ids = len(table.class_names), table.category_ids
        held_out = None
        if self.hold_out:
            table, held_out = self._held_out(table)
            self._check("val", held_out)
        self._check("train", table)
        self._all_labeled = table
        if held_out is not None:
            self._tables["val"] = held_out
        self._tables["train"] = self._labeled_part(table)

    def _quarantined(self) -> set[str]:
        """Return the paths of data.quarantine; UserError if they are of another folder.

        A path may be of an image that does not exist, but the first folder in it must.
        """
        listed = read_list(self.quarantine) if self.quarantine else set()
        if listed and not any(Path(self.root, path.split("/")[0]).exists() for path in listed):
            raise UserError(
                f"data.quarantine: {self.quarantine}: none of its {len(listed)} paths is in {self.root}; "
                "it belongs to other data"
            )
        return listed

    def _location(self, role: str) -> Location:
        """Return where a split's images and annotations are.

        Raises:
            UserError: they are nowhere, or where the training split's are.
        """
        root, name = Path(self.root), self.split_names[role]
        given = Location(self.images, self.annotations, self.split_list)
        places = [given.of_split(other) for other in (name, *OTHER_NAMES.get(name, ()))]
        there = (place for place in places if (root / place.annotations).exists() and (root / place.images).exists())
        place = next(there, places[0])  # val may be called valid
        if not self._explicit:
            found = locate(root, self.format, name, only_split=role == "train")
            if found is None and not (root / place.annotations).exists():
                reason = explain_missing(root, self.format, name, role == "train")
                if reason:
                    raise UserError(reason)
            place = found or place
        if role != "train" and name != self.split_names["train"] and place == self._location("train"):
            raise UserError(
                f"{root}: {name} would be the images that train ({place.images}, {place.annotations}); write {{split}} "
                "in data.images, data.annotations or data.split_list, or set data.hold_out: 0.1"
            )
        return place

    def has_split(self, role: str) -> bool:
        """True if the set has annotations of "train", "val" or "test", apart from those that train."""
        if role == "val" and self.hold_out:
            return True
        try:
            place = self._location(role)
        except UserError:
            return False
        return all(Path(self.root, path).exists() for path in (place.annotations, place.split_list) if path is not None)

    def _read(self, role: str, class_names: list[str] | None) -> AnnotationTable:
        place, chosen = self._location(role), FORMATS[self.format]
        given: dict[str, Any] = {
            "on_bad_box": self.on_bad_box,
            "split_list": place.split_list,
            "with_masks": self.with_masks,
            "colors": self.colors,
            "crowd_as_objects": self.crowd_as_objects,
        }
        options = {option: given[option] for option in chosen.options}
        table = chosen.read(
            Path(self.root), place.annotations, place.images,
            class_names=class_names, excluded=self._excluded, **options,
        )  # fmt: skip
        self._sources[role] = f"{Path(self.root, place.annotations)}"
        return table

    def _check(self, role: str, table: AnnotationTable) -> None:
        """Refuse a split whose files are missing, whose images have other sizes, or of which nothing can be used."""
        name, trains = self.split_names[role], role == "train"
        skip = self.on_bad_image == "skip" or (self.on_bad_image == "auto" and trains)
        require_files(table.root, table.paths, self._sources.get(role, self._sources["train"]), allow_few=skip)
        values = self._mask_values()
        if values is not None:
            counts, masks = usable.count_pixels(table, values)
            usable.require_pixels(table, values, counts, masks, name, trains)
            self._descriptions[role] = usable.describe_pixels(table, counts, masks, name)
        else:
            usable.require_sizes(table)
            usable.require_objects(table, name)
            self._descriptions[role] = usable.describe_objects(table, name)

    def _mask_values(self) -> MaskValues | None:
        """Return the meaning of the masks' pixels, None for formats with boxes."""
        if not FORMATS[self.format].semantic:
            return None
        return mask_values(self.first_value, self.ignore_values, self.colors, self._own_class_names)

    def _held_out(self, table: AnnotationTable) -> tuple[AnnotationTable, AnnotationTable]:
        """Split the training annotations into those that are trained on and those that are held out."""
        count = round(self.hold_out * len(table))
        if not 1 <= count < len(table):
            raise UserError(
                f"data.hold_out: {self.hold_out} of {len(table)} training images is {count}; "
                "at least one must be held out and one left"
            )
        order = np.random.Generator(np.random.Philox(key=self.label_seed, counter=[0, 0, 0, 6])).permutation(len(table))
        return table.subset(np.sort(order[count:])), table.subset(np.sort(order[:count]))

    def _labeled_part(self, table: AnnotationTable) -> AnnotationTable:
        if self.labels is None:
            return table
        count = (
            round(self.labels * len(table)) if isinstance(self.labels, float) and self.labels <= 1 else int(self.labels)
        )
        if not 1 <= count <= len(table):
            raise UserError(
                f"data.labels: {self.labels} of {len(table)} training images; give 1 to {len(table)}, or a fraction"
            )
        order = np.random.Generator(np.random.Philox(key=self.label_seed, counter=[0, 0, 0, 5])).permutation(len(table))
        return table.subset(np.sort(order[:count]))

    def table(self, role: str) -> AnnotationTable:
        """Return the annotations of "train" (the part that is trained on), "val" or "test"."""
        self.setup()
        if role not in self._tables:
            table = self._read(role, self._own_class_names)
            self._check(role, table)
            self._tables[role] = table
        table = self._tables[role]
        return table if self._class_numbers is None else table.renumbered(self._class_numbers, self.class_names)

    def number_classes_as(self, names: Sequence[str], by_number: bool = False) -> str:
        """Give each class the number that it has in a model; see `ImageFolderDataModule.number_classes_as`."""
        self.setup()
        self._class_numbers, note = match_class_names(names, self._own_class_names, f"data.root {self.root}", by_number)
        self.class_names, self.num_classes = list(names), len(names)
        self.category_ids = self.table("train").category_ids
        self._datasets.clear()  # they have the old numbers
        return note

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the files and annotations of the training split without held-out images.

        It does not depend on `labels`.
        """
        self.setup()
        return hashlib.sha256(self._all_labeled.digest(self.hash_content)).hexdigest()

    @property
    def num_train(self) -> int:
        """Images that training draws from."""
        return len(self.table("train"))

    def _measure_range(self) -> MeasuredRange:
        self.setup()
        return measure_range(Folder(Path(self._all_labeled.root), [], {}).read, self._all_labeled.paths)

    def _identity(self) -> str:
        text = f"{self.fingerprint} {self.num_train} {self.label_seed if self.labels is not None else None}"
        if self.value_range not in (None, FULL_16_BIT):
            text += f" {self.value_range}"
        return hashlib.sha256(text.encode()).hexdigest()

    # ------------------------------------------------------------------ loaders

    def example_batch(self, num_labels: int = 1) -> Batch:
        """Return a training batch of one black image with a box in its middle, or a mask of class 0; no data are read.

        Unlike in real batches, all images have one object.
        """
        side, labels = self._side, torch.zeros(1, dtype=torch.int64)
        batch: Batch = {
            "images": torch.zeros(1, 1, side, side, 3, dtype=torch.uint8),
            "label": torch.full((1,), -1),
            "key": torch.zeros(1, 3, dtype=torch.int64),
        }
        if FORMATS[self.format].semantic:
            return {**batch, "mask": torch.zeros(1, side, side, dtype=torch.uint8)}
        box = torch.tensor([[side / 4, side / 4, 3 * side / 4, 3 * side / 4]])
        target = {"boxes": box, "labels": labels, "iscrowd": labels.bool()}
        if self.with_masks:
            target["masks"] = torch.zeros(1, side, side, dtype=torch.uint8)
        return {**batch, "targets": [target]}

    def test_dataloader(self) -> DataLoader:
        """Return the loader of the test split, each image once."""
        return self._eval_dataloader("test")

    def _eval_dataloader(self, role: str) -> DataLoader:
        return self._each_image_once(role, len(self.table(role)))

    def eval_loader(self, split: str, limit: int | None = None, unlabeled: bool = False) -> DataLoader:
        """Return a loader of a split under the evaluation view, in order, each image once, in this process alone.

        Args:
            split: "train" (the part that is trained on), "val" or "test".
            limit: largest number of images, evenly spaced over the split.
            unlabeled: ignored.
        """
        if split not in self.split_names:
            raise UserError(f"split {split!r}: choose from {', '.join(self.split_names)}")
        n = len(self.table(split))
        wanted = evenly_spaced(n, n if limit is None else limit)
        parts = np.split(wanted, range(self.batch_size, len(wanted), self.batch_size))
        batches = [[(0, i, 0) for i in part.tolist()] for part in parts]
        return self._loader(self._dataset(split, train=False), batches, persistent=False)

    def _dataset(self, role: str, train: bool) -> Dataset:
        on_bad = self.on_bad_image if self.on_bad_image != "auto" else ("skip" if train else "error")
        table = self.table(role)
        if (role, on_bad) not in self._datasets:
            run = getattr(self.trainer, "default_root_dir", None) if train else None
            listing = Path(run) / BAD_IMAGES_FILE if run else None
            files = ImageReader(table.root, table.paths, on_bad, self.seed, listing, self.world[1], self._pixel_format)
            self._datasets[role, on_bad] = files, {}
        files, datasets = self._datasets[role, on_bad]
        if train not in datasets:
            datasets[train] = AnnotatedImages(
                table,
                files,
                AnnotatedViews(self.train_view if train else "fit", self._side, self.seed, self.options, IGNORE),
                self.with_masks,
                self._mask_values(),
                evaluate=not train,
                memory=self._memory(),
            )
        return datasets[train]

    def _memory(self) -> int:
        """Return the bytes of decoded images that each process of a loader may keep."""
        if self.in_memory != "auto":
            return 1 << 62 if self.in_memory else 0
        workers = self.num_workers if isinstance(self.num_workers, int) else 8
        return MEMORY_BYTES // max(1, workers)
