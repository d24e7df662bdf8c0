"""What a row of a paper's table is made of: stages of training, commands, the data they need."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNS = "runs/paper"
IMAGENET = "data/imagenet: ImageNet-1k as train/<1000 classes>/ (1,281,167 images) and val/<1000 classes>/ (50,000)"


@dataclass(frozen=True)
class Stage:
    """One training run: a recipe, flags, and the stage whose encoder it begins with."""

    recipe: str  # under experiments/, without .yaml
    flags: str = ""
    start: Stage | None = None
    name: str = ""

    @property
    def folder(self) -> str:
        """The run's folder; the same for two rows that share a stage."""
        own = self.name or self.recipe.split("/")[-1]
        return f"{RUNS}/{own}" if self.start is None else f"{self.start.folder}--{own}"

    @property
    def command(self) -> str:
        """What a person would type; repeated, it goes on where it stopped."""
        return f"lit-vision fit --config {self.file}{self._changes} --run_dir {self.folder} --resume auto"

    @property
    def file(self) -> str:
        """The recipe's."""
        return f"experiments/{self.recipe}.yaml"

    @property
    def _changes(self) -> str:
        begin = f" --model.backbone_checkpoint {self.start.folder}/checkpoints/last.ckpt" if self.start else ""
        return (f" {self.flags}" if self.flags else "") + begin

    @property
    def nodes(self) -> int:
        """Machines that it is written for: its flags', else its recipe's."""
        told = re.search(r"num_nodes (\d+)", self.flags) or re.search(
            r"num_nodes: (\d+)", (ROOT / self.file).read_text()
        )
        return int(told[1])

    @property
    def sbatch(self) -> str:
        """The same run on SLURM; of several nodes, one command on one machine would wait for the others for ever."""
        return f"sbatch --nodes={self.nodes} experiments/cluster/slurm.sh {self.file} {self.folder}{self._changes}"


@dataclass(frozen=True)
class Line:
    """A row: its stages in order, further commands, the file that holds its result, and what others report (fractions)."""

    name: str
    stages: tuple[Stage, ...]
    paper: float | None = None
    peers: str = ""
    after: str = ""  # a command that measures the last stage, or uses its encoder
    result: str = ""  # results.json of the last stage if empty
    metric: str = ""  # the paper's measure, where it is not the one that the result is named by

    @property
    def commands(self) -> list[str]:
        """In order, the shared ones too."""
        return [stage.command for stage in self.stages] + ([self.after] if self.after else [])

    @property
    def result_file(self) -> str:
        """Where the number is, once it was measured."""
        return self.result or f"{self.stages[-1].folder}/results.json"


@dataclass(frozen=True)
class PaperTable:
    """Rows, the folders and files that they read, and a note under the table."""

    title: str
    lines: tuple[Line, ...]
    data: dict[str, str] = field(default_factory=lambda: {"data/imagenet/train": IMAGENET})
    note: str = ""


def pair(stage: Stage, recipe: str, flags: str = "", name: str = "") -> tuple[Stage, Stage]:
    return stage, Stage(recipe, flags, stage, name)
