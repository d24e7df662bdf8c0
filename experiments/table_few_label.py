"""The few-label table: test top-1 at 1 % and 10 % labels on the turned garments, pre-trained starts against honest baselines.

Trains through `lit-vision study` (resumable, cell by cell), then prints from experiments/results/few-label-<scale>*.json only.
Run: make table-few-label SCALE=desk        Measure the committed weights again: make verify-few-label
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from table_script import Tally, run_table

ROOT = Path(__file__).parents[1]
RESULTS, WEIGHTS, RUNS = ROOT / "experiments" / "results", ROOT / "experiments" / "weights", ROOT / "runs"
FEWER = "mae=1,scratch-vit=1"


@dataclass(frozen=True)
class Half:
    """One half of the table: how its data is made, how far pictures turn in training, seeds, epochs (pre-training; on 80, 800 labels)."""

    name: str
    how: str
    rotation: int
    seeds: int
    kept: int  # classifiers of so many seeds are committed
    epochs: str


# the first is the table's claim; the second is printed beside it, at a third of the cost
HALVES = (
    Half("turned", "--turned", 180, 10, 3, "simclr=150,mae=40,80=300,800=25"),
    Half("upright", "", 0, 5, 1, "simclr=50,mae=20,80=150,800=25"),
)


def data_words(half: Half) -> list[str]:
    """The words that make its images."""
    return ["data", "fashion", *half.how.split(), "--out", f"data/fashion-{half.name}"]


def study_words(half: Half) -> list[str]:
    """The words of the study that makes one half."""
    words = ["study", f"data/fashion-{half.name}", "--labels", "1%,10%", "--seeds", str(half.seeds), "--fewer", FEWER]
    words += [
        "--starts",
        "simclr,mae",
        "--epochs",
        half.epochs,
        "--rotation",
        str(half.rotation),
        "--pretrained",
        "off",
    ]
    return [
        *words,
        "--keep_weights",
        str(half.kept),
        "--budget",
        "120",
        "--run_dir",
        f"runs/table-few-label/{half.name}",
    ]


def make() -> None:
    """Make the data, run the studies, put results and small weights where the table reads them."""
    from lit_vision.cli.main import main

    for half in HALVES:
        for command in (data_words(half), study_words(half)):
            if code := main(command):
                sys.exit(code)
    for half in HALVES:  # at the end: what is published changes files that git knows
        publish(half.name)


def publish(name: str) -> None:
    """Copy results, encoders and the kept classifiers of the two starts that the verdict compares."""
    run, target = RUNS / "table-few-label" / name, WEIGHTS / f"few-label-{name}"
    RESULTS.mkdir(exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "results.json", RESULTS / f"few-label-desk-{name}.json")
    kept = [*run.glob("cells/simclr-*.safetensors"), *run.glob("cells/scratch-cnn-*.safetensors")]
    for path in [*run.glob("weights/*.safetensors"), *kept]:
        shutil.copy(path, target / path.name)


def show() -> None:
    """Print the table, write it as Markdown, CSV and PNG, and say what it supports."""
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


def check() -> int:
    """Measure again what weights are committed for; 1 when a number moved or none could be measured."""
    from lit_vision.cli.main import main
    from lit_vision.results.schema import read_result
    from lit_vision.study.images import read_images
    from lit_vision.study.presets import preset_for
    from lit_vision.study.verify import tolerance, verify

    tally, total = Tally(), 0
    for half in HALVES:
        name = half.name
        file = RESULTS / f"few-label-desk-{name}.json"
        if not file.exists():
            print(f"{name}: not run yet")
            continue
        main(data_words(half))
        result, images = read_result(file), read_images(f"data/fashion-{name}")
        if images.fingerprint != result["data_fingerprint"]:
            print(f"{file.name}: made from other images (fingerprint differs); make the data again")
            return 1
        total += sum(len(cell["values"]) for cell in result["cells"])
        for one in verify(
            result["cells"], images, preset_for(images.size, half.rotation), WEIGHTS / f"few-label-{name}"
        ):
            tally.add(f"{name} {one.key.name}", one.stands, one.measured, tolerance(one.key.protocol))
    return tally.close(total)


def dry() -> None:
    """Print the commands."""
    for half in HALVES:
        print("lit-vision " + shlex.join(data_words(half)) + "\nlit-vision " + shlex.join(study_words(half)))


def paper() -> None:
    """Say what stands for it."""
    print("few-label has no paper scale: simclr/resnet50_in1k recipes hold ImageNet's 1 % and 10 % (not run yet)")


def main() -> int:
    """The script."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, check, dry, paper)


if __name__ == "__main__":
    sys.exit(main())
