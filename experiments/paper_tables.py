"""The papers' tables at paper scale: what the paper and others report, and what was run here ("not run yet" otherwise).

Run: make table-mae-finetune SCALE=paper DRY=1   prints the exact commands behind each row and the data they need
     make table-mae-finetune SCALE=paper         runs them in order, each resumable, on a machine that has the data; at
                                                 a stage that needs several nodes it prints the sbatch line and exits,
                                                 and continues after that stage once it is done
     make table-mae-finetune                     prints the table from experiments/results/paper/ and runs nothing
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from paper_rows import TABLES, PaperTable, Row

from lit_vision.cli.parser import ScriptParser

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "paper"


def result_path(table: str, row: Row) -> Path:
    """Return the file that a row's result is copied to once it is measured."""
    slug = "".join(c if c.isalnum() else "-" for c in row.name.lower())
    return RESULTS / table / f"{'-'.join(part for part in slug.split('-') if part)}.json"


def commands(table: PaperTable) -> list[str]:
    """Return all commands in order, each once."""
    return list(dict.fromkeys(command for row in table.rows for command in row.commands))


def print_commands(table: PaperTable) -> None:
    """Print what would be run, row by row; a stage that an earlier row has is named, not repeated."""
    print(f"# {table.title}\n#\n# data:")
    for path, text in table.data.items():
        print(f"#   {text}{'' if (ROOT / path).exists() else '   (not on this machine)'}")
    print(
        "# on SLURM: the sbatch line under a command (experiments/cluster/README.md). Where it has several nodes, that "
        "line instead of the command, or the flags for one node that the recipe's header gives"
    )
    printed: set[str] = set()
    for row in table.rows:
        paper = "no number in the paper" if row.paper is None else f"paper {100 * row.paper:.1f} %"
        print(f"\n# {row.name}: {paper}{f'; {row.peers}' if row.peers else ''}")
        slurm = {stage.command: stage.sbatch for stage in row.stages}
        for command in row.commands:
            print(f"# as above: {command}" if command in printed else command)
            if command in slurm and command not in printed:
                print(f"#   {slurm[command]}")
            printed.add(command)


def run(name: str, table: PaperTable) -> int:
    """Run all commands and copy each row's result to `result_path`.

    Returns:
        Exit code: 1 if data is missing or a stage needs several nodes, that of a command that failed, else 0.
    """
    missing = [text for path, text in table.data.items() if not (ROOT / path).exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        print(
            f"table-{name}: this machine lacks {missing[0]}{more}; DRY=1 prints the commands and all data",
            file=sys.stderr,
        )
        return 1
    done: set[str] = set()
    for row in table.rows:
        stages = {stage.command: stage for stage in row.stages}
        for command in row.commands:
            if command in done:
                continue
            stage = stages.get(command)
            if stage is not None and stage.nodes > 1:
                if not (ROOT / stage.folder / "results.json").is_file():
                    print(
                        f"table-{name}: {row.name}: needs {stage.nodes} nodes; `{stage.sbatch}`, or the `one node` "
                        f"flags in its recipe's header with --run_dir {stage.folder}; then repeat the make command",
                        file=sys.stderr,
                    )
                    return 1
            elif code := _run_command(command):
                print(
                    f"table-{name}: {row.name}: exit code {code}; the same make command resumes here", file=sys.stderr
                )
                return code
            done.add(command)
        target = result_path(name, row)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / row.result_file, target)
    return 0


def _run_command(command: str) -> int:
    """Print a command and run it with this Python; return its exit code."""
    print(command, flush=True)
    program, arguments = command.split(" ", 1)
    programs = {"lit-vision": f"{sys.executable} -m lit_vision", "python": sys.executable}
    return subprocess.run(["bash", "-c", f"{programs[program]} {arguments}"], cwd=ROOT, check=False).returncode


def show(name: str, table: PaperTable) -> str:
    """Return the table as Markdown, from results files alone."""
    from lit_vision.results.schema import read_result
    from lit_vision.results.tables import NOT_RUN, Table, commits, rows_from, score, to_markdown

    lines = []
    for row in table.rows:
        file = result_path(name, row)
        result = read_result(file) if file.is_file() else None
        found = rows_from([file])[0] if result else None
        if found and row.metric:
            value = result.get("metrics", {}).get(row.metric)
            found = None if value is None else found | {"metric": row.metric, "values": [value]}
        paper = "-" if row.paper is None else f"{100 * row.paper:.1f} %"
        gap = f"{100 * (found['values'][0] - row.paper):+.1f}" if found and row.paper is not None else "-"
        recipe = row.stages[-1].recipe + (" + flags" if any(stage.flags for stage in row.stages) else "")
        ours, commit = (score(found), commits(found)) if found else (NOT_RUN, "-")
        lines.append([row.name, paper, row.peers or "-", ours, gap, recipe, commit])
    columns = ["row", "paper", "peers (source)", "ours", "gap", "recipe", "commit"]
    return f"## {table.title}\n\n{to_markdown(Table(columns, lines, table.note))}"


def main() -> int:
    """Run the script; return its exit code."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--scale", choices=["desk", "paper"], default="desk", help="paper: run all commands")
    parser.add_argument("--dry", action="store_true", help="print commands and data; run nothing")
    options = parser.parse_args()
    table = TABLES[options.table]
    if options.dry:
        print_commands(table)
        return 0
    if options.scale == "paper" and (code := run(options.table, table)):
        return code
    print(show(options.table, table))
    if options.scale == "desk":
        print(f"table-{options.table} has no desk scale: SCALE=paper DRY=1 prints its commands and data")
    return 0


if __name__ == "__main__":
    sys.exit(main())
