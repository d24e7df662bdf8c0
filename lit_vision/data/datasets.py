"""The data sets behind the loaders: files read one by one, or small images kept in memory and augmented by the batch.

Both take a list of keys (epoch, index, copy), as the samplers yield them, and give the finished batch (see batch.py).
"""

from __future__ import annotations

import csv
import io
import logging
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lit_vision.data.folder import Folder
from lit_vision.data.sampler import Key
from lit_vision.data.views.batch_views import BatchedViews
from lit_vision.data.views.decode import ImageDecodeError, decode
from lit_vision.data.views.keyed_rng import derive_seed
from lit_vision.data.views.views import ImageViews
from lit_vision.errors import UserError
from lit_vision.io.processes import die_with_parent

log = logging.getLogger(__name__)

MEMORY_SIDE = 96  # pixels; larger images gain nothing from batched augmentation and lose antialias when turned
MEMORY_BYTES = 1 << 30
BAD_SHARE = 0.01  # of an epoch's images may be broken under "skip" (and one alone never stops a run)
_TRIES = 16  # of a replacement for a broken image; that many broken ones in a row are no accident


class ImageReader:
    """The images of one split, with a rule for broken ones.

    Args:
        folder: where they are: a scanned folder, an opened pack, or just the path that `paths` start from.
        paths: N paths of it.
        on_bad: "error" raises; "skip" takes another image of the list, which one depends on (seed, index) alone. Each broken file is warned
            about once, and listed per epoch in `listing`; more than one file and more than 1 % of this process's share stop the run.
        seed: in [0, 2**64).
        listing: a CSV file (epoch, index, path, reason) that lines are added to, or None.
        world: processes that share the list.
    """

    def __init__(
        self,
        folder: Folder | Path,
        paths: Sequence[str],
        on_bad: str,
        seed: int,
        listing: Path | None = None,
        world: int = 1,
    ):
        folder = folder if isinstance(folder, Folder) else Folder(Path(folder), [], {})
        self.folder, self.paths, self.on_bad, self.seed = folder, paths, on_bad, seed
        self.listing, self.share = listing, len(paths) / world
        # 0, or 1 + the last even or odd epoch in which a file was found broken (two rows: workers begin an epoch before the last one is
        # counted); shared with the workers, and no lock: they all write the same
        self.broken = torch.zeros(2, len(paths), dtype=torch.int32).share_memory_()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, epoch: int = 0, make: Callable[[bytes], np.ndarray] = decode) -> tuple[np.ndarray, int]:
        """What `make` makes of a file's bytes, and the index of the file that it is from (another one after a skip).

        Args:
            index: in [0, N).
            epoch: for the listing.
            make: raises ImageDecodeError for a broken file; by default, pixels (H, W, 3) uint8.

        Raises:
            ImageDecodeError: names the file; under "skip" only where too many files are broken.
        """
        taken = index
        for attempt in range(_TRIES):
            try:
                return self._make(taken, make), taken
            except ImageDecodeError as error:
                if self.on_bad == "error":
                    raise
                self._note(taken, epoch, str(error))
                taken = derive_seed(self.seed, index, attempt) % len(self.paths)
        raise ImageDecodeError(
            f"{self.folder.root}: {_TRIES} broken images in a row, the last {self.paths[taken]}; {_doctor_hint(self.folder.root)}"
        )

    def count(self, epoch: int) -> int:
        """Files found broken in this epoch, by this process and its workers."""
        return int((self.broken == epoch + 1).sum())

    def _make(self, index: int, make: Callable) -> np.ndarray:
        path = self.paths[index]
        try:
            return make(self.folder.read(path))
        except ImageDecodeError as error:
            raise ImageDecodeError(f"{self.folder.root}/{path}: {error}") from None
        except OSError as error:
            raise ImageDecodeError(
                f"{self.folder.root}/{path}: {error.strerror}; bring it back or scan the folder again"
            ) from None

    def _note(self, index: int, epoch: int, reason: str) -> None:
        if self.broken[epoch % 2, index] == epoch + 1:
            return
        known = bool(self.broken[:, index].any())
        self.broken[epoch % 2, index] = epoch + 1
        if not known:
            log.warning("skipped %s", reason)
        if self.listing:
            row = io.StringIO()
            csv.writer(row, lineterminator="\n").writerow([epoch, index, self.paths[index], reason])
            _append(self.listing, row.getvalue())
        count = self.count(epoch)
        if count > max(1, BAD_SHARE * self.share):
            raise ImageDecodeError(
                f"{self.folder.root}: {count} of {self.share:.0f} images of epoch {epoch} are broken, more than {BAD_SHARE:.0%}, "
                f"the last {self.paths[index]}; {_doctor_hint(self.folder.root)}"
            )


def _doctor_hint(root: Path) -> str:
    return f"see what is wrong: lit-vision doctor {root}; then set data.quarantine to the list it writes"


