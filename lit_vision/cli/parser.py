"""argparse parser that reports a usage error in one line with exit code 2, and arguments shared by commands."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from lit_vision.errors import UsageError
from lit_vision.predict.inference import check_ranges

IMAGES_HELP = (
    "folders (with their subfolders), files, patterns in quotes ('photos/**/*.jpg'), .txt lists with a path a line, or "
    "- for such lines on standard input"
)


class CommandParser(argparse.ArgumentParser):
    """Parser of a command: no abbreviated flags, descriptions keep their lines, errors raise UsageError."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with a message of one line, which `cli.main` prints before exiting with code 2."""
        raise UsageError(f"{self.prog.removeprefix('lit-vision ')}: {message}; see {self.prog} --help")


class ScriptParser(CommandParser):
    """CommandParser of a script outside the package: an error is printed in one line and ends it with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; --help lists the options\n")


def add_model_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the arguments of commands that run a model: --model, --base, --trust_pt2, --device."""
    parser.add_argument(
        "--model",
        required=required,
        metavar="RUN_OR_FILE",
        help="a run's folder, or .ckpt, .safetensors, .onnx, .xml, .pt2; or a name of timm (its weights)",
    )
    parser.add_argument(
        "--base", metavar="FILE", help="the weights that an adapter (--model X.safetensors) was trained on"
    )
    parser.add_argument(
        "--trust_pt2", action="store_true", help="load a .pt2, which can run code of whoever made the file"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="of torch (default auto)")


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of commands that read many images: --batch_size, --workers, --overwrite."""
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="images per batch (default 32)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="decoding threads (default 0: all cores)")
    add_overwrite_argument(parser)


def add_overwrite_argument(parser: argparse.ArgumentParser) -> None:
    """Add --overwrite; `predict.writers.check_output_path` reads it."""
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out if it exists")


def check_batch_arguments(args: argparse.Namespace) -> None:
    """Refuse batch arguments that are out of range.

    Raises:
        UsageError: names the flag.
    """
    check_ranges({"batch_size": args.batch_size, "workers": args.workers})
