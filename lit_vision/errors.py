"""Errors that the user can fix, which the command line prints as one line.

Any other exception is a bug and keeps its traceback.
"""


class UserError(Exception):
    """An error that the user can fix, with exit code 1.

    The message names the file, key or flag, what is wrong, and what to do.
    """

    exit_code = 1


class UsageError(UserError):
    """A command line with wrong flags or values. Exit code 2."""

    exit_code = 2
