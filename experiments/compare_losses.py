"""Compare what two trees train, to the last bit: the three debug recipes, each column of metrics.csv as text.

    python experiments/compare_losses.py [OLD [NEW]] [--recipes mae simclr classifier] [--keep DIR]

OLD and NEW are commits (read with git archive) or folders that hold lit_vision/, experiments/ and data/; "." is the
working tree. Default: 37adabd, the commit before the rooms were drawn, and the working tree. Each tree makes its own
data set and trains its own recipes, one run at a time, with one thread, logging every step. Nothing is written into the
checkout. About three minutes. Exit code: 0 all equal, 1 a difference or a run that failed, 2 wrong arguments.
"""

from __future__ import annotations

import contextlib
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from house import BEFORE, PACKAGE, ROOT, extract, to_table

from lit_vision.cli.parser import ScriptParser

RECIPES = ("mae", "simclr", "classifier")
DATA = "data/fashion"  # as the recipes say
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
OFFLINE = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "MPLBACKEND": "Agg"}

Columns = dict[str, list[str]]


class RunError(Exception):
    """A command of a tree failed; the message holds the end of its output."""


@dataclass
class Difference:
    """One column of two runs.

    Args:
        column: its name in metrics.csv.
        values: cells compared, empty ones not counted.
        differing: cells whose texts differ, missing rows counted.
        first: the first of them, "" if there is none.
    """

    column: str
    values: int
    differing: int
    first: str


def read_columns(file: Path) -> Columns:
    """Return {column: cells as they are written} of a metrics.csv."""
    with open(file, newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return {name: [row[name] or "" for row in rows] for name in (rows[0] if rows else ())}


def compare(old: Columns, new: Columns) -> list[Difference]:
    """Compare two runs column by column, as text.

    Args:
        old: as `read_columns` returns it.
        new: likewise.

    Returns:
        One entry a column of either, losses first. A column that only one run has differs in all of its cells.
    """
    differences = []
    for name in sorted(old.keys() | new.keys(), key=lambda name: (not name.endswith("loss"), name)):
        before, after = old.get(name, []), new.get(name, [])
        length = max(len(before), len(after))
        pairs = list(zip(before + [""] * (length - len(before)), after + [""] * (length - len(after))))
        unequal = [(row, pair) for row, pair in enumerate(pairs, 1) if pair[0] != pair[1]]
        first = f"row {unequal[0][0]}: {unequal[0][1][0] or 'none'} -> {unequal[0][1][1] or 'none'}" if unequal else ""
        differences.append(Difference(name, sum(any(pair) for pair in pairs), len(unequal), first))
    return differences


class Tree:
    """A version of the package that can be run.

    Args:
        name: a commit or a folder.
        folder: for the commit's files and for what the runs write.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.code = ROOT if name == "." else Path(name).resolve()
        if not (self.code / PACKAGE).is_dir():
            self.code = folder / "code"
            extract(name, self.code, PACKAGE, "experiments/debug", "data")
        folder.mkdir(exist_ok=True)

    def call(self, *arguments: str) -> str:
        """Run Python with this tree's package; returns the output.

        Raises:
            RunError: the exit code is not 0.
        """
        environment = {**os.environ, **THREADS, **OFFLINE, "PYTHONPATH": str(self.code), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, *arguments]
        run = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if run.returncode:
            raise RunError(f"{' '.join(arguments)} in {self.code}: exit code {run.returncode}\n{run.stdout[-3000:]}")
        return run.stdout

    def check_import(self) -> None:
        """See that Python takes the package from this tree, not an installed one.

        Raises:
            RunError: it does not.
        """
        found = Path(self.call("-c", f"import {PACKAGE}; print({PACKAGE}.__file__)").strip())
        if not found.is_relative_to(self.code):
            raise RunError(f"{PACKAGE} comes from {found}, not from {self.code}")

    def make_data(self) -> None:
        """Make the data set of the recipes."""
        self.call("-m", PACKAGE, "data", "fashion", "--out", DATA)

    def train(self, recipe: str) -> Columns:
        """Train a debug recipe and return its metrics."""
        config = self.code / "experiments" / "debug" / f"{recipe}.yaml"
        run = self.folder / "runs" / recipe
        command = ["fit", "--config", str(config), "--run_dir", str(run), "--trainer.log_every_n_steps", "1"]
        self.call("-m", PACKAGE, *command)
        return read_columns(run / "metrics.csv")


def compare_trees(old: Tree, new: Tree, recipes: Sequence[str]) -> bool:
    """Train each recipe with both trees and print the comparison; returns whether all cells are equal.

    Raises:
        RunError: a tree does not run.
    """
    for tree in (old, new):
        tree.check_import()
        tree.make_data()
    equal = True
    for recipe in recipes:
        start = time.monotonic()
        found = compare(old.train(recipe), new.train(recipe))
        print(f"\n{recipe} ({time.monotonic() - start:.0f} s)")
        print(
            to_table(
                {
                    "values": {entry.column: str(entry.values) for entry in found},
                    "differ": {entry.column: str(entry.differing) for entry in found},
                    "first difference": {entry.column: entry.first for entry in found},
                }
            ),
            flush=True,
        )
        if not any(entry.values for entry in found if entry.column.endswith("loss")):
            raise RunError(f"{recipe}: no loss in metrics.csv")
        equal &= not any(entry.differing for entry in found)
    return equal


def main(argv: Sequence[str] | None = None) -> int:
    """Run both trees; returns the exit code."""
    assert __doc__
    parser = ScriptParser(description=__doc__)
    parser.add_argument("old", nargs="?", default=BEFORE, metavar="OLD", help="a commit or a folder")
    parser.add_argument("new", nargs="?", default=".", metavar="NEW", help="a commit or a folder")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES, help="only these")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the runs here and keep them")
    options = parser.parse_args(argv)
    if options.keep and options.keep.exists():
        parser.error(f"--keep: {options.keep} exists")
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = folder.resolve()
        try:
            (folder / "old").mkdir(parents=True)
            (folder / "new").mkdir()
            old, new = Tree(options.old, folder / "old"), Tree(options.new, folder / "new")
            equal = compare_trees(old, new, options.recipes)
        except LookupError as error:
            parser.error(str(error))
        except RunError as error:
            print(f"compare_losses.py: {error}", file=sys.stderr)
            return 1
    print(f"\n{options.old} and {options.new}: " + ("equal to the last bit" if equal else "DIFFERENT"))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
