"""Format durations as text."""

from __future__ import annotations


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
