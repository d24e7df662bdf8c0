"""Forks of the tests' own process, which holds whatever earlier tests left in it."""

import contextlib
import gc
import os
from collections.abc import Iterator


@contextlib.contextmanager
def parent_objects_kept() -> Iterator[None]:
    """Fork inside it: the child never destroys objects of its parent.

    A child that collected a session of ONNX Runtime, which an earlier test had dropped, waited for ever for the
    session's threads: they are in the parent alone.
    """
    parent = os.getpid()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if os.getpid() == parent:
            gc.unfreeze()
