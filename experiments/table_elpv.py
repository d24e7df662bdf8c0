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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from table_script import RESULTS, ROOT, Tally

from lit_vision.cli.parser import ScriptParser
from lit_vision.errors import UserError

if TYPE_CHECKING:
    from studies.elpv_images import Protocol, SolarCells
    from studies.elpv_runs import Runner

    from lit_vision.results.tables import Table
    from lit_vision.study.cells import CellResult

ARCHIVE = "data/elpv_dataset-1.0.0.post1-py3-none-any.whl"
FOLDER = "runs/table-elpv"
FILES = {"certain": "elpv.json", "paper": "elpv-paper.json"}
PUBLISHED = (
    "Published in that protocol, on another split: 88.42 % (VGG-19 at 300 pixels, fine-tuned), 82.44 % (SVM, KAZE)."
)
NOTE = (
    "2,624 photographs of 44 modules (Deitsch et al. 2019), 300 x 300 pixels, gray; images under CC-BY-NC-SA-4.0, so "
    "numbers only. One split, 25 % for the test, stratified by kind of cell and by label; the modules are not named, "
    "so cells of one module may stand on both sides. Public weights: EfficientNet-Lite0, ImageNet-1k. Frozen public "
    "features (linear, knn) see 224 pixels, `linear-96` and all that trains 96, pixels 64. Pre-trainings see the "
    "training cells, certain or not, without labels. Multiply-adds: forward and backward, counted; seconds: of wall "
    "time for a pre-training and for one training at each number of labels, on one shared core."
)
TITLES = {
    "certain": "Certain labels only (0 or 1)",
    "paper": "The paper's protocol: every cell that is not certainly functional is defective",
}
PUBLIC = "timm:tf_efficientnet_lite0"
REFERENCE = (PUBLIC, "linear")  # every init is compared with it
PRETRAINED = ("simclr", f"simclr@{PUBLIC}", "mae", "lejepa")
LINES = [  # of the table, made or not
    *(("pixels", protocol) for protocol in ("logreg", "knn")),
    *((PUBLIC, protocol) for protocol in ("linear", "knn", "linear-96", "finetune")),
    ("scratch-cnn", "finetune"),
    *((init, protocol) for init in PRETRAINED for protocol in ("linear", "knn", "finetune")),
]
VERIFIED = ("pixels", PUBLIC, "scratch-cnn")  # inits that --verify makes again, seed 0, 1 %


def print_plan(cells: SolarCells) -> None:
    """Print the multiply-adds of each row: of its pre-training, and of one training at each number of labels."""
    from studies import elpv_images, elpv_rows

    rule = elpv_images.make_protocol(cells, "certain")
    counts = elpv_rows.label_counts(rule.labels)
    print("planned multiply-adds, in 10^12: pre-training; one training on " + ", ".join(map(str, counts)) + " labels")
    for row in elpv_rows.ROWS:
        cost = elpv_rows.count_costs(row)
        pretrain = row.pretrain_epochs * len(rule.pool) * cost.pretrain / 1e6
        tune = [elpv_rows.epochs(row, place, count) * count * cost.tune / 1e6 for place, count in enumerate(counts)]
        texts = ", ".join(f"{value:.2f}" for value in tune)
        print(f"  {row.init:<34} forward {cost.forward:5.1f} M an image; {pretrain:5.2f}; {texts}")


def make(cells: SolarCells, folder: Path, minutes: float) -> None:
    """Make what is missing, begin nothing after `minutes`, and write what there is to experiments/results."""
    from studies.elpv_runs import Runner, TimeOverError

    from lit_vision.results.environment import commit
    from lit_vision.study.progress import Reporter

    found: dict[str, list[CellResult]] = {name: [] for name in FILES}
    head, dirty = commit()  # before the first file is written, which makes the checkout dirty
    with Reporter() as reporter:
        runner = Runner(cells, folder, reporter, 60 * minutes)
        pieces = list(runner.pieces())
        for number, piece in enumerate(pieces, 1):
            try:
                result = piece.make()
            except TimeOverError:
                continue
            found[piece.protocol].append(result)
            reporter.log(f"{number}/{len(pieces)} {piece.protocol} {piece.key.name}: {100 * result.value:.1f} %")
        if missing := len(pieces) - sum(map(len, found.values())):
            reporter.log(
                f"{missing} of {len(pieces)} cells are missing after {minutes:g} minutes; run it again to go on"
            )
    for name, file in FILES.items():
        publish(runner, name, found[name], file, {"commit": head, "dirty": dirty})


