"""`lit-vision predict`: a model on images, batch by batch, to a file."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_vision.errors import UsageError, UserError
from lit_vision.words import Words

# what only some tasks take, and what it is if it is not given
WORDS = {"top": 5, "score": 0.0, "masks": None, "draw": None, "explain": None}
FOLDERS = ("masks", "draw", "explain")  # of these, the folders that pictures are written to


def add_model_words(parser: argparse.ArgumentParser) -> None:
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


def add_batch_words(parser: argparse.ArgumentParser) -> None:
    """What every command that goes over many images takes."""
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="images at once (default 32)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="decoding threads (default: the cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace what --out names")


def check_batch_words(args: argparse.Namespace) -> None:
    """Refuse numbers that cannot work."""
    if args.batch_size < 1:
        raise UsageError(f"--batch_size {args.batch_size}: give at least 1")
    if args.workers < 0:
        raise UsageError(f"--workers {args.workers}: give 0 (the cores) or more")


def _parser() -> Words:
    parser = Words(
        prog="lit-vision predict",
        description="What a model says of images. Images that cannot be read are skipped and listed in OUT.skipped.csv; a command that was\n"
        "stopped goes on where it was when it is given again.",
        epilog="example: lit-vision predict --model runs/classifier/20260101-120000 photos/ --out photos.csv",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="one folder (searched with all below), or files")
    add_model_words(parser)
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
    add_batch_words(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """One prediction run; returns 0. Raises UserError with one line for every fault with a mend."""
    args = _parser().parse_args(list(argv))
    check_batch_words(args)
    if args.top is not None and args.top < 1:
        raise UsageError(f"--top {args.top}: give at least 1 class")
    if args.score is not None and not 0 <= args.score <= 1:
        raise UsageError(f"--score {args.score}: give a number from 0 to 1")
    from lit_vision.predict.inputs import find_images, write_target
    from lit_vision.predict.models import file_of, load_model
    from lit_vision.predict.pictures import Pictures
    from lit_vision.predict.tasks import TASKS, form_of

    out = write_target(args.out)
    inputs = find_images(args.images, {f"--{name}": place for name in FOLDERS if (place := getattr(args, name))})
    form = form_of(args.out, sorted({f for task in TASKS.values() for f in task.forms}))
    file_of(args.model)
    model = load_model(args.model, args.device, args.base, args.trust)
    task = model.card.task
    if task not in TASKS:
        raise UserError(f"{model.path}: gives {task}, no predictions; use lit-vision embed, or train a head")
    if form not in TASKS[task].forms:
        raise UsageError(f"--out {args.out}: {task} writes {', '.join(TASKS[task].forms)}")
    for name, default in WORDS.items():
        if getattr(args, name) is not None and name not in TASKS[task].words:
            raise UsageError(f"--{name}: has no meaning for {task}; leave it out")
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.masks and args.draw and os.path.realpath(args.masks) == os.path.realpath(args.draw):
        raise UsageError(f"--draw {args.draw}: is the folder of --masks too; name another")
    if args.explain and model.method is None:
        raise UserError(
            f"--explain: needs the torch model, {model.path} is for {model.runtime}; give the run or its .ckpt"
        )
    words = {name: getattr(args, name) for name in TASKS[task].words}
    pictures = {name: Pictures(f"--{name}", words[name], inputs) for name in FOLDERS if words.get(name)}
    writer = TASKS[task](model.card, form, **{**words, **pictures})
    settings = {"form": form, **words}
    finish = writer.finish and (lambda paths: writer.finish(out, paths))
    explain = pictures.get("explain")
    done, skipped = run_over(
        model, inputs, out, writer.header(), writer.lines, settings, args, explain, writer.streams, finish
    )
    print(f"{out}: {done} images{_skipped(out, skipped)}")
    return 0


def run_over(
    model: Any,
    inputs: Any,
    out: Path,
    header: bytes,
    lines: Any,
    settings: dict,
    args: Any,
    explain: Any = None,
    streams: tuple[str, ...] = (),
    finish: Any = None,
) -> tuple[int, int]:
    """All images through a model, into OUT, resumable; what could not be read goes to OUT.skipped.csv.

    Args:
        model: of `load_model`.
        inputs: of `find_images`.
        out: the file.
        header: its first bytes.
        lines: (batch, outputs) -> bytes, or {stream: bytes} with the main stream "rows".
        settings: what else decides the bytes; a run goes on only with the same.
        args: batch_size, workers, overwrite.
        explain: `Pictures` of what the model looked at, or None.
        streams: names of further streams that `lines` fills.
        finish: makes OUT from {stream: path} in the end; None: OUT is the main stream as it is.

    Returns:
        (images done, images skipped).

    Raises:
        UserError: no image could be read, or a file cannot be written.
    """
    from lit_vision.evaluation.environment import cores
    from lit_vision.predict.inputs import batches
    from lit_vision.predict.journal import Journal
    from lit_vision.predict.lines import csv_line
    from lit_vision.predict.tasks import prepare_for

    identity = {
        "model": model.card.weights,
        "precision": model.card.precision,
        "runtime": model.runtime,
        "images": inputs.digest(),
        "batch_size": args.batch_size,
        **settings,
    }
    journal = Journal(out, ["rows", "skipped", *streams], identity, args.overwrite)
    if journal.resumed:
        print(f"going on after {journal.done} of {len(inputs)} images", flush=True)
    else:
        journal.notes["skipped"] = 0
        journal.append({"rows": header, "skipped": csv_line(["path", "reason"])}, 0)
    try:
        with _stop_on_sigterm(), _bar(len(inputs), journal.done) as advance:
            found = batches(inputs, prepare_for(model.card), args.batch_size, journal.done, args.workers or cores())
            for batch in found:
                texts: dict[str, bytes] = {}
                if batch.pixels is not None:
                    outputs = model(batch.pixels)
                    rows = lines(batch, outputs)
                    texts = rows if isinstance(rows, dict) else {"rows": rows}
                    if explain:
                        draw(model, batch, outputs, explain)
                bad = b"".join(csv_line([name, " ".join(reason.split())]) for name, reason in batch.bad)
                journal.notes["skipped"] += len(batch.bad)
                journal.append({**texts, "skipped": bad}, batch.after)
                advance(batch.after - batch.first)
    except BaseException as error:
        journal.close()
        if isinstance(error, KeyboardInterrupt | SystemExit):
            print(f"stopped after {journal.done} of {len(inputs)} images; the same command goes on", file=sys.stderr)
        raise
    skipped_file = out.with_name(out.name + ".skipped.csv")
    skipped = journal.notes["skipped"]
    if skipped == len(inputs):
        journal.finish({"skipped": skipped_file}, main=False)
        raise UserError(f"{skipped_file}: lists all {skipped} images, none could be read; mend them or name others")
    skipped_file.unlink(missing_ok=True)
    if finish is not None:
        finish(journal.paths)
    journal.finish({"skipped": skipped_file} if skipped else {}, main=finish is None)
    return len(inputs) - skipped, skipped


def draw(model: Any, batch: Any, outputs: dict, pictures: Any) -> None:
    """A picture for each image of a batch: the image, and the map of what speaks for its first class."""
    import torch

    from lit_vision.evaluation.explain import explain, overlay

    classes = torch.from_numpy(outputs["logits"]).argmax(1)
    device = next(model.method.parameters()).device
    heat = explain(model.method, model.normalised(batch.pixels).to(device), classes.to(device)).numpy()
    for name, pixels, values in zip(batch.names, batch.pixels, heat):
        pictures.write(name, overlay(pixels, values))


def _skipped(out: Path, skipped: int) -> str:
    return f", {skipped} skipped (see {out.name}.skipped.csv)" if skipped else ""


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves between two instructions, with code 143, as Ctrl-C does with 130."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: Any) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _bar(total: int, done: int) -> Iterator[Any]:
    """A progress bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, completed=done)
        yield lambda n: progress.advance(task, n)
