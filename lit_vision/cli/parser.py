"""argparse parser that reports a usage error in one line with exit code 2, and arguments shared by commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

from lit_vision.errors import UsageError
from lit_vision.predict.inference import check_ranges

if TYPE_CHECKING:
    from lit_vision.predict.runtimes import Model

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


def split_overrides(rest: Sequence[str], command: str) -> list[str]:
    """Return a command's further arguments, which change its recipe, as --KEY=VALUE.

    Args:
        rest: arguments that the command's parser does not know.
        command: its name, for the error.

    Raises:
        UsageError: one is no key of a recipe.
    """
    found, left = [], list(rest)
    while left:
        head, sign, value = left.pop(0).partition("=")
        if not head.startswith("--") or ("." not in head and head != "--seed_everything"):
            raise UsageError(f"{head}: no such option; lit-vision {command} --help lists them")
        if not sign and not left:
            raise UsageError(f"{head}: has no value; write the value after the flag")
        found.append(f"{head}={value if sign else left.pop(0)}")
    return found


def add_model_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the arguments of commands that run a model: --model, and those of `add_loading_arguments`."""
    parser.add_argument(
        "--model",
        required=required,
        metavar="RUN_OR_FILE",
        help="a run's folder, or .ckpt, .safetensors, .onnx, .xml, .pt2, .sealed; a name of timm (its weights), "
        "or open_clip:MODEL/WEIGHTS",
    )
    add_loading_arguments(parser)


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how a model is loaded: --base, --trust_pt2, --device, --range, keys and signatures."""
    parser.add_argument(
        "--base", metavar="FILE", help="the weights that an adapter (a model X.safetensors) was trained on"
    )
    parser.add_argument(
        "--trust_pt2", action="store_true", help="load a .pt2, which can run code of whoever made the file"
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=["auto", "cpu", "cuda"],
        help="device of torch (default auto: a GPU if there is one)",
    )
    parser.add_argument(
        "--range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="values of 16-bit, integer or float images that become 0 and 255 (default: as in training)",
    )
    add_key_arguments(parser, "opens a model of lit-vision protect seal")
    parser.add_argument(
        "--require_signature",
        metavar="PUBLIC_KEY",
        help="refuse, before anything in it is parsed, a model file without a valid signature of this key beside it "
        "(lit-vision protect sign)",
    )


def add_key_arguments(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add --key and --passphrase_file; `io.sealed.read_key` reads them."""
    parser.add_argument("--key", metavar="FILE", help=f"key file that {purpose}")
    parser.add_argument(
        "--passphrase_file",
        metavar="FILE",
        help=f"file whose first line is the passphrase that {purpose} (without it, it is asked for on the terminal)",
    )


def opened_models(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Return the block in which models are loaded: with --key or --passphrase_file, and --require_signature.

    A passphrase that is needed and not given is asked for on the terminal, if there is one.

    Raises:
        UserError: as `io.sealed.read_key`.
    """
    from lit_vision.io.sealed import read_key
    from lit_vision.weights.protected_files import model_protection

    key = read_key(args.key, args.passphrase_file)
    return model_protection(key, args.require_signature, ask_passphrase if sys.stdin.isatty() else None)


def ask_passphrase(path: str) -> str:
    """Return a passphrase that was typed on the terminal, where it is not shown."""
    from getpass import getpass

    return getpass(f"passphrase of {path}: ")


def load_features_model(args: argparse.Namespace, shared_space: bool) -> Model:
    """Load the model of --model for its features; `shared_space` as in `load_model`."""
    from lit_vision.predict.models import load_model

    with opened_models(args):
        return load_model(
            args.model, args.device, args.base, args.trust_pt2, value_range=args.range, shared_space=shared_space
        )


def add_classes_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --classes and --template, which make a classifier of a model of images and captions."""
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="a model of images and captions (ImageText, open_clip): classify into the classes that this text file "
        "names, one a line, without any training on them",
    )
    parser.add_argument(
        "--template",
        metavar="FILE",
        help="with --classes: prompts, one a line, with {} for the name; several are averaged (default: 'a photo of a "
        "{}.')",
    )


def zero_shot_model(args: argparse.Namespace) -> Model:
    """Return the classifier of the classes that --classes names, from --model.

    Raises:
        UserError: as `zero_shot.read_prompts` and `zero_shot.open_zero_shot`.
    """
    from lit_vision.predict.zero_shot import open_zero_shot, read_prompts

    for name in ("base", "range", "explain"):
        if getattr(args, name, None):
            raise UsageError(f"--{name}: does not apply with --classes; leave it out")
    return open_zero_shot(args.model, *read_prompts(args.classes, args.template), args.device)


def check_classes_arguments(args: argparse.Namespace) -> None:
    """Refuse --template without --classes.

    Raises:
        UsageError: names the flag.
    """
    if args.template and not args.classes:
        raise UsageError("--template: is for the classes of --classes; name their file, or leave it out")


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say where a server listens and who may come in."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; any but a loopback address asks for a token"
    )
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port to listen on; 0 takes a free one (default 8000)"
    )
    parser.add_argument(
        "--token",
        action="store_true",
        help="ask for a token on a loopback address too, where other users of this machine could come in (random, "
        "or that of the environment variable LIT_VISION_TOKEN)",
    )
    parser.add_argument(
        "--allowed_hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="further host names that requests may name, such as that of a proxy in front of this server",
    )


def add_label_arguments(parser: argparse.ArgumentParser, groups: bool = True) -> None:
    """Add the arguments that name a table of labels, as the data module's: --label_file, ..., and --group_by."""
    group = parser.add_argument_group("labels from a table instead of the folders' names")
    group.add_argument("--label_file", metavar="FILE", help="CSV or JSON lines: path, label, perhaps split and group")
    for name, content in (("path", "paths"), ("label", "labels"), ("split", "train, val or test")):
        group.add_argument(
            f"--{name}_column", metavar="NAME", help=f"its column of {content}, if it has an unusual name"
        )
    group.add_argument("--label_columns", metavar="A,B,...", help="columns of 1 and 0, for several labels an image")
    group.add_argument("--label_separator", metavar="TEXT", help="between several labels in one cell")
    if not groups:
        return
    group.add_argument(
        "--group_by",
        metavar="COLUMN",
        help="what must not stand on both sides of a split: a column, or the level of a folder (-1: the image's own)",
    )


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