def publish(runner: Runner, protocol: str, results: list[CellResult], file: str, origin: dict[str, Any]) -> None:
    """Write the results of a protocol: numbers only, with the commit that they come from."""
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
        if cell["held_out"] is not None:
            cell["held_out_values"] = [one.held_out for one in results if one.key in keys]
        cell["balanced_values"] = [balanced_accuracy(answer, rule.test_labels) for answer in answers]
        if cell["init"] in rows:
            row, cost = rows[cell["init"]], costs[cell["init"]]
            images = cell["steps"] * elpv_rows.batch_size(row, labeled_rows(rule, cell["labels"]))
            cell["multiply_adds"] = round(1e6 * images * cost.tune)  # of one training
            cell["pretrain_multiply_adds"] = round(1e6 * row.pretrain_epochs * len(rule.pool) * cost.pretrain)
    facts = origin | {"data_fingerprint": runner.cells.fingerprint, "license": "CC-BY-NC-SA-4.0 (images): numbers only"}
    facts |= {
        "test_images": len(rule.test),
        "pool_images": len(rule.pool),
        "test_defective": int(rule.test_labels.sum()),
    }
    took = sum(result.seconds for result in results) + sum(seconds.values())
    write_result(RESULTS / file, recipe="table-elpv", seconds=round(took, 1), cells=cells, **facts)


def labeled_rows(rule: Protocol, labels: int) -> int:
    """Return the rows of a training on so many labels, copies counted."""
    return int(rule.copies.sum()) if labels == len(rule.pool) else labels


def balanced_accuracy(answers: Any, labels: Any) -> float:
    """Return the mean recall of the two classes."""
    return float(sum((answers[labels == k] == k).mean() for k in (0, 1)) / 2)


def show() -> None:
    """Print the table and its sentences from the committed results; write them as Markdown."""
    from lit_vision.results.schema import read_result
    from lit_vision.results.tables import rows_from, to_markdown

    parts = []
    for name, file in FILES.items():
        path = RESULTS / file
        if not path.exists():
            parts.append(f"## {TITLES[name]}\n\nnot run yet\n")
            continue
        result, rows = read_result(path), rows_from([path])
        counts = sorted({row["labels"] for row in rows})
        parts.append(f"## {TITLES[name]}\n\n{to_markdown(accuracy_table(rows, counts, result))}")
        parts.append(
            "".join(f"- {one}\n" for one in sentences(result)) + (f"\n{PUBLISHED}\n" if name == "paper" else "")
        )
    text = "\n".join([f"# ELPV: solar cells, functional or defective\n\n{NOTE}\n", *parts])
    print(text)
    (RESULTS / "elpv.md").write_text(text, encoding="utf-8")


def accuracy_table(rows: list[dict[str, Any]], counts: list[int], result: dict[str, Any]) -> Table:
    """Return a line for each init and protocol: accuracy at each number of labels, balanced at all, and cost."""
    from lit_vision.evaluation.metrics import format_percent, mean_sd
    from lit_vision.results.tables import Table, score

    cells = {(row["init"], row["protocol"], row["labels"]): row for row in rows}
    body = []
    for init, protocol in LINES:
        here = [cells.get((init, protocol, count)) for count in counts]
        last = here[-1]
        balanced = format_percent(*mean_sd(last["balanced_values"])) if last else "not run yet"
        some: dict[str, Any] = next((cell for cell in here if cell), {"steps": 0, "pretrain_seconds": 0})
        trained = "; ".join("-" if not cell else _trillions(cell.get("multiply_adds", 0)) for cell in here)
        cost = [_trillions(some.get("pretrain_multiply_adds", 0)), trained if some["steps"] else "-"]
        seconds = "; ".join("-" if not cell else f"{cell['seconds'] / len(cell['values']):.0f}" for cell in here)
        pretrain = f"{some['pretrain_seconds']:.0f}" if some["pretrain_seconds"] else ""
        took = " + ".join(filter(None, [pretrain, seconds if some["steps"] else ""])) or "-"
        body.append([init, protocol, *map(score, here), balanced, *cost, took])
    columns = ["init", "protocol", *(f"{count} labels" for count in counts), f"balanced, {counts[-1]} labels"]
    columns += ["pre-training, 10^12 multiply-adds", "one training, 10^12 multiply-adds", "seconds"]
    larger = 1 - result["test_defective"] / result["test_images"]
    note = f"Test accuracy, mean ± sd (seeds); {result['test_images']} images; the larger class: {100 * larger:.1f} %."
    return Table(columns, body, note)


