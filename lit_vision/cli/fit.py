"""`lit-vision fit | validate | test`: what is typed, what it answers, and how it ends. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_vision.cli.config_errors import COMMAND_KEYS
from lit_vision.errors import UsageError, UserError
from lit_vision.runs import run_dir

HELP = {
    "fit": """usage: lit-vision fit --config RECIPE.yaml [--KEY VALUE ...]

Trains what the recipe says and leaves a run's folder: checkpoints, config.yaml, metrics.csv, results.json, samples/.

  --config FILE            the recipe (experiments/README.md lists them); exactly one
  --run_dir DIR            the run's folder; runs/<recipe>/<time> if not given
  --name NAME              the run's folder is runs/<recipe>/NAME
  --resume auto|CHECKPOINT go on with this run where it stopped, to the same bits; auto starts anew if there is nothing yet
  --resume_anyway true     even if the data or the global batch has changed (what follows is then another run)
  --seed_everything N      seed of initialisation, order and augmentation
  --wandb PROJECT          log to Weights & Biases as well (WANDB_MODE=offline works)
  --wandb_weights true     and upload the final weights
  --KEY VALUE              any key of the recipe: --trainer.max_epochs 2 --model.base_lr 1e-3 --data.root DIR
  --print_config           print the complete settings and leave
  --help_all               every key of the Trainer, the model and the data (takes seconds)

example: lit-vision fit --config experiments/debug/mae.yaml
Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint within one step; exit codes 130, 143 and 143.""",
    "validate": """usage: lit-vision validate --ckpt_path CHECKPOINT [--config RECIPE.yaml] [--KEY VALUE ...]

Measures a checkpoint on the validation split and writes results-validate.json beside the run's other files.

  --ckpt_path FILE         the checkpoint
  --config FILE            the recipe; the run's own config.yaml if not given
  --run_dir DIR            where the result goes; the checkpoint's run if not given
  --KEY VALUE              any key of the recipe: --data.root DIR --data.batch_size 256
  --help_all               every key (takes seconds)

