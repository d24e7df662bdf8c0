"""The parser of the commands' words."""

from __future__ import annotations

import argparse
from typing import Any

from lit_vision.errors import UsageError


class Words(argparse.ArgumentParser):
    """A parser whose faults are one line and exit code 2, and that never guesses a flag from its beginning."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> None:
        """Raises UsageError."""
        raise UsageError(f"{self.prog.rpartition(' ')[2]}: {message}; see {self.prog} --help")
