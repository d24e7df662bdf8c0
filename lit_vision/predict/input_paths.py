"""Images as people name them to a command: files, folders, patterns, lists in a file, or names on standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Sequence

from lit_vision.data.shards.address import is_address
from lit_vision.errors import UserError

LIST_ENDING = ".txt"  # no image has it


def expand_paths(paths: Sequence[str]) -> list[str]:
    """Return the files and folders that some arguments name, in order.

    Args:
        paths: of any kinds: a file or folder; a pattern (`photos/**/*.jpg`, in quotes, if the shell leaves it alone),
            whose matches are sorted; a .txt file with a path a line, relative to the working folder; `-` for such lines
            on standard input; the address of shards. `~/` is the home folder. In lists, empty lines do not count.

    Raises:
        UserError: a path does not exist, a pattern matches nothing, or a list is empty or cannot be read.
    """
    found: list[str] = []
    for path in paths:
        if path == "-":
            found += _listed("-", sys.stdin.buffer.read())
        elif path.lower().endswith(LIST_ENDING) and os.path.isfile(path):
            try:
                with open(path, "rb") as file:
                    found += _listed(path, file.read())
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}; give a list that can be read") from None
        else:
            found += _matches(path)
    return found


def _listed(source: str, content: bytes) -> list[str]:
    """Return the paths of a list; each must exist. Bytes that are no text are kept as file names have them."""
    name = "standard input" if source == "-" else source
    paths = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        path = os.path.expanduser(os.fsdecode(line))
        if not path.strip():
            continue
        if "\0" in path or not os.path.lexists(path):
            raise UserError(f"{name}, line {number}: {path[:200]!r} does not exist; list one path a line")
        paths.append(path)
    if not paths:
        raise UserError(f"{name}: lists no image; give one path a line")
    return paths


def _matches(path: str) -> list[str]:
    path = os.path.expanduser(path)
    if os.path.lexists(path) or is_address(path):
        return [path]
    matches = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
    if not matches:
        raise UserError(f"{path}: no such file or folder; check the path")
    return matches
