"""ImageFolderDataModule: a folder of images as loaders of keyed batches, resumable at any step."""

from __future__ import annotations

import hashlib
import logging
from functools import cached_property
from pathlib import Path

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lit_vision.data.datasets import ImageFileDataset, ImageReader, InMemoryDataset, load_into_memory, make_loader
from lit_vision.data.folder import Folder, Paths
from lit_vision.data.loader_state import loader_state, restore_loader_state
from lit_vision.data.open_images import open_images
from lit_vision.data.sampler import EvalBatches, TrainBatches
from lit_vision.data.splits import read_list, read_or_sample
from lit_vision.data.views.batch_views import make_batch_views
from lit_vision.data.views.params import VIEW_OPTIONS
from lit_vision.data.views.views import make_views
from lit_vision.errors import UserError

log = logging.getLogger(__name__)

BAD_LIST = "bad_images.csv"  # in the run's folder
_SELF_SUPERVISED = ("simclr", "mae")


class ImageFolderDataModule(LightningDataModule):
    """Batches (see batch.py) from a folder of images: labelled, unlabelled or mixed (shapes: folder.py). Works without a Trainer too.

    Known after `setup()`: `class_names`, `num_classes`, `fingerprint`, `num_train`, `batches_per_epoch`, `global_batch_size`.

    Args:
        root: the folder, or a file made of one by `lit-vision pack` (*.pack).
        img_size: side of the views, pixels.
        batch_size: samples per device and batch.
        train_view: `simclr`, `mae`, `train`, `eval` or `albumentations:<name>`; eval_view likewise.
        crop_scale, crop_aspect, flip, rotation, scale, strength, brightness, contrast, saturation, hue, grayscale, blur, exact,
            quick, rand_augment, random_erasing: options of the training view (`params.ViewSpec`); None is the view's default, and one that the view lacks is refused.
        crop_pct: of the evaluation view.
        train_split, val_split, test_split: names of the folders.
        labels: keep the labels of a stratified part only: a fraction if it is a float up to 1, a count if an int.
        shots: the same by images per class.
        label_seed: which subset; subsets of one seed are nested.
        split_file: the subset's list of paths: read if the file exists (then `labels` and `shots` must be unset or agree with its
            length), else written.
        use_unlabeled: train on images without a label too, those of `unlabeled/` and those whose label `labels` or `shots` hides;
            "auto": yes for `simclr` and `mae`.
        copies: repeated augmentation, see `TrainBatches`.
        seed: of order and views, in [0, 2**64).
        num_workers: per process and loader; "auto": 0 for images in memory, else the cores of this process, 8 at most.
        in_memory: keep the images as uint8 and augment by the batch; "auto": if they are equally large and small.
        on_bad_image: "error" or "skip" (another image instead, always the same one); "auto": skip in training, error in evaluation.
            Skipped ones are counted per epoch and listed in the run's folder as bad_images.csv; more than 1 % stop the run.
        quarantine: a list of paths to leave out everywhere, as `lit-vision doctor` writes it.
        hash_content: the fingerprint covers the files' bytes too.
    """

    _last: TrainBatches | None = None  # the order that training follows
    resume_anyway = moved = False  # see loader_state.py

    def __init__(
        self,
        root: str,
        *,
        img_size: int = 224,
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
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
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
        quarantine: str | None = None,
        hash_content: bool = False,
    ):
        super().__init__()
        given = dict(locals())
        self.root, self.img_size, self.batch_size, self.copies, self.seed = root, img_size, batch_size, copies, seed
        self.train_view, self.eval_view = train_view, eval_view
        self.train_options = {k: given[k] for k in VIEW_OPTIONS if k != "crop_pct" and given[k] is not None}
        self.eval_options = {"crop_pct": crop_pct} if crop_pct is not None else {}
        self.names = {"train": train_split, "val": val_split, "test": test_split}
        self.labels, self.shots, self.label_seed, self.split_file = labels, shots, label_seed, split_file
        for key, value in (("use_unlabeled", use_unlabeled), ("in_memory", in_memory)):
            if not isinstance(value, bool) and value != "auto":
                raise UserError(f"data.{key}: {value!r}; give auto, true or false")
        if on_bad_image not in ("auto", "error", "skip"):
            raise UserError(f"data.on_bad_image: {on_bad_image!r}; give auto, error or skip")
        if num_workers != "auto" and not (isinstance(num_workers, int) and num_workers >= 0):
            raise UserError(f"data.num_workers: {num_workers!r}; give auto or a whole number from 0")
        if batch_size < 1 or copies < 1 or img_size < 1:
            raise UserError("data.batch_size, data.copies, data.img_size: give at least 1")
        if min(seed, label_seed) < 0:
            raise UserError("data.seed, data.label_seed: give 0 or more")
        self.use_unlabeled = train_view in _SELF_SUPERVISED if use_unlabeled == "auto" else use_unlabeled
        self.num_workers, self.in_memory, self.on_bad_image, self.hash_content = (
            num_workers,
            in_memory,
            on_bad_image,
            hash_content,
        )
        self.quarantine = quarantine
        self.folder: Folder | None = None
        self.cursor = (0, 0)  # epoch, samples of it that all ranks have had
        # refuse wrong options now, before any scan
        make_views(train_view, img_size, seed, **self.train_options)
        make_views(eval_view, img_size, seed, **self.eval_options)

    # ------------------------------------------------------------------ what is there

    def setup(self, stage: str | None = None) -> None:
        """Scan the folder and choose the labelled subset, once.

        Raises:
            UserError: the folder is missing, empty or of no known shape; too few classes, labels or images for what is asked.
        """
        if self.folder is not None:
            return
        folder = open_images(self.root, *self.names.values())
        if self.quarantine:
            listed = read_list(self.quarantine)
            if not folder.without(listed) and listed:
                raise UserError(
                    f"data.quarantine: {self.quarantine}: none of its {len(listed)} paths is in {self.root}; it belongs to other data"
                )
        if not self.use_unlabeled:
            folder.need(self.names["train"], f"train_view={self.train_view} on labels")
            folder.need_classes("training on labels")
        self.class_names, self.num_classes = folder.classes, len(folder.classes)
        self._sets: dict[str, tuple] = {}
        self._paths, self._labels = {}, {}
        for role, name in self.names.items():
            if name in folder.splits:
                self._paths[role], self._labels[role] = folder.splits[name].paths, folder.splits[name].labels
        self._choose_labels(folder)
        self.folder = folder

    def _choose_labels(self, folder: Folder) -> None:
        """Hide the labels outside the subset; add or drop the images without one."""
        paths = list(self._paths.get("train", ()))
        labels = self._labels.get("train", np.zeros(0, np.int64)).copy()
        first = self.trainer is None or self.trainer.is_global_zero
        chosen = read_or_sample(
            paths, labels, self.labels, self.shots, self.label_seed, folder.classes, self.split_file, may_write=first
        )
        if chosen is not None:
            labels[np.setdiff1d(np.arange(len(labels)), chosen)] = -1
        if self.use_unlabeled:
            paths = [*paths, *folder.unlabeled.paths]
            labels = np.concatenate([labels, folder.unlabeled.labels])
        elif (labels < 0).any():
            kept = np.flatnonzero(labels >= 0)
            paths, labels = [paths[i] for i in kept], labels[kept]
        self._paths["train"], self._labels["train"] = Paths(paths), labels

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the folder, see `Folder.fingerprint`; the same for every subset of labels."""
        self.setup()
        return self.folder.fingerprint(self.hash_content)

    @property
    def num_train(self) -> int:
        """Images that training draws from."""
        self.setup()
        return len(self._labels["train"])

    @property
    def world(self) -> tuple[int, int, int]:
        """(rank, processes, batches per step); (0, 1, 1) without a Trainer."""
        t = self.trainer
        return (0, 1, 1) if t is None else (t.global_rank, t.world_size, t.accumulate_grad_batches)

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer step: batch_size x processes x accumulation."""
        _, processes, accumulate = self.world
        return self.batch_size * processes * accumulate

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch on each rank; a whole number of optimizer steps."""
        return len(self._order())

    def _order(self) -> TrainBatches:
        rank, processes, accumulate = self.world
        order = TrainBatches(self.num_train, self.batch_size, rank, processes, accumulate, self.seed, self.copies)
        if not len(order):
            raise UserError(
                f"{self.root}: {self.num_train} training images do not fill one step of {self.global_batch_size} "
                "(batch_size x devices x accumulation); lower data.batch_size"
            )
        return order

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> DataLoader:
        """The epoch's batches for this rank, from where a restored state says."""
        order = self._order()
        order.on_epoch, self._last = self._count_broken, order
        order.epoch, samples = self.cursor
        order.start = samples // (self.batch_size * self.world[1])
        return self._loader(self._dataset("train", train=True), order, persistent=True)

    def val_dataloader(self) -> DataLoader | list:
        """The validation split, each image once. None there: no batches for self-supervised views, an error for others."""
        return self._measured("val")

    def test_dataloader(self) -> DataLoader | list:
        """The test split, each image once."""
        self.setup()
        self.folder.need(self.names["test"], "testing")
        return self._measured("test")

    def _measured(self, role: str) -> DataLoader | list:
        self.setup()
        if role not in self._paths:
            if self.train_view in _SELF_SUPERVISED:
                return []
            self.folder.need(self.names[role], "validation")
        return self._each_once(role, len(self._paths[role]))

    def _each_once(self, role: str, n: int) -> DataLoader:
        """The n images of a split under the evaluation view, each once over all processes."""
        rank, processes, _ = self.world
        if n < processes:
            raise UserError(f"{self.root}: {self.names[role]} has {n} image(s) for {processes} processes; use fewer")
        return self._loader(
            self._dataset(role, train=False), EvalBatches(n, self.batch_size, rank, processes), persistent=True
        )

    def eval_loader(self, split: str, limit: int | None = None, unlabeled: bool = False) -> DataLoader:
        """A split under the evaluation view, in order, each image once, in this process alone: for features and k-NN.

        Args:
            split: "train", "val" or "test"; "train" means the chosen subset.
            limit: at most so many images, evenly spaced over the split (so over its classes).
            unlabeled: include images without a label.

        Raises:
            UserError: there is no such split, or no labelled image in it.
        """
        self.setup()
        if split not in self.names:
            raise UserError(f"split {split!r}: choose from {', '.join(self.names)}")
        if split not in self._paths:
            self.folder.need(self.names[split], "this evaluation")
        wanted = np.arange(len(self._labels[split]))
        if not unlabeled:
            wanted = wanted[self._labels[split] >= 0]
        if not len(wanted):
            raise UserError(f"{self.root}: no labelled image in {self.names[split]}, which this evaluation needs")
        if limit is not None and limit < len(wanted):
            wanted = wanted[np.linspace(0, len(wanted) - 1, limit).round().astype(int)]
        batches = [
            [(0, i, 0) for i in part.tolist()]
            for part in np.split(wanted, range(self.batch_size, len(wanted), self.batch_size))
        ]
        return self._loader(self._dataset(split, train=False), batches, persistent=False)

    def _dataset(self, role: str, train: bool) -> Dataset:
        on_bad = self.on_bad_image if self.on_bad_image != "auto" else ("skip" if train else "error")
        view, options = (self.train_view, self.train_options) if train else (self.eval_view, self.eval_options)
        key, twin = (role, on_bad), (role, "error" if on_bad == "skip" else "skip")
        if key not in self._sets:
            listing = getattr(self.trainer, "default_root_dir", None) if train else None
            listing = Path(listing) / BAD_LIST if listing else None
            files = ImageReader(self.folder, self._paths[role], on_bad, self.seed, listing, self.world[1])
            loaded = None
            if (
                twin in self._sets and not self._sets[twin][0].broken.any()
            ):  # without a broken image both rules load the same
                loaded = self._sets[twin][1]
            if loaded is None and self.in_memory:
                loaded = load_into_memory(files, must=self.in_memory is True, size=self.img_size)
            self._sets[key] = files, loaded
        files, loaded = self._sets[key]
        if loaded is None:
            return ImageFileDataset(files, self._labels[role], make_views(view, self.img_size, self.seed, **options))
        pixels, source = loaded
        return InMemoryDataset(
            pixels, self._labels[role][source], make_batch_views(view, self.img_size, self.seed, **options)
        )

    def teardown(self, stage: str | None = None) -> None:
        """The last epoch's broken images are counted."""
        if self._last is not None:
            self._count_broken(self._last.epoch)
            self._last = None

    def _count_broken(self, epoch: int) -> None:
        """Say how many broken images an epoch had, now that it is over."""
        for (role, _), (files, _) in getattr(self, "_sets", {}).items():  # AnnotatedDataModule keeps none
            count = files.count(epoch) if role == "train" else 0
            if count:
                log.warning("epoch %d: %d broken image(s) replaced, listed in %s", epoch, count, files.listing)

    def _loader(self, dataset: Dataset, batches, persistent: bool) -> DataLoader:
        local = 1 if self.trainer is None else max(1, self.trainer.num_devices)
        return make_loader(dataset, batches, self.num_workers, persistent, local)

    # ------------------------------------------------------------------ resuming

    def _identity(self) -> str:
        """sha256 of what training draws from: the folder and the labelled subset."""
        return hashlib.sha256(
            self.fingerprint.encode() + self._labels["train"].tobytes() + str(self.num_train).encode()
        ).hexdigest()

    def state_dict(self) -> dict:
        """Where training stands in the order of samples; Lightning stores it under this class's name."""
        return loader_state(self, self._identity())

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a stored place; UserError if seed, data or global batch are others (see `restore_loader_state`)."""
        restore_loader_state(self, state_dict, self._identity())
