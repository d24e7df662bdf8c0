"""`lit-vision predict`: a model on images, batch by batch, to a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lit_vision.cli.parser import CommandParser, add_batch_arguments, add_model_arguments, check_batch_arguments
from lit_vision.errors import UsageError, UserError

# what only some tasks take, and what it is if it is not given
TASK_OPTIONS = {"top": 5, "score": 0.0, "masks": None, "draw": None, "explain": None}
FOLDERS = ("masks", "draw", "explain")  # of these, the folders that pictures are written to


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision predict",
        description="What a model says of images. Images that cannot be read are skipped and listed in OUT.skipped.csv; a command that was\n"
        "stopped goes on where it was when it is given again.",
        epilog="example: lit-vision predict --model runs/classifier/20260101-120000 photos/ --out photos.csv",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="one folder (searched with all below), or files")
    add_model_arguments(parser)
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=".csv or .jsonl; detection and segmentation also .json (COCO's), detection also .results.json (the list that "
        "pycocotools' loadRes takes); COCO's category ids are those of the data that the model was trained on",
    )
    parser.add_argument("--top", type=int, metavar="N", help="classification: classes per image (default 5)")
    parser.add_argument("--score", type=float, metavar="S", help="detection: leave out what scores below (0 to 1)")
    parser.add_argument(
        "--masks", metavar="DIR", help="segmentation: DIR/NAME.png of class numbers for each image NAME.*, in its size"
    )
    parser.add_argument("--draw", metavar="DIR", help="detection, segmentation: boxes or tints on each image, as PNG")
    parser.add_argument(
        "--explain", metavar="DIR", help="classification: draw what the model looked at, a PNG per image (torch models)"
    )
    add_batch_arguments(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """One prediction run; returns 0. Raises UserError with one line for every fault with a mend."""
    args = _parser().parse_args(list(argv))
    check_batch_arguments(args)
    if args.top is not None and args.top < 1:
        raise UsageError(f"--top {args.top}: give at least 1 class")
    if args.score is not None and not 0 <= args.score <= 1:
        raise UsageError(f"--score {args.score}: give a number from 0 to 1")
    from lit_vision.predict.image_writer import ImageWriter
    from lit_vision.predict.inference import run_inference
    from lit_vision.predict.inputs import check_output_path, find_images
    from lit_vision.predict.models import load_model, resolve_model_file
    from lit_vision.predict.tasks import TASKS, format_from_suffix

    out = check_output_path(args.out)
    inputs = find_images(args.images, {f"--{name}": place for name in FOLDERS if (place := getattr(args, name))})
    form = format_from_suffix(args.out, sorted({f for task in TASKS.values() for f in task.forms}))
    resolve_model_file(args.model)
    model = load_model(args.model, args.device, args.base, args.trust)
    task = model.metadata.task
    if task not in TASKS:
        raise UserError(f"{model.path}: gives {task}, no predictions; use lit-vision embed, or train a head")
    if form not in TASKS[task].forms:
        raise UsageError(f"--out {args.out}: {task} writes {', '.join(TASKS[task].forms)}")
    for name, default in TASK_OPTIONS.items():
        if getattr(args, name) is not None and name not in TASKS[task].option_names:
            raise UsageError(f"--{name}: has no meaning for {task}; leave it out")
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.masks and args.draw and os.path.realpath(args.masks) == os.path.realpath(args.draw):
        raise UsageError(f"--draw {args.draw}: is the folder of --masks too; name another")
    if args.explain and model.method is None:
        raise UserError(
            f"--explain: needs the torch model, {model.path} is for {model.runtime}; give the run or its .ckpt"
        )
    options = {name: getattr(args, name) for name in TASKS[task].option_names}
    pictures = {name: ImageWriter(f"--{name}", options[name], inputs) for name in FOLDERS if options.get(name)}
    writer = TASKS[task](model.metadata, form, **{**options, **pictures})
    settings = {"form": form, **options}
    finish = writer.finish and (lambda paths: writer.finish(out, paths))
    explain = pictures.get("explain")
    done, skipped = run_inference(
        model, inputs, out, writer.header(), writer.lines, settings, args, explain, writer.streams, finish
    )
    print(f"{out}: {done} images{_skipped(out, skipped)}")
    return 0


def _skipped(out: Path, skipped: int) -> str:
    return f", {skipped} skipped (see {out.name}.skipped.csv)" if skipped else ""
