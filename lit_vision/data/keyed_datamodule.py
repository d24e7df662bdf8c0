"""KeyedDataModule: order of samples, loaders and resumable position, shared by the data modules."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lit_vision.data.datasets import ImageReader
from lit_vision.data.loader import make_loader
from lit_vision.data.loader_state import loader_state, restore_loader_state
from lit_vision.data.order import FULL_UP_TO, WINDOW_BLOCKS, FullOrder, WindowedOrder, describe_order, order_line
from lit_vision.data.sampler import EvalBatches, TrainBatches
from lit_vision.data.value_range import MeasuredRange, require_range
from lit_vision.data.views.keyed_rng import Key
from lit_vision.data.views.pixel_values import PixelFormat, ValueRange, check_range
from lit_vision.errors import UserError

log = logging.getLogger(__name__)


class KeyedDataModule(LightningDataModule):
    """Data module whose batches follow from (seed, epoch), so that training can resume at any step.

    A subclass sets `root` and `split_names`, and defines `num_train`, `_dataset`, `_measure_range` and `_identity`.

    Attributes:
        root: folder of the data.
        split_names: {"train", "val", "test": name of the split's folder}.
        cursor: (epoch, samples of it that all ranks have had).
        resume_anyway: continue a run although its seed, data or global batch changed; see `restore_loader_state`.
        channels: of the images in a batch, 3 or 1.
        declared_range: values of images deeper than 8 bits that become 0 and 255; None measures them.
        moved: True after such a change.
        order: of the training images: "auto", "full" or "windowed", see order.py.
        window_blocks: blocks of a window of the windowed order.
        classes_by_number: compare labels with a model's outputs by number although the names of the classes differ.

    Args:
        batch_size: samples per device and batch.
        copies: repeated augmentation, see `TrainBatches`.
        seed: of the order, in [0, 2**64).
        num_workers: see `make_loader`.
    """

    root: str
    split_names: dict[str, str]
    resume_anyway = False
    classes_by_number = False
    channels = 3
    declared_range: ValueRange | None = None
    moved = False
    order = "auto"
    window_blocks = WINDOW_BLOCKS

    def __init__(self, batch_size: int, copies: int, seed: int, num_workers: int | str):
        super().__init__()
        self.batch_size, self.copies, self.seed, self.num_workers = batch_size, copies, seed, num_workers
        self.cursor = (0, 0)
        self._model_range: tuple[ValueRange | None] | None = None  # of `use_range_of`
        self._train_batches: TrainBatches | None = None  # the sampler that training follows
        # (role, on_bad): the reader of the files, and what the subclass stores with it
        self._datasets: dict[tuple[str, str], tuple[ImageReader, Any]] = {}

    @property
    def num_train(self) -> int:
        """Images that training draws from."""
        raise NotImplementedError

    def _dataset(self, role: str, train: bool) -> Dataset:
        """Return the data set of a split under the training or the evaluation view."""
        raise NotImplementedError

    def _identity(self) -> str:
        """Return a digest of the samples that training draws from; a resumed run must have the same."""
        raise NotImplementedError

    @property
    def value_range(self) -> ValueRange | None:
        """Values of images deeper than 8 bits that become 0 and 255: declared, a model's, or measured in a sample.

        None if no image of the sample is deeper. UserError if no range fits the images.
        """
        if self.declared_range is not None:
            return self.declared_range
        return self._model_range[0] if self._model_range is not None else self._measured_range

    @cached_property
    def _measured_range(self) -> ValueRange | None:
        measured = self._measure_range()
        value_range = require_range(measured, f"data.root {self.root}")
        if measured.images and (self.trainer is None or self.trainer.is_global_zero):
            log.warning("%s: %s", self.root, measured.describe())
        return value_range

    def _measure_range(self) -> MeasuredRange:
        """Return the range of values in a sample of the images."""
        raise NotImplementedError

    def use_range_of(self, value_range: Sequence[float] | None) -> None:
        """Convert images as a model expects it, in all loaders made from now on.

        Args:
            value_range: of the model's metadata; None if its training images had no more than 8 bits.

        Raises:
            UserError: another range is declared.
        """
        wanted = check_range(value_range)
        if self.declared_range is not None and wanted not in (None, self.declared_range):
            raise UserError(
                f"data.range: {list(self.declared_range)}, but the model was trained with {list(wanted or ())}; "
                "leave data.range out"
            )
        self._model_range = (wanted,)
        if any(files.pixel_format.value_range != self.value_range for files, _ in self._datasets.values()):
            self._datasets.clear()

    @property
    def _pixel_format(self) -> PixelFormat:
        return PixelFormat(self.value_range, self.channels == 1)

    @property
    def world(self) -> tuple[int, int, int]:
        """(rank, processes, batches per step); (0, 1, 1) without a Trainer."""
        trainer = self.trainer
        if trainer is None:
            return 0, 1, 1
        return trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer step: batch_size x processes x accumulation."""
        _, processes, accumulate = self.world
        return self.batch_size * processes * accumulate

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch on each rank, a multiple of the accumulated batches of an optimizer step."""
        return len(self._new_train_batches())

    @property
    def is_windowed(self) -> bool:
        """True if training images come in the windowed order; by default their number alone decides."""
        return self.order == "windowed" or (self.order == "auto" and self.num_train > FULL_UP_TO)

    @property
    def data_order(self) -> str:
        """Order of the training images, as the run records it."""
        return describe_order(self.is_windowed, self.window_blocks)

    def train_dataloader(self) -> DataLoader:
        """Return the loader of this rank's batches of an epoch, from a restored position on."""
        batches = self._new_train_batches()
        if self.is_windowed and (self.trainer is None or self.trainer.is_global_zero):
            print(order_line(self.num_train, self.window_blocks), flush=True)
        batches.on_epoch_end, self._train_batches = self._report_broken, batches
        batches.epoch, samples = self.cursor
        batches.first_batch = samples // (self.batch_size * self.world[1])
        return self._loader(self._dataset("train", train=True), batches, persistent=True)

    def teardown(self, stage: str | None = None) -> None:
        """Report the broken images of the last epoch."""
        if self._train_batches is not None:
            self._report_broken(self._train_batches.epoch)
            self._train_batches = None

    def state_dict(self) -> dict[str, Any]:
        """Return the data position of the run; Lightning stores it in the checkpoint under the class's name."""
        return loader_state(self, self._identity())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a stored position; UserError if seed, data or global batch changed."""
        restore_loader_state(self, state_dict, self._identity())

    def _new_train_batches(self) -> TrainBatches:
        rank, processes, accumulate = self.world
        order = partial(WindowedOrder, window_blocks=self.window_blocks) if self.is_windowed else FullOrder
        batches = TrainBatches(
            self.num_train, self.batch_size, rank, processes, accumulate, self.seed, self.copies, order
        )
        # Lightning replaces only samplers that shuffle; a batch sampler it leaves as it is
        batches.same_images = self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
        if not len(batches):
            raise UserError(
                f"{self.root}: {self.num_train} training images do not fill one step of {self.global_batch_size} "
                "(batch_size x devices x accumulation); lower data.batch_size"
            )
        return batches

    def _each_image_once(self, role: str, n: int) -> DataLoader:
        """Return the loader of a split's n images under the evaluation view, each once over all processes."""
        rank, processes, _ = self.world
        if n < processes:
            raise UserError(
                f"{self.root}: {self.split_names[role]} has {n} image(s) for {processes} processes; use fewer"
            )
        return self._loader(
            self._dataset(role, train=False), EvalBatches(n, self.batch_size, rank, processes), persistent=True
        )

    def _loader(self, dataset: Dataset, batches: Iterable[list[Key]], persistent: bool) -> DataLoader:
        local_processes = 1 if self.trainer is None else max(1, self.trainer.num_devices)
        return make_loader(dataset, batches, self.num_workers, persistent, local_processes)

    def _report_broken(self, epoch: int) -> None:
        """Log how many broken images an epoch had that is over."""
        for (role, _), (files, _) in self._datasets.items():
            count = files.count_broken(epoch) if role == "train" else 0
            if count:
                log.warning("epoch %d: %d broken image(s) replaced, listed in %s", epoch, count, files.bad_images_file)
