"""The fit, validate and test commands: parse arguments, run the Trainer, map outcomes to exit codes.

Nothing heavy is imported before it is needed, so that --help and wrong flags are answered at once.
"""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.cli.config_errors import COMMAND_KEYS
from lit_vision.errors import UsageError, UserError
from lit_vision.io.text import check_text_file
from lit_vision.runs import run_dir

if TYPE_CHECKING:
    from lit_vision.cli.lightning_cli import RunCLI

HELP = {
    "fit": """usage: lit-vision fit --config RECIPE.yaml [--KEY VALUE ...]

Trains the recipe's model and writes a run folder: checkpoints, config.yaml, metrics.csv, results.json, samples/.

  --config FILE            the recipe (experiments/README.md lists them); exactly one
  --run_dir DIR            the run's folder (default runs/<recipe>/<time>)
  --name NAME              use the run folder runs/<recipe>/NAME
  --resume auto|CHECKPOINT continue a run where it stopped, to the same bits; auto starts a new one if there is none
  --resume_anyway true     resume even if the data or the global batch size has changed (results then differ)
  --classes_by_number true resume although the data's classes have other names than the checkpoint's
  --seed_everything N      seed of initialization, order and augmentation
  --wandb PROJECT          also log to Weights & Biases (WANDB_MODE=offline works)
  --wandb_weights true     also upload the final weights
  --KEY VALUE              any key of the recipe: --trainer.max_epochs 2 --model.base_lr 1e-3 --data.root DIR
  --print_config           print the complete config and exit
  --help_all               every key of the Trainer, the model and the data (takes seconds)

example: lit-vision fit --config experiments/debug/mae.yaml
Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint within one step; exit codes 130, 143 and 143.""",
    "validate": """usage: lit-vision validate --ckpt_path CHECKPOINT [--config RECIPE.yaml] [--KEY VALUE ...]

Measures a checkpoint on the validation split and writes results-validate.json to the run's folder.

  --ckpt_path FILE         the checkpoint
  --config FILE            the recipe (default: config.yaml of the checkpoint's run)
  --run_dir DIR            folder of the result (default: the checkpoint's run)
  --classes_by_number true compare classes by number although their names are not the model's
  --KEY VALUE              any key of the recipe: --data.root DIR --data.batch_size 256
  --help_all               every key (takes seconds)

example: lit-vision validate --ckpt_path runs/classifier/20260101-120000/checkpoints/best.ckpt""",
}
HELP["test"] = HELP["validate"].replace("validate", "test").replace("validation", "test")


def _flag_values(arguments: Sequence[str], *flags: str) -> list[str]:
    """Return the values of the flags, given as `--flag value` or `--flag=value`."""
    values = []
    for i, argument in enumerate(arguments):
        head, sign, value = argument.partition("=")
        if head in flags:
            values.append(value if sign else arguments[i + 1] if i + 1 < len(arguments) else "")
    return values


def _find_recipe(command: str, arguments: list[str]) -> str:
    """Return the recipe's file; validate and test get `--config` of the checkpoint's run if none is given."""
    configs = _flag_values(arguments, "--config", "-c")
    if len(configs) > 1:
        raise UsageError(
            "--config: given twice, but only one recipe can be used; change single keys with --KEY VALUE instead"
        )
    if not configs and command != "fit":
        checkpoint = _flag_values(arguments, "--ckpt_path")[0]
        of_run = Path(checkpoint).parent.parent / "config.yaml"
        if not of_run.is_file():
            raise UsageError(f"--config: {of_run} does not exist; name the recipe of this checkpoint ({checkpoint})")
        arguments[:0] = ["--config", str(of_run)]  # first, so that the other arguments override it
        configs = [str(of_run)]
    if not configs or not configs[0]:
        raise UsageError("--config: name a recipe, such as experiments/debug/mae.yaml")
    path = Path(configs[0])
    if path.is_file():
        check_text_file("--config", path)
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
            "--ckpt_path: is not for fit; give --resume to continue a run, or model.backbone_checkpoint to start from "
            "its weights"
        )
    if command != "fit":
        if not checkpoint or not checkpoint[0]:
            raise UsageError(
                f"--ckpt_path: is missing; name the checkpoint to {command}, such as RUN/checkpoints/best.ckpt"
            )
        if not Path(checkpoint[0]).exists():
            raise UserError(f"--ckpt_path {checkpoint[0]}: no such file")
    for key in ("--data.seed", "--data.init_args.seed", "--model.seed", "--model.init_args.seed"):
        if _flag_values(arguments, key):
            raise UsageError(f"{key}: is set by seed_everything, so that a run has one seed; set that")


