"""Run directories: naming, lookup, resume. Imports nothing heavy.

runs/<recipe>/<time>/           or --run_dir DIR
    checkpoints/last.ckpt, previous.ckpt, best.ckpt
    config.yaml      environment.json      metrics.csv      timings.csv      results.json
    samples/      tensorboard/      wandb/
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_vision.errors import UsageError, UserError
from lit_vision.io import checkpoint_digest

# Lightning starts the other processes of a run with the same arguments: they find the folder in this variable
_SHARED = "LIT_VISION_RUN_DIR"
# Flags that say where and how a run is executed, not what it computes: a requeued job may get other machines. The
# checkpoint itself holds its global batch size.
LOCATION_FLAGS = {
    *(f"--trainer.{key}" for key in ("accelerator", "devices", "num_nodes", "strategy", "accumulate_grad_batches")),
    *(f"--trainer.{key}" for key in ("enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler")),
    *(f"--data{part}.{key}" for part in ("", ".init_args") for key in ("num_workers", "batch_size")),
}


def drop_flags(arguments: Sequence[str], flags: Collection[str]) -> list[str]:
    """Return the arguments of a command without these flags and their values, `--flag value` or `--flag=value`."""
    remaining: list[str] = []
    skip = False
    for argument in arguments:
        head, sign, _ = argument.partition("=")
        if skip:
            skip = False
        elif head in flags:
            skip = not sign
        else:
            remaining.append(argument)
    return remaining


def recipe_hash(recipe: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> str:
    """Return the sha256 of the recipe's bytes and the settings typed after it, without LOCATION_FLAGS.

    Two commands with the same hash are the same run.
    """
    sha256 = hashlib.sha256(Path(recipe).read_bytes() if recipe else b"")
    for argument in drop_flags(overrides, LOCATION_FLAGS):
        sha256.update(b"\0" + argument.encode())
    return sha256.hexdigest()


def default_run_dir(recipe: str | os.PathLike[str] | None, name: str = "") -> Path:
    """Return runs/<recipe>/<name>, with the name of the recipe's file without .yaml, or "run" without a recipe.

    Raises:
        UsageError: `name` contains a path: it would lead out of runs/<recipe>.
    """
    if name and (name in (".", "..") or "/" in name or "\\" in name or "\0" in name):
        raise UsageError(f"--name {name!r}: give a name without a path; --run_dir names a folder elsewhere")
    return Path("runs") / (Path(recipe).stem if recipe else "run") / name


def new_run_dir(recipe: str | os.PathLike[str] | None) -> Path:
    """Return runs/<recipe>/<time> for a run that starts now; every process of the run gets the same folder.

    Args:
        recipe: the recipe's file; see `default_run_dir`.

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
    """Forget the folder of this command, so that the next one in this process gets a new folder."""
    os.environ.pop(_SHARED, None)


def last_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """Return the path of the newest checkpoint of the run in `folder`."""
    return Path(folder) / "checkpoints" / "last.ckpt"


def run_dir_of(checkpoint: str | os.PathLike[str]) -> Path | None:
    """Return RUN for a checkpoint RUN/checkpoints/NAME; None for a file elsewhere."""
    folder = Path(checkpoint).parent
    return folder.parent if folder.name == "checkpoints" else None


def data_settings(folder: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Return the arguments of the data module that a run was trained with, from RUN/config.yaml.

    Args:
        folder: of the run; None gives {}.

    Returns:
        {} if there is no such file, or the data module is not one of lit_vision.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder or "") / "config.yaml"
    if folder is None or not path.is_file():
        return {}
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        found: dict[str, Any] = dict(data["init_args"]) if data["class_path"].startswith("lit_vision.data.") else {}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: has no data settings ({type(error).__name__}); restore it from a copy") from None
    return found


def find_unfinished(recipe: str | os.PathLike[str] | None, run_hash: str) -> Path | None:
    """Return the folder of runs/<recipe>/ with checkpoints of the same run and no results yet; None if there is none.

    Of several, the one whose run started last by its environment.json; the times of files are not used.
    """
    found = []
    for folder in default_run_dir(recipe).glob("*/"):
        written = _environment(folder)
        unfinished = checkpoint_digest.checkpoints_in(folder / "checkpoints") and not (folder / "results.json").exists()
        if unfinished and written.get("run_sha256") == run_hash:
            found.append((str(written.get("started", "")), folder.name, folder))
    return max(found)[2] if found else None


def _environment(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "environment.json").read_text())
    except (OSError, ValueError):  # missing, or damaged
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class RunStart:
    """The folder of a run, and the checkpoint to resume.

    Attributes:
        folder: the folder to write to.
        checkpoint: the checkpoint to resume; None for a new run.
        skipped_checkpoints: a line for each newer checkpoint that is damaged.
    """

    folder: Path
    checkpoint: Path | None = None
    skipped_checkpoints: list[str] = field(default_factory=list)


def resolve_run(
    recipe: str | os.PathLike[str] | None, run_hash: str, run_dir: str | None, resume: str | None, anyway: bool = False
) -> RunStart:
    """Return the folder that a run writes to and the checkpoint that it resumes.

    Args:
        recipe: the recipe's file, or None.
        run_hash: `recipe_hash` of this command.
        run_dir: value of --run_dir, or None.
        resume: value of --resume: "auto", a checkpoint, or None. "auto" takes the newest undamaged checkpoint of the
            same run.
        anyway: value of --resume_anyway: resume the run in `run_dir` although the recipe or the settings have changed.

    Raises:
        UserError: the checkpoint is missing; all checkpoints of the run are damaged; or the folder holds a run and the
            command does not resume it, or is not the command that started it.
    """
    if resume and resume != "auto":
        named = Path(resume)
        if not named.exists():
            raise UserError(f"--resume {resume}: no such checkpoint; name a .ckpt file, or auto")
        return RunStart(Path(run_dir) if run_dir else run_dir_of(named) or new_run_dir(recipe), named)
    child = _SHARED in os.environ  # a process of this run: its parent has created and chosen the folder
    if child:
        folder = Path(os.environ[_SHARED])
    elif run_dir:
        folder = Path(run_dir)
    else:
        folder = (find_unfinished(recipe, run_hash) if resume else None) or new_run_dir(recipe)
    os.environ[_SHARED] = str(folder)
    checkpoints = folder / "checkpoints"
    if not checkpoint_digest.checkpoints_in(checkpoints) or (child and not resume):
        return RunStart(folder)
    if not resume:
        raise UserError(
            f"--run_dir {folder}: holds a run already; resume it with --resume auto, or choose another folder"
        )
    if not anyway and _environment(folder).get("run_sha256", run_hash) != run_hash:
        raise UserError(
            f"--resume auto: {folder} holds another run: the recipe or the settings after it have changed; "
            "repeat that run's command, or add --resume_anyway true"
        )
    checkpoint, skipped = checkpoint_digest.newest_valid(checkpoints)
    if checkpoint is None:
        raise UserError(
            f"--resume auto: every checkpoint is damaged: {'; '.join(skipped)}; remove {folder} to start a new run"
        )
    return RunStart(folder, checkpoint, skipped)
