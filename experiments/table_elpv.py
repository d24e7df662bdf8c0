"""ELPV table: photographs of solar cells, functional or defective; public weights against training on the cells.

Inits from pixels to public weights, 1 %, 10 % and all labels, in a protocol of certain labels and in the paper's
(Deitsch et al. 2019). The images are licensed for non-commercial use: none of them and no weight trained on them is
committed or shown. Every finished piece is stored under runs/table-elpv, so a stopped run continues.
Run: pip download --no-deps -d data elpv-dataset==1.0.0.post1
     make table-elpv ACCEPT_LICENSE=1      Train and measure some cells again: make verify-elpv ACCEPT_LICENSE=1
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from table_script import RESULTS, ROOT, Tally

from lit_vision.cli.parser import ScriptParser
from lit_vision.errors import UserError

if TYPE_CHECKING:
    from studies.elpv_images import SolarCells
    from studies.elpv_runs import Runner

    from lit_vision.study.cells import CellResult

ARCHIVE = "data/elpv_dataset-1.0.0.post1-py3-none-any.whl"
FOLDER = "runs/table-elpv"
FILES = {"certain": "elpv.json", "paper": "elpv-paper.json"}
PUBLISHED = "88.42 % (VGG-19, fine-tuned at 300 pixels), 82.44 % (SVM on KAZE features)"
VERIFIED = ("pixels", "timm:tf_efficientnet_lite0", "scratch-cnn")  # inits that --verify makes again, seed 0, 1 %


def print_plan(cells: SolarCells) -> None:
    """Print the multiply-adds of each row: of its pre-training, and of one training at each number of labels."""
    from studies import elpv_images, elpv_rows

    rule = elpv_images.make_protocol(cells, "certain")
    counts = elpv_rows.label_counts(rule.labels)
    print("planned multiply-adds, in 10^12: pre-training; one training on " + ", ".join(map(str, counts)) + " labels")
    for row in elpv_rows.ROWS:
        cost = elpv_rows.count_costs(row)
        pretrain = row.pretrain_epochs * len(rule.pool) * cost.pretrain / 1e6
        tune = [
            elpv_rows.epochs(row, place, count) * count * cost.tune / 1e6 for place, count in enumerate(counts)
        ]
        texts = ", ".join(f"{value:.2f}" for value in tune)
        print(f"  {row.init:<34} forward {cost.forward:5.1f} M an image; {pretrain:5.2f}; {texts}")


def make(cells: SolarCells, folder: Path, minutes: float) -> None:
    """Make what is missing, begin nothing after `minutes`, and write what there is to experiments/results."""
    from studies.elpv_runs import Runner

    from lit_vision.study.progress import Reporter

    begin = time.monotonic()
    found: dict[str, list[CellResult]] = {name: [] for name in FILES}
    with Reporter() as reporter:
        runner = Runner(cells, folder, reporter)
        pieces = list(runner.pieces())
        for number, piece in enumerate(pieces, 1):
            if time.monotonic() - begin > 60 * minutes:
                reporter.log(f"stopped after {minutes:g} minutes: {number - 1} of {len(pieces)} cells are done")
                break
            result = piece.make()
            found[piece.protocol].append(result)
            reporter.log(f"{number}/{len(pieces)} {piece.protocol} {piece.key.name}: {100 * result.top1:.1f} %")
    for name, file in FILES.items():
        publish(runner, name, found[name], file)


def publish(runner: Runner, protocol: str, results: list[CellResult], file: str) -> None:
    """Write the results of a protocol: numbers only."""
    from studies import elpv_rows

    from lit_vision.results.schema import write_result
    from lit_vision.study.cells import CellKey, to_cells

    rule = runner.protocols[protocol]
    started = {result.key.init for result in results}
    rows = {row.init: row for row in elpv_rows.ROWS if row.init in started}
    seconds = {init: runner.encoder(row).seconds for init, row in rows.items() if row.pretrain_epochs}
    costs = {init: elpv_rows.count_costs(row) for init, row in rows.items()}
    cells = to_cells(results, seconds)
    for cell in cells:
        keys = [CellKey(cell["init"], cell["protocol"], cell["labels"], seed) for seed in cell["seeds"]]
        answers = [runner.stores[protocol].probabilities(key).argmax(1) for key in keys]
        cell["balanced_values"] = [balanced_accuracy(answer, rule.test_labels) for answer in answers]
        if cell["init"] in rows:
            row, cost = rows[cell["init"]], costs[cell["init"]]
            images = cell["steps"] * min(elpv_rows.BATCH, cell["labels"])
            cell["multiply_adds"] = round(1e6 * images * cost.tune)  # of one training
            cell["pretrain_multiply_adds"] = round(1e6 * row.pretrain_epochs * len(rule.pool) * cost.pretrain)
    facts = {"data_fingerprint": runner.cells.fingerprint, "license": "CC-BY-NC-SA-4.0 (images): numbers only"}
    facts |= {"test_images": len(rule.test), "pool_images": len(rule.pool), "test_defective": int(rule.test_labels.sum())}
    took = sum(result.seconds for result in results) + sum(seconds.values())
    write_result(RESULTS / file, recipe="table-elpv", seconds=round(took, 1), cells=cells, **facts)


def balanced_accuracy(answers: Any, labels: Any) -> float:
    """Return the mean recall of the two classes."""
    return float(sum((answers[labels == k] == k).mean() for k in (0, 1)) / 2)
