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
from pathlib import Path

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
        lejepa_epochs: of LeJEPA's pre-training, in a study of its own with the same labels and seeds; 0: not run.
    """

    name: str
    data_flags: str
    rotation: int
    seeds: int
    committed_seeds: int
    epochs: str
    lejepa_epochs: int = 0


# the first is the table's claim; the second is printed for comparison, at a third of the cost
# LeJEPA takes SimCLR's multiply-adds: a step, forward and backward, is 26.71 million an image for SimCLR and 27.22 for
# LeJEPA, whose projector is larger, so 150 epochs of the one are 147 of the other
HALVES = (
    Half("turned", "--rotated", 180, 10, 3, "simclr=150,mae=40,80=300,800=25", 147),
    Half("upright", "", 0, 5, 1, "simclr=50,mae=20,80=150,800=25"),
)


def data_arguments(half: Half) -> list[str]:
    """Return the command line after `lit-vision` that makes the images of a half."""
    return ["data", "fashion", *half.data_flags.split(), "--out", f"data/fashion-{half.name}"]


def study_arguments(half: Half, lejepa: bool = False) -> list[str]:
    """Return the command line after `lit-vision` of the study behind a half, or of the one that adds LeJEPA to it.

    That one trains its baselines with one seed only: the other study has them with all.
    """
    on_labels = half.epochs[half.epochs.index("80=") :]
    flags = {
        "--labels": "1%,10%",
        "--seeds": str(half.seeds),
        "--max_seeds": "scratch-cnn=1,scratch-vit=1" if lejepa else MAX_SEEDS,
        "--inits": "lejepa" if lejepa else "simclr,mae",
        "--epochs": f"lejepa={half.lejepa_epochs},{on_labels}" if lejepa else half.epochs,
        "--rotation": str(half.rotation),
        "--pretrained": "off",
        "--keep_weights": str(half.committed_seeds),
        "--budget": "120",
        "--run_dir": f"runs/table-few-label/{file_name(half, lejepa)}",
    }
    return ["study", f"data/fashion-{half.name}", *(text for flag in flags.items() for text in flag)]


def file_name(half: Half, lejepa: bool) -> str:
    """Return the end of the name of a study's run and results."""
    return f"{half.name}-lejepa" if lejepa else half.name


def studies(half: Half) -> list[bool]:
    """Return the studies behind a half, as `lejepa` of `study_arguments`."""
    return [False, True] if half.lejepa_epochs else [False]


def make() -> None:
    """Make the data, run the studies, and copy results and small weights to experiments/."""
    from lit_vision.cli.main import main

    for half in HALVES:
        for command in (data_arguments(half), *(study_arguments(half, lejepa) for lejepa in studies(half))):
            if code := main(command):
                sys.exit(code)
    for half in HALVES:  # at the end: publishing changes files that git tracks
        publish(half)


def publish(half: Half) -> None:
    """Copy results, encoders and the classifiers of the initializations that the verdict compares."""
    from lit_vision.io.atomic import write_json
    from lit_vision.results.schema import read_result

    target = WEIGHTS / f"few-label-{half.name}"
    RESULTS.mkdir(exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    for lejepa in studies(half):
        run = RUNS / "table-few-label" / file_name(half, lejepa)
        result = read_result(run / "results.json")
        if lejepa:  # its baselines have one seed
            result["cells"] = [cell for cell in result["cells"] if cell["init"] == "lejepa"]
        write_json(results_file(half, lejepa), result)
        kept = ("lejepa-",) if lejepa else ("simclr-", "scratch-cnn-")
        classifiers = [path for path in run.glob("cells/*.safetensors") if path.name.startswith(kept)]
        for path in [*run.glob("weights/*.safetensors"), *classifiers]:
            shutil.copy(path, target / path.name)


def results_file(half: Half, lejepa: bool) -> Path:
    """Return the path of the committed results of a study."""
    return RESULTS / f"few-label-desk-{file_name(half, lejepa)}.json"


def show() -> None:
    """Print the table and its verdicts; write it as Markdown, CSV and PNG."""
    from lit_vision.results.tables import comparison_table, rows_from, to_csv, to_markdown, to_png
    from lit_vision.study.verdict import sentence, verdicts

    for half in HALVES:
        name = half.name
        rows = rows_from([results_file(half, lejepa) for lejepa in studies(half)])
        table = comparison_table(
            rows, f"{name} garments; test top-1, mean ± sd (seeds); gap: to the best baseline, ± standard error"
        )
        print(f"## {name}\n\n{to_markdown(table)}")
        target = results_file(half, False).with_suffix("")
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
        main(data_arguments(half))
        images = read_images(f"data/fashion-{half.name}")
        for lejepa in studies(half):
            file = results_file(half, lejepa)
            if not file.exists():
                print(f"{file_name(half, lejepa)}: not run yet")
                continue
            result = read_result(file)
            if images.fingerprint != result["data_fingerprint"]:
                print(f"{file.name}: made from other images (fingerprint differs); make the data again")
                return 1
            total += sum(len(cell["values"]) for cell in result["cells"])
            preset = preset_for(images.size, half.rotation)
            for one in verify_cells(result["cells"], images, preset, WEIGHTS / f"few-label-{half.name}"):
                tally.add(f"{half.name} {one.key.name}", one.stored, one.measured, tolerance(one.key.protocol))
    return tally.close(total)


def print_commands() -> None:
    """Print the commands."""
    for half in HALVES:
        for command in (data_arguments(half), *(study_arguments(half, lejepa) for lejepa in studies(half))):
            print("lit-vision " + shlex.join(command))


def print_paper_scale() -> None:
    """Print what there is of this table on ImageNet."""
    print("few-label has no paper scale: simclr/resnet50_in1k recipes hold ImageNet's 1 % and 10 % (not run yet)")


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, verify, print_commands, print_paper_scale)


if __name__ == "__main__":
    sys.exit(main())
