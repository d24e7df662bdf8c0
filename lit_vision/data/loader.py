"""Loader of finished batches, and its worker processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from lit_vision.data.batch import Batch
from lit_vision.data.datasets import InMemoryDataset
from lit_vision.data.lookahead import LookaheadBatches
from lit_vision.data.views.keyed_rng import Key
from lit_vision.errors import UserError
from lit_vision.io.processes import cores, die_with_parent

MOST_WORKERS = 1024  # a larger number is a mistake that fills the machine's memory with processes


def make_loader(
    dataset: Dataset, batches: Iterable[list[Key]], workers: int | str, persistent: bool, local_processes: int = 1
) -> DataLoader:
    """Return a loader of finished batches.

    Args:
        dataset: ImageFileDataset, InMemoryDataset or another data set that takes a list of keys.
        batches: iterable of lists of keys.
        workers: number of worker processes; "auto": none for images in memory (a batch is computed faster than a worker
            sends it), else the cores of this process divided by `local_processes`, 16 at most (with 8, an
            H100 waited for MAE's images).
        persistent: keep the workers between epochs.
        local_processes: training processes on this machine.

    Raises:
        UserError: the number of workers is out of its range.
    """
    if isinstance(workers, str):  # "auto"
        workers = 0 if isinstance(dataset, InMemoryDataset) else max(1, min(16, cores() // local_processes))
    if not 0 <= workers <= MOST_WORKERS:
        raise UserError(f"data.num_workers: {workers}; give auto, or 0 to {MOST_WORKERS} processes")
    if getattr(dataset, "reads_ahead", False):
        batches = LookaheadBatches(batches, workers)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=identity_collate,
        num_workers=workers,
        worker_init_fn=start_worker,
        persistent_workers=persistent and workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def identity_collate(batch: Batch) -> Batch:
    """Return a batch as it is: the data sets return finished ones. A named function, which workers can unpickle."""
    return batch


def _exit_when_terminated_by(parent: int) -> None:
    """End this process on a SIGTERM that its parent sent; ignore a SIGTERM from any other process.

    After an exception in a worker, torch ends the worker by SIGTERM alone; without this the parent would wait for it
    without end at its own exit.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def start_worker(_: int) -> None:
    """Prepare a worker process: no signals, no threads in cv2, and no life after its parent, even if that was killed.

    Signals sent to the process group are for the main process alone, which then saves. The workers already use all
    cores, so cv2 needs no threads.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an ignored signal never reaches sigwaitinfo
        threading.Thread(target=_exit_when_terminated_by, args=(os.getppid(),), daemon=True).start()
    die_with_parent()
    cv2.setNumThreads(0)
