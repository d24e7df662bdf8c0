"""Find a file by a path that was written on another machine: the longest end of it that is a file here."""

from __future__ import annotations

from collections.abc import Container
from urllib.parse import parse_qs, unquote, urlsplit


def longest_end(name: str, files: Container[str]) -> str:
    """Return the longest end of a name, whole folders, that is one of some files; "" if none is."""
    for path in _readings(name):
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for start in range(len(parts)):
            if (end := "/".join(parts[start:])) in files:
                return end
    return ""


def _readings(name: str) -> list[str]:
    """Return the paths that a name may stand for: with backslashes turned, and of a URL its path and its query d."""
    plain = name.replace("\\", "/")
    found = [plain]
    if "://" in plain or "?" in plain or "%" in plain:
        try:
            url = urlsplit(plain)
        except ValueError:  # "http://[" has no host
            return found
        found += [unquote(url.path)]
        found += parse_qs(url.query).get("d", [])  # Label Studio: /data/local-files/?d=folder/a.jpg
    return found