def _append(path: Path, line: str) -> None:
    """One write to the end of the file: lines of several workers do not mix."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
            if file.tell() == 0:
                line = "epoch,index,path,reason\n" + line
            file.write(line)
    except OSError as error:
        log.warning("%s: %s; broken images are not listed there", path, error.strerror)


class ImageFileDataset(Dataset):
    """Images on disk: each is decoded and augmented when its key comes.

    Args:
        files: where the pixels come from.
        labels: (N,) int64, -1 without one.
        views: from `make_views`.
    """

    def __init__(self, files: ImageReader, labels: np.ndarray, views: ImageViews):
        self.files, self.labels, self.views = files, labels, views

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        """The finished batch of these keys."""
        images, labels = [], []
        for key in keys:
            views, taken = self.files.read(key[1], key[0], lambda data, key=key: self.views(data, *key))
            images.append(torch.from_numpy(views))
            labels.append(self.labels[taken])
        # a worker stacks straight into shared memory this way: one copy less
        return _batch(default_collate(images), np.array(labels, np.int64), keys)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """A batch of one."""
        return self.__getitems__([key])


class InMemoryDataset(Dataset):
    """Equally large images in memory.

    Args:
        pixels: (N, H, W, C) uint8, C = 1 if all are gray, else 3.
        labels: (N,) int64, -1 without one.
        views: from `make_batch_views`.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, views: BatchedViews):
        self.pixels, self.labels, self.views = pixels, labels, views

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        """The finished batch of these keys."""
        index = [key[1] for key in keys]
        return _batch(self.views(self.pixels[index], keys), self.labels[index], keys)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """A batch of one."""
        return self.__getitems__([key])


def _batch(images: Tensor, labels: np.ndarray, keys: list[Key]) -> dict[str, Tensor]:
    return {"images": images, "label": torch.from_numpy(labels), "key": torch.tensor(keys, dtype=torch.int64)}


def load_into_memory(files: ImageReader, must: bool, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """All images as one array, if they are small and equally large.

    Args:
        files: where the pixels come from; its rule for broken images holds.
        must: raise instead of giving up.
        size: side of the views to come; images more than twice as large would alias, so they stay on disk.

    Returns:
        Pixels, (N, H, W, 1) uint8 if every image is gray, else (N, H, W, 3), and (N,) which file each is from (another one after a skip);
        None if they do not fit the rule.

    Raises:
        UserError: they do not fit and `must` is set.
    """
    if not len(files):
        return np.zeros((0, size, size, 1), np.uint8), np.zeros(0, np.int64)
    first, _ = files.read(0)
    height, width = first.shape[:2]
    why = ""
    if max(height, width) > min(MEMORY_SIDE, 2 * size):
        why = f"images are {width} x {height}; at most {min(MEMORY_SIDE, 2 * size)} pixels a side stay in memory"
    elif first.size * len(files) > MEMORY_BYTES:
        why = f"{len(files)} images of {width} x {height} take more than {MEMORY_BYTES >> 30} GiB"
    if not why:
        pixels, source = np.empty((len(files), height, width, 3), np.uint8), np.arange(len(files))
        for i in _progress_range(len(files)):
            image, taken = files.read(i)
            if image.shape != first.shape:
                why = (
                    f"{files.paths[taken]} is {image.shape[1]} x {image.shape[0]}, {files.paths[0]} {width} x {height}"
                )
                break
            pixels[i], source[i] = image, taken
    if why:
        if must:
            raise UserError(f"in_memory: {files.folder.root}: {why}; set in_memory to auto or false")
        return None
    gray = (pixels[..., :1] == pixels).all()
    return (np.ascontiguousarray(pixels[..., :1]) if gray else pixels), source


def _progress_range(n: int) -> Iterable[int]:
    """range(n), with a progress bar when it takes more than a few seconds."""
    if n < 20_000:
        return range(n)
    from rich.progress import track

    return track(range(n), "reading images into memory", transient=True)


def make_loader(dataset: Dataset, batches, workers: int | str, persistent: bool, local: int = 1) -> DataLoader:
    """A loader of finished batches.

    Args:
        dataset: ImageFileDataset or InMemoryDataset.
        batches: iterable of lists of keys.
        workers: how many; "auto": none for images in memory (a batch is made faster than a worker sends it), else the cores of this
            process shared by the `local` processes on this machine, 8 at most.
        persistent: keep the workers between epochs.
        local: training processes on this machine.
    """
    if workers == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = 0 if isinstance(dataset, InMemoryDataset) else max(1, min(8, cores // local))
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_identity_collate,
        num_workers=workers,
        worker_init_fn=_start_worker,
        persistent_workers=persistent and workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _identity_collate(batch: dict) -> dict:
    return batch


def _start_worker(_: int) -> None:
    """Signals for the process group must reach the main process alone, which then saves; and the workers are the threads.

    A worker ends with the process that made it, also if that was killed.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    cv2.setNumThreads(0)
