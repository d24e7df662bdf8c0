"""The parser of the commands' words."""

from __future__ import annotations

import argparse
from typing import Any

from lit_vision.errors import UsageError


class CommandParser(argparse.ArgumentParser):
    """A parser whose faults are one line and exit code 2, and that never guesses a flag from its beginning."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> None:
        """Raises UsageError."""
        raise UsageError(f"{self.prog.rpartition(' ')[2]}: {message}; see {self.prog} --help")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that runs a model takes."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="RUN_OR_FILE",
        help="a run's folder, or .ckpt, .safetensors, .onnx, .xml, .pt2",
    )
    parser.add_argument("--base", metavar="FILE", help="the weights that an adapter (--model X.safetensors) began from")
    parser.add_argument("--trust", action="store_true", help="load a .pt2, which can run code of whoever made it")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="of torch (default auto)")


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that goes over many images takes."""
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="images at once (default 32)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="decoding threads (default: the cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace what --out names")


def check_batch_arguments(args: argparse.Namespace) -> None:
    """Refuse numbers that cannot work."""
    if args.batch_size < 1:
        raise UsageError(f"--batch_size {args.batch_size}: give at least 1")
    if args.workers < 0:
        raise UsageError(f"--workers {args.workers}: give 0 (the cores) or more")
