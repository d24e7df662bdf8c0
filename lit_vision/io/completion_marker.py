"""Start and completion markers of generated folders, so that a command that was cut off can be repeated.

OUT/<mark>.begun is written before anything else, OUT/<mark> after everything; both hold the description of the content,
and are written atomically.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write, is_temporary

STARTED = ".begun"  # suffix of the start marker; an older word, which unfinished folders have


def is_complete(out: Path, mark: str, note: Any, flag: str = "", read: Callable[[str], Any] = json.loads) -> bool:
    """True if the folder is complete; False if it is empty, missing, or an unfinished folder of the same content.

    Args:
        out: the folder.
        mark: file name of the completion marker in it.
        note: description of the content, as `read` returns it.
        flag: the flag that named the folder, for messages ("--out ").
        read: parses a marker's text into what is compared with `note`; raises ValueError if the text is damaged.

    Raises:
        UserError: `out` is a file, holds something else, or a damaged marker.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{flag}{out}: a file where a folder is expected; name another")
    for name in (mark, mark + STARTED):
        if not (out / name).exists():
            continue
        try:
            found = read((out / name).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            if name != mark and not _unexpected_entries(out, mark):  # the folder holds nothing else
                return False
            raise UserError(
                f"{flag}{out}: its marker {name} is damaged and its content unknown; remove the folder or name another"
            ) from None
        if found != note:
            what = "it holds another data set" if name == mark else "it holds another, unfinished data set"
            raise UserError(f"{flag}{out}: {what} (see {name}); name another folder or remove it")
        return name == mark
    if out.exists() and _unexpected_entries(out, mark):
        raise UserError(f"{flag}{out}: the folder is not empty and was not created by this command; name another")
    return False


def mark_started(out: Path, mark: str, text: str) -> None:
    """Create the folder and its start marker with `text`, and remove its completion marker."""
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / (mark + STARTED), lambda file: file.write_text(text, encoding="utf-8"))
    (out / mark).unlink(missing_ok=True)


def mark_complete(out: Path, mark: str, text: str) -> None:
    """Write the completion marker with `text`, and remove the start marker."""
    atomic_write(out / mark, lambda file: file.write_text(text, encoding="utf-8"))
    (out / (mark + STARTED)).unlink(missing_ok=True)


@contextlib.contextmanager
def report_write_errors(out: Path, flag: str = "") -> Iterator[None]:
    """Turn an OSError inside the block into a UserError that names the folder."""
    try:
        yield
    except OSError as error:
        where = f" at {error.filename}" if error.filename and str(error.filename) != str(out) else ""
        raise UserError(
            f"{flag}{out}: cannot be written ({error.strerror or error}{where}); make room, or name another folder"
        ) from error


def _unexpected_entries(out: Path, mark: str) -> list[str]:
    """Return the names in the folder other than the start marker and what a kill left of it."""
    started = mark + STARTED
    return [path.name for path in out.iterdir() if path.name != started and not is_temporary(path.name, started)]
