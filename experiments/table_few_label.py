"""The few-label table: test top-1 at 1 % and 10 % labels on the turned garments, pre-trained starts against honest baselines.

Trains through `lit-vision study` (resumable, cell by cell), then prints from experiments/results/few-label-<scale>*.json only.
Run: make table-few-label SCALE=desk        Measure the committed weights again: make verify-few-label
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS, WEIGHTS, RUNS = ROOT / "experiments" / "results", ROOT / "experiments" / "weights", ROOT / "runs"
EPOCHS = "mae=40,simclr=64,80=150,800=25"
SEEDS, FEWER, KEPT = "10", "mae=1,scratch-vit=1", 3
# name, how the data is made, how far pictures turn in training: the second is printed beside the first
SETS = (("turned", "--turned", 180), ("upright", "", 0))


def study_words(name: str, rotation: int) -> list[str]:
    """The words of the study that makes one half of the table."""
    words = [
        "study",
        f"data/fashion-{name}",
        "--labels",
        "1%,10%",
        "--seeds",
        SEEDS,
        "--fewer",
        FEWER,
        "--epochs",
        EPOCHS,
    ]
    words += ["--rotation", str(rotation), "--pretrained", "off", "--keep_weights", str(KEPT), "--budget", "120"]
    return [*words, "--run_dir", f"runs/table-few-label/{name}"]


def make(dry: bool) -> None:
    """Make the data, run the studies, put results and small weights where the table reads them."""
    from lit_vision.cli import main

    for name, how, rotation in SETS:
        data = ["data", "fashion", *how.split(), "--out", f"data/fashion-{name}"]
        words = study_words(name, rotation)
        if dry:
            print("lit-vision " + shlex.join(data) + "\nlit-vision " + shlex.join(words))
            continue
        for command in (data, words):
            if code := main(command):
                sys.exit(code)
        publish(name)


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
    from lit_vision.study.verdict import sentence, verdicts
    from lit_vision.tables import comparison_table, rows_from, to_csv, to_markdown, to_png

    for name, _, _ in SETS:
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
    from lit_vision.cli import main
    from lit_vision.evaluation.results import read_result
    from lit_vision.study.images import read_images
    from lit_vision.study.recipes import recipe_for
    from lit_vision.study.verify import TOLERANCE, verify

    done = moved = total = 0
    for name, how, rotation in SETS:
        file = RESULTS / f"few-label-desk-{name}.json"
        if not file.exists():
            print(f"{name}: not run yet")
            continue
        main(["data", "fashion", *how.split(), "--out", f"data/fashion-{name}"])
        result, images = read_result(file), read_images(ROOT / "data" / f"fashion-{name}")
        if images.fingerprint != result["data_fingerprint"]:
            print(f"{file.name}: made from other images (fingerprint differs); make the data again")
            return 1
        total += sum(len(cell["values"]) for cell in result["cells"])
        for one in verify(result["cells"], images, recipe_for(images.size, rotation), WEIGHTS / f"few-label-{name}"):
            done += 1
            if not one.holds:
                moved += 1
                print(f"MOVED {name} {one.ask.name}: stands {one.stands:.4f}, measured {one.measured:.4f}")
    print(f"{done} of {total} rows re-evaluated, {moved} moved by more than {TOLERANCE}")
    return int(moved > 0 or done == 0)


def main() -> int:
    """The script."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--scale", choices=["desk", "paper"], default="desk")
    words.add_argument("--dry", action="store_true", help="print the commands and leave")
    words.add_argument("--show", action="store_true", help="print from the committed results; train nothing")
    words.add_argument("--verify", action="store_true", help="measure the committed weights again")
    options = words.parse_args()
    if options.scale == "paper":
        print("few-label has no paper scale: simclr/resnet50_in1k recipes hold ImageNet's 1 % and 10 % (not run yet)")
        return 0
    if options.verify:
        return check()
    if not options.show:
        make(options.dry)
    if not options.dry:
        show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
