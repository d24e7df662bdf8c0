"""The predict command: run a model on images and write its results to a file."""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
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
from lit_vision.cli.shard_arguments import add_shard_arguments, check_shard_arguments, run_engine
from lit_vision.errors import UsageError, UserError
from lit_vision.predict.inference import check_ranges

if TYPE_CHECKING:
    from lit_vision.predict.coco_ids import CocoIds
    from lit_vision.predict.inference import OutputsFrom
    from lit_vision.predict.inputs import Inputs
    from lit_vision.predict.runtimes import Model
    from lit_vision.predict.shards import Shard
    from lit_vision.predict.tasks import Results

TASK_OPTIONS = (
    "top_k",
    "min_score",
    "max_detections",
    "masks",
    "draw",
    "explain",
    "captions",
    "step",
    "fps",
)  # flags that apply to some tasks only
COCO_FORMATS = ("json", "results.json")  # file formats with ids of images and categories
IMAGE_FOLDERS = ("masks", "draw", "explain")  # flags that name folders which images are written to


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision predict",
        description="Run a model on images, or a model of videos on video files and folders of frames.\nWhat cannot be "
        "read is skipped and listed in OUT.skipped.csv. A command that was stopped continues where it\nwas when it is "
        "run again.",
        epilog="example: lit-vision predict --model runs/classifier/20260101-120000 photos/ --out photos.csv",
    )
    parser.add_argument("images", nargs="*", metavar="IMAGES", help=IMAGES_HELP)
    add_model_arguments(parser, required=False)
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=".csv, .jsonl or .parquet; detection and segmentation also .json (COCO's), detection also .results.json "
        "(the list that pycocotools' loadRes takes)",
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
        help="detection, segmentation: write each image with its boxes or class colors, as PNG; videos: a strip of "
        "frames with the scores over time",
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
    parser.add_argument(
        "--step",
        type=float,
        metavar="SECONDS",
        help="videos: from the start of a clip to that of the next (default: clip after clip, without a gap)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        metavar="F",
        help="videos: frames per second that clips are cut from (default: as in the training videos)",
    )
    add_batch_arguments(parser)
    add_shard_arguments(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision predict --model RUN_OR_FILE IMAGES --out FILE`; returns 0.

    Raises:
        UserError: one line that names the file or flag and what to do.
    """
    args = _parser().parse_args(list(argv))
    check_ranges(vars(args))
    check_classes_arguments(args)
    check_shard_arguments("predict", args)
    from lit_vision.predict.writers import check_output_path

    out = check_output_path(args.out, args.overwrite)
    if args.merge:
        return _merge(out)
    images = _find_images_if_no_videos(args)
    opened = _open(args)
    inputs = _inputs_of(args, opened[0], images)
    if args.engine == "ray":
        run_engine(args, len(inputs), functools.partial(_run_in_worker, json.dumps(vars(args)), inputs))
        return _merge(out)
    notes = _run(args, inputs, opened, out, args.shard)
    print("".join(f"{note}\n" for note in notes if note), end="")
    return 0


def _folders(args: argparse.Namespace) -> dict[str, str]:
    """Return the folders that images are written to, by flag."""
    return {name: getattr(args, name) for name in IMAGE_FOLDERS if getattr(args, name)}


def _find_images(args: argparse.Namespace) -> Inputs:
    """Return the images that the command names, and print how many."""
    from lit_vision.predict.inputs import find_images

    images = find_images(args.images, {f"--{name}": folder for name, folder in _folders(args).items()})
    for line in images.lines():
        print(line, flush=True)
    return images


def _find_images_if_no_videos(args: argparse.Namespace) -> Inputs | None:
    """Return the images that the command names; None if it names videos, which the model may not take."""
    from lit_vision.predict.video_inputs import holds_a_video, names_a_video

    if names_a_video(args.images):
        return None
    try:
        return _find_images(args)
    except UserError:
        if holds_a_video(args.images):
            return None
        raise


def _inputs_of(args: argparse.Namespace, model: Model, images: Inputs | None) -> Inputs:
    """Return what the model takes: images, or videos, which are files or folders of frames.

    Args:
        args: of the command.
        model: of any task.
        images: that were found; None if the command names a video.

    Raises:
        UserError: a video file for a model of images; as `find_images` and `find_videos`.
    """
    from lit_vision.data.video.video_files import WITHOUT_PYAV, has_pyav, is_video_name
    from lit_vision.predict.tasks import TASKS
    from lit_vision.predict.video_inputs import find_videos, videos_of

    if TASKS[model.metadata.task].videos:
        # standard input was read to its end
        videos = videos_of(images) if images is not None and "-" in args.images else find_videos(args.images)
        print(f"{len(videos)} videos", flush=True)
        if not has_pyav():
            print(WITHOUT_PYAV, flush=True)
        return videos
    if video := next((path for path in args.images if is_video_name(path) and not os.path.isdir(path)), ""):
        raise UserError(
            f"{video}: is a video, and {model.path} is for {model.metadata.task} of images; give images, or a model of "
            "videos (VideoClassifier)"
        )
    return _find_images(args) if images is None else images


def _video_outputs(args: argparse.Namespace, model: Model, videos: Inputs) -> OutputsFrom:
    """Return the function that runs the model on some of the videos."""
    from lit_vision.predict.tasks import preprocess_for
    from lit_vision.predict.video import outputs_of_videos

    prepare = preprocess_for(model.metadata)
    options = {"batch_size": args.batch_size, "threads": args.workers, "step": args.step, "fps": args.fps}
    return lambda start, stop: outputs_of_videos(model, videos, prepare, start=start, stop=stop, **options)


_Opened = tuple["Model", "Results", dict[str, Any], str]  # options of the results, and their file format


def _open(args: argparse.Namespace) -> _Opened:
    """Load the model, and check the flags that depend on its task."""
    from lit_vision.predict.detection import limit_detections
    from lit_vision.predict.models import load_model
    from lit_vision.predict.tasks import format_from_suffix, result_formats, results_with_options

    file_format = format_from_suffix(args.out, [*result_formats(), "parquet"])
    if file_format == "parquet":
        from lit_vision.predict.parquet_files import import_pyarrow

        import_pyarrow()
    with opened_models(args):
        if args.classes:
            model = zero_shot_model(args)
        else:
            model = load_model(args.model, args.device, args.base, args.trust_pt2, value_range=args.range)
    results_of_task, options = results_with_options(model, {name: getattr(args, name) for name in TASK_OPTIONS})
    if file_format not in (*results_of_task.formats, "parquet"):
        raise UsageError(
            f"--out {args.out}: {model.metadata.task} writes {', '.join(results_of_task.formats)}, parquet"
        )
    if args.masks and args.draw and os.path.realpath(args.masks) == os.path.realpath(args.draw):
        raise UsageError(f"--draw {args.draw}: is also the folder of --masks; name another one")
    if args.explain and model.method is None:
        raise UserError(
            f"--explain: {model.path} ({model.runtime}) has no network of this project; give a run or its .ckpt"
        )
    if args.max_detections is not None:
        limit_detections(model, args.max_detections)
    if args.truth and file_format not in COCO_FORMATS:
        raise UsageError(f"--truth: is for --out {' or '.join('.' + name for name in COCO_FORMATS)}; leave it out")
    return model, results_of_task, options, file_format


@functools.lru_cache(maxsize=1)
def _open_once(arguments: str) -> _Opened:
    """Return what `_open` returns for flags as JSON; a worker of an engine does many shards with one model."""
    return _open(argparse.Namespace(**json.loads(arguments)))


def _run_in_worker(arguments: str, inputs: Inputs, shard: Shard) -> None:
    """Do one shard of a command, in a worker of an engine."""
    args = argparse.Namespace(**json.loads(arguments))
    _run(args, inputs, _open_once(arguments), Path(args.out), shard)


def _run(args: argparse.Namespace, inputs: Inputs, opened: _Opened, out: Path, shard: Shard | None) -> list[str]:
    """Run the model on all images or those of a shard, print the file that was written, and return further notes."""
    from lit_vision.predict.coco_ids import coco_ids
    from lit_vision.predict.image_writer import ImageWriter
    from lit_vision.predict.inference import run_identity, run_inference
    from lit_vision.predict.shards import run_shard
    from lit_vision.predict.tasks import TASKS
    from lit_vision.predict.writers import atomic_write_streams

    model, results_of_task, options, file_format = opened
    writers = {name: ImageWriter(f"--{name}", folder, inputs) for name, folder in _folders(args).items()}
    ids = coco_ids(inputs.names, model.metadata, args.truth) if file_format in COCO_FORMATS else None
    text_format = "csv" if file_format == "parquet" else file_format
    results = results_of_task(model.metadata, text_format, **{**options, **writers, "ids": ids})
    header, settings = results.header(), _settings(file_format, options, ids)

    write: Callable[[Path, dict[str, Path]], None] | None = None
    finish = results.finish and functools.partial(results.finish, out)
    if file_format == "parquet":
        write = functools.partial(_write_parquet, next(csv.reader([header.decode()])))
        finish = functools.partial(atomic_write_streams, out, write)
    of_videos = TASKS[model.metadata.task].videos
    unit = "videos" if of_videos else "images"
    run = functools.partial(
        run_inference,
        model,
        inputs,
        lines=results.lines,
        settings=settings,
        header=header,
        batch_size=args.batch_size,
        workers=args.workers,
        overwrite=args.overwrite,
        explanations=writers.get("explain"),
        streams=results.streams,
        outputs_from=_video_outputs(args, model, inputs) if of_videos else None,
        unit=unit,
    )
    if shard is None:
        done, skipped = run(out=out, finish=finish)
    else:
        identity = run_identity(model, inputs, args.batch_size, settings)
        done, skipped = run_shard(
            shard,
            out,
            identity,
            inputs,
            lambda part, images, finish: run(out=part, images=images, finish=finish),
            header=b"" if write else header,
            write=write,
            overwrite=args.overwrite,
        )
        out = shard.part(out)
    print(f"{out}: {done} {unit}{_skipped_note(out, skipped)}")
    return [ids.note if ids is not None else "", results.note]


def _write_parquet(columns: list[str], path: Path, paths: dict[str, Path]) -> None:
    """Write the lines of a CSV file, which lie in the stream "rows", as Parquet."""
    from lit_vision.predict.parquet_files import write_result_table

    write_result_table(path, paths["rows"], columns)


def _merge(out: Path) -> int:
    """Join the parts beside OUT; returns 0."""
    from lit_vision.predict.shards import merge_parts

    join = None
    if out.suffix.lower() == ".parquet":
        from lit_vision.predict.parquet_files import import_pyarrow, join_files

        import_pyarrow()
        join = join_files
    done, skipped, parts = merge_parts(out, join)
    print(f"{out}: {done} images of {parts} shards{_skipped_note(out, skipped)}")
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
