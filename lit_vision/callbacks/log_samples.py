"""Log pictures and tables: files in RUN/samples, and the same to TensorBoard and Weights & Biases."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from lit_vision.lightning_internals import finished_steps


def _series_name(name: str) -> str:
    return "samples/" + re.sub(r"-e\d+$", "", name)


def log_picture(trainer: Trainer, name: str, image: np.ndarray, caption: str | None = None) -> Path | None:
    """Write RUN/samples/<name>.png and send the picture to the loggers that take pictures.

    Args:
        trainer: the run; its folder is trainer.default_root_dir.
        name: file name without suffix; loggers get it without a trailing -e<epoch>, so that the pictures of all epochs
            are a series.
        image: (H, W, 3) uint8.
        caption: a line shown with it on W&B.

    Returns:
        The file; None on ranks other than 0.
    """
    if not trainer.is_global_zero:
        return None
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a picture must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
    path = Path(trainer.default_root_dir) / "samples" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    series = _series_name(name)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(series, image, finished_steps(trainer), dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(series, [Image.fromarray(image)], step=None, caption=[caption or name])
    return path


def log_table(trainer: Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path | None:
    """Write RUN/samples/<name>.csv and send the table to Weights & Biases.

    Args:
        trainer: the run; its folder is trainer.default_root_dir.
        name: file name without suffix.
        columns: headings.
        rows: one sequence per row, as long as columns.

    Returns:
        The file; None on ranks other than 0.
    """
    if not trainer.is_global_zero:
        return None
    path = Path(trainer.default_root_dir) / "samples" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(_series_name(name), columns=list(columns), data=[list(row) for row in rows])
    return path
