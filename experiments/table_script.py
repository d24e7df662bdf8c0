"""What the scripts of the tables share: their options, and the tally of a run that measures committed weights again."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def run_table(
    about: str,
    make: Callable[[], None],
    show: Callable[[], None],
    check: Callable[[], int],
    dry: Callable[[], None],
    paper: Callable[[], None],
) -> int:
    """Read the words of the command line and do what they ask for.

    Args:
        about: what `--help` says.
        make: trains what is missing.
        show: prints the table from committed results.
        check: measures committed weights again and returns an exit code.
        dry: prints what `make` would run.
        paper: prints what stands for the table at the paper's scale.

    Returns:
        Exit code.
    """
    words = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--scale", choices=["desk", "paper"], default="desk")
    words.add_argument("--dry", action="store_true", help="print what would be run and leave")
    words.add_argument("--show", action="store_true", help="print from the committed results; train nothing")
    words.add_argument("--verify", action="store_true", help="measure the committed weights again")
    options = words.parse_args()
    if options.verify:
        return check()
    if options.scale == "paper":
        paper()
    elif options.dry:
        dry()
    else:
        if not options.show:
            make()
        show()
    return 0


class Tally:
    """Counts numbers that were measured again, and names those that moved."""

    def __init__(self) -> None:
        self.done, self.moved, self.farthest = 0, 0, 0.0

    def add(self, name: str, stands: float, measured: float, tolerance: float) -> None:
        """Count one; a line when it is off by more than `tolerance` (in the metric's own unit, a fraction of 1)."""
        self.done += 1
        self.farthest = max(self.farthest, abs(stands - measured))
        if not abs(stands - measured) <= tolerance:
            self.moved += 1
            print(f"MOVED {name}: stands {stands:.4f}, measured {measured:.4f}, tolerance {tolerance:g}")

    def close(self, total: int) -> int:
        """Say "k of n"; returns 1 when one moved or none was measured."""
        print(
            f"{self.done} of {total} values re-evaluated, {self.moved} moved by more than their tolerance, the farthest by {self.farthest:.4f}"
        )
        return int(self.moved > 0 or self.done == 0)