example: lit-vision validate --ckpt_path runs/classifier/20260101-120000/checkpoints/best.ckpt""",
}
HELP["test"] = HELP["validate"].replace("validate", "test").replace("validation", "test")


def _flag_values(arguments: Sequence[str], *flags: str) -> list[str]:
    """What follows the flags, as `--flag value` or `--flag=value`."""
    found = []
    for i, argument in enumerate(arguments):
        head, sign, value = argument.partition("=")
        if head in flags:
            found.append(value if sign else arguments[i + 1] if i + 1 < len(arguments) else "")
    return found


def _recipe(command: str, arguments: list[str]) -> str | None:
    """The recipe's file, checked; for validate and test the config.yaml of the checkpoint's run is put into words."""
    configs = _flag_values(arguments, "--config", "-c")
    if len(configs) > 1:
        raise UsageError(
            "--config: given twice, and of two recipes the first is silently kept; change single keys instead"
        )
    if not configs and command != "fit":
        beside = Path(_flag_values(arguments, "--ckpt_path")[0]).parent.parent / "config.yaml"
        if not beside.is_file():
            raise UsageError(f"--config: there is no {beside}; name the recipe of this checkpoint")
        arguments[:0] = ["--config", str(beside)]  # first, so that what was typed changes it
        configs = [str(beside)]
    if not configs or not configs[0]:
        raise UsageError("--config: name a recipe, such as experiments/debug/mae.yaml")
    path = Path(configs[0])
    if path.is_file():
        return str(path)
    known = [str(p) for p in sorted(Path("experiments").rglob("*.yaml"))]
    near = difflib.get_close_matches(str(path), known, n=1, cutoff=0.5)
    raise UsageError(
        f"--config {path}: no such file; {f'did you mean {near[0]}?' if near else 'see experiments/README.md'}"
    )


def _check_flags(command: str, arguments: Sequence[str]) -> None:
    checkpoint = _flag_values(arguments, "--ckpt_path")
    if command == "fit" and checkpoint:
        raise UsageError(
            "--ckpt_path: fit does not take it; --resume goes on with a run, model.backbone_checkpoint begins from weights"
        )
    if command != "fit":
        if not checkpoint or not checkpoint[0]:
            raise UsageError(
                f"--ckpt_path: {command} measures a checkpoint; name one, such as RUN/checkpoints/best.ckpt"
            )
        if not Path(checkpoint[0]).exists():
            raise UserError(f"--ckpt_path {checkpoint[0]}: no such file")
    for key in ("--data.seed", "--data.init_args.seed", "--model.seed", "--model.init_args.seed"):
        if _flag_values(arguments, key):
            raise UsageError(f"{key}: is seed_everything, so that one number names a run; set that")


def _overrides(arguments: Sequence[str]) -> list[str]:
    """The words that change the recipe: not where it runs, nor whether it goes on."""
    return run_dir.drop_flags(arguments, {"--config", "-c", *(f"--{name}" for name in COMMAND_KEYS)})


def resolve_config(argv: Sequence[str]) -> dict[str, Any]:
    """The complete settings that the words of `fit` make, as RUN/config.yaml will hold them; nothing is built or run.

    Raises:
        UsageError: a wrong word, key or value, in one line.
    """
    command, arguments = argv[0], list(argv[1:])
    _check_flags(command, arguments)
    recipe = _recipe(command, arguments)
    from lit_vision.cli.lightning_cli import ParseOnly  # seconds

    return ParseOnly([command, *arguments], recipe, _overrides(arguments)).settings()


def main_fit(argv: Sequence[str]) -> int:
    """Train; returns the exit code of `run_command`."""
    return run_command("fit", argv)


def main_validate(argv: Sequence[str]) -> int:
    """Measure a checkpoint on the validation split; returns the exit code of `run_command`."""
    return run_command("validate", argv)


def main_test(argv: Sequence[str]) -> int:
    """Measure a checkpoint on the test split; returns the exit code of `run_command`."""
    return run_command("test", argv)


def run_command(command: str, argv: Sequence[str]) -> int:
    """Run fit, validate or test of a recipe.

    Args:
        command: "fit", "validate" or "test".
        argv: the arguments that follow it.

    Returns:
        0 done, 130 after Ctrl-C, 143 after SIGTERM (both with a checkpoint, once training has begun).

    Raises:
        UserError: a fault with a mend, in one line; the recipe, a key, the data or a checkpoint.
    """
    arguments = list(argv)
    if any(argument in ("-h", "--help") for argument in arguments):
        print(HELP[command])
        return 0
    if "--help_all" in arguments:
        arguments = ["--help"]
        recipe = None
    else:
        _check_flags(command, arguments)
        recipe = _recipe(command, arguments)
    from lit_vision.cli.lightning_cli import RunCLI  # seconds: lightning and torch

    cli = RunCLI.__new__(RunCLI)  # the object is needed when its __init__, which is the whole run, is interrupted
    try:
        cli.__init__([command, *arguments], recipe, _overrides(arguments))
    except SystemExit as stop:
        by_key = stop.code == 1 and isinstance(stop.__context__, KeyboardInterrupt)  # Lightning's answer to Ctrl-C
        code = 130 if by_key else stop.code or 0
        if code in (130, 143):
            _report_interruption(cli, "Ctrl-C" if code == 130 else "SIGTERM")
        return int(code)
    except UserError as error:
        text = str(error)
        if "Original Traceback" in text:  # raised in a loader's worker, which hands over its whole traceback
            raise type(error)(text.strip().splitlines()[-1].split(": ", 1)[-1]) from error
        if recipe and isinstance(error, UsageError) and not text.startswith(("--", recipe)):
            raise UsageError(f"{recipe}: {text}") from error
        raise
    except OSError as error:  # metrics.csv or TensorBoard; a checkpoint says it itself
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or getattr(cli, "folder", "the run's folder")
        raise UserError(
            f"{where}: no room left on the disk; the checkpoints are whole: make room, then go on with --resume auto"
        ) from error
    finally:
        run_dir.reset_run_dir()
    if cli.trainer.is_global_zero:
        made = sorted(p.name + "/" * p.is_dir() for p in cli.folder.iterdir() if not p.name.startswith("."))
        print(f"{cli.folder}: {', '.join(made)}", flush=True)
    return 0


def _report_interruption(cli, by: str) -> None:
    folder = getattr(cli, "folder", None)
    trainer = getattr(cli, "trainer", None)
    if trainer is not None and not trainer.is_global_zero:
        return
    last = run_dir.last_checkpoint(folder) if folder else None
    if last is not None and last.exists():
        print(
            f"stopped by {by}: {last}; the same command with --run_dir {folder} --resume auto goes on", file=sys.stderr
        )
    else:
        print(f"stopped by {by} before the first checkpoint", file=sys.stderr)