def _overrides(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that change the recipe, without those about the run's folder and resuming."""
    return run_dir.drop_flags(arguments, {"--config", "-c", *(f"--{name}" for name in COMMAND_KEYS)})


def resolve_config(argv: Sequence[str]) -> dict[str, Any]:
    """Return the complete config of a command's arguments, as RUN/config.yaml stores it; nothing is built or run.

    Args:
        argv: the command ("fit", "validate" or "test") and its arguments.

    Raises:
        UsageError: a wrong flag, key or value, in one line.
    """
    command, arguments = argv[0], list(argv[1:])
    _check_flags(command, arguments)
    recipe = _find_recipe(command, arguments)
    from lit_vision.cli.lightning_cli import ParseOnly  # takes seconds

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
        UserError: one line that names the recipe, key, data or checkpoint, and what to do.
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
        recipe = _find_recipe(command, arguments)
    from lit_vision.cli.lightning_cli import RunCLI  # takes seconds: lightning and torch

    cli = RunCLI.__new__(RunCLI)  # LightningCLI runs in __init__; after an interruption the object is still needed
    try:
        RunCLI.__init__(cli, [command, *arguments], recipe, _overrides(arguments))
    except SystemExit as stop:
        by_key = stop.code == 1 and isinstance(stop.__context__, KeyboardInterrupt)  # Lightning exits so on Ctrl-C
        code = 130 if by_key else stop.code or 0
        if code in (130, 143):
            callbacks = getattr(getattr(cli, "trainer", None), "callbacks", ())
            by = next((name for c in callbacks if (name := getattr(c, "stopped_by", ""))), "SIGTERM")
            _report_interruption(cli, "Ctrl-C" if code == 130 else by)
        return int(code)
    except UserError as error:
        text = str(error)
        if "Original Traceback" in text:  # raised in a worker of the loader; the text contains its traceback
            raise type(error)(text.strip().splitlines()[-1].split(": ", 1)[-1]) from error
        if recipe and isinstance(error, UsageError) and not text.startswith(("--", recipe)):
            raise UsageError(f"{recipe}: {text}") from error
        raise
    except OSError as error:  # from metrics.csv or TensorBoard; checkpoints raise UserError
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or getattr(cli, "folder", "the run's folder")
        raise UserError(
            f"{where}: no room left on the disk; the checkpoints are complete: make room, then give --resume auto"
        ) from error
    finally:
        run_dir.reset_run_dir()
    if cli.trainer.is_global_zero:
        found = cli.folder.iterdir() if cli.folder.is_dir() else ()  # fast_dev_run writes nothing
        entries = sorted(p.name + "/" * p.is_dir() for p in found if not p.name.startswith("."))
        print(f"{cli.folder}: {', '.join(entries) or 'nothing was written'}", flush=True)
    return 0


def _report_interruption(cli: RunCLI, by: str) -> None:
    """Print the checkpoint of a stopped run, and how to resume it."""
    folder = getattr(cli, "folder", None)
    trainer = getattr(cli, "trainer", None)
    if trainer is not None and not trainer.is_global_zero:
        return
    last = run_dir.last_checkpoint(folder) if folder else None
    if last is not None and last.exists():
        print(
            f"stopped by {by}: {last}; to resume, add --run_dir {folder} --resume auto to the command", file=sys.stderr
        )
    else:
        print(f"stopped by {by} before the first checkpoint", file=sys.stderr)
