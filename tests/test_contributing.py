"""CONTRIBUTING.md and AGENTS.md name rooms, files, targets and commands that exist."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from lit_vision import methods

ROOT = Path(__file__).parent.parent
PAGES = ["CONTRIBUTING.md", "AGENTS.md"]
PLACEHOLDERS = {"NAME", "TASK", "ROOM", "URL"}


def code_of(page: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL))


def test_contributing__lists_the_rooms_in_their_order() -> None:
    listed = re.findall(r"^\| `(\w+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    floors = re.search(r"^FLOORS = \[(.*?)^\]", (ROOT / "tests/test_house.py").read_text(), re.MULTILINE | re.DOTALL)
    assert floors
    rooms = {path.parent.name for path in (ROOT / "lit_vision").glob("*/__init__.py")}
    assert listed == [name for name in re.findall(r'"(\w+)"', floors[1]) if name in rooms]


def test_pages__name_every_method() -> None:
    readme, contributing = ((ROOT / page).read_text() for page in ("README.md", "CONTRIBUTING.md"))
    assert [name for name in methods.__all__ if not re.search(rf"\b{name}\b", readme)] == []
    (row,) = re.findall(r"^\| `methods/` \|.*$", contributing, re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "lit_vision/methods").glob("*/network.py")}
    assert {name for name in folders if name not in row.lower()} == set()


def test_readme__names_existing_targets_and_every_table() -> None:
    readme, makefile = ((ROOT / page).read_text() for page in ("README.md", "Makefile"))
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:^|`|  )make ([a-z-]+)", readme, re.MULTILINE)) - {"verify-"}  # `make verify-...`
    assert {"demo", "table-few-label"} <= named <= targets
    assert [name for name in targets if name.startswith("table-") and name.removeprefix("table-") not in readme] == []


def test_experiments__scripts_and_tests_are_listed_as_they_are() -> None:
    patterns = re.findall(r"`([\w*]+(?:\.py|/))`", (ROOT / "experiments/README.md").read_text())
    scripts = [path.name for path in (ROOT / "experiments").glob("*.py")]
    assert [name for name in scripts if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "experiments/RELIABILITY.md").read_text()))
    there = set(re.findall(r"^ *def (test_\w+)", "".join(p.read_text() for p in (ROOT / "tests").rglob("*.py")), re.M))
    assert named
    assert named - there == set()


@pytest.mark.parametrize("page", PAGES)
def test_page__names_existing_targets(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in re.findall(r"^(make [^#\n]*)|`(make [^`\n]*)`", (ROOT / page).read_text(), re.MULTILINE):
        words = "".join(command).split()[1:]
        assert {word for word in words if "=" not in word} <= targets


@pytest.mark.parametrize("page", PAGES)
def test_page__names_existing_files(page: str) -> None:
    paths = [
        word
        for word in code_of(page)
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", word)
        and not PLACEHOLDERS & set(re.split(r"\W", word))
        and (word.endswith("/") or word.endswith((".py", ".yaml", ".txt")))
    ]
    assert paths
    missing = [
        p for p in paths if not any((ROOT / base / p).exists() for base in ("", "lit_vision", "lit_vision/data"))
    ]
    assert missing == []


def test_contributing__names_existing_constants() -> None:
    """The steps of "How to add" name tables by their constants."""
    sources = [path.read_text() for room in ("lit_vision", "tests") for path in (ROOT / room).rglob("*.py")]
    defined = {name for text in sources for name in re.findall(r"^([A-Z_]{4,})(?:: .+)? = ", text, re.MULTILINE)}
    steps = (ROOT / "CONTRIBUTING.md").read_text().split("## How to add")[1]
    named = set(re.findall(r"`(_?[A-Z][A-Z_]{3,})`", steps)) - PLACEHOLDERS
    assert named
    assert named <= defined
