"""Turn settings into plain values, so that a checkpoint that holds them can be loaded again by any program."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lit_vision.errors import UserError


def plain_value(value: Any, name: str) -> Any:
    """Return a setting as a number, text, list, tuple or dictionary of these, or None.

    Numbers and arrays of numpy and tensors become Python's numbers and lists, paths become text.

    Args:
        value: the setting.
        name: of it, for the message.

    Raises:
        UserError: it has another type, which only the program that made it could load.
    """
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return plain_value(value.tolist(), name)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {plain_value(key, name): plain_value(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain_value(item, f"{name}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    for kind in (bool, int, float, str):  # a subclass, such as an enumeration of texts
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    kind_name = f"{type(value).__module__}.{type(value).__qualname__}"
    raise UserError(
        f"{name}: {kind_name} cannot be stored in a checkpoint; give a number, text, list or mapping of these"
    )
