"""A run's folder: where it lies, what it is called, which one `--resume auto` goes on with. Imports nothing heavy.

runs/<recipe>/<time>/           or --run_dir DIR
    checkpoints/last.ckpt, previous.ckpt, best.ckpt      config.yaml      environment.json      metrics.csv      timings.csv
    results.json      samples/      tensorboard/      wandb/
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lit_vision.errors import UsageError, UserError
from lit_vision.io import checkpoint_digest

_SHARED = (
    "LIT_VISION_RUN_DIR"  # Lightning starts the other processes of a run with the same words: they find the folder here
)
# where and how a run runs, not what it is: a requeued job may get other machines. The checkpoint itself knows its global batch.
LOCATION_FLAGS = {
    *(f"--trainer.{key}" for key in ("accelerator", "devices", "num_nodes", "strategy", "accumulate_grad_batches")),
    *(f"--trainer.{key}" for key in ("enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler")),
    *(f"--data{part}.{key}" for part in ("", ".init_args") for key in ("num_workers", "batch_size")),
}


def drop_flags(arguments: Sequence[str], flags: Collection[str]) -> list[str]:
    """The words of a command without these flags and their values, `--flag value` or `--flag=value`."""
    kept, skip = [], False
    for argument in arguments:
        head, sign, _ = argument.partition("=")
        if skip:
            skip = False
        elif head in flags:
            skip = not sign
        else:
            kept.append(argument)
    return kept


def recipe_hash(recipe: str | os.PathLike | None, overrides: Sequence[str] = ()) -> str:
    """sha256 of the recipe's bytes and the settings typed after it, LOCATION_FLAGS left out: two runs with one hash are the same run."""
    sha256 = hashlib.sha256(Path(recipe).read_bytes() if recipe else b"")
    for argument in drop_flags(overrides, LOCATION_FLAGS):
        sha256.update(b"\0" + argument.encode())
    return sha256.hexdigest()


def default_run_dir(recipe: str | os.PathLike | None, name: str = "") -> Path:
    """runs/<recipe>/<name>; the recipe's file without .yaml, "run" without one.

    Raises:
        UsageError: name is no plain name: it would lead out of runs/<recipe>.
    """
    if name and (name in (".", "..") or "/" in name or "\\" in name or "\0" in name):
        raise UsageError(f"--name {name!r}: give a name without a path; --run_dir names a folder elsewhere")
    return Path("runs") / (Path(recipe).stem if recipe else "run") / name


def new_run_dir(recipe: str | os.PathLike | None) -> Path:
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
    parent = default_run_dir(recipe)
    name = time.strftime("%Y%m%d-%H%M%S")
    folder, n = parent / name, 1
    while folder.exists():  # two runs in one second
        n += 1
        folder = parent / f"{name}-{n}"
    os.environ[_SHARED] = str(folder)
    return folder


def reset_run_dir() -> None:
    """At the end of a command: the next one in this process gets a folder of its own."""
    os.environ.pop(_SHARED, None)


def last_checkpoint(folder: str | os.PathLike) -> Path:
    """The file from which the run in `folder` goes on."""
    return Path(folder) / "checkpoints" / "last.ckpt"


def find_unfinished(recipe: str | os.PathLike | None, run_hash: str) -> Path | None:
    """The folder of runs/<recipe>/ that holds checkpoints of this very run and no results yet; None if there is none.

    Of several, that whose run began last (environment.json says when; a file's time does not count).
    """
    found = []
    for folder in default_run_dir(recipe).glob("*/"):
        written = _environment(folder)
        open_ = checkpoint_digest.checkpoints_in(folder / "checkpoints") and not (folder / "results.json").exists()
        if open_ and written.get("run_sha256") == run_hash:
            found.append((str(written.get("started", "")), folder.name, folder))
    return max(found)[2] if found else None


def _environment(folder: Path) -> dict:
    try:
        found = json.loads((folder / "environment.json").read_text())
    except (OSError, ValueError):  # none, or half of one
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class RunStart:
    """Where a run writes, what it goes on from (None: it starts anew), and a line for each newer checkpoint that is not whole."""

    folder: Path
    checkpoint: Path | None = None
    skipped_checkpoints: list[str] = field(default_factory=list)


def resolve_run(
    recipe: str | os.PathLike | None, run_hash: str, run_dir: str | None, resume: str | None, anyway: bool = False
) -> RunStart:
    """Where a run writes and what it goes on from.

    Args:
        recipe: the recipe's file, or None.
        run_hash: `recipe_hash` of this command.
        run_dir: --run_dir, or None.
        resume: --resume: "auto", a checkpoint, or None. "auto" takes the newest checkpoint of this very run that is whole.
        anyway: --resume_anyway: go on with the run in run_dir although recipe or settings have changed.

    Raises:
        UserError: the checkpoint is missing; none of the run's is whole; or the folder holds a run and the command does not say to
            go on with it, or is not the one that began it.
    """
    if resume and resume != "auto":
        checkpoint = Path(resume)
        if not checkpoint.exists():
            raise UserError(f"--resume {resume}: no such checkpoint; name a .ckpt file, or auto")
        inside = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None
        return RunStart(Path(run_dir) if run_dir else inside or new_run_dir(recipe), checkpoint)
    child = _SHARED in os.environ  # of this run: its parent has made the folder and chosen already
    if child:
        folder = Path(os.environ[_SHARED])
    elif run_dir:
        folder = Path(run_dir)
    else:
        folder = (find_unfinished(recipe, run_hash) if resume else None) or new_run_dir(recipe)
    os.environ[_SHARED] = str(folder)
    inside = folder / "checkpoints"
    if not checkpoint_digest.checkpoints_in(inside) or (child and not resume):
        return RunStart(folder)
    if not resume:
        raise UserError(
            f"--run_dir {folder}: holds a run already; --resume auto goes on with it, or choose another folder"
        )
    if not anyway and _environment(folder).get("run_sha256", run_hash) != run_hash:
        raise UserError(
            f"--resume auto: {folder} holds another run: the recipe or the settings after it have changed; give that run's command, "
            "or add --resume_anyway true"
        )
    checkpoint, skipped = checkpoint_digest.newest_valid(inside)
    if checkpoint is None:
        raise UserError(f"--resume auto: no checkpoint is whole: {'; '.join(skipped)}; remove {folder} to start anew")
    return RunStart(folder, checkpoint, skipped)