def _trillions(multiply_adds: float) -> str:
    return f"{multiply_adds / 1e12:.2f}" if multiply_adds else "-"


def sentences(result: dict[str, Any]) -> list[str]:
    """Return every other init against the public frozen features, at each number of labels.

    Accuracy, not balanced accuracy, decides, since that is what the paper reports. No contender is chosen: for a choice
    inside the labels every training would be made twice, once on half of them.
    """
    from lit_vision.evaluation.paired_intervals import paired_interval
    from lit_vision.study.metrics_of_cells import ACCURACY
    from lit_vision.study.verdict import Verdict, sentence

    tests, cells, found = result["test_images"], result["cells"], []
    for labels in sorted({cell["labels"] for cell in cells}):
        here = {(cell["init"], cell["protocol"]): cell for cell in cells if cell["labels"] == labels}
        if (reference := here.get(REFERENCE)) is None:
            continue
        for cell in here.values():
            if cell["protocol"] not in ("logreg", "finetune"):
                continue
            own, others = (dict(zip(one["seeds"], one["values"])) for one in (reference, cell))
            a, b = ([values[seed] for seed in own if seed in others] for values in (own, others))
            interval = paired_interval(a, b, tests)
            found.append(sentence(Verdict(labels, reference, "", cell, interval, ACCURACY, None, tests)))
    return found


def verify(cells: SolarCells) -> int:
    """Train and measure some cells of seed 0 again, in a folder of its own; return 1 if one moved.

    Weights of these images are not committed, so they are made anew: what is frozen, and one training of each of
    VERIFIED at the fewest labels.
    """
    import tempfile

    from studies.elpv_runs import Runner

    from lit_vision.results.schema import read_result
    from lit_vision.study.progress import Reporter

    tally, total = Tally(), 0
    committed = {}
    for name, file in FILES.items():
        for cell in read_result(RESULTS / file)["cells"] if (RESULTS / file).exists() else []:
            total += len(cell["values"])
            for seed, value in zip(cell["seeds"], cell["values"]):
                committed[name, cell["init"], cell["protocol"], cell["labels"], seed] = value
    with tempfile.TemporaryDirectory() as folder, Reporter() as reporter:
        runner = Runner(cells, Path(folder), reporter)
        fewest = min((key[3] for key in committed), default=0)
        for piece in runner.pieces():
            key = piece.key
            value = committed.get((piece.protocol, key.init, key.protocol, key.labels, key.seed))
            small = key.labels == fewest or key.protocol != "finetune"
            if value is not None and key.seed == 0 and key.init in VERIFIED and small:
                tolerance = 0.02 if key.protocol == "finetune" else 0.005  # another machine rounds otherwise
                tally.add(f"{piece.protocol} {key.name}", value, piece.make().value, tolerance)
    return tally.close(total)


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)
    parser = ScriptParser(description=str(__doc__))
    parser.add_argument("--archive", default=ARCHIVE, metavar="WHEEL", help="the package (default: %(default)s)")
    parser.add_argument("--accept_license", action="store_true", help="the images' license, for non-commercial use")
    parser.add_argument("--dry", action="store_true", help="print the planned multiply-adds and exit")
    parser.add_argument("--show", action="store_true", help="print from the committed results; train nothing")
    parser.add_argument("--verify", action="store_true", help="train and measure some cells again")
    parser.add_argument(
        "--minutes", type=float, default=360.0, help="begin no cell after so long (default: %(default)g)"
    )
    options = parser.parse_args()
    if options.show:
        show()
        return 0

    from studies.elpv_images import LICENSE_NAME, read_cells, read_license

    try:
        cells = read_cells(Path(options.archive))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.dry:
        print_plan(cells)
        return 0
    if not options.accept_license:
        print(read_license(cells.archive))
        print(f"error: --accept_license: the images are licensed under {LICENSE_NAME} (above)", file=sys.stderr)
        return 2
    if options.verify:
        return verify(cells)
    print_plan(cells)
    make(cells, Path(FOLDER), options.minutes)
    show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
