"""What lies beside a checkpoint and says whether it is whole: NAME.ckpt.sha256, or manifest.json in the folder of a sharded one.

A sidecar holds one entry; for the instant in which a new file takes an old one's place it holds both, the new one first, so that at
each moment the entry of the file that is there is among them. It is in the format of `sha256sum -c`. Imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from lit_vision.io.hashing import Digest, sha256_of_file

MANIFEST = "manifest.json"


def digest_path(path: str | os.PathLike) -> Path:
    """The file that holds the sha256 of the checkpoint `path`: its name with .sha256 added."""
    return Path(f"{os.fspath(path)}.sha256")


def format_digests(path: Path, digests: list[Digest]) -> str:
    """A sidecar's text."""
    return "".join(f"# {d.size} bytes, step {d.step}\n{d.sha256}  {path.name}\n" for d in digests)


def read_digests(path: str | os.PathLike) -> list[Digest]:
    """The entries of the checkpoint's sidecar; [] without one. One that is damaged has no entries."""
    try:
        text = digest_path(path).read_text()
    except (OSError, UnicodeDecodeError):
        return []
    found = re.findall(
        r"(?:^# (\d+) bytes, step (-?\d+)\n)?^([0-9a-f]{64})  ", text, re.M
    )  # sha256sum writes no remark
    return [Digest(sha256, int(size or -1), int(step or -1)) for size, step, sha256 in found]


def step_of(path: str | os.PathLike) -> int:
    """The optimiser step of a checkpoint, as what lies beside it says; -1 if nothing does."""
    if Path(path).is_dir():
        return int((_manifest(Path(path)) or {}).get("step", -1))
    return max((digest.step for digest in read_digests(path)), default=-1)


def integrity_error(path: str | os.PathLike) -> str | None:
    """What is wrong with a checkpoint's bytes, in a few words; None if they are those that were written.

    A torn file shows by its size, a flipped bit by its sha256. Reads the whole file.
    """
    path = Path(path)
    if path.is_dir():
        return _sharded_integrity_error(path)
    if not path.is_file():
        return "is not there"
    size = path.stat().st_size
    digests = read_digests(path)
    if not digests:
        return f"has no entry in {digest_path(path).name}"
    if not {size, -1} & {d.size for d in digests}:
        return "is empty" if not size else f"is torn: {size} bytes instead of {digests[0].size}"
    if sha256_of_file(path) not in {d.sha256 for d in digests}:
        return f"is altered: its sha256 is not the one in {digest_path(path).name}"
    return None


def checkpoint_sha256(path: str | os.PathLike) -> str | None:
    """What results name a checkpoint by: its sha256, of a sharded one its manifest's; None if there is none."""
    path = Path(path)
    path = path / MANIFEST if path.is_dir() else path
    return sha256_of_file(path) if path.is_file() else None


def is_valid(path: str | os.PathLike) -> bool:
    """True if the checkpoint is there and holds the bytes that were written."""
    return integrity_error(path) is None


def _manifest(folder: Path) -> dict | None:
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
            return f"has a {MANIFEST} that names {name}, which is outside it"
        if not path.is_file() or path.stat().st_size != entry["size"]:
            return f"is torn: {name} is missing or of another size"
        if sha256_of_file(path) != entry["sha256"]:
            return f"is altered: {name} has another sha256"
    return None


def checkpoints_in(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints in a folder from the newest step to the oldest; of one step last, previous, step-*, best."""
    folder = Path(folder)
    steps = sorted(folder.glob("step-*.ckpt"), reverse=True)
    found = [p for p in (folder / "last.ckpt", folder / "previous.ckpt", *steps, folder / "best.ckpt") if p.exists()]
    return sorted(found, key=step_of, reverse=True)  # stable


def newest_valid(folder: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole (None without one), and a line for each newer one that is not."""
    skipped = []
    for path in checkpoints_in(folder):
        wrong = integrity_error(path)
        if wrong is None:
            return path, skipped
        skipped.append(f"{path} {wrong}")
    return None, skipped
