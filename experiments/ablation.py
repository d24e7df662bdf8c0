"""What the desk tables share that vary one thing about pre-training: run, publish, print, verify. The tables are the scripts beside it.

For each seed and each variant: pre-train on the whole pool of the turned garments without labels (the seed sets initialisation, order and
pixels, and is the same for all variants), write the encoder in half precision, read it back and measure it: linear probes and k-NN on
frozen features, fine-tuning if the table asks for it. Every finished piece is on disk under runs/table-<name>/, so a stopped run goes on.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from table_script import Tally, run_table

ROOT = Path(__file__).parents[1]
RESULTS, WEIGHTS = ROOT / "experiments" / "results", ROOT / "experiments" / "weights"
DATA = "data/fashion-turned"
Values = Mapping[tuple[str, str, int], Sequence[float]]  # (variant, protocol, labels) -> one value per seed


@dataclass(frozen=True)
class Variant:
    """One line: `method` and `views` are changes to the study's recipe; no epochs is the encoder as initialised."""

    label: str
    method: dict[str, Any] = field(default_factory=dict)
    views: dict[str, Any] = field(default_factory=dict)
    trained: bool = True


@dataclass(frozen=True)
class Claim:
    """A direction that the paper reports: `sides` gives two lists (a value per seed), and the paper has the first above the second."""

    text: str
    paper: str
    sides: Callable[[Values], tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Ablation:
    """A table.

    Attributes:
        name: of its files, its folder under runs/ and its make target.
        title: what it asks, with the source. note: what differs from the source, printed under the table.
        init: "mae" or "simclr".   columns: (protocol, labels) of its columns; protocols linear, knn, finetune.
        published: (variant, protocol) -> the source's number as text.
        paper_scale: commands of the same question at the source's scale.
        epochs: of pre-training; tune_epochs: of fine-tuning; kept: seeds whose weights are published.
    """

    name: str
    title: str
    note: str
    init: str
    variants: tuple[Variant, ...]
    columns: tuple[tuple[str, int], ...]
    claims: tuple[Claim, ...]
    published: Mapping[tuple[str, str], str]
    paper_scale: tuple[str, ...]
    epochs: int
    tune_epochs: int = 25
    seeds: int = 3
    kept: int = 1
    rotation: float = 180.0

    def preset(self, size: int, variant: Variant):
        """The study's recipe with the variant's changes."""
        from lit_vision.study.presets import preset_for

        base, views = preset_for(size, self.rotation), f"{self.init}_views"
        changes = {
            self.init: getattr(base, self.init) | variant.method,
            views: getattr(base, views) | variant.views,
        }
        return replace(base, **changes)


def results_of(table: Ablation) -> Path:
    """The committed results file."""
    return RESULTS / f"{table.name}-desk.json"


def make(table: Ablation, images=None, folder: Path | None = None) -> None:
    """Make the data, run, and put results and small weights where the table reads them."""
    from ablation_runs import Runner

    from lit_vision.cli.main import main
    from lit_vision.results.schema import write_result
    from lit_vision.study.cells import to_cells
    from lit_vision.study.images import read_images
    from lit_vision.study.progress import Reporter

    if images is None:
        if code := main(["data", "fashion", "--rotated", "--out", DATA]):
            sys.exit(code)
        images = read_images(ROOT / DATA)
    folder = folder or ROOT / "runs" / f"table-{table.name}"
    folder.mkdir(parents=True, exist_ok=True)
    with Reporter() as report:
        runner = Runner(table, images, folder, report)
        outcomes = runner.run()
    cells = to_cells(outcomes, runner.seconds)
    facts = {"data_fingerprint": images.fingerprint, "test_images": len(images.test), "pool_images": len(images.pool)}
    facts |= {"epochs": table.epochs, "tune_epochs": table.tune_epochs}
    took = sum(runner.seconds.values()) + sum(outcome.seconds for outcome in outcomes)
    write_result(results_of(table), recipe=f"table-{table.name}", seconds=round(took, 1), cells=cells, **facts)
    target = WEIGHTS / table.name
    target.mkdir(parents=True, exist_ok=True)
    for seed in range(table.kept):
        for path in (*folder.glob(f"weights/*-{seed}.safetensors"), *folder.glob(f"cells/*-{seed}.safetensors")):
            shutil.copy(path, target / path.name)


def values_of(table: Ablation, cells: Sequence[Mapping[str, Any]]) -> Values:
    """(variant, protocol, labels) -> values, one per seed in their order."""
    prefix = f"{table.init}-"
    return {(cell["init"].removeprefix(prefix), cell["protocol"], cell["labels"]): cell["values"] for cell in cells}


def verdict(claim: Claim, values: Values) -> str:
    """One sentence: the paper's direction is confirmed, contradicted, or neither, at two standard errors over paired seeds."""
    from lit_vision.evaluation.metrics import paired_difference

    try:
        difference = paired_difference(*claim.sides(values))
    except (KeyError, ValueError):  # some of it has not been run
        return f"{claim.text} (paper: {claim.paper}): not run yet."
    words = {
        "a is better": "confirmed at this scale",
        "b is better": "the opposite at this scale",
        "no difference shown": "neither confirmed nor contradicted at this scale",
        "too few pairs": "too few seeds to say",
    }
    error = "" if difference.se is None else f", standard error {100 * difference.se:.1f}"
    facts = f"{100 * difference.mean:+.1f} points{error}, {difference.n} paired seed{'s' * (difference.n > 1)}"
    return f"{claim.text} (paper: {claim.paper}): {words[difference.supports]} ({facts})."


def show(table: Ablation) -> None:
    """Print the table and what it says about the paper's directions; write it as Markdown, CSV and PNG."""
    from lit_vision.results.tables import Table, rows_from, score, to_csv, to_markdown, to_png

    file = results_of(table)
    rows = rows_from([file]) if file.exists() else []
    cells = {(row["init"], row["protocol"], row["labels"]): row for row in rows}
    columns = ["variant"] + [f"{protocol}, {labels} labels" for protocol, labels in table.columns]
    papers = list(dict.fromkeys(protocol for _, protocol in table.published))
    lines = []
    for variant in table.variants:
        init = f"{table.init}-{variant.label}"
        line = [variant.label, *(score(cells.get((init, *key))) for key in table.columns)]
        lines.append(line + [table.published.get((variant.label, protocol), "-") for protocol in papers])
    note = f"Test top-1, mean ± sd (seeds), {table.epochs} epochs of pre-training. {table.note}"
    printed = Table(columns + [f"paper, {protocol}" for protocol in papers], lines, note)
    values = values_of(table, rows)
    sentences = [verdict(claim, values) for claim in table.claims]
    print(f"## {table.title}\n\n{to_markdown(printed)}\n" + "\n".join(f"- {one}" for one in sentences))
    target = file.with_suffix("")
    text = f"{to_markdown(printed)}\n" + "".join(f"- {one}\n" for one in sentences)
    target.with_suffix(".md").write_text(text, encoding="utf-8")
    target.with_suffix(".csv").write_text(to_csv(printed), encoding="utf-8")
    to_png(printed, target.with_suffix(".png"), title=table.title)
    print(f"\n{target.name}.md, .csv, .png in {target.parent.name}/")


def check(table: Ablation, images=None) -> int:
    """Measure again what weights are committed for; 1 when a number moved, the data differ or nothing could be measured."""
    from ablation_runs import frozen_features, probe

    from lit_vision.cli.main import main
    from lit_vision.results.schema import read_result
    from lit_vision.study.cells import CellKey
    from lit_vision.study.images import read_images
    from lit_vision.study.training import classification, load_classifier, probabilities
    from lit_vision.study.verify import tolerance

    if not results_of(table).exists():
        print(f"{table.name}: not run yet")
        return 1
    if images is None:
        main(["data", "fashion", "--rotated", "--out", DATA])
        images = read_images(ROOT / DATA)
    result, preset = read_result(results_of(table)), table.preset(images.size, table.variants[-1])
    if images.fingerprint != result["data_fingerprint"]:
        print(f"{results_of(table).name}: made from other images (fingerprint differs); make the data again")
        return 1
    tally = Tally()
    frozen: dict[Path, tuple] = {}
    for cell in result["cells"]:
        for seed, value in zip(cell["seeds"], cell["values"]):
            key = CellKey(cell["init"], cell["protocol"], cell["labels"], seed)
            label = key.init.removeprefix(f"{table.init}-")
            tuned = key.protocol == "finetune"
            path = WEIGHTS / table.name / f"{key.name if tuned else f'{label}-{seed}'}.safetensors"
            if not path.exists():
                continue
            if tuned:
                rows = images.subset(key.labels, seed)
                module, _ = classification(table.init, images, rows, preset, seed, None)
                load_classifier(path, module)
                answer = probabilities(module, images, preset.side(table.init))
            else:
                if path not in frozen:
                    frozen[path] = frozen_features(path, images, preset.side(table.init))
                answer, _ = probe(key.protocol, *frozen[path], images, key)
            top1 = float((answer.argmax(1) == images.test_labels).mean())
            tally.add(key.name, value, top1, tolerance(key.protocol))
    return tally.close(sum(len(cell["values"]) for cell in result["cells"]))


def main(table: Ablation) -> int:
    """The script of a table."""

    def dry() -> None:
        print(f"lit-vision data fashion --rotated --out {DATA}")
        print(f"python experiments/table_{table.name.replace('-', '_')}.py   # trains {table.seeds} seeds of:")
        print("\n".join(f"  {one.label}: {one.method | one.views or 'as initialised'}" for one in table.variants))

    def paper() -> None:
        print("not run yet; on a cluster with ImageNet-1k in data/imagenet (train/ and val/ by class):")
        print("\n".join(table.paper_scale))

    return run_table(table.title, lambda: make(table), lambda: show(table), lambda: check(table), dry, paper)
