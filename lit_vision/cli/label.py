"""The label command: a page in the browser on which a folder of images is labeled."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lit_vision.cli.parser import CommandParser, add_server_arguments
from lit_vision.errors import UsageError, UserError

SWITCH_SECONDS = 0.001  # that a request waits at most for Python code that learns in the background; usually 0.005

if TYPE_CHECKING:
    from lit_vision.serve.labeling.session import Labeling


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision label",
        description="Open a page in the browser on which the images of a folder are labeled by keyboard. Each answer "
        "is on the disk before the\npage shows the next image. The folder is never written to. Ctrl-C or SIGTERM stops "
        "it; the same command goes on.",
        epilog="example: lit-vision label photos --classes cat,dog",
    )
    parser.add_argument("root", metavar="ROOT", help="the folder of images; those in its subfolders count too")
    parser.add_argument("--name", metavar="NAME", help="of the labeling (default: the folder's name)")
    parser.add_argument("--out", metavar="DIR", help="where the answers are kept (default runs/label/NAME)")
    parser.add_argument("--classes", default="", metavar="A,B,...", help="names of classes; the page can add others")
    parser.add_argument("--multiple", action="store_true", help="an image may have several labels, or none")
    parser.add_argument(
        "--strategy",
        default="auto",
        metavar="NAME",
        help="of choosing images, beside every fifth, which is drawn at random: auto (images that stand for many "
        "others; later those that the model is unsure of), random, probcover, margin, or another of lit-vision choose",
    )
    parser.add_argument(
        "--model",
        metavar="WEIGHTS",
        help="whose features the model learns from: timm:NAME, a file of weights or a run's folder (default: the "
        "public weights that a study would try)",
    )
    parser.add_argument("--annotator", metavar="NAME", help="who labels (default: the name of the user)")
    add_server_arguments(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision label ROOT` until it is stopped.

    Raises:
        UserError: one line that names the file or flag and what to do.
    """
    args = _parser().parse_args(list(argv))
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port {args.port}: give a number from 0 to 65535")
    try:
        from lit_vision.serve.run_server import listen, run_server
    except ImportError as error:
        raise UserError(f"label: {error.name} is not installed; pip install 'lit-vision[serve]'") from error
    from lit_vision.evaluation.acquisition import STRATEGIES
    from lit_vision.evaluation.suggestions import AUTO
    from lit_vision.serve.access import Access
    from lit_vision.serve.labeling.app import LabelApp
    from lit_vision.serve.labeling.events import LabelingError, check_class_name
    from lit_vision.serve.labeling.features import FeatureReader
    from lit_vision.serve.labeling.images import LabelImages
    from lit_vision.serve.labeling.learner import Learner
    from lit_vision.serve.labeling.outcome import write_outcome
    from lit_vision.serve.labeling.session import Labeling
    from lit_vision.serve.labeling.store import LabelStore
    from lit_vision.study.frozen_encoder import open_frozen_encoder, parse_model

    if args.strategy not in (AUTO, *STRATEGIES):
        raise UsageError(f"--strategy {args.strategy}: is not one of {', '.join((AUTO, *STRATEGIES))}")
    access = Access(args.host, args.allowed_hosts, args.token)
    root = Path(args.root)
    try:
        classes = [check_class_name(name, args.multiple) for name in args.classes.split(",") if name.strip()]
    except LabelingError as error:
        raise UsageError(f"--classes {args.classes}: {error}") from None
    images = LabelImages(root)
    folder = Path(args.out) if args.out else Path("runs/label") / _checked_name(args.name or images.root.name)
    _check_apart(folder, images.root)
    annotator = args.annotator if args.annotator is not None else _user_name()
    sys.setswitchinterval(SWITCH_SECONDS)
    init, pixel_format = parse_model(args.model), images.measure_pixels()
    with LabelStore(folder, images.root, args.multiple) as store, listen(args.host, args.port) as listener:
        try:
            labeling = Labeling(images, store, annotator, classes)
        except LabelingError as error:  # the disk is full
            raise UserError(f"{folder}: {error}") from None
        opening = partial(open_frozen_encoder, images.folder, images.paths, init, folder)
        features = FeatureReader(images, labeling.queue.order, opening, folder / "features", pixel_format)
        learner = Learner(labeling, features, args.strategy)
        labeling.learner = learner
        for line in _lines(labeling):
            print(line, flush=True)
        try:
            run_server(LabelApp(labeling, learner).app(access), access, listener, args.host, learner.start)
        finally:
            learner.stop()
            images.close()
            done = write_outcome(labeling, learner)
            print("\n".join([*done.lines, *([f"next: {done.next}"] if done.next else [])]), flush=True)
    return 0


def _check_apart(folder: Path, root: Path) -> None:
    """Refuse a folder of answers of which a part, links followed, lies in the folder of images."""
    for name in ("", "labels.jsonl", "features", "weights", "weights.log"):
        if (folder / name).resolve().is_relative_to(root):
            raise UserError(f"--out {folder}: lies in {root}, which is never written to; name a folder elsewhere")


def _lines(labeling: Labeling) -> list[str]:
    """Return lines about the images and the answers that were found."""
    images, store, matched = labeling.images, labeling.store, labeling.matched
    left_out = images.left_out.phrases()
    if images.links_out:
        left_out.append(f"{images.links_out} links that lead out of the folder")
    lines = [f"{images.root}: {len(images)} images" + (f" (left out: {'; '.join(left_out)})" if left_out else "")]
    answered = f"{store.path}: {len(matched.histories)} answered"
    notes = [
        (matched.moved, "found at another place"),
        (matched.changed, "changed since, to be asked again"),
        (matched.missing, "not there any more"),
    ]
    lines.append(answered + "".join(f"; {count} {text}" for count, text in notes if count))
    return lines


def _checked_name(name: str) -> str:
    """Return a name that can be that of a folder."""
    if name in ("", ".", "..") or "/" in name or os.sep in name or "\0" in name:
        raise UsageError(f"--name {name!r}: is no name of a folder; give another")
    return name


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        return ""
