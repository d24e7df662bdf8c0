"""Freed memory is kept in the process of a command that gains by it, and nowhere else."""

import os
import subprocess
import sys

import pytest

from lit_vision.cli import main as cli
from lit_vision.errors import UsageError
from lit_vision.io import malloc

GLIBC = malloc._is_glibc()
# malloc maps a block of 64 MB by itself (hblks of mallinfo counts these), unless memory is kept
MAPPED_BLOCKS = """
import ctypes, os, sys
{prepare}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.malloc.argtypes = [ctypes.c_size_t]
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]
libc.mallinfo.restype = Info
before = libc.mallinfo().hblks
block = libc.malloc(64 << 20)
print(libc.mallinfo().hblks - before)
"""
COMMAND = """
import lit_vision.cli.main as cli, types
sys.modules["stub"] = types.SimpleNamespace(main=lambda rest: 0)
cli.COMMANDS[{name!r}] = ("stub", "main", "")
assert cli.main([{name!r}]) == 0
assert "torch" not in sys.modules
"""


def mapped_blocks(prepare: str, **variables: str) -> int:
    """Return how many blocks malloc maps by themselves for 64 MB, after some code in a new process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != malloc.VARIABLE}
    script = MAPPED_BLOCKS.format(prepare=prepare)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**kept, **variables}
    )
    return int(done.stdout)


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
@pytest.mark.parametrize(
    ("prepare", "variables", "mapped"),
    [
        ("import lit_vision", {}, 1),
        (COMMAND.format(name="predict"), {}, 0),
        (COMMAND.format(name="predict"), {malloc.VARIABLE: "off"}, 1),
        (COMMAND.format(name="predict"), {"MALLOC_TRIM_THRESHOLD_": "1000000"}, 1),
        (COMMAND.format(name="fit"), {}, 1),
        (COMMAND.format(name="fit"), {malloc.VARIABLE: "on"}, 0),
    ],
)
def test_large_blocks_come_from_the_heap_only_where_memory_is_kept(prepare, variables, mapped):
    assert mapped_blocks(prepare, **variables) == mapped


@pytest.fixture
def calls(monkeypatch):
    """Return the calls of mallopt, which does nothing; the process is one of a command, on glibc."""
    made = []

    class Library:
        refuses: tuple[int, ...] = ()

        def __init__(self, name):
            pass

        def mallopt(self, option, value):
            made.append((option, value))
            return int(value not in Library.refuses)

    monkeypatch.setattr(malloc.ctypes, "CDLL", Library)
    monkeypatch.setattr(malloc.sys, "platform", "linux")
    monkeypatch.setattr(malloc.os, "confstr", lambda name: "glibc 2.36", raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for name in [malloc.VARIABLE, "GLIBC_TUNABLES", "LD_PRELOAD", *(n for n in os.environ if n.startswith("MALLOC_"))]:
        monkeypatch.delenv(name, raising=False)
    made.append(Library)
    return made


def test_an_old_glibc_gets_its_own_limit(calls):
    library = calls.pop()
    assert malloc.keep_freed_memory(True)
    assert calls == [(malloc.M_MMAP_THRESHOLD, malloc.LARGEST_BLOCK), (malloc.M_TRIM_THRESHOLD, malloc.KEPT)]
    library.refuses = (malloc.LARGEST_BLOCK,)
    calls.clear()
    assert malloc.keep_freed_memory(True)
    assert calls[1:] == [(malloc.M_MMAP_THRESHOLD, malloc.OLD_LARGEST_BLOCK), (malloc.M_TRIM_THRESHOLD, malloc.KEPT)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2"),
        ("LD_PRELOAD", "/usr/lib/libtcmalloc_minimal.so.4"),
        ("MALLOC_ARENA_MAX", "2"),
        (malloc.VARIABLE, "off"),
    ],
)
def test_what_the_user_has_chosen_stays(calls, monkeypatch, name, value):
    calls.pop()
    monkeypatch.setenv(name, value)
    assert not malloc.keep_freed_memory(True)
    assert calls == []


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_another_c_library_is_left_alone(calls, monkeypatch, error):
    calls.pop()

    def confstr(name):
        raise error("unrecognized configuration name")

    monkeypatch.setattr(malloc.os, "confstr", confstr, raising=False)
    assert not malloc.keep_freed_memory(True)
    assert calls == []


def test_a_process_that_has_torch_already_is_left_alone(calls, monkeypatch):
    calls.pop()
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert not malloc.keep_freed_memory(True)
    assert calls == []


def test_another_value_of_the_variable_is_wrong_usage(calls, monkeypatch, capsys):
    calls.pop()
    monkeypatch.setenv(malloc.VARIABLE, "no")
    with pytest.raises(UsageError, match=malloc.VARIABLE):
        malloc.keep_freed_memory(True)
    assert cli.main(["predict"]) == 2
    assert malloc.VARIABLE in capsys.readouterr().err
