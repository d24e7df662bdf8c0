"""Faults that the user can mend. The command line prints them as one line; everything else is a bug and keeps its traceback."""


class UserError(Exception):
    """A fault with a mend: the message names the file, key or flag, what is wrong, and what to do. Exit code 1."""

    exit_code = 1


class UsageError(UserError):
    """The command itself was typed wrongly. Exit code 2."""

    exit_code = 2
