"""Have the C library keep freed memory for the next batch, instead of giving it back to the kernel page by page."""

from __future__ import annotations

import ctypes
import os
import sys

from lit_vision.errors import UsageError

VARIABLE = "LIT_VISION_MALLOC"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
# Blocks of this size or more (bytes) are given back when they are freed. A batch of 32 images of 224 pixels in a
# ResNet-50 has tensors of 103 MB. With 32 MiB half of its page faults remain, with 128 MiB a quarter, with this 7 %.
LARGEST_BLOCK = 256 << 20
OLD_LARGEST_BLOCK = 32 << 20  # the most that older versions of glibc accept
KEPT = 512 << 20  # bytes of free memory at the end of the heap, at most
OTHER_ALLOCATORS = ("malloc", "hoard", "umem")  # in LD_PRELOAD: jemalloc, tcmalloc, mimalloc, ...


def keep_freed_memory(by_default: bool) -> bool:
    """Raise glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD in this process; return True if that was done.

    Nothing happens with another C library, where the user has chosen an allocator or its settings (MALLOC_*,
    GLIBC_TUNABLES, LD_PRELOAD), or where torch is already imported, since the process is then not ours alone.
    Forked processes inherit the setting, spawned ones do not. `make benchmark` (section memory) measures the effect.

    Args:
        by_default: what is done if the environment variable LIT_VISION_MALLOC is not set; "on" and "off" decide.

    Raises:
        UsageError: the variable has another value.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "on", "off"):
        raise UsageError(f"{VARIABLE} {value!r}: set it to on or off")
    wanted = value == "on" or (by_default and not value)
    if not wanted or "torch" in sys.modules or not _is_glibc() or _user_has_chosen():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    if not (mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK) or mallopt(M_MMAP_THRESHOLD, OLD_LARGEST_BLOCK)):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT))


def _is_glibc() -> bool:
    try:
        return sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError, AttributeError):  # musl, macOS
        return False


def _user_has_chosen() -> bool:
    """Return True if the environment names another allocator or sets glibc's."""
    preloaded = os.environ.get("LD_PRELOAD", "").lower()
    return (
        any(name.startswith("MALLOC_") for name in os.environ)
        or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
        or any(name in preloaded for name in OTHER_ALLOCATORS)
    )
