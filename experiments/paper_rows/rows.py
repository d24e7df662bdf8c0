"""Rows of a paper's table: stages of training, commands, the data they need."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNS = "runs/paper"
IMAGENET = "data/imagenet: ImageNet-1k as train/<1000 classes>/ (1,281,167 images) and val/<1000 classes>/ (50,000)"


@dataclass(frozen=True)
class Stage:
    """One training run.

    Attributes:
        recipe: its path under experiments/, without .yaml.
        flags: further flags of its command.
        pretrained: the stage whose encoder it starts from, None for none.
        name: of its folder; default: the recipe's.
    """

    recipe: str
    flags: str = ""
    pretrained: Stage | None = None
    name: str = ""

    @property
    def folder(self) -> str:
        """The run's folder; the same for two rows that share a stage."""
        name = self.name or self.recipe.split("/")[-1]
        return f"{RUNS}/{name}" if self.pretrained is None else f"{self.pretrained.folder}--{name}"

    @property
    def command(self) -> str:
        """The command; given again, it resumes the run where it stopped."""
        return f"lit-vision fit --config {self.file}{self._changes} --run_dir {self.folder} --resume auto"

    @property
    def file(self) -> str:
        """The recipe's file."""
        return f"experiments/{self.recipe}.yaml"

    @property
    def _changes(self) -> str:
        encoder = ""
        if self.pretrained:
            encoder = f" --model.backbone_checkpoint {self.pretrained.folder}/checkpoints/last.ckpt"
        return (f" {self.flags}" if self.flags else "") + encoder

    @property
    def nodes(self) -> int:
        """Number of machines, from its flags or else its recipe."""
        in_flags = re.search(r"num_nodes (\d+)", self.flags)
        found = in_flags or re.search(r"num_nodes: (\d+)", (ROOT / self.file).read_text())
        assert found
        return int(found[1])

    @property
    def sbatch(self) -> str:
        """The same run on SLURM. With several nodes `command` on one machine would wait for the others forever."""
        return f"sbatch --nodes={self.nodes} experiments/cluster/slurm.sh {self.file} {self.folder}{self._changes}"


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: printed in its first column.
        stages: its training runs in order.
        paper: the paper's number, a fraction; None if it has none.
        peers: what other projects report, as text.
        last_command: a command after the stages that measures the last one or uses its encoder.
        result: the file with the number; default: results.json of the last stage.
        metric: the paper's metric, where it is not the one that the result file names.
    """

    name: str
    stages: tuple[Stage, ...]
    paper: float | None = None
    peers: str = ""
    last_command: str = ""
    result: str = ""
    metric: str = ""

    @property
    def commands(self) -> list[str]:
        """All commands in order, also those that other rows have."""
        return [stage.command for stage in self.stages] + ([self.last_command] if self.last_command else [])

    @property
    def result_file(self) -> str:
        """The file with the number, once it was measured."""
        return self.result or f"{self.stages[-1].folder}/results.json"


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        title: printed above it.
        rows: its rows.
        data: {folder or file that the rows read: what it holds}.
        note: printed under it.
    """

    title: str
    rows: tuple[Row, ...]
    data: dict[str, str] = field(default_factory=lambda: {"data/imagenet/train": IMAGENET})
    note: str = ""


def pair(stage: Stage, recipe: str, flags: str = "", name: str = "") -> tuple[Stage, Stage]:
    """Return a stage and the next one, which starts from its encoder."""
    return stage, Stage(recipe, flags, stage, name)
