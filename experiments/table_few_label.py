"""Few-label table: test top-1 at 1 % and 10 % of the labels of the garments, pre-trained against tuned baselines.

Trains by `lit-vision study` (resumable, cell by cell), prints from experiments/results/few-label-<scale>*.json only.
Run: make table-few-label SCALE=desk        Measure the committed weights again: make verify-few-label
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass

from table_script import RESULTS, ROOT, WEIGHTS, Tally, run_table

RUNS = ROOT / "runs"
MAX_SEEDS = "mae=1,scratch-vit=1"


@dataclass(frozen=True)
class Half:
    """One half of the table.

    Attributes:
        name: of the half, of its files and of its data's folder.
        data_flags: of `lit-vision data fashion`.
        rotation: of training images, degrees each way.
        seeds: number of seeds.
        committed_seeds: number of seeds whose classifiers are committed.
        epochs: the study's --epochs: of each pre-training, and of fine-tuning on 80 and 800 labels.
    """

    name: str
    data_flags: str
    rotation: int
    seeds: int
    committed_seeds: int
    epochs: str


# the first is the table's claim; the second is printed for comparison, at a third of the cost
HALVES = (
    Half("turned", "--rotated", 180, 10, 3, "simclr=150,mae=40,80=300,800=25"),
    Half("upright", "", 0, 5, 1, "simclr=50,mae=20,80=150,800=25"),
)


def data_arguments(half: Half) -> list[str]:
    """Return the command line after `lit-vision` that makes the images of a half."""
    return ["data", "fashion", *half.data_flags.split(), "--out", f"data/fashion-{half.name}"]


def study_arguments(half: Half) -> list[str]:
    """Return the command line after `lit-vision` of the study behind a half."""
    flags = {
        "--labels": "1%,10%",
        "--seeds": str(half.seeds),
        "--max_seeds": MAX_SEEDS,
        "--inits": "simclr,mae",
        "--epochs": half.epochs,
        "--rotation": str(half.rotation),
        "--pretrained": "off",
        "--keep_weights": str(half.committed_seeds),
        "--budget": "120",
        "--run_dir": f"runs/table-few-label/{half.name}",
    }
    return ["study", f"data/fashion-{half.name}", *(text for flag in flags.items() for text in flag)]


def make() -> None:
    """Make the data, run the studies, and copy results and small weights to experiments/."""
    from lit_vision.cli.main import main

    for half in HALVES:
        for command in (data_arguments(half), study_arguments(half)):
            if code := main(command):
                sys.exit(code)
    for half in HALVES:  # at the end: publishing changes files that git tracks
        publish(half.name)


def publish(name: str) -> None:
    """Copy results, encoders and the classifiers of the two initializations that the verdict compares."""
    run, target = RUNS / "table-few-label" / name, WEIGHTS / f"few-label-{name}"
    RESULTS.mkdir(exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "results.json", RESULTS / f"few-label-desk-{name}.json")
    classifiers = [*run.glob("cells/simclr-*.safetensors"), *run.glob("cells/scratch-cnn-*.safetensors")]
    for path in [*run.glob("weights/*.safetensors"), *classifiers]:
        shutil.copy(path, target / path.name)


def show() -> None:
    """Print the table and its verdicts; write it as Markdown, CSV and PNG."""
    from lit_vision.results.tables import comparison_table, rows_from, to_csv, to_markdown, to_png
    from lit_vision.study.verdict import sentence, verdicts

    for name in (half.name for half in HALVES):
        file = RESULTS / f"few-label-desk-{name}.json"
        rows = rows_from([file]) if file.exists() else []
        table = comparison_table(
            rows, f"{name} garments; test top-1, mean ± sd (seeds); gap: to the best baseline, ± standard error"
        )
        print(f"## {name}\n\n{to_markdown(table)}")
        target = RESULTS / f"few-label-desk-{name}"
        target.with_suffix(".md").write_text(to_markdown(table), encoding="utf-8")
        target.with_suffix(".csv").write_text(to_csv(table), encoding="utf-8")
        to_png(table, target.with_suffix(".png"), title=f"Few labels, {name} garments")
        for verdict in verdicts(rows, 1000):
            print(sentence(verdict))
        print(f"\n{target.relative_to(ROOT)}.md, .csv, .png\n")


def verify() -> int:
    """Measure the committed weights again; return 1 if a value moved, the data differ or nothing was measured."""
    from lit_vision.cli.main import main
    from lit_vision.results.schema import read_result
    from lit_vision.study.images import read_images
    from lit_vision.study.presets import preset_for
    from lit_vision.study.verify import tolerance
    from lit_vision.study.verify import verify as verify_cells

    tally, total = Tally(), 0
    for half in HALVES:
        name = half.name
        file = RESULTS / f"few-label-desk-{name}.json"
        if not file.exists():
            print(f"{name}: not run yet")
            continue
        main(data_arguments(half))
        result, images = read_result(file), read_images(f"data/fashion-{name}")
        if images.fingerprint != result["data_fingerprint"]:
            print(f"{file.name}: made from other images (fingerprint differs); make the data again")
            return 1
        total += sum(len(cell["values"]) for cell in result["cells"])
        preset = preset_for(images.size, half.rotation)
        for one in verify_cells(result["cells"], images, preset, WEIGHTS / f"few-label-{name}"):
            tally.add(f"{name} {one.key.name}", one.stored, one.measured, tolerance(one.key.protocol))
    return tally.close(total)


def print_commands() -> None:
    """Print the commands."""
    for half in HALVES:
        print("lit-vision " + shlex.join(data_arguments(half)) + "\nlit-vision " + shlex.join(study_arguments(half)))


def print_paper_scale() -> None:
    """Print what there is of this table on ImageNet."""
    print("few-label has no paper scale: simclr/resnet50_in1k recipes hold ImageNet's 1 % and 10 % (not run yet)")


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, verify, print_commands, print_paper_scale)


if __name__ == "__main__":
    sys.exit(main())
