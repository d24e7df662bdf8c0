"""Format durations, lists of names, and names that are not UTF-8 as text to print; check that a file is text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lit_vision.errors import UsageError


def format_duration(seconds: float) -> str:
    """Return seconds as readable text: 42s, 3:07, 2:05:09, 3d 02:00."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds}s"
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    if hours == 0:
        return f"{m}:{s:02d}"
    days, h = divmod(hours, 24)
    return f"{days}d {h:02d}:{m:02d}" if days else f"{h}:{m:02d}:{s:02d}"


def join_names(names: Iterable[str], most: int = 3) -> str:
    """Return names separated by commas for a message: the first `most`, then how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def printable(text: str) -> str:
    """Return text for a terminal, a plot or a page: bytes of a file's name that are not UTF-8 are escaped.

    Python keeps such a byte as a lone surrogate, which nothing can draw or encode. Files that are read again keep the
    bytes (errors="surrogateescape").
    """

    def escape(match: re.Match[str]) -> str:
        code = ord(match[0])
        return f"\\x{code & 0xFF:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return re.sub("[\ud800-\udfff]", escape, text)


def is_text(text: str, allow_bytes: bool = False) -> bool:
    """Return False for text with a lone surrogate, which no file or tokenizer takes.

    It comes from JSON whose escape of a character was cut in half, or from a byte that is not UTF-8 (of a command line
    or a file's name).

    Args:
        text: the text.
        allow_bytes: such bytes are no fault.
    """
    try:
        text.encode("utf-8", "surrogateescape" if allow_bytes else "strict")
    except UnicodeEncodeError:
        return False
    return True


def check_text_file(flag: str, path: Path) -> None:
    """Refuse a file that cannot be read as UTF-8 text.

    Raises:
        UsageError: names the flag and the file.
    """
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{flag} {path}: is not a text file in UTF-8; save it as such, or name another") from None
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror}; name a file that can be read") from None
