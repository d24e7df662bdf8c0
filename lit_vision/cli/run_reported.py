"""Run a command and turn what it raises into one line on standard error and an exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from lit_vision.cli.library_errors import from_library_error
from lit_vision.errors import UserError
from lit_vision.io.redact import redact

# They take as flags what recipes and fit call data.NAME, and their errors name the flag.
WITH_LABEL_FLAGS = ("study", "choose", "doctor")
_LABEL_SETTING = re.compile(
    r"\bdata\.(label_file|path_column|label_column|label_columns|label_separator|split_column|group_by)\b"
)


def run_reported(name: str, call: Callable[[], int | None]) -> int:
    """Return the exit code of a command: what `call` returns, 0 for None, 1 or 2 after an error, 130 after Ctrl-C.

    Args:
        name: of the command.
        call: runs it.

    Raises:
        Exception: a bug, whose traceback is to be seen.
    """
    try:
        return call() or 0
    except UserError as error:
        return _report(error, name)
    except KeyboardInterrupt:
        print("lit-vision: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except Exception as error:
        known = from_library_error(error)
        if known is None:
            raise
        return _report(known, name)


def _report(error: UserError, command: str) -> int:
    """Print an error in one line; return its exit code."""
    text = str(error)
    if command in WITH_LABEL_FLAGS:
        text = _LABEL_SETTING.sub(r"--\1", text)
    text = redact(text).replace("\n", "\\n").replace("\r", "\\r")  # names of files may have line ends
    print(f"lit-vision: error: {text}", file=sys.stderr)
    return error.exit_code
