"""Make the files of a run of images and captions in tests/compatibility/files, with the code of its first release.

Run once, by hand: PYTHONPATH=. python tests/compatibility/make_image_text.py
As make_files.py, which made the older files: trained without a stop, up to a SIGTERM in the middle, and on from there.
"""

from __future__ import annotations

import csv
import inspect
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from make_files import FILES, command, finish_run, keep_run  # noqa: E402
from resume_runs import prepare  # noqa: E402
from run_summary import PORTABLE  # noqa: E402

NAME = "image_text"
STOP_AT = 8  # step of 12


def write_captions(path: Path, root: Path) -> None:
    """Write two captions of each garment, by the name of its class."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "caption", "split"))
        for image in sorted(root.rglob("*.png")):
            name = image.relative_to(root).as_posix()
            split, label = name.split("/")[:2]
            writer.writerows((name, caption, split) for caption in (f"a photo of a {label}.", f"{label}, gray"))


def stop_in_the_middle(arguments: list[str]) -> None:
    """Train up to a SIGTERM after step STOP_AT."""
    from lit_vision.callbacks.checkpoint import LastCheckpoint

    original = LastCheckpoint.on_train_batch_end

    def stopping(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.global_step == STOP_AT:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, trainer, *args, **kwargs)

    LastCheckpoint.on_train_batch_end = stopping
    try:
        command(*arguments, "--run_dir", f"runs/{NAME}/stopped", code=143)
    finally:
        LastCheckpoint.on_train_batch_end = original


def list_arguments() -> None:
    """Add the arguments of the model and its data module to those of the older classes."""
    from lit_vision.data import PairsDataModule
    from lit_vision.methods import ImageText

    known = json.loads((FILES / "arguments.json").read_text())
    for room, one in (("methods", ImageText), ("data", PairsDataModule)):
        known[f"lit_vision.{room}.{one.__name__}"] = list(inspect.signature(one).parameters)
    (FILES / "arguments.json").write_text(json.dumps(known, indent=1) + "\n")


def main() -> int:
    """Make everything in a temporary folder."""
    if any(os.environ.get(name) != value for name, value in PORTABLE.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | PORTABLE)
    import torch

    torch.set_num_threads(1)
    shutil.rmtree(FILES / "fits" / NAME, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        (FILES / "captions.csv").touch()  # `prepare` copies it
        prepare(Path(folder))
        os.chdir(folder)
        write_captions(Path("captions.csv"), Path("garments"))
        shutil.copy("captions.csv", FILES)
        arguments = ["fit", "--config", f"recipes/{NAME}.yaml"]
        command(*arguments, "--run_dir", f"runs/{NAME}/through")
        stop_in_the_middle(arguments)
        keep_run(Path("runs", NAME, "stopped"), FILES / "fits" / NAME)
        model = ["--model", str(FILES / "fits" / NAME / "checkpoints" / "last.ckpt"), "--device", "cpu"]
        Path("classes.txt").write_text("t-shirt\ntrouser\nsneaker\nbag\n")
        answer = FILES / "answers" / f"{NAME}.csv"
        command("predict", "garments/test", *model, "--classes", "classes.txt", "--out", answer, "--overwrite")
        command(*arguments, "--run_dir", f"runs/{NAME}/stopped", "--resume", "auto")
        finish_run(NAME, arguments)
    list_arguments()
    return 0


if __name__ == "__main__":
    sys.exit(main())
