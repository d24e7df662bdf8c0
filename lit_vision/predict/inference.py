"""Run a model over many images, batch by batch, into files; a stopped run continues where it was."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.errors import UsageError, UserError

if TYPE_CHECKING:
    import numpy as np

    from lit_vision.predict.image_writer import ImageWriter, PictureWriter
    from lit_vision.predict.inputs import InputBatch, Inputs
    from lit_vision.predict.runtimes import Model

    # (first input, one more than the last) -> batches and their outputs, None if none of a batch can be read
    OutputsFrom = Callable[[int, int], Iterator[tuple[InputBatch, dict[str, np.ndarray] | None]]]


def run_inference(
    model: Model,
    inputs: Inputs,
    out: Path,
    lines: Callable[[InputBatch, dict[str, np.ndarray]], bytes | dict[str, bytes]],
    settings: Mapping[str, Any],
    *,
    header: bytes = b"",
    batch_size: int = 32,
    workers: int = 0,
    overwrite: bool = False,
    explanations: ImageWriter | None = None,
    streams: tuple[str, ...] = (),
    finish: Callable[[dict[str, Path]], None] | None = None,
    images: range | None = None,
    outputs_from: OutputsFrom | None = None,
    unit: str = "images",
) -> tuple[int, int]:
    """Run all images through a model into OUT; images that cannot be read are listed in OUT.skipped.csv.

    Args:
        model: from `load_model`.
        inputs: from `find_images`.
        out: the file.
        lines: (batch, outputs) -> bytes, or {stream: bytes} with the main stream "rows".
        settings: other values that decide the bytes; an unfinished run is continued only with the same ones.
        header: first bytes of the main stream.
        batch_size: images per batch.
        workers: decoding threads; 0: the number of cores.
        overwrite: an existing OUT, or another unfinished run, may be replaced.
        explanations: writes an image per input that shows what the model looked at, or None.
        streams: names of further streams that `lines` fills.
        finish: writes OUT from {stream: path} at the end; None: OUT is the main stream.
        images: positions of the images of a shard, from a multiple of `batch_size`, none of which needs to be readable;
            None: all.
        outputs_from: yields batches and their outputs, of the inputs from a first to a last position; None reads images
            and runs the model on them.
        unit: of the inputs, for messages.

    Returns:
        (number of images done, number of images skipped).

    Raises:
        UserError: no image could be read, or a file cannot be written.
    """
    from lit_vision.predict.resumable_writer import ResumableWriter
    from lit_vision.predict.writers import csv_line

    identity = run_identity(model, inputs, batch_size, settings)
    part = range(len(inputs)) if images is None else images
    writer = ResumableWriter(out, ["rows", "skipped", *streams], identity, overwrite)
    if writer.resumed:
        print(f"continuing after {writer.done} of {len(part)} {unit}", flush=True)
    else:
        writer.notes["skipped"] = 0
        writer.append({"rows": header, "skipped": csv_line(["path", "reason"])}, 0)
    try:
        with exit_on_sigterm(), progress_bar(len(part), writer.done, unit) as advance:
            outputs_of_images = partial(_outputs_of_images, model, inputs, batch_size, workers)
            for batch, outputs in (outputs_from or outputs_of_images)(part.start + writer.done, part.stop):
                texts: dict[str, bytes] = {}
                if outputs is not None:
                    rows = lines(batch, outputs)
                    texts = rows if isinstance(rows, dict) else {"rows": rows}
                    if explanations:
                        draw_explanations(model, batch, outputs, explanations)
                unreadable = (csv_line([name, " ".join(reason.split())]) for name, reason in batch.unreadable)
                writer.notes["skipped"] += len(batch.unreadable)
                writer.append({**texts, "skipped": b"".join(unreadable)}, batch.stop - part.start)
                advance(batch.stop - batch.start)
    except BaseException as error:
        writer.close()
        if isinstance(error, KeyboardInterrupt | SystemExit):
            print(
                f"stopped after {writer.done} of {len(part)} {unit}; run the same command again to continue",
                file=sys.stderr,
            )
        raise
    skipped_file = out.with_name(out.name + ".skipped.csv")
    skipped: int = writer.notes["skipped"]
    if images is None and skipped == len(inputs):
        writer.finish({"skipped": skipped_file}, main=False)
        first = inputs.names[0]
        raise UserError(
            f"{skipped_file}: lists all {skipped} {unit}, none could be read ({first} is the first); repair them or "
            "name others"
        )
    skipped_file.unlink(missing_ok=True)
    if finish is not None:
        finish(writer.paths)
    writer.finish({"skipped": skipped_file} if skipped else {}, main=finish is None)
    return len(part) - skipped, skipped


def _outputs_of_images(
    model: Model, inputs: Inputs, batch_size: int, workers: int, start: int, stop: int
) -> Iterator[tuple[InputBatch, dict[str, np.ndarray] | None]]:
    """Yield batches of images and the model's outputs, None for a batch without a readable image."""
    from lit_vision.io.processes import cores
    from lit_vision.predict.inputs import batches
    from lit_vision.predict.tasks import preprocess_for

    prepare, pixel_format = preprocess_for(model.metadata), model.metadata.pixel_format
    for batch in batches(inputs, prepare, batch_size, start, workers or cores(), pixel_format, stop):
        yield batch, None if batch.pixels is None else model(batch.pixels)


