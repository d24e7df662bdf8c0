"""The predict command: run a model on images and write its results to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.cli.parser import (
    IMAGES_HELP,
    CommandParser,
    add_batch_arguments,
    add_classes_arguments,
    add_model_arguments,
    check_classes_arguments,
    opened_models,
    zero_shot_model,
)
from lit_vision.errors import UsageError, UserError
from lit_vision.predict.inference import check_ranges

if TYPE_CHECKING:
    from lit_vision.predict.coco_ids import CocoIds

TASK_OPTIONS = (
    "top_k",
    "min_score",
    "max_detections",
    "masks",
    "draw",
    "explain",
    "captions",
)  # flags that apply to some tasks only
COCO_FORMATS = ("json", "results.json")  # file formats with ids of images and categories
IMAGE_FOLDERS = ("masks", "draw", "explain")  # flags that name folders which images are written to


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision predict",
        description="Run a model on images. Images that cannot be read are skipped and listed in OUT.skipped.csv. "
        "A command that\nwas stopped continues where it was when it is run again.",
        epilog="example: lit-vision predict --model runs/classifier/20260101-120000 photos/ --out photos.csv",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGES", help=IMAGES_HELP)
    add_model_arguments(parser)
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=".csv or .jsonl; detection and segmentation also .json (COCO's), detection also .results.json (the list "
        "that pycocotools' loadRes takes)",
    )
    parser.add_argument(
        "--truth",
        metavar="FILE",
        help="COCO file whose image and category ids .json and .results.json get, matched by name (default: category "
        "ids of the training data; image ids are the numbers in the file names, as in COCO, else 1 to N)",
    )
    add_classes_arguments(parser)
    parser.add_argument("--top_k", type=int, metavar="K", help="classification: classes per image (default 5)")
    parser.add_argument(
        "--min_score", type=float, metavar="S", help="detection: leave out detections with a lower score (0 to 1)"
    )
    parser.add_argument(
        "--max_detections",
        type=int,
        metavar="N",
        help="detection: keep the N best of an image (default: the model's, which is 100 unless it was trained with "
        "another)",
    )
    parser.add_argument(
        "--masks",
        metavar="DIR",
        help="segmentation: write DIR/NAME.png of class numbers for each image NAME.*, in its size",
    )
    parser.add_argument(
        "--draw",
        metavar="DIR",
        help="detection, segmentation: write each image with its boxes or class colors, as PNG",
    )
    parser.add_argument(
        "--explain",
        metavar="DIR",
        help="classification: write a PNG per image that shows what the model looked at (torch models)",
    )
    parser.add_argument(
        "--captions",
        choices=("auto", "decoder"),
        help="captioning: auto (default) refuses a decoder whose CIDEr-D in validation was no better than that of the "
        "nearest training image's caption; decoder uses it all the same",
    )
    add_batch_arguments(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision predict --model RUN_OR_FILE IMAGES --out FILE`; returns 0.

    Raises:
        UserError: one line that names the file or flag and what to do.
    """
    args = _parser().parse_args(list(argv))
    check_ranges(vars(args))
    check_classes_arguments(args)
    from lit_vision.predict.coco_ids import coco_ids
    from lit_vision.predict.detection import limit_detections
    from lit_vision.predict.image_writer import ImageWriter
    from lit_vision.predict.inference import run_inference
    from lit_vision.predict.inputs import find_images
    from lit_vision.predict.models import load_model
    from lit_vision.predict.tasks import format_from_suffix, result_formats, results_with_options
    from lit_vision.predict.writers import check_output_path

    out = check_output_path(args.out, args.overwrite)
    folders = {name: getattr(args, name) for name in IMAGE_FOLDERS if getattr(args, name)}
    inputs = find_images(args.images, {f"--{name}": folder for name, folder in folders.items()})
    for line in inputs.lines():
        print(line, flush=True)
    file_format = format_from_suffix(args.out, result_formats())
    with opened_models(args):
        if args.classes:
            model = zero_shot_model(args)
        else:
            model = load_model(args.model, args.device, args.base, args.trust_pt2, value_range=args.range)
    results_of_task, options = results_with_options(model, {name: getattr(args, name) for name in TASK_OPTIONS})
    if file_format not in results_of_task.formats:
        raise UsageError(f"--out {args.out}: {model.metadata.task} writes {', '.join(results_of_task.formats)}")
    if args.masks and args.draw and os.path.realpath(args.masks) == os.path.realpath(args.draw):
        raise UsageError(f"--draw {args.draw}: is also the folder of --masks; name another one")
    if args.explain and model.method is None:
        raise UserError(
            f"--explain: {model.path} ({model.runtime}) has no network of this project; give a run or its .ckpt"
        )
    if args.max_detections is not None:
        limit_detections(model, args.max_detections)
    writers = {name: ImageWriter(f"--{name}", folder, inputs) for name, folder in folders.items()}
    if args.truth and file_format not in COCO_FORMATS:
        raise UsageError(f"--truth: is for --out {' or '.join('.' + name for name in COCO_FORMATS)}; leave it out")
    ids = coco_ids(inputs.names, model.metadata, args.truth) if file_format in COCO_FORMATS else None
    results = results_of_task(model.metadata, file_format, **{**options, **writers, "ids": ids})
    done, skipped = run_inference(
        model,
        inputs,
        out,
        results.lines,
        _settings(file_format, options, ids),
        header=results.header(),
        batch_size=args.batch_size,
        workers=args.workers,
        overwrite=args.overwrite,
        explanations=writers.get("explain"),
        streams=results.streams,
        finish=results.finish and (lambda paths: results.finish(out, paths)),
    )
    print(f"{out}: {done} images{_skipped_note(out, skipped)}")
    notes = [ids.note if ids is not None else "", results.note]
    print("".join(f"{note}\n" for note in notes if note), end="")
    return 0


def _settings(file_format: str, options: Mapping[str, Any], ids: CocoIds | None) -> dict[str, Any]:
    """Return what decides the bytes of OUT besides model and images.

    Options that older versions did not have are left out where they are not used, so that their unfinished runs can be
    continued.
    """
    settings = {key: value for key, value in options.items() if key != "max_detections" or value is not None}
    if ids is not None and not ids.usual:
        settings["ids"] = ids.digest()
    return {"format": file_format, **settings}


def _skipped_note(out: Path, skipped: int) -> str:
    return f", {skipped} skipped (see {out.name}.skipped.csv)" if skipped else ""
