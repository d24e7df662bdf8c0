"""Format durations, and names that are not UTF-8, as text that can be printed."""

from __future__ import annotations

import re


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


def printable(text: str) -> str:
    """Return text for a terminal, a plot or a page: bytes of a file's name that are not UTF-8 are escaped.

    Python keeps such a byte as a lone surrogate, which nothing can draw or encode. Files that are read again keep the
    bytes (errors="surrogateescape").
    """

    def escape(match: re.Match[str]) -> str:
        code = ord(match[0])
        return f"\\x{code & 0xFF:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return re.sub("[\ud800-\udfff]", escape, text)
