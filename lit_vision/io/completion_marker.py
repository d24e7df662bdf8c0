"""Folders that a command makes: two notes inside tell what is finished and what was begun and cut off, so that repeating the command ends well.

OUT/<mark>.begun is written before anything else, OUT/<mark> after everything; both appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write, is_temporary


def is_complete(out: Path, mark: str, note: Any, flag: str = "", read: Callable[[str], Any] = json.loads) -> bool:
    """Whether `out` was finished, by its note; False where there is nothing yet, or what was begun may go on.

    Args:
        out: the folder.
        mark: name of the note in it.
        note: what is to be made, as `read` gives it.
        flag: what named the folder, for messages ("--out ").
        read: a note's text to what is compared; ValueError if it is damaged.

    Raises:
        UserError: `out` is a file, holds something else, or a damaged note.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{flag}{out}: a file where a folder is expected; name another")
    for name in (mark, f"{mark}.begun"):
        if not (out / name).exists():
            continue
        try:
            found = read((out / name).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            if name != mark and not _unexpected_entries(out, mark):  # nothing was made yet
                return False
            raise UserError(
                f"{flag}{out}: its note {name} is damaged, so what it holds is unknown; remove the folder or name another"
            ) from None
        if found != note:
            what = "it holds another set" if name == mark else "another set was begun there and not finished"
            raise UserError(f"{flag}{out}: {what} ({name} says which); name another folder or remove it")
        return name == mark
    if out.exists() and _unexpected_entries(out, mark):
        raise UserError(f"{flag}{out}: the folder is not empty and was not made by this command; name another")
    return False


def mark_started(out: Path, mark: str, text: str) -> None:
    """Make the folder and say in it what is being made; what was finished there no longer is."""
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / f"{mark}.begun", lambda file: file.write_text(text, encoding="utf-8"))
    (out / mark).unlink(missing_ok=True)


def mark_complete(out: Path, mark: str, text: str) -> None:
    """Say that all of it is there."""
    atomic_write(out / mark, lambda file: file.write_text(text, encoding="utf-8"))
    (out / f"{mark}.begun").unlink(missing_ok=True)


@contextlib.contextmanager
def report_write_errors(out: Path, flag: str = "") -> Iterator[None]:
    """What the system refuses inside becomes one line that names the folder."""
    try:
        yield
    except OSError as error:
        place = f" at {error.filename}" if error.filename and str(error.filename) != str(out) else ""
        raise UserError(
            f"{flag}{out}: cannot be written ({error.strerror or error}{place}); make room, or name another folder"
        ) from error


def _unexpected_entries(out: Path, mark: str) -> list[str]:
    """Return the names in the folder other than the start marker and what a kill left of it."""
    started = f"{mark}.begun"
    return [path.name for path in out.iterdir() if path.name != started and not is_temporary(path.name, started)]
