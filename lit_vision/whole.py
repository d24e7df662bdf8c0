"""A file or folder that appears under its name only when all of it is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from lit_vision.errors import UserError


def save_whole(out: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a name beside `out`, then gives what it wrote the name `out`, replacing what was there.

    Raises:
        UserError: the place cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.tmp")
    try:
        write(beside)
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(beside, out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); make room or choose another place"
        ) from error
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        beside.unlink(missing_ok=True)
