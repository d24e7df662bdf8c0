"""Metric loggers: metrics.csv (exact over a resume), TensorBoard, and Weights & Biases where there is an account."""

from __future__ import annotations

import csv
import os
import re
import secrets
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_vision.io.atomic import atomic_path, atomic_write


class CsvFile:
    """CSV file that grows by rows; a new column rewrites it once. A cell is empty where a row has no value.

    Args:
        path: the file; existing rows are kept.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.columns: list[str] = []
        self.rows = 0
        self.last: dict[str, str] | None = None
        if self.path.is_file():
            with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                rows = list(csv.DictReader(file))
            self._write_all(rows)  # a kill may have left half a row

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row, unless it equals the last one."""
        text = {name: repr(value) if isinstance(value, float) else str(value) for name, value in row.items()}
        if text == self.last:
            return
        if new := [name for name in text if name not in self.columns]:
            self._write_all(self._read(), self.columns + new)
        with open(self.path, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.DictWriter(file, self.columns).writerow(text)
        self.rows += 1
        self.last = text

    def cut(self, rows: int) -> None:
        """Keep the first `rows` rows and the columns that they use."""
        if self.path.is_file() and rows < self.rows:
            self._write_all(self._read()[:rows])

    def _read(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return list(csv.DictReader(file))

    def _write_all(self, rows: list[dict[str, str]], columns: list[str] | None = None) -> None:
        rows = [{name: value for name, value in row.items() if name and value} for row in rows]
        self.columns = columns or list(dict.fromkeys(name for row in rows for name in row))
        self.rows, self.last = len(rows), (rows[-1] if rows else None)
        with (
            atomic_path(self.path, fsync=False) as temporary,
            open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)


class RunCSVLogger(Logger):
    """Logger that appends to RUN/metrics.csv; Lightning's CSVLogger would delete the old file on a resume.

    A row is written to the file when it is logged. A checkpoint holds the number of rows (`rows`), and a resume cuts
    the file there (`cut`), so that the file of a run that was killed and resumed equals that of an uninterrupted run.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self._folder = Path(folder)
        self._file: CsvFile | None = None

    @property
    def file(self) -> CsvFile:
        """The file metrics.csv, opened when first used; on rank 0 only, as opening it removes an incomplete row."""
        if rank_zero_only.rank != 0:
            raise RuntimeError("metrics.csv belongs to rank 0")
        if self._file is None:
            self._file = CsvFile(self._folder / "metrics.csv")
        return self._file

    @property
    def rows(self) -> int:
        """The number of rows written so far."""
        return self.file.rows

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def log_dir(self) -> str:
        return str(self._folder)

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one row: step, epoch, and the metrics by name."""
        metrics = dict(metrics)
        row = {"step": int(step or 0), "epoch": int(metrics.pop("epoch", 0))}
        self.file.append(row | {name: float(value) for name, value in sorted(metrics.items())})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds the hyperparameters."""

    @rank_zero_only
    def cut(self, rows: int) -> None:
        """Drop the rows that were logged after a checkpoint that holds the number `rows`."""
        self.file.cut(rows)


def tensorboard(folder: str | os.PathLike[str]) -> TensorBoardLogger | None:
    """Return Lightning's TensorBoard logger, writing to RUN/tensorboard; None, and one line, without tensorboard."""
    try:
        import tensorboard  # noqa: F401  Lightning imports it only when the run has begun, and would end it there
    except ImportError:
        if rank_zero_only.rank == 0:
            print("tensorboard: not installed (pip install tensorboard); the run logs to metrics.csv", file=sys.stderr)
        return None
    return TensorBoardLogger(save_dir=str(folder), name="", version="tensorboard", default_hp_metric=False)


@rank_zero_only
def _log_info(text: str) -> None:
    print(f"wandb: {text}; the run continues with its other loggers", file=sys.stderr)


def _wandb_unavailable_reason() -> str | None:
    """Return the reason why a run cannot be logged to Weights & Biases, or None.

    wandb itself would ask at a terminal, or raise a page of text.
    """
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "disabled":
        return "WANDB_MODE=disabled"
    try:
        import wandb
    except ImportError:
        return "the package is not installed (pip install wandb)"
    if mode == "online" and not wandb.setup().settings.api_key and not wandb.api.api_key:
        return "no account here (`wandb login`, or WANDB_MODE=offline to sync later)"
    return None


def weights_and_biases(
    project: str, folder: str | os.PathLike[str], name: str | None = None, config: Mapping[str, Any] | None = None
) -> WandbLogger | None:
    """Return a connected W&B logger for this folder, or print one line with the reason and return None.

    Online by default, offline with WANDB_MODE=offline (files under RUN/wandb; `wandb sync` sends them later). The run's
    id is stored in RUN/wandb_id.txt, so that a resume continues the same W&B run.

    Args:
        project: W&B's project.
        folder: the run's folder.
        name: display name of the run; the last two parts of the folder if None.
        config: nested settings to store with the run.
    """
    if reason := _wandb_unavailable_reason():
        _log_info(reason)
        return None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run_id = _wandb_id(folder)
    _finish_open_wandb_run(run_id)
    logger = WandbLogger(
        project=project,
        save_dir=str(folder.resolve()),  # wandb's own process may have been started in another folder
        name=name or "/".join(folder.resolve().parts[-2:]),
        id=run_id,
        config=dict(config or {}),
        mode=os.environ.get("WANDB_MODE", "online"),  # read again: wandb keeps the value of its first use
        settings={"init_timeout": 60, "console": "off"},
    )
    try:
        _ = logger.experiment  # connects now: an error later would end the run
    except Exception as error:  # no network, a refused key, a server that is down: whatever wandb raises
        _log_info(re.sub(r"\s+", " ", str(error))[:200])
        return None
    return logger


@rank_zero_only
def _finish_open_wandb_run(run_id: str) -> None:
    """Finish the W&B run of an earlier fit in this process: wandb would log a second run into the open one."""
    import wandb

    if wandb.run is not None and wandb.run.id != run_id:
        print(f"wandb: finished run {wandb.run.id}, which this process had open", file=sys.stderr)
        wandb.finish()


def _wandb_id(folder: Path) -> str | None:
    if rank_zero_only.rank:
        return None
    path = folder / "wandb_id.txt"
    if not path.is_file():
        atomic_write(path, lambda file: file.write_text(secrets.token_hex(4) + "\n"))
    return path.read_text().strip()
