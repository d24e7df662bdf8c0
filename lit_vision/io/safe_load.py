"""Load a file of torch.save without executing anything in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lit_vision.errors import UserError


class DamagedCheckpointError(UserError):
    """The bytes of a checkpoint are not those that were written."""


def load_safely(path: Path, map_location: Any = None) -> dict[str, Any]:
    """torch.load of a file of tensors and plain values; DamagedCheckpointError for anything else, which is not executed."""
    try:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # bytes that are no pickle make the reader stumble in any way
        reason = str(error).strip().split("\n")[0][:150]
        raise DamagedCheckpointError(f"{path}: not a checkpoint that can be loaded safely ({reason})") from error
