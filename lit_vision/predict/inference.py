"""Run a model over many images, batch by batch, into files; a stopped run goes on where it was."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError


def run_inference(
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
        explain: `ImageWriter` of what the model looked at, or None.
        streams: names of further streams that `lines` fills.
        finish: makes OUT from {stream: path} in the end; None: OUT is the main stream as it is.

    Returns:
        (images done, images skipped).

    Raises:
        UserError: no image could be read, or a file cannot be written.
    """
    from lit_vision.io.processes import cores
    from lit_vision.predict.inputs import batches
    from lit_vision.predict.resumable_writer import ResumableWriter
    from lit_vision.predict.tasks import preprocess_for
    from lit_vision.predict.writers import csv_line

    identity = {
        "model": model.metadata.weights,
        "precision": model.metadata.precision,
        "runtime": model.runtime,
        "images": inputs.digest(),
        "batch_size": args.batch_size,
        **settings,
    }
    writer = ResumableWriter(out, ["rows", "skipped", *streams], identity, args.overwrite)
    if writer.resumed:
        print(f"going on after {writer.done} of {len(inputs)} images", flush=True)
    else:
        writer.notes["skipped"] = 0
        writer.append({"rows": header, "skipped": csv_line(["path", "reason"])}, 0)
    try:
        with _stop_on_sigterm(), _bar(len(inputs), writer.done) as advance:
            found = batches(
                inputs, preprocess_for(model.metadata), args.batch_size, writer.done, args.workers or cores()
            )
            for batch in found:
                texts: dict[str, bytes] = {}
                if batch.pixels is not None:
                    outputs = model(batch.pixels)
                    rows = lines(batch, outputs)
                    texts = rows if isinstance(rows, dict) else {"rows": rows}
                    if explain:
                        draw_explanations(model, batch, outputs, explain)
                bad = b"".join(csv_line([name, " ".join(reason.split())]) for name, reason in batch.bad)
                writer.notes["skipped"] += len(batch.bad)
                writer.append({**texts, "skipped": bad}, batch.after)
                advance(batch.after - batch.first)
    except BaseException as error:
        writer.close()
        if isinstance(error, KeyboardInterrupt | SystemExit):
            print(f"stopped after {writer.done} of {len(inputs)} images; the same command goes on", file=sys.stderr)
        raise
    skipped_file = out.with_name(out.name + ".skipped.csv")
    skipped = writer.notes["skipped"]
    if skipped == len(inputs):
        writer.finish({"skipped": skipped_file}, main=False)
        raise UserError(f"{skipped_file}: lists all {skipped} images, none could be read; mend them or name others")
    skipped_file.unlink(missing_ok=True)
    if finish is not None:
        finish(writer.paths)
    writer.finish({"skipped": skipped_file} if skipped else {}, main=finish is None)
    return len(inputs) - skipped, skipped


def draw_explanations(model: Any, batch: Any, outputs: dict, pictures: Any) -> None:
    """A picture for each image of a batch: the image, and the map of what speaks for its first class."""
    import torch

    from lit_vision.predict.explain import explain, overlay

    classes = torch.from_numpy(outputs["logits"]).argmax(1)
    device = next(model.method.parameters()).device
    heat = explain(model.method, model.normalized(batch.pixels).to(device), classes.to(device)).numpy()
    for name, pixels, values in zip(batch.names, batch.pixels, heat):
        pictures.write(name, overlay(pixels, values))


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
