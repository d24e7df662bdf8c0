"""Measure how the package is built: rooms, import circles, names, long lines, types; `make house` runs it.

    python experiments/house.py [TREE ...] [--verbose] [--no_mypy]

TREE is a commit (read with git archive) or a folder that holds lit_vision/ ("." is the working tree). Default: 37adabd,
the last commit before the modules moved into today's folders, and the working tree.

Room: a folder of the package that holds Python files (data and data.views are two), or a single module at the package's
top, __init__ and __main__ included. Arrow: some file of one room imports some file of another. Circle: rooms, or files,
that all reach each other by imports. Counted as imports, wherever in a file they stand: import statements, and strings
that name a module of the package or something in it (`import_module("...")`, the command table). Not counted: lazy
imports of a package's `__init__` from its own package (a table of names, inside a function, for type checkers alone). A
name imported from such an `__init__` counts as imported from the module that defines it.
tests/test_house.py holds what must stay as it is.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lit_vision.cli.parser import ScriptParser

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "lit_vision"
BEFORE = "37adabd"
MAX_LINE = 120
QUESTION = re.compile(r"(What|How|Which|Whether|Why|Who|When|Where)\b")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# From a batch to the loss: the method, what it imports of methods/ and distributed.py, and the backbone.
METHODS = ("MAE", "SimCLR")
LOSS_ROOMS = ("methods", "distributed")
LOSS_ALSO = "backbones.backbone"

Graph = dict[str, set[str]]


def modules_in(package: Path) -> dict[str, Path]:
    """Return {dotted name: file} of a package's modules; a folder's `__init__.py` has the folder's name."""
    modules = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


