"""PairsDataModule: keyed batches of images with captions, resumable at any step."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_vision.data.batch import Batch
from lit_vision.data.captions import CaptionTokenizer, EncodedCaptions, read_tokenizer, train_tokenizer
from lit_vision.data.datamodule import ImageFolderDataModule
from lit_vision.data.datasets import ImageFileDataset, InMemoryDataset
from lit_vision.data.folder import Folder
from lit_vision.data.loader import make_loader
from lit_vision.data.pairs.caption_files import CaptionOptions, Captions, open_pairs
from lit_vision.data.views.keyed_rng import Key, derive_seed
from lit_vision.errors import UsageError

CAPTION_STREAM = 2  # of the seed: which of an image's captions; 1 is that of local views


class PairsDataModule(ImageFolderDataModule):
    """Batches of images and their captions: `images`, `tokens`, `token_mask` and `key`; `label` is -1 (see batch.py).

    Of several captions an image training takes one, drawn by (seed, key); the evaluation loaders take the first, and
    `captions` has all. The tokenizer is trained on the captions of the training split, unless one is given. Order of
    samples, resuming and loaders are those of ImageFolderDataModule.

    Known after `setup()`: `tokenizer`, `fingerprint`, `num_train`, `batches_per_epoch`, `global_batch_size`.

    Args:
        root: the folder of the images, or shards (then with `captions`).
        captions: table of captions, CSV or JSON lines, with paths below the root (see caption_files.py). None finds
            captions.csv, captions.jsonl or metadata.jsonl in the root, else takes NAME.txt beside NAME.jpg, a caption
            a line.
        path_column, caption_column, split_column: its columns, if they have unusual names.
        group_by: what must not stand on both sides of a split: a column of the table, or the level of a folder in the
            images' paths (-1: the folder that holds the image). The captions of one image never do.
        val_fraction, test_fraction: share of the training images that becomes a split that is not there, drawn by
            split_seed; whole groups with group_by.
        split_seed: of that choice, in [0, 2**64).
        tokenizer: a tokenizer.json, or the folder of a text model that has one; None trains one.
        vocab_size: most tokens of the trained one.
        context_length: tokens of a caption; longer ones are cut.
        img_size: of the views, pixels: side of a square, or [height, width].
        batch_size: pairs per device and batch.
        train_view, eval_view: as in ImageFolderDataModule.
        crop_scale, crop_aspect, flip, brightness, contrast, saturation, hue, grayscale, rand_augment, random_erasing:
            options of the training view. Unlike in ImageFolderDataModule, `train` crops 0.9 to 1 of the area, as
            open_clip does, and does not flip, since captions say left and right.
        crop_pct: option of the evaluation view.
        train_split, val_split, test_split: names of the splits' folders.
        copies, seed, num_workers, in_memory, on_bad_image, range, channels, quarantine, hash_content: as in
            ImageFolderDataModule. An image that stands in for a broken one brings its own caption.

    Raises:
        UsageError: an argument is out of its range.
        UserError: the view does not have an option.
    """

    def __init__(
        self,
        root: str,
        *,
        captions: str | None = None,
        path_column: str | None = None,
        caption_column: str | None = None,
        split_column: str | None = None,
        group_by: int | str | None = None,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        tokenizer: str | None = None,
        vocab_size: int = 4096,
        context_length: int = 64,
        img_size: int | list[int] = 224,
        batch_size: int = 64,
        train_view: str = "train",
        eval_view: str = "eval",
        crop_scale: list[float] | None = None,
        crop_aspect: list[float] | None = None,
        flip: float | None = None,
        brightness: float | None = None,
        contrast: float | None = None,
        saturation: float | None = None,
        hue: float | None = None,
        grayscale: float | None = None,
        rand_augment: str | None = None,
        random_erasing: float | None = None,
        crop_pct: float | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        copies: int = 1,
        seed: int = 0,
        num_workers: int | str = "auto",
        in_memory: bool | str = "auto",
        on_bad_image: str = "auto",
        range: list[float] | None = None,
        channels: int = 3,
        quarantine: str | None = None,
        hash_content: bool = False,
    ):
        if train_view == "train":
            crop_scale = [0.9, 1.0] if crop_scale is None else crop_scale
            flip = 0.0 if flip is None else flip
        super().__init__(
            root,
            img_size=img_size,
            batch_size=batch_size,
            train_view=train_view,
            eval_view=eval_view,
            crop_scale=crop_scale,
            crop_aspect=crop_aspect,
            flip=flip,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            grayscale=grayscale,
            rand_augment=rand_augment,
            random_erasing=random_erasing,
            crop_pct=crop_pct,
            train_split=train_split,
            val_split=val_split,
            test_split=test_split,
            use_unlabeled=True,
            copies=copies,
            seed=seed,
            num_workers=num_workers,
            in_memory=in_memory,
            on_bad_image=on_bad_image,
            range=range,
            channels=channels,
            quarantine=quarantine,
            hash_content=hash_content,
        )
        if split_seed < 0:
            raise UsageError(f"data.split_seed: {split_seed}; give 0 or more")
        for role, fraction in (("val", val_fraction), ("test", test_fraction)):
            if not 0 <= fraction < 1:
                raise UsageError(f"data.{role}_fraction: {fraction}; give 0 or a share below 1")
        if isinstance(group_by, str) and group_by.lstrip("-").isdigit():
            group_by = int(group_by)
        self.caption_options = CaptionOptions(
            captions and os.path.expanduser(captions),
            path_column,
            caption_column,
            split_column,
            group_by,
            {"val": val_fraction, "test": test_fraction},
            split_seed,
        )
        self.vocab_size, self.context_length = vocab_size, context_length
        self._tokenizer_file = tokenizer
        self._tokenizer: CaptionTokenizer | None = None
        self._captions: Captions = {}
        self._encoded: dict[str, EncodedCaptions] = {}

    # ------------------------------------------------------------------ captions

    def _open(self) -> Folder:
        """Return the images that have captions, without labels."""
        folder, self._captions = open_pairs(self.root, self.split_names, self.caption_options)
        return folder

    def _lines(self, folder: Folder) -> list[str]:
        """Return the lines to print about the data."""
        parts = [
            f"{name} {len(split)} images with {sum(len(self._captions[path]) for path in split.paths)} captions"
            for name, split in folder.splits.items()
        ]
        left_out = folder.inventory.phrases()
        return [f"{self.root}: {', '.join(parts)}", *([f"left out: {'; '.join(left_out)}"] if left_out else [])]

    def paths(self, role: str) -> Sequence[str]:
        """Return the paths of the images of "train", "val" or "test", in the order of their indices.

        Raises:
            UserError: there is no such split.
        """
        folder = self._scanned_folder()
        if role not in self._paths:
            folder.require_split(self.split_names[role], "this evaluation")
        return self._paths[role]

    def captions(self, role: str) -> list[list[str]]:
        """Return all captions of each image of "train", "val" or "test", in the order of their indices (`key[:, 1]`).

        Raises:
            UserError: there is no such split.
        """
        return [self._captions[path] for path in self.paths(role)]

    @property
    def tokenizer(self) -> CaptionTokenizer:
        """The tokenizer that `use_tokenizer` set, the file's, or one trained on the training captions.

        Raises:
            UserError: the file cannot be read, `tokenizers` is not installed, or there are no training captions.
        """
        if self._tokenizer is None:
            if self._tokenizer_file is not None:
                self._tokenizer = read_tokenizer(self._tokenizer_file, self.context_length)
            else:
                texts = (text for captions in self.captions("train") for text in captions)
                self._tokenizer = train_tokenizer(texts, self.vocab_size, self.context_length)
        return self._tokenizer

    def use_tokenizer(self, tokenizer: CaptionTokenizer) -> None:
        """Encode captions with a model's tokenizer, in all loaders made from now on."""
        self._tokenizer = tokenizer
        self._encoded.clear()

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 (hex) of the images (see `Folder.fingerprint`) and of all captions."""
        digest = hashlib.sha256(self._scanned_folder().fingerprint(self.hash_content).encode())
        for path in sorted(path for split in self._scanned_folder().splits.values() for path in split.paths):
            digest.update("\0".join([path, *self._captions[path], ""]).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    # ------------------------------------------------------------------ loaders

    def _eval_dataloader(self, role: str) -> DataLoader | list[Any]:
        self._scanned_folder()
        return self._each_image_once(role, len(self._paths[role])) if role in self._paths else []

    def eval_loader(self, split: str, limit: int | None = None, unlabeled: bool = True) -> DataLoader:
        """Return the loader of a split under the evaluation view, in order, each image once, in this process alone.

        Args:
            split: "train", "val" or "test".
            limit: at most so many images, evenly spaced over the split.
            unlabeled: ignored, no image has a label.
        """
        return super().eval_loader(split, limit, unlabeled=True)

    def _numbered_labels(self, role: str) -> np.ndarray:
        """Return the index of each image in place of its label: a batch then says whose captions it needs."""
        return np.arange(len(self._paths[role]))

    def example_batch(self, num_labels: int = 1) -> Batch:
        """Return a training batch of one black image with the longest caption; no data are read."""
        batch, length = super().example_batch(), (1, self.context_length)
        batch["label"] = torch.full((1,), -1)
        return {**batch, "tokens": torch.zeros(length, dtype=torch.int64), "token_mask": torch.ones(length).bool()}

    def _dataset(self, role: str, train: bool) -> Dataset:
        images = super()._dataset(role, train)
        assert isinstance(images, (ImageFileDataset, InMemoryDataset))
        if role not in self._encoded:
            self._encoded[role] = EncodedCaptions(self.captions(role), self.tokenizer)
        return CaptionedImages(images, self._encoded[role], derive_seed(self.seed, CAPTION_STREAM) if train else None)

    def _loader(self, dataset: Dataset, batches: Iterable[list[Key]], persistent: bool) -> DataLoader:
        in_memory = isinstance(dataset, CaptionedImages) and isinstance(dataset.images, InMemoryDataset)
        if in_memory and self.num_workers == "auto":
            return make_loader(dataset, batches, 0, persistent)
        return super()._loader(dataset, batches, persistent)


class CaptionedImages(Dataset):
    """Data set of images with one caption each.

    Args:
        images: its labels are the images' indices.
        captions: of all images.
        seed: of the choice of captions; None takes the first.
    """

    def __init__(self, images: ImageFileDataset | InMemoryDataset, captions: EncodedCaptions, seed: int | None):
        self.images, self.captions, self.seed = images, captions, seed
        self.reads_ahead = getattr(images, "reads_ahead", False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Return the batch of some keys."""
        batch = self.images.__getitems__(keys)
        used = batch["label"].tolist()  # another image than the key's where one is broken
        numbers = [0 if self.seed is None else self._choose(image, key) for image, key in zip(used, keys)]
        tokens, mask = self.captions.batch(used, numbers)
        return {**batch, "label": torch.full_like(batch["label"], -1), "tokens": tokens, "token_mask": mask}

    def _choose(self, image: int, key: Key) -> int:
        assert self.seed is not None
        count = self.captions.count(image)
        return derive_seed(self.seed, *key) % count if count > 1 else 0

    def __getitem__(self, key: Key) -> Batch:
        """Return the batch of one key."""
        return self.__getitems__([key])
