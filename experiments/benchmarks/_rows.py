"""Rows of the benchmark's tables."""

from __future__ import annotations

from typing import Any


def make_row(
    what: str, value: float, unit: str, against: str = "-", target: str = "-", met: bool | None = None
) -> dict[str, Any]:
    """Return a row.

    Args:
        what: the quantity that was measured.
        value: its value.
        unit: of the value, "x" for a ratio.
        against: for a ratio, what it is relative to.
        target: the promise as text, "-" for none.
        met: whether the target is met, None without one.
    """
    return {"what": what, "value": value, "unit": unit, "against": against, "target": target, "met": met}
