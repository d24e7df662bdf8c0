"""Shared by the table scripts: options, paths, the rotated garments, and the count of values measured again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lit_vision.cli.parser import ScriptParser

if TYPE_CHECKING:
    from lit_vision.study.images import StudyImages

ROOT = Path(__file__).resolve().parents[1]
RESULTS, WEIGHTS = ROOT / "experiments" / "results", ROOT / "experiments" / "weights"
ROTATED = "data/fashion-turned"
MAKE_ROTATED = ["data", "fashion", "--rotated", "--out", ROTATED]


def run_table(
    description: str,
    make: Callable[[], None],
    show: Callable[[], None],
    verify: Callable[[], int],
    print_commands: Callable[[], None],
    print_paper_scale: Callable[[], None] | None = None,
) -> int:
    """Read the command line of a table script and do what it asks for.

    Args:
        description: the text of `--help`.
        make: trains what is missing.
        show: prints the table from committed results.
        verify: measures committed weights again and returns an exit code.
        print_commands: prints what `make` would run.
        print_paper_scale: prints what there is of this table at the paper's scale; None: there is nothing.

    Returns:
        Exit code.
    """
    parser = ScriptParser(description=description)
    parser.add_argument("--scale", choices=["desk", "paper"], default="desk", help="paper: print, train nothing")
    parser.add_argument("--dry", action="store_true", help="print what would be run and exit")
    parser.add_argument("--show", action="store_true", help="print from the committed results; train nothing")
    parser.add_argument("--verify", action="store_true", help="measure the committed weights again")
    options = parser.parse_args()
    if options.verify:
        return verify()
    if options.scale == "paper" and print_paper_scale:
        print_paper_scale()
    elif options.scale == "paper":
        print("this table has no paper scale")
    elif options.dry:
        print_commands()
    else:
        if not options.show:
            make()
        show()
    return 0


def read_rotated_garments() -> StudyImages:
    """Return the rotated garments; make them if they do not exist. Exits with the command's code if that fails."""
    from lit_vision.cli.main import main
    from lit_vision.study.images import read_images

    if code := main(MAKE_ROTATED):
        sys.exit(code)
    return read_images(ROOT / ROTATED)


class Tally:
    """Count of values that were measured again; prints those that moved."""

    def __init__(self) -> None:
        self.measured, self.moved, self.largest_difference = 0, 0, 0.0

    def add(self, name: str, committed: float, measured: float, tolerance: float) -> None:
        """Count one value, and print it if it differs by more than `tolerance` (in its own unit, a fraction of 1)."""
        self.measured += 1
        difference = abs(committed - measured)
        self.largest_difference = max(self.largest_difference, difference)
        if not difference <= tolerance:
            self.moved += 1
            print(f"MOVED {name}: committed {committed:.4f}, measured {measured:.4f}, tolerance {tolerance:g}")

    def close(self, total: int) -> int:
        """Print "k of n"; return 1 if one moved or none was measured, else 0."""
        print(
            f"{self.measured} of {total} values re-evaluated, {self.moved} moved by more than their tolerance, "
            f"largest difference {self.largest_difference:.4f}"
        )
        return int(self.moved > 0 or self.measured == 0)
