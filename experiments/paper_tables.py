"""The papers' tables at paper scale: what the paper and others report beside what was run here ("not run yet").

Run: make table-mae-finetune SCALE=paper DRY=1     the exact commands behind each row and the data they need
     make table-mae-finetune SCALE=paper           runs them in order, each resumable, on a machine that has the data; a stage that
                                                   needs several nodes is named with its sbatch line, and passed over once it is done
     make table-mae-finetune                       prints the table from experiments/results/paper/ and runs nothing
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from paper_rows import TABLES, Line, PaperTable

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "paper"


def file_of(table: str, line: Line) -> Path:
    """Where a row's result is kept, once it was measured."""
    slug = "".join(c if c.isalnum() else "-" for c in line.name.lower())
    return RESULTS / table / f"{'-'.join(part for part in slug.split('-') if part)}.json"


def commands(table: PaperTable) -> list[str]:
    """All commands in order, each once."""
    return list(dict.fromkeys(command for line in table.lines for command in line.commands))


def dry(table: PaperTable) -> None:
    """What would be run, row by row; a stage that an earlier row has is named, not repeated."""
    print(f"# {table.title}\n#\n# data:")
    for place, text in table.data.items():
        print(f"#   {text}{'' if (ROOT / place).exists() else '   (not on this machine)'}")
    print(
        "# on SLURM: the sbatch line under a command (experiments/cluster/README.md). Where it has several nodes, that line instead of the "
        "command, or the flags for one node that the recipe's header gives"
    )
    seen: set[str] = set()
    for line in table.lines:
        paper = "no number in the paper" if line.paper is None else f"paper {100 * line.paper:.1f} %"
        print(f"\n# {line.name}: {paper}{f'; {line.peers}' if line.peers else ''}")
        slurm = {stage.command: stage.sbatch for stage in line.stages}
        for command in line.commands:
            print(f"# as above: {command}" if command in seen else command)
            if command in slurm and command not in seen:
                print(f"#   {slurm[command]}")
            seen.add(command)


def run(name: str, table: PaperTable) -> int:
    """All commands, and each row's result into its place; 1 when the data is missing, a command fails or one needs several nodes."""
    missing = [text for place, text in table.data.items() if not (ROOT / place).exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        print(
            f"table-{name}: this machine lacks {missing[0]}{more}; DRY=1 prints the commands and all data",
            file=sys.stderr,
        )
        return 1
    own = {"lit-vision": f"{sys.executable} -m lit_vision", "python": sys.executable}
    done: set[str] = set()
    for line in table.lines:
        stages = {stage.command: stage for stage in line.stages}
        for command in line.commands:
            if command in done:
                continue
            stage = stages.get(command)
            if stage is not None and stage.nodes > 1:
                if not (ROOT / stage.folder / "results.json").is_file():
                    print(
                        f"table-{name}: {line.name}: needs {stage.nodes} nodes; `{stage.sbatch}`, or its recipe's `one node` "
                        f"flags with --run_dir {stage.folder}; once it is done the same make command goes on",
                        file=sys.stderr,
                    )
                    return 1
            else:
                print(command, flush=True)
                first, rest = command.split(" ", 1)
                code = subprocess.run(["bash", "-c", f"{own[first]} {rest}"], cwd=ROOT, check=False).returncode
                if code:
                    print(
                        f"table-{name}: {line.name}: ended with {code}; the same make command goes on", file=sys.stderr
                    )
                    return code
            done.add(command)
        kept = file_of(name, line)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / line.result_file, kept)
    return 0


def show(name: str, table: PaperTable) -> str:
    """The table as Markdown, from results files alone."""
    from lit_vision.results.schema import read_result
    from lit_vision.results.tables import NOT_RUN, Table, commits, rows_from, score, to_markdown

    body = []
    for line in table.lines:
        kept = file_of(name, line)
        result = read_result(kept) if kept.is_file() else None
        row = rows_from([kept])[0] if result else None
        if row and line.metric:
            value = result.get("metrics", {}).get(line.metric)
            row = None if value is None else row | {"metric": line.metric, "values": [value]}
        paper = "-" if line.paper is None else f"{100 * line.paper:.1f} %"
        gap = f"{100 * (row['values'][0] - line.paper):+.1f}" if row and line.paper is not None else "-"
        recipe = line.stages[-1].recipe + (" + flags" if any(stage.flags for stage in line.stages) else "")
        body.append(
            [
                line.name,
                paper,
                line.peers or "-",
                score(row) if row else NOT_RUN,
                gap,
                recipe,
                commits(row) if row else "-",
            ]
        )
    columns = ["row", "paper", "peers (source)", "ours", "gap", "recipe", "commit"]
    return f"## {table.title}\n\n{to_markdown(Table(columns, body, table.note))}"


def main() -> int:
    """The script."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    words.add_argument("table", choices=list(TABLES))
    words.add_argument("--scale", choices=["desk", "paper"], default="desk")
    words.add_argument("--dry", action="store_true", help="print commands and data; run nothing")
    options = words.parse_args()
    table = TABLES[options.table]
    if options.dry:
        dry(table)
        return 0
    if options.scale == "paper" and (code := run(options.table, table)):
        return code
    print(show(options.table, table))
    if options.scale == "desk":
        print(f"table-{options.table} has no desk scale: SCALE=paper DRY=1 prints its commands and data")
    return 0


if __name__ == "__main__":
    sys.exit(main())
