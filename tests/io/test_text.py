"""Lists of names are shortened; names that are not UTF-8 can be printed."""

import os
import subprocess
import sys
from types import SimpleNamespace

from lit_vision.io.text import join_names, printable
from lit_vision.study.report_sections import unless_it_fails


def test_printable__escapes_bytes_that_are_not_utf8_only() -> None:
    assert printable(os.fsdecode(b"caf\xe9 \xff.jpg")) == r"caf\xe9 \xff.jpg"
    assert printable("café \ud800") == r"café \ud800"
    printable(os.fsdecode(bytes(range(256)))).encode("utf-8")


def test_join_names__says_how_many_more_there_are() -> None:
    assert join_names("abc") == "a, b, c"
    assert join_names(name for name in "abcde") == "a, b, c and 2 more"
    assert join_names([]) == ""


def test_a_command_prints_such_a_name(tmp_path) -> None:
    name = os.fsdecode(b"caf\xe9")
    code = "import sys; from lit_vision.cli.main import main; main(['--version']); print(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, check=True)
    assert b"caf\\udce9" in done.stdout


def test_a_part_of_a_report_that_fails_is_said_in_it() -> None:
    logged: list[str] = []
    study = SimpleNamespace(reporter=SimpleNamespace(log=logged.append))
    (section,) = unless_it_fails(study, "Map", lambda: [][0])
    assert section.title == "Map"
    assert "IndexError" in section.text
    assert "Map" in logged[0]
