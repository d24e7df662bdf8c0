"""Prompt learning (CoOp) on the paper's eleven sets, beside zero-shot and logistic regression, CLIP's ResNet-50.

Zhou et al. 2022, arXiv:2109.01134: 16 context vectors at the prompt's start, shared by the classes, 1 to 16 labeled
images a class, mean of three draws; about 15 points more at 16 than hand-made prompts, mean of the sets. The numbers of
its sets are in the authors' Results.xlsx, which is not part of this project; the one here is the example in COOP.md of
their repository. Zero-shot numbers are open_clip's, of the same weights with its own prompts
(docs/openclip_results.csv).

Run: make table-coop SCALE=paper DRY=1    prints the commands and the data they need
     make table-coop SCALE=paper          runs them, each set once, on a machine that has the data
     make table-coop                      prints the table from experiments/results/paper/coop/ and runs nothing
"""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from lit_vision.cli.parser import ScriptParser
from lit_vision.results.tables import NOT_RUN, Table, to_markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "paper" / "coop"
DATA = "data/coop"
MODEL = "open_clip:RN50-quickgelu/openai"
METHODS, SHOTS = ("zero-shot", "coop", "logreg"), (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Set:
    """One of the sets.

    Attributes:
        name: as the paper writes it.
        zero_shot: open_clip's accuracy of zero-shot, %; None where it did not measure the set.
        coop: the authors' accuracy of CoOp at 16 images a class, %; None where it is not transcribed.
    """

    name: str
    zero_shot: float | None
    coop: float | None = None

    @property
    def folder(self) -> str:
        """The folder of its images: train/<class>/ and test/<class>/."""
        return f"{DATA}/{self.name.lower()}"

    @property
    def result(self) -> Path:
        """The file with every draw."""
        return RESULTS / f"{self.name.lower()}.csv"

    @property
    def command(self) -> str:
        """The command that measures it."""
        shots = ",".join(map(str, SHOTS))
        return (
            f"lit-vision fewshot {self.folder} --model {MODEL} --methods {','.join(METHODS)} --shots {shots} "
            f"--seeds 3 --out {self.result.relative_to(ROOT)}"
        )


SETS = (
    Set("ImageNet", 59.82),
    Set("Caltech101", 83.29, 92.0),
    Set("OxfordPets", 85.29),
    Set("StanfordCars", 54.53),
    Set("Flowers102", 65.22),
    Set("Food101", 80.80),
    Set("FGVCAircraft", 17.03),
    Set("SUN397", 59.94),
    Set("DTD", 41.54),
    Set("EuroSAT", 40.81),
    Set("UCF101", None),
)


def table() -> str:
    """Return the table as Markdown, from the files of results alone."""
    columns = ["set", "zero-shot (open_clip)", "CoOp, 16 (authors)"]
    cells = [(method, shots) for method in METHODS for shots in (SHOTS if method != "zero-shot" else SHOTS[-1:])]
    columns += [f"{method}, {shots}" for method, shots in cells]
    lines = []
    for one in SETS:
        found: dict[tuple[str, int], list[float]] = {}
        if one.result.is_file():
            with open(one.result, newline="") as file:
                for row in csv.DictReader(file):
                    found.setdefault((row["method"], int(row["shots"])), []).append(100 * float(row["top1"]))
        published = ["-" if value is None else f"{value:.1f}" for value in (one.zero_shot, one.coop)]
        values = [found.get(cell) for cell in cells]
        lines.append([one.name, *published, *(f"{fmean(v):.1f}" if v else NOT_RUN for v in values)])
    note = (
        "Top-1, %, mean of three draws of the labeled images. Unlike the paper: features are computed once, without "
        "crops and flips; names of folders are the names of classes; the images of a draw are not those of the authors."
    )
    return f"## CoOp, CLIP's ResNet-50 (Zhou et al. 2022, Fig. 3)\n\n{to_markdown(Table(columns, lines, note))}"


def main() -> int:
    """Run the script; return its exit code."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("--scale", choices=["desk", "paper"], default="desk", help="paper: run what was not run yet")
    parser.add_argument("--dry", action="store_true", help="print the commands and the data they need; run nothing")
    options = parser.parse_args()
    if options.dry:
        print(f"# data: {DATA}/SET with train/<class>/ and test/<class>/, the splits of CoOp's DATASETS.md")
        for one in SETS:
            here = "" if (ROOT / one.folder).is_dir() else "   # its images are not on this machine"
            print(f"{one.command}{here}")
        return 0
    for one in SETS if options.scale == "paper" else ():
        if one.result.is_file():
            continue
        if not (ROOT / one.folder).is_dir():
            print(f"table-coop: this machine lacks {one.folder}; DRY=1 lists all data", file=sys.stderr)
            return 1
        RESULTS.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "lit_vision", *one.command.split()[1:]]
        if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
            return code
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
