"""Run, publish, print and verify the desk tables that vary one thing about pre-training (table_*.py define them).

For each seed and each variant: pre-train on all of the rotated garments without labels (the seed sets initialization,
order and pixels, and is the same for all variants), write the encoder in half precision, read it back and measure it:
linear probes and k-NN on frozen features, fine-tuning if the table asks for it. Every finished piece is on disk under
runs/table-<name>/, so a stopped run continues.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation_spec import Ablation, Claim, Values
from table_script import MAKE_ROTATED, RESULTS, ROOT, WEIGHTS, Tally, read_rotated_garments, run_table

if TYPE_CHECKING:
    from lit_vision.study.images import StudyImages


def results_file(table: Ablation) -> Path:
    """Return the path of the committed results."""
    return RESULTS / f"{table.name}-desk.json"


def make(table: Ablation, images: StudyImages | None = None, folder: Path | None = None) -> None:
    """Make the data, train and measure what is missing, and copy results and small weights to experiments/."""
    from ablation_runs import Runner

    from lit_vision.results.schema import write_result
    from lit_vision.study.cells import to_cells
    from lit_vision.study.progress import Reporter

    images = images or read_rotated_garments()
    folder = folder or ROOT / "runs" / f"table-{table.name}"
    folder.mkdir(parents=True, exist_ok=True)
    with Reporter() as report:
        runner = Runner(table, images, folder, report)
        outcomes = runner.run()
    cells = to_cells(outcomes, runner.seconds)
    facts = {"data_fingerprint": images.fingerprint, "test_images": len(images.test), "pool_images": len(images.pool)}
    facts |= {"epochs": table.epochs, "tune_epochs": table.tune_epochs}
    took = sum(runner.seconds.values()) + sum(outcome.seconds for outcome in outcomes)
    write_result(results_file(table), recipe=f"table-{table.name}", seconds=round(took, 1), cells=cells, **facts)
    target = WEIGHTS / table.name
    target.mkdir(parents=True, exist_ok=True)
    for seed in range(table.committed_seeds):
        for path in (*folder.glob(f"weights/*-{seed}.safetensors"), *folder.glob(f"cells/*-{seed}.safetensors")):
            shutil.copy(path, target / path.name)


def values_by_column(table: Ablation, cells: Sequence[Mapping[str, Any]]) -> Values:
    """Return {(variant, protocol, labels): values, one per seed in their order}."""
    prefix = f"{table.init}-"
    return {(cell["init"].removeprefix(prefix), cell["protocol"], cell["labels"]): cell["values"] for cell in cells}


def verdict(claim: Claim, values: Values) -> str:
    """Return one sentence: the paper's direction is confirmed, contradicted, or neither.

    The criterion is two standard errors over paired seeds.
    """
    from lit_vision.evaluation.metrics import paired_difference

    try:
        difference = paired_difference(*claim.sides(values))
    except (KeyError, ValueError):  # some of it has not been run
        return f"{claim.text} (paper: {claim.paper}): not run yet."
    conclusions = {
        "a is better": "confirmed at this scale",
        "b is better": "the opposite at this scale",
        "no difference shown": "neither confirmed nor contradicted at this scale",
        "too few pairs": "too few seeds to say",
    }
    error = "" if difference.se is None else f", standard error {100 * difference.se:.1f}"
    facts = f"{100 * difference.mean:+.1f} points{error}, {difference.n} paired seed{'s' * (difference.n > 1)}"
    return f"{claim.text} (paper: {claim.paper}): {conclusions[difference.supports]} ({facts})."


def show(table: Ablation) -> None:
    """Print the table and what it says about the paper's claims; write it as Markdown, CSV and PNG."""
    from lit_vision.results.tables import Table, rows_from, score, to_csv, to_markdown, to_png

    file = results_file(table)
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
    values = values_by_column(table, rows)
    sentences = [verdict(claim, values) for claim in table.claims]
    print(f"## {table.title}\n\n{to_markdown(printed)}\n" + "\n".join(f"- {one}" for one in sentences))
    target = file.with_suffix("")
    text = f"{to_markdown(printed)}\n" + "".join(f"- {one}\n" for one in sentences)
    target.with_suffix(".md").write_text(text, encoding="utf-8")
    target.with_suffix(".csv").write_text(to_csv(printed), encoding="utf-8")
    to_png(printed, target.with_suffix(".png"), title=table.title)
    print(f"\n{target.name}.md, .csv, .png in {target.parent.name}/")


def verify(table: Ablation, images: StudyImages | None = None) -> int:
    """Measure the committed weights again; return 1 if a value moved, the data differ or nothing was measured."""
    from lit_vision.results.schema import read_result
    from lit_vision.study.cells import CellKey
    from lit_vision.study.frozen import frozen_features, measure_frozen
    from lit_vision.study.training import classification, load_classifier, probabilities
    from lit_vision.study.verify import tolerance

    if not results_file(table).exists():
        print(f"{table.name}: not run yet")
        return 1
    images = images or read_rotated_garments()
    result, preset = read_result(results_file(table)), table.preset(images.size, table.variants[-1])
    if images.fingerprint != result["data_fingerprint"]:
        print(f"{results_file(table).name}: made from other images (fingerprint differs); make the data again")
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
                answer = measure_frozen(key, *frozen[path], images).probabilities
            top1 = float((answer.argmax(1) == images.test_labels).mean())
            tally.add(key.name, value, top1, tolerance(key.protocol))
    return tally.close(sum(len(cell["values"]) for cell in result["cells"]))


def main(table: Ablation) -> int:
    """Run the script of a table; return its exit code."""

    def print_commands() -> None:
        print("lit-vision " + " ".join(MAKE_ROTATED))
        print(f"python experiments/table_{table.name.replace('-', '_')}.py   # trains {table.seeds} seeds of:")
        print("\n".join(f"  {one.label}: {one.method | one.views or 'as initialized'}" for one in table.variants))

    def print_paper_scale() -> None:
        print("not run yet; on a cluster with ImageNet-1k in data/imagenet (train/ and val/ by class):")
        print("\n".join(table.paper_scale))

    return run_table(
        table.title,
        lambda: make(table),
        lambda: show(table),
        lambda: verify(table),
        print_commands,
        print_paper_scale,
    )
