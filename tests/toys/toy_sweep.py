"""A stand-in for the training of a sweep's trials: it writes what a run writes, from a formula of settings and seed."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lit_vision.io.atomic import atomic_write
from lit_vision.sweep.run_sweep import run_sweep
from lit_vision.sweep.settings import SweepSettings

SPACE = "model.lr: {values: [0.1, 0.2, 0.3, 0.4]}\nmodel.depth: {low: 2, high: 4, step: 1}\n"
RECIPE = "# a recipe\nseed_everything: 5\nmodel: {class_path: a.B, init_args: {lr: 0.5}}\ndata: {class_path: a.C}\n"


def score(values: Mapping[str, str], seed: int) -> float:
    """Return the metric of a run: best at lr 0.3 and depth 3, and a seed that matters little."""
    lr, depth = float(values.get("model.lr", 0.5)), float(values.get("model.depth", 2))
    noise = random.Random(f"{seed} {lr} {depth}").uniform(-0.5, 0.5)
    return 0.8 - (lr - 0.3) ** 2 - 0.05 * abs(depth - 3) + 0.004 * noise


class StandIn:
    """Takes the place of the function that runs a command of lit-vision.

    Attributes:
        trained: (run folder, seed) of each training, in order.
        tested: run folders whose test split was read.
    """

    def __init__(self, code: Callable[[Mapping[str, str]], int] = lambda values: 0) -> None:
        self.code = code
        self.trained: list[tuple[str, int]] = []
        self.tested: list[str] = []
        self.environments: list[Mapping[str, str]] = []

    def __call__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        flags = dict(zip(arguments[1::2], arguments[2::2])) if arguments[0] == "test" else {}
        if flags:
            run_dir = Path(flags["--ckpt_path"]).parents[1]
            self.tested.append(run_dir.as_posix())
            value = json.loads((run_dir / "results.json").read_text())["metrics"]["val/top1"] - 0.01
            result = {"metric": {"name": "test/top1", "value": value}, "metrics": {"test/top1": value}, "samples": 500}
            (run_dir / "results-test.json").write_text(json.dumps(result))
            return 0
        run_dir = Path(arguments[arguments.index("--run_dir") + 1])
        values = dict(argument[2:].split("=", 1) for argument in arguments if "=" in argument)
        seed = int(values.pop("seed_everything"))
        self.trained.append((run_dir.as_posix(), seed))
        self.environments.append(environment)
        if code := self.code(values):
            log.write_text("lit-vision: error: the loss is not finite\n")
            return code
        (run_dir / "results.json").write_text(json.dumps({"metrics": {"val/top1": score(values, seed)}}))
        return 0


def sweep_of(folder: Path, run: StandIn, finish_seeds: int = 0, **settings: object) -> list[Path]:
    """Run a sweep in folder/sweep with the stand-in, quietly."""
    recipe, space = folder / "toy.yaml", folder / "space.yaml"
    for path, text in ((recipe, RECIPE), (space, SPACE)):  # two workers of a test never see a half-written file
        atomic_write(path, lambda file, text=text: file.write_text(text), fsync=False)
    given = {"metric": "val/top1", "trials": 12, "sampler": "grid", "first_seed": 5} | settings
    return run_sweep(folder / "sweep", recipe, space, SweepSettings(**given), run, finish_seeds, lambda line: None)
