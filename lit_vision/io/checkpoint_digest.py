"""SHA-256 files next to checkpoints, and verification against them.

NAME.ckpt has its digest in NAME.ckpt.sha256, in the format of `sha256sum -c`; a sharded checkpoint, a folder, has
manifest.json. A digest file holds one entry; while a new checkpoint replaces an old one it holds both, the new one
first, so that at each moment the entry of the current file is among them. Imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from lit_vision.io.hashing import Digest, sha256_of_file

MANIFEST = "manifest.json"


def digest_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of the digest file of the checkpoint `path`: its name with .sha256 added."""
    return Path(f"{os.fspath(path)}.sha256")


def format_digests(path: Path, digests: list[Digest]) -> str:
    """Return the text of a digest file."""
    return "".join(f"# {d.size} bytes, step {d.step}\n{d.sha256}  {path.name}\n" for d in digests)


def read_digests(path: str | os.PathLike[str]) -> list[Digest]:
    """Return the entries of a checkpoint's digest file; [] if there is none or it is damaged."""
    try:
        text = digest_path(path).read_text()
    except (OSError, UnicodeDecodeError):
        return []
    # the comment line is ours: a file written by sha256sum has none
    found = re.findall(r"(?:^# (\d+) bytes, step (-?\d+)\n)?^([0-9a-f]{64})  ", text, re.M)
    return [Digest(sha256, int(size or -1), int(step or -1)) for size, step, sha256 in found]


def step_of(path: str | os.PathLike[str]) -> int:
    """Return the optimizer step of a checkpoint by its digest file or manifest; -1 if it is not known."""
    if Path(path).is_dir():
        return int((_manifest(Path(path)) or {}).get("step", -1))
    return max((digest.step for digest in read_digests(path)), default=-1)


def integrity_error(path: str | os.PathLike[str]) -> str | None:
    """Return what is wrong with a checkpoint's bytes, in a few words; None if they are those that were written.

    A truncated file is found by its size, a flipped bit by its sha256. Reads the complete file.
    """
    path = Path(path)
    if path.is_dir():
        return _sharded_integrity_error(path)
    if not path.is_file():
        return "does not exist"
    size = path.stat().st_size
    digests = read_digests(path)
    if not digests:
        return f"has no entry in {digest_path(path).name}"
    if not {size, -1} & {d.size for d in digests}:
        return "is empty" if not size else f"is truncated: {size} bytes instead of {digests[0].size}"
    if sha256_of_file(path) not in {d.sha256 for d in digests}:
        return f"is damaged: its sha256 is not the one in {digest_path(path).name}"
    return None


def checkpoint_sha256(path: str | os.PathLike[str]) -> str | None:
    """Return the sha256 by which results name a checkpoint (sharded: its manifest's); None if there is no file."""
    path = Path(path)
    path = path / MANIFEST if path.is_dir() else path
    return sha256_of_file(path) if path.is_file() else None


def is_valid(path: str | os.PathLike[str]) -> bool:
    """True if the checkpoint exists and holds the bytes that were written."""
    return integrity_error(path) is None


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_text())
        return found if isinstance(found, dict) and isinstance(found.get("files"), dict) else None
    except (OSError, ValueError):
        return None


def _sharded_integrity_error(folder: Path) -> str | None:
    manifest = _manifest(folder)
    if manifest is None:
        return f"has no {MANIFEST} that can be read"
    for name, entry in manifest["files"].items():
        path = folder / name
        if Path(name).name != name:
            return f"has a {MANIFEST} that names {name}, which is outside the folder"
        if not path.is_file() or path.stat().st_size != entry["size"]:
            return f"is truncated: {name} is missing or of another size"
        if sha256_of_file(path) != entry["sha256"]:
            return f"is damaged: {name} has another sha256"
    return None


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the checkpoints in a folder, newest step first; those of one step as last, previous, step-*, best."""
    folder = Path(folder)
    steps = sorted(folder.glob("step-*.ckpt"), reverse=True)
    found = [p for p in (folder / "last.ckpt", folder / "previous.ckpt", *steps, folder / "best.ckpt") if p.exists()]
    return sorted(found, key=step_of, reverse=True)  # a stable sort


def newest_valid(folder: str | os.PathLike[str]) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged checkpoint (None if there is none), and a line for each newer one that is damaged."""
    skipped: list[str] = []
    for path in checkpoints_in(folder):
        wrong = integrity_error(path)
        if wrong is None:
            return path, skipped
        skipped.append(f"{path} {wrong}")
    return None, skipped
