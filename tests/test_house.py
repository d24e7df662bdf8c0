"""The rooms of the package: their order, no import circles, nothing loose, and what only one room may touch.

experiments/house.py says how rooms, imports and circles are counted, and prints them: make house.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import house

# From the top down: a room imports only rooms below it. A folder within a room (data/views) stands on the room's floor;
# among such folders there is an order as well, for they may not form a circle.
FLOORS = [
    "__main__",
    "cli",
    "serve",
    "study",
    "sweep",
    "convert",
    "predict",
    "callbacks",
    "runs",
    "methods",
    "results",
    "evaluation",
    "weights",
    "backbones",
    "data",
    "optim",
    "io",
    # used by all
    "distributed",
    "lightning_internals",
    "errors",
    "__init__",
]
MODULES_AT_THE_TOP = 5  # __init__ and __main__ counted
PARSERS = {"argparse", "jsonargparse", "lightning.pytorch.cli"}  # only cli/ reads a command line
NAMESPACE_IS_DATA = {  # modules that need argparse's Namespace, but no parser
    "lit_vision.io.safe_load",  # checkpoints of training scripts hold one
    "lit_vision.runs.loggers",  # Lightning may log hyperparameters as one
    "lit_vision.weights.checkpoint_layouts",  # official checkpoints hold one
}
LIGHTNING_PRIVATE = {  # only lightning_internals.py depends on these
    "_accelerator_connector",
    "_batches_that_stepped",
    "_callback_connector",
    "_checkpoint_connector",
    "_combined_loader",
    "_data_connector",
    "_data_fetcher",
    "_layer_sync",
    "_logger_connector",
    "_should_accumulate",
    "_should_check_val_fx",
    "_signal_connector",
}

PACKAGE = house.ROOT / house.PACKAGE


@pytest.fixture(scope="module")
def graph() -> house.Graph:
    return house.import_graph(PACKAGE)


@pytest.fixture(scope="module")
def arrows(graph: house.Graph) -> house.Graph:
    return house.room_graph(graph, house.rooms_of(PACKAGE))


def test_no_circle_between_files(graph: house.Graph) -> None:
    assert house.circles(graph) == []


def test_no_circle_between_rooms(arrows: house.Graph) -> None:
    assert house.circles(arrows) == []


def test_every_room_has_a_floor(arrows: house.Graph) -> None:
    assert {room.split(".")[0] for room in arrows} <= set(FLOORS)


def test_a_room_imports_only_rooms_below_it(graph: house.Graph) -> None:
    rooms = {module: room.split(".")[0] for module, room in house.rooms_of(PACKAGE).items()}
    floor = {room: number for number, room in enumerate(FLOORS)}
    upward = [
        f"{module} ({rooms[module]}) -> {target} ({rooms[target]})"
        for module, targets in graph.items()
        for target in targets
        if rooms[module] != rooms[target] and not floor[rooms[module]] < floor[rooms[target]]
    ]
    assert upward == []


def test_few_modules_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MODULES_AT_THE_TOP


def test_a_public_name_stands_in_one_module() -> None:
    assert house.names_defined_twice(PACKAGE) == {}


def test_docstrings_say_and_do_not_ask() -> None:
    assert house.docstrings_that_ask(PACKAGE) + house.docstrings_that_ask(house.ROOT / "experiments") == []


def test_every_file_is_tracked_by_git() -> None:
    """An ignored folder (runs/ in .gitignore, once) would be missing from every clone."""
    command = ["git", "-C", str(house.ROOT), "ls-files", "--others", "-z", house.PACKAGE]
    try:
        others = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a git checkout")
    assert [name for name in filter(None, others) if "__pycache__" not in Path(name).parts] == []


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted names of what a file imports; `from a import b` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def private_of_lightning(tree: ast.Module) -> Iterator[str]:
    """Yield uses of Lightning's private names: known ones, underscores of a trainer's, imports of underscored names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain = {part.attr for part in ast.walk(node.value) if isinstance(part, ast.Attribute)}
            chain |= {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            if node.attr in LIGHTNING_PRIVATE or (private and "trainer" in chain):
                yield f"line {node.lineno}: {node.attr}"
        elif isinstance(node, ast.Constant) and str(node.value) in LIGHTNING_PRIVATE:
            yield f"line {node.lineno}: {node.value!r}"  # getattr(strategy, "_layer_sync")
    for name in imported(tree):
        parts = name.split(".")
        if parts[0] == "lightning" and any(part.startswith("_") and not part.startswith("__") for part in parts):
            yield name


def test_private_uses_are_found() -> None:
    """The finder of the next test finds what it should and leaves the package's own underscores alone."""
    text = """
from lightning.pytorch.loops import _TrainingEpochLoop
from lightning.pytorch import Trainer, __version__
def f(self, trainer):
    trainer.fit_loop.epoch_loop._batches_that_stepped
    self.trainer.strategy._anything
    getattr(self.x, "_layer_sync", None)
    self._own = trainer.model
    self._trainer_of._own
    trainer.model.__class__
"""
    found = set(private_of_lightning(ast.parse(text)))
    assert found == {
        "lightning.pytorch.loops._TrainingEpochLoop",
        "line 5: _batches_that_stepped",
        "line 6: _anything",
        "line 7: '_layer_sync'",
    }


def test_only_cli_reads_a_command_line() -> None:
    rooms = house.rooms_of(PACKAGE)
    found = {}
    for module, file in house.modules_in(PACKAGE).items():
        names = PARSERS & set(imported(house.parse(file)))
        if rooms[module] != "cli" and (names := names - ({"argparse"} if module in NAMESPACE_IS_DATA else set())):
            found[module] = names
    assert found == {}


def test_only_lightning_internals_reads_private_state_of_lightning() -> None:
    found = {
        module: names
        for module, file in house.modules_in(PACKAGE).items()
        if file.stem != "lightning_internals" and (names := sorted(private_of_lightning(house.parse(file))))
    }
    assert found == {}


def test_the_table_of_the_working_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert house.main([".", "--no_mypy", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "rooms in import circles" in out
    assert "working tree: arrows between rooms" in out
