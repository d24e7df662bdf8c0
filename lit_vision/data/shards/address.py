"""Addresses of sets that lie elsewhere: s3://, gs://, https:// and whatever else fsspec opens."""

from __future__ import annotations

import os
import re
from typing import TypeGuard

from lit_vision.io.redact import redact

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


class Address(str):
    """Address of a folder, which stands where a `Path` stands for a local one; shown without passwords.

    Args:
        given: as the user gave it.
    """

    given: str

    def __new__(cls, given: str) -> Address:
        given = getattr(given, "given", given).rstrip("/")
        shown = super().__new__(cls, redact(given))
        shown.given = given
        return shown

    def __reduce__(self) -> tuple[type[Address], tuple[str]]:
        return Address, (self.given,)

    def __truediv__(self, name: str) -> Address:
        return Address(f"{self.given}/{name}")

    @property
    def name(self) -> str:
        """Last part of the address."""
        return self.rpartition("/")[2]

    def is_dir(self) -> bool:
        """False: it is no local folder."""
        return False


def is_address(root: object) -> TypeGuard[str]:
    """True for a text with a scheme, such as s3://bucket/set; a local path is none."""
    return isinstance(root, str) and _SCHEME.match(root) is not None and not os.path.exists(root)