@functools.cache
def parse(file: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def string_in(node: ast.AST | None) -> str:
    """Return the text of a string literal, "" for any other node."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def for_type_checkers(node: ast.AST) -> bool:
    """Return True for `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


class _Imports:
    """Finds the modules of a package that a module imports.

    Args:
        modules: as `modules_in` returns them.
    """

    def __init__(self, modules: Mapping[str, Path]) -> None:
        self.modules = modules
        self.trees = {name: parse(file) for name, file in modules.items()}
        self.dotted = re.compile(min(modules, key=len) + r"(\.\w+)+(:\w+)?")
        self.reexports: dict[str, dict[str, str]] = {}
        for name in modules:
            if self.is_package(name):
                self.reexports[name] = dict(self._reexports(name))

    def is_package(self, module: str) -> bool:
        return self.modules[module].name == "__init__.py"

    def of(self, module: str) -> set[str]:
        """Return the modules that `module` imports, but for lazy imports of an `__init__` from its own package."""
        tree = self.trees[module]
        parts = (part for part in ast.walk(tree) if isinstance(part, FUNCTIONS) or for_type_checkers(part))
        lazy = {id(node) for part in parts for node in ast.walk(part)}
        found = set()
        for node in ast.walk(tree):
            is_lazy = id(node) in lazy or isinstance(node, ast.Constant)
            for target in self._named_by(node, module):
                own = self.is_package(module) and target.startswith(module + ".")
                if target != module and not (is_lazy and own):
                    found.add(target)
        return found

    def _named_by(self, node: ast.AST, module: str) -> Iterator[str]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from self._longest(alias.name, at_least=0)
        elif isinstance(node, ast.ImportFrom):
            base = self._base(node, module)
            for alias in node.names if base in self.modules else ():
                yield self.home(base, alias.name)
        elif self.dotted.fullmatch(text := string_in(node)):
            yield from self._longest(text.replace(":", "."), at_least=1)

    def _base(self, node: ast.ImportFrom, module: str) -> str:
        """Return the module after `from`, relative ones resolved."""
        if not node.level:
            return node.module or ""
        package = module.split(".") if self.is_package(module) else module.split(".")[:-1]
        above = package[: len(package) - node.level + 1]
        return ".".join([*above, *([node.module] if node.module else [])])

    def home(self, base: str, name: str) -> str:
        """Return the module of `from base import name`: a module, the one that a re-export leads to, or base itself."""
        if f"{base}.{name}" in self.modules:
            return f"{base}.{name}"
        home = self.reexports.get(base, {}).get(name)
        return self.home(home, name) if home else base

    def _longest(self, name: str, at_least: int) -> Iterator[str]:
        """Yield the longest part of a dotted name that is a module, if it has that many dots."""
        while name and name not in self.modules:
            name = name.rpartition(".")[0]
        if name and name.count(".") >= at_least:
            yield name

    def _reexports(self, package: str) -> Iterator[tuple[str, str]]:
        """Yield (name, module) from the tables of strings and the imports of an `__init__`."""
        for statement in self.trees[package].body:
            if isinstance(statement, ast.ImportFrom):
                base = self._base(statement, package)
                for alias in statement.names if base in self.modules and base != package else ():
                    if f"{base}.{alias.name}" not in self.modules and alias.asname in (None, alias.name):
                        yield alias.name, base
            elif isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Dict):
                for key, value in zip(statement.value.keys, statement.value.values):
                    if (home := string_in(value)) in self.modules and home != package:
                        yield string_in(key), home


@functools.cache
def import_graph(package: Path) -> Graph:
    """Return {module: modules of the package that it imports}; the rules are at the top of this file."""
    modules = modules_in(package)
    imports = _Imports(modules)
    return {module: imports.of(module) for module in modules}


def rooms_of(package: Path) -> dict[str, str]:
    """Return {module: its room}: the folder as a dotted name below the package, or the module's own name at the top."""
    rooms = {}
    for module, file in modules_in(package).items():
        folder = ".".join(file.parent.relative_to(package).parts)
        rooms[module] = folder or file.stem
    return rooms


def room_graph(graph: Mapping[str, set[str]], rooms: Mapping[str, str]) -> Graph:
    """Return {room: other rooms that its files import}."""
    arrows: Graph = {room: set() for room in rooms.values()}
    for module, targets in graph.items():
        arrows[rooms[module]] |= {rooms[target] for target in targets} - {rooms[module]}
    return arrows


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Return the groups of two or more nodes that all reach each other, the largest first."""
    names = sorted(graph)
    at = {name: i for i, name in enumerate(names)}
    pairs = [(at[name], at[target]) for name in names for target in graph[name]]
    ends = np.array(pairs, dtype=int).reshape(-1, 2)
    matrix = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(names), len(names)))
    _, labels = connected_components(matrix, connection="strong")
    groups: dict[int, set[str]] = {}
    for name, label in zip(names, labels.tolist()):
        groups.setdefault(label, set()).add(name)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), min(group)))


def reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Return `start` and all that it imports, directly or not."""
    found, waiting = {start}, [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def names_defined_twice(package: Path) -> dict[str, list[str]]:
    """Return {public name: modules} of functions and classes at the top of two or more modules; main is none."""
    homes: dict[str, list[str]] = {}
    for module, file in modules_in(package).items():
        for name in sorted({node.name for node in parse(file).body if isinstance(node, (*FUNCTIONS, ast.ClassDef))}):
            if not name.startswith("_") and name != "main":
                homes.setdefault(name, []).append(module)
    return {name: modules for name, modules in sorted(homes.items()) if len(modules) > 1}


def docstrings_that_ask(package: Path) -> list[str]:
    """Return "file:line first line" of docstrings that open with a question word."""
    found = []
    for file in modules_in(package).values():
        for node in ast.walk(parse(file)):
            if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Module)):
                text = ast.get_docstring(node) or ""
                if QUESTION.match(text):
                    line = getattr(node, "lineno", 1)
                    found.append(f"{file.relative_to(package.parent)}:{line} {text.splitlines()[0]}")
    return found


def files_to_loss(package: Path, method: str) -> tuple[list[Path], list[Path]]:
    """Return the files that lead from a batch to the loss of a method by the rule at `METHODS`, and those it owns.

    A method owns a file of methods/ that no file of another method imports.
    """
    imports = _Imports(modules_in(package))
    graph = {module: imports.of(module) for module in imports.modules}
    rooms = rooms_of(package)
    inside = {m: {t for t in targets if rooms[t].split(".")[0] in LOSS_ROOMS} for m, targets in graph.items()}
    home = imports.home(f"{package.name}.methods", method)
    found = {m for m in reached(inside, home) if not imports.is_package(m)} | {f"{package.name}.{LOSS_ALSO}"}
    found &= set(imports.modules)
    users = {
        m: {other for other, targets in graph.items() if m in targets and not imports.is_package(other)} for m in found
    }
    methods = {m for m in imports.modules if rooms[m].split(".")[0] == "methods"}
    owned = {m for m in found & methods if users[m] & methods <= found}
    return [imports.modules[m] for m in sorted(found)], [imports.modules[m] for m in sorted(owned)]


def count_lines(file: Path) -> int:
    """Return the number of lines of a file."""
    return len(file.read_text(encoding="utf-8").splitlines())


def mypy_errors(tree: Path) -> str:
    """Return how many errors mypy finds in the package of a tree, by the settings of the working tree."""
    if importlib.util.find_spec("mypy") is None:
        return "mypy not installed"
    with tempfile.TemporaryDirectory() as cache:
        settings = ["--config-file", str(ROOT / "setup.cfg"), "--cache-dir", cache, "--no-error-summary"]
        command = [sys.executable, "-m", "mypy", *settings, PACKAGE]
        run = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if run.returncode > 1:
        return f"mypy failed: {(run.stderr or run.stdout).strip().splitlines()[-1]}"
    return str(sum(": error:" in line for line in run.stdout.splitlines()))


def measure(tree: Path, mypy: bool = True) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Measure the package of a tree.

    Args:
        tree: the folder that holds lit_vision/.
        mypy: also count type errors (a minute).

    Returns:
        {measurement: value}, and {measurement: lines} with what `--verbose` prints.
    """
    package = tree / PACKAGE
    files = list(modules_in(package).values())
    graph, rooms = import_graph(package), rooms_of(package)
    arrows = room_graph(graph, rooms)
    room_circles, file_circles = circles(arrows), circles(graph)
    lengths = {file: count_lines(file) for file in files}
    longest = max(files, key=lambda file: lengths[file])
    twice, asking = names_defined_twice(package), docstrings_that_ask(package)
    long_lines = [
        f"{file.relative_to(tree)}:{number}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > MAX_LINE
    ]
    top = [file for file in files if file.parent == package]
    values = {
        "modules at the package's top": str(len(top)),
        "rooms (folders + modules at the top)": f"{len(arrows)} ({len(arrows) - len(top)} + {len(top)})",
        "arrows between rooms": str(sum(map(len, arrows.values()))),
        "rooms in import circles": str(sum(map(len, room_circles))),
        "files in import circles": str(sum(map(len, file_circles))),
        "files": str(len(files)),
        "lines": f"{sum(lengths.values()):,}",
        "median file, lines": f"{statistics.median(lengths.values()):.0f}",
        "longest file, lines": f"{lengths[longest]} ({longest.relative_to(package)})",
        "public names defined twice": str(len(twice)),
        f"lines over {MAX_LINE}": str(len(long_lines)),
        "docstrings that open with What, How, ...": str(len(asking)),
    }
    for method in METHODS:
        for name, read in zip(("with shared files", "its own files"), files_to_loss(package, method)):
            total = sum(count_lines(file) for file in read)
            values[f"batch to loss, {method}, {name}: files, lines"] = f"{len(read)}, {total}"
    values["mypy errors"] = mypy_errors(tree) if mypy else "not run"
    details = {
        "arrows between rooms": [f"{room} -> {', '.join(sorted(to))}" for room, to in sorted(arrows.items()) if to],
        "rooms in import circles": [", ".join(sorted(group)) for group in room_circles],
        "files in import circles": [", ".join(sorted(group)) for group in file_circles],
        "public names defined twice": [f"{name}: {', '.join(homes)}" for name, homes in twice.items()],
        f"lines over {MAX_LINE}": long_lines,
        "docstrings that open with What, How, ...": asking,
    }
    return values, details


def extract(revision: str, folder: Path, *paths: str) -> None:
    """Write the files of a commit into a folder.

    Args:
        revision: a commit of this checkout.
        folder: is made.
        paths: only these; all if none is given.

    Raises:
        LookupError: there is no git history, or not this commit in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", revision, *paths]
    try:
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise LookupError(f"no commit {revision} in the git history of {ROOT}") from None
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)


def to_table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Return a Markdown table with a row per measurement and a column per tree."""
    rows = [["", *columns]]
    rows += [[name, *(column[name] for column in columns.values())] for name in next(iter(columns.values()))]
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    assert __doc__
    parser = ScriptParser(description=__doc__)
    parser.add_argument("trees", nargs="*", metavar="TREE", default=[BEFORE, "."], help="a commit or a folder")
    parser.add_argument("--verbose", action="store_true", help="list circles, arrows, names, docstrings and long lines")
    parser.add_argument("--no_mypy", action="store_true", help="do not count type errors (a minute a tree)")
    options = parser.parse_args(argv)
    columns, lists = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, name in enumerate(options.trees):
            tree = ROOT if name == "." else Path(name)
            if not (tree / PACKAGE).is_dir():
                tree = Path(temporary) / str(number)
                try:
                    extract(name, tree, PACKAGE)
                except LookupError as error:
                    print(f"house.py: {error}: left out", file=sys.stderr)
                    continue
            title = "working tree" if tree == ROOT else name
            columns[title], lists[title] = measure(tree, not options.no_mypy)
    if not columns:
        return 1
    print(to_table(columns))
    for title, details in lists.items() if options.verbose else ():
        for name, lines in details.items():
            print(f"\n{title}: {name}" + "".join(f"\n  {line}" for line in lines or ["none"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
