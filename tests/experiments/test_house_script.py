"""experiments/house.py on a small package: what counts as an import, a room, a circle."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import house

FILES = {
    "__init__.py": 'def __getattr__(name):\n    from small.low import deep\n    return deep\n\n__version__ = "1"\n',
    "errors.py": '"""Errors."""\n\nclass SmallError(Exception):\n    pass\n',
    "top.py": '"""Which command."""\nCOMMANDS = {"go": ("small.high.go", "help"), "text": ("small, or not", "")}\n',
    "high/__init__.py": "",
    "high/go.py": "from small.low import Deep, constant\nfrom small import __version__\nimport small.errors as e\n",
    "high/inner/__init__.py": "from .leaf import leaf\n",
    "high/inner/leaf.py": "def leaf():\n    from ... import errors\n    from importlib import import_module\n"
    '    return import_module("small.low.other")\n\ndef _private(): pass\n',
    "low/__init__.py": 'from importlib import import_module\n\n_HOMES = {"Deep": "small.low.deep"}\nconstant = 1\n',
    "low/deep.py": "import os, typing\nfrom small.low.other import leaf\n\nclass Deep: pass\n",
    "low/other.py": "def leaf():\n    '''How it is.'''\n    from small.low import deep\n\ndef main(): pass\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / "small" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "small" / name).write_text(text)
    return tmp_path / "small"


def test_imports_wherever_they_stand(package: Path) -> None:
    assert house.import_graph(package) == {
        "small": set(),  # lazy, of its own
        "small.errors": set(),
        "small.top": {"small.high.go"},  # a table of strings
        "small.high": set(),
        "small.high.go": {"small.low.deep", "small.low", "small", "small.errors"},  # Deep by the table of low/__init__
        "small.high.inner": {"small.high.inner.leaf"},
        "small.high.inner.leaf": {"small.errors", "small.low.other"},  # relative; import_module
        "small.low": set(),  # its table
        "small.low.deep": {"small.low.other"},
        "small.low.other": {"small.low.deep"},
    }


def test_rooms_and_circles(package: Path) -> None:
    graph, rooms = house.import_graph(package), house.rooms_of(package)
    assert sorted(set(rooms.values())) == ["__init__", "errors", "high", "high.inner", "low", "top"]
    assert house.room_graph(graph, rooms) == {
        "__init__": set(),
        "errors": set(),
        "high": {"low", "__init__", "errors"},
        "high.inner": {"errors", "low"},
        "low": set(),
        "top": {"high"},
    }
    assert house.circles(graph) == [{"small.low.deep", "small.low.other"}]


def test_circles_of_a_graph() -> None:
    chain = {"a": {"b"}, "b": {"c"}, "c": set(), "d": {"d"}}
    assert house.circles(chain) == []
    assert house.circles({}) == []
    assert house.circles({**chain, "c": {"a"}, "e": {"f"}, "f": {"e", "a"}}) == [{"a", "b", "c"}, {"e", "f"}]
    assert house.reached(chain, "a") == {"a", "b", "c"}


def test_names_and_docstrings(package: Path) -> None:
    assert house.names_defined_twice(package) == {"leaf": ["small.high.inner.leaf", "small.low.other"]}
    assert house.docstrings_that_ask(package) == ["small/low/other.py:1 How it is.", "small/top.py:1 Which command."]


def test_without_the_commit_the_others_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert house.main(["no-such-commit"]) == 1
    assert "no-such-commit" in capsys.readouterr().err
