"""Adaptation table: accuracy, parameters, memory and time of each way to fine-tune a pre-trained ViT.

One ViT is pre-trained by MAE on the rotated garments without labels (the study's preset, the study's images). Then each
protocol learns from 1 %, 10 % and all labels, the same for all protocols, five seeds (label subset, initialization,
order): each starts with the linear probe's head and takes the same number of steps. Every finished piece is on disk
under runs/table-adaptation/, so a stopped run continues. Prints from experiments/results/adaptation-desk.json.
Run: make table-adaptation SCALE=desk        Measure the committed weights again: make verify-adaptation
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptation_protocols import INIT, NAME, PROTOCOLS, preset_of
from adaptation_runs import EPOCHS, LABELS, SEEDS, Runner
from table_script import MAKE_ROTATED, RESULTS, ROOT, WEIGHTS, Tally, read_rotated_garments, run_table

if TYPE_CHECKING:
    from lit_vision.study.images import StudyImages


def results_file() -> Path:
    """Return the path of the committed results."""
    return RESULTS / f"{NAME}-desk.json"


def make(images: StudyImages | None = None, folder: Path | None = None, **smaller: Any) -> None:
    """Make the data, train and measure what is missing, and copy results and small weights to experiments/.

    Args:
        images: default: the rotated garments.
        folder: default: runs/table-adaptation.
        **smaller: arguments of `Runner` for a smaller run.
    """
    from lit_vision.results.schema import write_result
    from lit_vision.study.cells import to_cells
    from lit_vision.study.progress import Reporter

    images = images or read_rotated_garments()
    folder = folder or ROOT / "runs" / f"table-{NAME}"
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    with Reporter() as report:
        runner = Runner(images, folder, report, **smaller)
        outcomes, costs, seconds = runner.run()
    took = seconds + sum(outcome.seconds for outcome in outcomes)
    facts = {"data_fingerprint": images.fingerprint, "test_images": len(images.test), "pool_images": len(images.pool)}
    facts |= {"epochs": runner.epochs, "steps": runner.steps, "costs": costs}
    cells = to_cells(outcomes, {INIT: seconds})
    write_result(results_file(), recipe=f"table-{NAME}", seconds=round(took, 1), cells=cells, **facts)
    target = WEIGHTS / NAME
    target.mkdir(parents=True, exist_ok=True)
    for path in (*folder.glob("weights/*.safetensors"), *folder.glob("cells/*.safetensors")):
        shutil.copy(path, target / path.name)


def show() -> None:
    """Print the table and what it shows; write it as Markdown, CSV and PNG."""
    from lit_vision.results.schema import read_result
    from lit_vision.results.tables import NOT_RUN, Table, rows_from, score, to_csv, to_markdown, to_png

    file = results_file()
    rows = rows_from([file]) if file.exists() else []
    result = read_result(file) if file.exists() else {"costs": {}}
    cells = {(row["protocol"], row["labels"]): row for row in rows}
    counts = sorted({row["labels"] for row in rows})
    columns = [
        "what trains",
        "parameters trained",
        "memory of a step",
        *(f"{n} labels" for n in counts),
        "time of a step",
    ]
    lines = []
    for protocol in PROTOCOLS:
        if (cost := result["costs"].get(protocol)) is None:
            lines.append([protocol, NOT_RUN, *[""] * (len(columns) - 2)])
            continue
        lines.append(
            [
                protocol,
                f"{cost['parameters']:,} ({100 * cost['share']:.1f} %)",
                f"{cost['bytes'] / 1e6:.1f} MB",
                *(score(cells.get((protocol, n))) for n in counts),
                f"{cost['step_time']:.2f} x",
            ]
        )
    note = (
        "Test top-1, mean ± sd (seeds) on the turned garments; ViT of 0.16 M parameters, MAE without labels. linear: "
        "logistic regression on frozen features; all others go on from its head. Memory: weights, gradients, AdamW's "
        "moments and what the backward pass keeps, batch of at most 64. Time: forward, backward and AdamW against full "
        "fine-tuning's, taking turns in one process (linear: a head on the frozen body, where the probe itself takes "
        "no steps)."
    )
    table = Table(columns, lines, note)
    found = sentences({key: row["values"] for key, row in cells.items()}, counts)
    text = f"{to_markdown(table)}\n" + "".join(f"- {one}\n" for one in found)
    print(text)
    target = file.with_suffix("")
    RESULTS.mkdir(exist_ok=True)
    target.with_suffix(".md").write_text(text, encoding="utf-8")
    target.with_suffix(".csv").write_text(to_csv(table), encoding="utf-8")
    to_png(table, target.with_suffix(".png"), title="What trains of a pre-trained ViT")


def sentences(values: dict[tuple[str, int], list[float]], counts: list[int]) -> list[str]:
    """Return a sentence for each number of labels: the protocols above, below and not told apart from fine-tuning.

    The criterion is two standard errors over paired seeds.

    Args:
        values: {(protocol, labels): values, one per seed}.
        counts: numbers of labels.
    """
    from lit_vision.evaluation.metrics import paired_difference

    lines = []
    for n in counts:
        parts: dict[str, list[str]] = {"above": [], "below": [], "not told apart from": []}
        for protocol in PROTOCOLS:
            ours, full = values.get((protocol, n)), values.get(("finetune", n))
            if protocol == "finetune" or not ours or not full or len(ours) != len(full):
                continue
            gap = paired_difference(ours, full)
            spread = "" if gap.se is None else f" ± {100 * gap.se:.1f}"
            significant = gap.se is not None and abs(gap.mean) > 2 * gap.se
            side = ("above" if gap.mean > 0 else "below") if significant else "not told apart from"
            parts[side].append(f"{protocol} ({100 * gap.mean:+.1f}{spread})")
        text = "; ".join(f"{side} fine-tuning: {', '.join(found)}" for side, found in parts.items() if found)
        if text:
            lines.append(
                f"{n} labels, points against fine-tuning everything over paired seeds. {text[0].upper()}{text[1:]}."
            )
    return lines


def verify(images: StudyImages | None = None) -> int:
    """Measure the committed weights again; return 1 if a value moved, the data differ or nothing was measured."""
    from lit_vision.results.schema import read_result
    from lit_vision.study.cells import CellKey
    from lit_vision.study.frozen import frozen_features, measure_frozen
    from lit_vision.study.training import classification, load_classifier, probabilities
    from lit_vision.study.verify import tolerance

    if not results_file().exists():
        print(f"{NAME}: not run yet")
        return 1
    images, result = images or read_rotated_garments(), read_result(results_file())
    if images.fingerprint != result["data_fingerprint"]:
        print(f"{results_file().name}: made from other images (fingerprint differs); make the data again")
        return 1
    preset, encoder = preset_of(images.size), WEIGHTS / NAME / "mae-0.safetensors"
    frozen = frozen_features(encoder, images, preset.side(INIT)) if encoder.exists() else None
    tally = Tally()
    for cell in result["cells"]:
        for seed, value in zip(cell["seeds"], cell["values"]):
            key = CellKey(INIT, cell["protocol"], cell["labels"], seed)
            path = WEIGHTS / NAME / f"{key.name}.safetensors"
            if PROTOCOLS[key.protocol] is None and frozen is not None:
                answer = measure_frozen(key, *frozen, images).probabilities
            elif path.exists():
                rows = images.subset(key.labels, seed)
                module, _ = classification(INIT, images, rows, preset, seed, encoder, protocol=key.protocol)
                load_classifier(path, module)
                answer = probabilities(module, images, preset.side(INIT))
            else:
                continue
            top1 = float((answer.argmax(1) == images.test_labels).mean())
            tally.add(key.name, value, top1, tolerance(key.protocol))
    return tally.close(sum(len(cell["values"]) for cell in result["cells"]))


def print_commands() -> None:
    """Print what would be trained."""
    print("lit-vision " + " ".join(MAKE_ROTATED))
    print(f"python experiments/table_{NAME}.py   # MAE {EPOCHS} epochs, then {SEEDS} seeds x {', '.join(LABELS)} of:")
    print("\n".join(f"  {name}: {options or 'as it is'}" for name, options in PROTOCOLS.items()))


def print_paper_scale() -> None:
    """Print the commands of the same question on ImageNet-1k."""
    print(
        "not run yet; on a cluster with ImageNet-1k in data/imagenet (train/ and val/ by class), "
        "for each labels and tune:"
    )
    recipe = "experiments/mae/vitb16_in1k_100ep_finetune.yaml"
    for tune in ("linear", "bias", "lora", "prompt-deep", "full"):
        print(f"lit-vision fit --config {recipe} --data.labels 0.01 --model.tune {tune}")


def main() -> int:
    """Run the script; return its exit code."""
    return run_table(str(__doc__), make, show, verify, print_commands, print_paper_scale)


if __name__ == "__main__":
    sys.exit(main())
