"""A run's folder: where it lies, what it is called, which one `--resume auto` goes on with. Imports nothing heavy.

runs/<recipe>/<time>/           or --run_dir DIR
    checkpoints/last.ckpt, best.ckpt      config.yaml      environment.json      metrics.csv      timings.csv
    results.json      samples/      tensorboard/      wandb/
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from lit_vision.errors import UsageError, UserError

_SHARED = (
    "LIT_VISION_RUN_DIR"  # Lightning starts the other processes of a run with the same words: they find the folder here
)


def recipe_hash(recipe: str | os.PathLike | None, overrides: Sequence[str] = ()) -> str:
    """sha256 of the recipe's bytes and the settings typed after it: two runs with one hash are the same run."""
    sha256 = hashlib.sha256(Path(recipe).read_bytes() if recipe else b"")
    for word in overrides:
        sha256.update(b"\0" + word.encode())
    return sha256.hexdigest()


def folder_of(recipe: str | os.PathLike | None, name: str = "") -> Path:
    """runs/<recipe>/<name>; the recipe's file without .yaml, "run" without one."""
    return Path("runs") / (Path(recipe).stem if recipe else "run") / name


def new_folder(recipe: str | os.PathLike | None) -> Path:
    """runs/<recipe>/<time> for a run that starts now; every process of the run gets the same.

    Args:
        recipe: the recipe's file; its name without .yaml names the folder ("run" without one).

    Raises:
        UsageError: several processes were started from outside (torchrun, srun) and could not agree on a time.
    """
    if _SHARED in os.environ:
        return Path(os.environ[_SHARED])
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        raise UsageError("--run_dir: name the run's folder when torchrun or srun starts the processes")
    parent = folder_of(recipe)
    name = time.strftime("%Y%m%d-%H%M%S")
    folder, n = parent / name, 1
    while folder.exists():  # two runs in one second
        n += 1
        folder = parent / f"{name}-{n}"
    os.environ[_SHARED] = str(folder)
    return folder


def forget_folder() -> None:
    """At the end of a command: the next one in this process gets a folder of its own."""
    os.environ.pop(_SHARED, None)


def last_checkpoint(folder: str | os.PathLike) -> Path:
    """The file from which the run in `folder` goes on."""
    return Path(folder) / "checkpoints" / "last.ckpt"


def find_unfinished(recipe: str | os.PathLike | None, run_hash: str) -> Path | None:
    """The newest folder of runs/<recipe>/ that holds a checkpoint of this very run and no results yet; None if there is none."""
    found = []
    for folder in folder_of(recipe).glob("*/"):
        written = folder / "environment.json"
        if not last_checkpoint(folder).is_file() or (folder / "results.json").exists() or not written.is_file():
            continue
        if json.loads(written.read_text()).get("run_sha256") == run_hash:
            found.append(folder)
    return max(found, key=lambda folder: last_checkpoint(folder).stat().st_mtime, default=None)


def choose(
    recipe: str | os.PathLike | None, run_hash: str, run_dir: str | None, resume: str | None
) -> tuple[Path, Path | None]:
    """Where a run writes and what it goes on from.

    Args:
        recipe: the recipe's file, or None.
        run_hash: `recipe_hash` of this command.
        run_dir: --run_dir, or None.
        resume: --resume: "auto", a checkpoint, or None.

    Returns:
        (folder, checkpoint or None).

    Raises:
        UserError: the checkpoint is missing; or the folder holds a run and the command does not say to go on with it.
    """
    if resume and resume != "auto":
        checkpoint = Path(resume)
        if not checkpoint.is_file():
            raise UserError(f"--resume {resume}: no such checkpoint; name a .ckpt file, or auto")
        inside = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None
        return Path(run_dir) if run_dir else inside or new_folder(recipe), checkpoint
    if _SHARED in os.environ:  # a child of this run: its parent has made the folder and chosen already
        folder = Path(os.environ[_SHARED])
        return folder, last_checkpoint(folder) if resume and last_checkpoint(folder).is_file() else None
    if run_dir:
        folder = Path(run_dir)
    else:
        folder = (find_unfinished(recipe, run_hash) if resume else None) or new_folder(recipe)
    os.environ[_SHARED] = str(folder)
    if not last_checkpoint(folder).is_file():
        return folder, None
    if not resume:
        raise UserError(
            f"--run_dir {folder}: holds a run already; --resume auto goes on with it, or choose another folder"
        )
    return folder, last_checkpoint(folder)