def run_identity(model: Model, inputs: Inputs, batch_size: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values that the rows depend on: model, images (their names), batch size and settings."""
    return {
        "model": model.metadata.weights,
        "precision": model.metadata.precision,
        "runtime": model.runtime,
        "images": inputs.digest(),
        "batch_size": batch_size,
        **({"value_range": model.metadata.value_range} if model.metadata.value_range else {}),
        **settings,
    }


def check_ranges(options: Mapping[str, Any]) -> None:
    """Refuse values out of range: top_k, max_detections, min_score, batch_size, workers, step and fps, unless None.

    Raises:
        UsageError: names the option.
    """
    lowest = {"top_k": "1 class", "max_detections": "1", "batch_size": "1", "workers": "0 (all cores)"}
    for name, wanted in lowest.items():
        value = options.get(name)
        if value is not None and (not isinstance(value, Integral) or value < int(wanted[0])):
            raise UsageError(f"--{name} {value!r}: give a whole number, at least {wanted}")
    min_score = options.get("min_score")
    if min_score is not None and not (isinstance(min_score, int | float) and 0 <= min_score <= 1):
        raise UsageError(f"--min_score {min_score!r}: give a number from 0 to 1")
    for name, most, unit in (("step", 1e6, "seconds"), ("fps", 1e3, "frames per second")):
        value = options.get(name)
        if value is not None and not (isinstance(value, int | float) and 0 < value <= most):
            raise UsageError(f"--{name} {value!r}: give {unit}, more than 0 and at most {most:g}")


def check_has_features(model: Model) -> None:
    """Refuse a model without features, such as a detector.

    Raises:
        UserError: names its task.
    """
    if "features" not in model.metadata.outputs:
        raise UserError(
            f"{model.path}: is for {model.metadata.task} and has no features; give a classifier or a backbone"
        )


def draw_explanations(
    model: Model, batch: InputBatch, outputs: Mapping[str, np.ndarray], writer: PictureWriter
) -> None:
    """Write an image for each image of a batch: the image, and a heat map of its evidence for the best class."""
    import torch

    from lit_vision.predict.explain import explain, overlay

    if batch.pixels is None or model.method is None:
        return
    classes = torch.from_numpy(outputs["logits"]).argmax(1)
    heat = explain(model.method, model.normalized(batch.pixels), classes.to(model.device)).numpy()
    for name, pixels, values in zip(batch.names, batch.pixels, heat):
        writer.write(name, overlay(pixels, values))


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM raise SystemExit(143), which stops a run as Ctrl-C does."""
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
def progress_bar(total: int, done: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal, and nothing elsewhere; yield the function that advances it."""
    if not sys.stderr.isatty():
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, completed=done)
        yield lambda n: progress.advance(task, n)
