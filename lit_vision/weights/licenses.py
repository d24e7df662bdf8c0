"""Read the licenses of weights as the files, packages and timm state them: SPDX names or free text."""

from __future__ import annotations

import re

_NON_COMMERCIAL = re.compile(r"(^|[^a-z])nc([^a-z]|$)|non-?\s?commercial|research[- ]only", re.IGNORECASE)


def is_non_commercial(license: str) -> bool:
    """Return True if a license forbids commercial use, as CC-BY-NC does."""
    return bool(_NON_COMMERCIAL.search(license))


def with_note(license: str) -> str:
    """Return the license's text with "(non-commercial)" behind a name that says it only in letters."""
    plain = "commercial" in license.lower()
    return f"{license} (non-commercial)" if is_non_commercial(license) and not plain else license
