"""Sweep command: search settings of a recipe, by several processes at once if wanted."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_vision.cli.parser import CommandParser, split_overrides
from lit_vision.cli.run_reported import run_reported
from lit_vision.errors import UsageError, UserError
from lit_vision.sweep.settings import PRUNERS, SAMPLERS, SweepSettings

LARGEST = 100_000


def _parser() -> CommandParser:
    """Return the parser of the command's options."""
    parser = CommandParser(
        prog="lit-vision sweep",
        usage="lit-vision sweep --config FILE --space FILE [--trials N] [options] [--KEY VALUE ...]",
        description="Search settings of a recipe by its metric on the validation split. Each trial is an ordinary run "
        "in the sweep's folder.\nRun the command again, or in several processes or jobs at once: they share the work, "
        "and runs that were interrupted go on.",
        epilog="A space file maps keys of the recipe to what is tried:\n"
        "  model.init_args.lr: {low: 1e-4, high: 1e-1, log: true}\n"
        "  model.init_args.optimizer: {values: [sgd, adamw]}\n"
        "--KEY VALUE sets a key of the recipe for all trials, such as --trainer.max_epochs 5.\n"
        "example: lit-vision sweep --config experiments/debug/classifier.yaml --space space.yaml --trials 20 --seeds 3",
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="the recipe")
    add("--space", required=True, metavar="FILE", help="YAML file of the keys to search")
    add("--trials", type=int, metavar="N", help="settings to try (default: 20; grid: all its points)")
    add("--sampler", default="tpe", choices=SAMPLERS, help="how settings are chosen (default: %(default)s)")
    add("--pruner", choices=PRUNERS, help="stop runs early that lag behind the others (default: none)")
    add(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="repeat settings over N seeds, the best first, until they are clearly worse than the leader (default: 1)",
    )
    add("--metric", metavar="NAME", help="to choose by, such as val/top1 (default: the method's); losses are minimized")
    add("--seed", type=int, default=0, metavar="N", help="of the points (default: 0)")
    add("--run_dir", metavar="DIR", help="the sweep's folder (default: runs/sweep/<name of the recipe>)")
    add(
        "--finish",
        action="store_true",
        help="at the end train the best setting and the recipe on new seeds, and compare them on the test split, once",
    )
    add("--finish_seeds", type=int, default=5, metavar="N", help="new seeds of --finish, at least 2 (default: 5)")
    add("--wandb", default="", metavar="PROJECT", help="log each run to Weights & Biases, as one group")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run a sweep, or join one. Returns 0."""
    args, rest = _parser().parse_known_args(argv)
    overrides = split_overrides(rest, "sweep")
    _check_numbers(args)
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        raise UsageError(
            "sweep: start one process a job: each takes its own trials (torchrun and srun start one run's)"
        )
    recipe, space_file = Path(args.config), Path(args.space)
    from lit_vision.sweep.journal import import_optuna
    from lit_vision.sweep.space import grid_size, read_space

    space = read_space(space_file)
    size = grid_size(space) if args.sampler == "grid" else 0
    if size and args.trials and args.trials > size:
        raise UsageError(f"--trials {args.trials}: the grid of {space_file} has {size} points")
    import_optuna()
    from lit_vision.cli.fit import resolve_config

    folder = Path(args.run_dir) if args.run_dir else Path("runs") / "sweep" / recipe.stem
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--run_dir {folder}: is a file; name a folder")
    try:
        config = resolve_config(["fit", "--config", args.config, *overrides])
    except UsageError as error:
        text = str(error)
        raise UsageError(text if text.startswith("--") else f"{args.config}: {text}") from error
    if not (folder / "sweep.json").exists():
        _check_space(space_file, space, ["fit", "--config", args.config, *overrides])
    with contextlib.suppress(ImportError):  # now and once: the runs are forks of this process and log to it
        import torch.utils.tensorboard  # noqa: F401
    from lit_vision.sweep.launch import run_in_child
    from lit_vision.sweep.run_sweep import run_sweep

    max_epochs = (config.get("trainer") or {}).get("max_epochs") or 0
    settings = SweepSettings(
        metric=args.metric or _declared_metric(config),
        trials=args.trials or size or 20,
        seeds=args.seeds,
        sampler=args.sampler,
        pruner=args.pruner or "",
        seed=args.seed,
        first_seed=config["seed_everything"],
        max_epochs=max_epochs if max_epochs > 0 else None,
        overrides=tuple(overrides),
        wandb=args.wandb,
    )

    def run(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        return run_in_child(_command, arguments, log, environment)

    for path in run_sweep(folder, recipe, space_file, settings, run, args.finish_seeds if args.finish else 0):
        print(path)
    return 0


def _command(arguments: Sequence[str]) -> int:
    """Run fit or test, and report its errors, as `lit-vision fit` and `lit-vision test` do."""
    from lit_vision.cli.fit import run_command

    return run_reported(arguments[0], lambda: run_command(arguments[0], arguments[1:]))


def _check_numbers(args: argparse.Namespace) -> None:
    limits = {"trials": (1, LARGEST), "seeds": (1, 1000), "finish_seeds": (2, 1000), "seed": (0, 2**32 - 1)}
    for name, (low, high) in limits.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise UsageError(f"--{name} {value}: give {low} to {high}")


def _check_space(space_file: Path, space: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Refuse a key that the recipe has no place for, and a value that it cannot take, before any run.

    Raises:
        UsageError: names file and key.
    """
    from lit_vision.cli.fit import resolve_config
    from lit_vision.sweep.space import Range, to_arguments

    choices = {key: [e.low, e.high] if isinstance(e, Range) else e.all() for key, e in space.items()}
    for i in range(max(map(len, choices.values()))):
        point = {key: values[min(i, len(values) - 1)] for key, values in choices.items()}
        try:
            resolve_config([*arguments, *to_arguments(point)])
        except UserError as error:
            raise UsageError(f"--space {space_file}: {error}") from None


def _declared_metric(config: Mapping[str, Any]) -> str:
    """Return the metric that the recipe's method chooses best.ckpt by.

    Raises:
        UsageError: it declares none.
    """
    path = config["model"]["class_path"]
    module, _, name = path.rpartition(".")
    declared = getattr(getattr(importlib.import_module(module), name), "monitor", None)
    if not declared:
        raise UsageError(f"--metric: {name} declares none; name one that it measures, such as val/knn_top1 or val/loss")
    return str(declared[0])
