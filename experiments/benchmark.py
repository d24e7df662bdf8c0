"""Measure speeds as ratios, the candidates of each pair in one run.

Run: make benchmark, or python experiments/benchmark.py [SECTION ...]
A section is one file in experiments/benchmarks/ with `measure(repeats) -> list of rows`; a row is {what, value, unit,
against, target, met} (benchmarks/_rows.py). The rows go to runs/benchmark/results.json with the machine's description.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # this folder is not a package

from lit_vision.cli.parser import ScriptParser
from lit_vision.io.atomic import write_json
from lit_vision.results.environment import collect_environment
from lit_vision.results.tables import Table, to_markdown

HERE = Path(__file__).resolve().parent / "benchmarks"


def sections() -> list[str]:
    """Return the names of the sections: the files in benchmarks/ without a leading underscore."""
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table of text."""
    met = {True: "yes", False: "NO", None: "-"}
    body = [
        [row["what"], f"{row['value']:.3g} {row['unit']}", row["against"], row["target"], met[row["met"]]]
        for row in rows
    ]
    return Table(["what", "measured", "against", "target", "met"], body)


def main(argv: list[str] | None = None) -> int:
    """Measure the named sections, all without a name; return 1 if a target was missed."""
    parser = ScriptParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(sections())}; default: all")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement; the median counts (default 5)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/results.json"), help="the JSON file")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.sections) - set(sections()))
    if unknown:
        parser.error(f"SECTION {unknown[0]!r}: the sections are {', '.join(sections())}")
    machine = collect_environment()
    machine["load_before"] = round(os.getloadavg()[0], 2)  # a busy machine explains a slow number
    versions = ", ".join(
        f"{name} {machine['versions'].get(name, '-')}" for name in ("python", "torch", "lightning", "timm")
    )
    print(f"{machine['device']}, {machine['cores']} cores, load {machine['load_before']}; {versions}\n")
    measured: dict[str, list] = {}
    for name in args.sections or sections():
        print(f"## {name}\n", flush=True)
        measured[name] = importlib.import_module(f"benchmarks.{name}").measure(args.repeats)
        print(to_markdown(table(measured[name])), flush=True)
    print(f"written to {write_json(args.out, machine | {'repeats': args.repeats, 'sections': measured})}")
    return int(any(row["met"] is False for rows in measured.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
