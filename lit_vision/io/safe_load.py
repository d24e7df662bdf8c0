"""Load a file of torch.save without executing anything in it: tensors and plain data, and nothing else.

Plain data are Python's and numpy's numbers, strings, containers, arrays, paths, dates and argparse's namespaces. Their
constructors have no effect but the value, so a file of other people's training (`best_acc` as np.float64, `args` with a
Path in it) is read like any other. Every other class is refused by its name.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_vision.errors import UserError


class DamagedCheckpointError(UserError):
    """The bytes of a checkpoint differ from those that were written."""


# module names of numpy before and after 2.0, and of pathlib in Python 3.13: a file holds those of its writer
_NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_PATHLIB_MODULES = ("pathlib", "pathlib._local")


def _as_text(*parts: str) -> str:
    """Return a pickled path as text: a path of Windows cannot be built elsewhere."""
    return pathlib.PurePosixPath(*(part.replace("\\", "/") for part in parts)).as_posix()


def plain_data() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return what torch's `safe_globals` allows for plain data, beyond tensors and Python's own numbers and containers.

    Paths become strings.
    """
    from numpy._core import multiarray

    codes = [np.dtype(code) for code in np.typecodes["All"]]
    numbers = {dtype.type for dtype in codes if issubclass(dtype.type, np.number | np.bool_)}
    numpy_types: list[Callable[..., Any]] = [np.dtype, np.ndarray, *{type(dtype) for dtype in codes}, *numbers]
    functions = [
        (getattr(multiarray, name), f"{module}.{name}")
        for module in _NUMPY_MODULES
        for name in ("scalar", "_reconstruct")
    ]
    paths = [
        (_as_text, f"{module}.{name}")
        for module in _PATHLIB_MODULES
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ]
    dates = [datetime.datetime, datetime.date, datetime.timedelta]
    return [*numpy_types, *functions, *paths, *dates, argparse.Namespace, types.SimpleNamespace]


def refused_class(error: BaseException) -> str:
    """Return the name of the class or function that `weights_only` refused, from torch's message; "" if it has none."""
    named = re.search(r"GLOBAL ([\w.]+)|(?:class|function|type) <class '([\w.]+)'>", str(error))
    return next((name for name in named.groups() if name), "") if named else ""


def unreadable(path: Path) -> str:
    """Return why a file that torch.save has just written could not be loaded again; "" if it can.

    The tensors' bytes are not read (their hash was computed while they were written), so this takes milliseconds.
    """
    try:
        with torch.serialization.safe_globals(plain_data()):
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # as in load_safely
        found = refused_class(error)
        return f"it holds {found}, which is no plain data" if found else str(error).strip().split("\n")[0][:150]
    return ""


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
        with torch.serialization.safe_globals(plain_data()):
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return checkpoint
    except OSError:
        raise
    except Exception as error:  # bytes that are no pickle can raise anything
        found = refused_class(error)
        reason = f"it holds {found}, which is no plain data" if found else str(error).strip().split("\n")[0][:150]
        raise DamagedCheckpointError(f"{path}: not a checkpoint that can be loaded safely ({reason})") from error
