"""Load a file of torch.save without executing anything in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lit_vision.errors import UserError


class DamagedCheckpointError(UserError):
    """The bytes of a checkpoint differ from those that were written."""


def load_safely(path: Path, map_location: Any = None) -> dict[str, Any]:
    """Return the content of a file of tensors and plain values.

    Args:
        path: a file of torch.save.
        map_location: as in torch.load; the CPU if None.

    Raises:
        DamagedCheckpointError: the file is damaged or holds something else, which is not executed.
        OSError: the file cannot be read.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return checkpoint
    except OSError:
        raise
    except Exception as error:  # bytes that are no pickle can raise anything
        reason = str(error).strip().split("\n")[0][:150]
        raise DamagedCheckpointError(f"{path}: not a checkpoint that can be loaded safely ({reason})") from error
