"""Make the files of tests/compatibility/files with the code of before the rooms were moved (commit 37adabd).

Run once, by hand; the tests only read what it left:

    git worktree add ../old 37adabd
    PYTHONPATH=../old python tests/compatibility/make_files.py

It starts itself again with the environment of run_summary.PORTABLE (one thread, instructions that every x86-64
processor has), works in a temporary folder, and copies what is kept. files/made.json names the packages of that time.
Everything is drawn from fixed seeds; from one making to the next only times differ (environment.json, results.json,
`run_record` in checkpoints, what a study measured), and bits where packages differ.

Each run is trained three times: without a stop, up to a SIGTERM in the middle, and on from there. First and third
must agree to the bit, else nothing is written; the second is kept, with the summary of the third (expected.json).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
FILES = HERE / "files"
sys.path.insert(0, str(HERE))

from run_summary import PORTABLE, summarize_run, versions  # noqa: E402

COMMIT = "37adabd"
CLASSES = {0: "t-shirt", 1: "trouser", 7: "sneaker", 8: "bag"}
SPLITS = {"train": 12, "val": 4, "test": 4}  # images per class
# recipe: where SIGTERM comes (a hook of LastCheckpoint, its call) and further arguments of its command
RUNS: dict[str, tuple[str, int, list[str]]] = {
    "mae": ("on_train_batch_end", 6, []),  # between two steps
    "simclr": ("on_train_batch_end", 8, ["--trainer.max_epochs", "3"]),  # inside a window of two batches
    "classifier": ("on_validation_batch_end", 3, ["--data.batch_size", "8"]),  # inside a validation
    "detector": ("on_train_epoch_end", 1, []),  # at an epoch's end
    "segmenter": ("on_train_batch_end", 3, []),  # after the last batch of an epoch, before its validation
}
SHARDED = "sharded"
FOREIGN = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 1}


# ------------------------------------------------------------------ images


def write_png(path: Path, image: np.ndarray) -> None:
    """Write one PNG file; create its folder."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    success, png = cv2.imencode(
        ".png", image[..., ::-1] if image.ndim == 3 else image, [cv2.IMWRITE_PNG_COMPRESSION, 9]
    )
    assert success
    path.write_bytes(png)


def make_garments(root: Path) -> None:
    """Write embedded garments (Fashion-MNIST, MIT) by split and class."""
    from lit_vision.data.sources import embedded_fashion

    images, labels = embedded_fashion()
    for label, name in CLASSES.items():
        indices = iter(np.flatnonzero(labels == label))
        for split, count in SPLITS.items():
            for index in itertools.islice(indices, count):
                write_png(root / split / name / f"{index:05d}.png", images[index])


def make_shapes(root: Path) -> None:
    """Write painted boxes of two classes with COCO annotations and semantic masks."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        note: dict[str, Any] = {"images": [], "annotations": []}
        note["categories"] = [{"id": 3, "name": "red"}, {"id": 8, "name": "blue"}]
        for i in range(count):
            height, width = (40, 48) if i % 2 else (36, 36)
            image = np.full((height, width, 3), rng.integers(40, 160), np.uint8)
            mask = np.zeros((height, width), np.uint8)
            note["images"].append({"id": i + 1, "file_name": f"{i:03d}.png", "width": width, "height": height})
            for label in range(2):
                w, h = rng.integers(8, 17, 2).tolist()
                x = int(rng.integers(0, width // 2 - w + 1)) + label * (width // 2)
                y = int(rng.integers(0, height - h + 1))
                w = min(w, width - x)
                image[y : y + h, x : x + w] = (230, 30, 30) if label == 0 else (30, 30, 230)
                mask[y : y + h, x : x + w] = label + 1
                box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
                number = len(note["annotations"]) + 1
                note["annotations"].append({"id": number, "image_id": i + 1, "category_id": (3, 8)[label], **box})
            write_png(root / split / "images" / f"{i:03d}.png", image)
            write_png(root / split / "semantic" / f"{i:03d}.png", mask)
        (root / split / "annotations.json").write_text(json.dumps(note, separators=(",", ":")) + "\n")
    (root / "classes.txt").write_text("background\nred\nblue\n")


def zip_folders(target: Path, *roots: str) -> None:
    """Zip the folders into one archive, the same bytes each time."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for root in roots for path in Path(root).rglob("*") if path.is_file()):
            archive.writestr(zipfile.ZipInfo(path.as_posix()), path.read_bytes(), zipfile.ZIP_DEFLATED)


# ------------------------------------------------------------------ runs


def command(*arguments: Any, code: int = 0) -> str:
    """Run one command of lit-vision in this process, which must exit with `code`; return what it printed."""
    from lit_vision.cli.main import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            exit_code = main([str(argument) for argument in arguments])
        except SystemExit as error:
            exit_code = error.code
    print(output.getvalue(), end="", flush=True)
    assert exit_code == code, f"{arguments}: exit code {exit_code}, not {code}"
    return output.getvalue()


@contextlib.contextmanager
def stopped(hook: str, call: int) -> Iterator[None]:
    """Send SIGTERM to this process as LastCheckpoint's hook is called for the `call`-th time."""
    from lit_vision.checkpointing import LastCheckpoint

    original, calls = getattr(LastCheckpoint, hook), itertools.count(1)

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    setattr(LastCheckpoint, hook, stopping)
    try:
        yield
    finally:
        setattr(LastCheckpoint, hook, original)


@contextlib.contextmanager
def disturbed() -> Iterator[None]:
    """Make MAE's loss NaN at step 1 and too large at step 3, so that StopOnNonFinite and LossSpike hold a state."""
    from lit_vision.methods import MAE

    original = MAE.training_step

    def training_step(self: Any, *args: Any) -> Any:
        return original(self, *args) * {1: float("nan"), 3: 100.0}.get(self.global_step, 1.0)

    MAE.training_step = training_step
    try:
        yield
    finally:
        MAE.training_step = original


def keep_run(source: Path, target: Path) -> None:
    """Copy the files of a run that a resume reads: no pictures, no TensorBoard files, no copies of checkpoints."""
    (target / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "metrics.csv", "results.json", "timings.csv"):
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    last = source / "checkpoints" / "last.ckpt"
    (shutil.copytree if last.is_dir() else shutil.copy)(last, target / "checkpoints" / "last.ckpt")
    if last.is_file():
        shutil.copy(f"{last}.sha256", target / "checkpoints" / "last.ckpt.sha256")


def make_run(name: str) -> None:
    """Train one run, stop it in the middle, keep its files, resume it and write its summary."""
    hook, call, more = RUNS[name]
    arguments = ["fit", "--config", f"recipes/{name}.yaml", *more]
    with disturbed():
        command(*arguments, "--run_dir", f"runs/{name}/through")
        with stopped(hook, call):
            command(*arguments, "--run_dir", f"runs/{name}/stopped", code=143)
    keep_run(Path("runs", name, "stopped"), FILES / "fits" / name)
    command(*arguments, "--run_dir", f"runs/{name}/stopped", "--resume", "auto")
    finish_run(name, arguments)


def finish_run(name: str, arguments: list[str], reference: str = "through") -> None:
    """Compare the run that was stopped with the one that was not, and write its summary to expected.json."""
    found = summarize_run(Path("runs", name, "stopped"))
    if reference:
        wanted = summarize_run(Path("runs", name, reference))
        assert found == wanted, {key: (found[key], wanted[key]) for key in found if found[key] != wanted[key]}
    expected = {"command": arguments, "run": found}
    (FILES / "fits" / name / "expected.json").write_text(json.dumps(expected, indent=1, allow_nan=False) + "\n")


def make_sharded_run() -> None:
    """Train two processes up to a stop, then one: FSDP2 checkpoints load on any number of processes."""
    arguments = ["fit", "--config", f"recipes/{SHARDED}.yaml"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    environment |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "files"}
    started = []
    for rank in range(2):
        of_rank = {key: str(value) for key, value in (environment | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        process_arguments = [sys.executable, __file__, "--stopped", *arguments, "--run_dir", f"runs/{SHARDED}/stopped"]
        started.append(subprocess.Popen(process_arguments, env=os.environ | of_rank))
    codes = [process.wait() for process in started]
    assert codes[0] == 143, codes
    keep_run(Path("runs", SHARDED, "stopped"), FILES / "fits" / SHARDED)
    arguments += ["--trainer.devices", "1", "--trainer.accumulate_grad_batches", "2"]
    command(*arguments, "--run_dir", f"runs/{SHARDED}/stopped", "--resume", "auto")
    finish_run(SHARDED, arguments, reference="")


# ------------------------------------------------------------------ exports, an index, answers


def make_exports() -> None:
    """Write models as single files, an index of features, and their predictions."""
    from lit_vision.data.sources import note_of

    Path("exports").mkdir()
    Path("answers").mkdir()
    garments, shapes = "garments/test", "shapes/val/images"

    def export(run: str, *more: str) -> None:
        command("export", f"runs/{run}/stopped", "--licence", "CC-BY-4.0", *more)

    def predict(model: str, images: str, answer: str, *more: str) -> None:
        command("predict", "--model", model, images, "--out", f"answers/{answer}", "--device", "cpu", *more)

    export("mae", "--format", "safetensors", "--out", "exports/mae.safetensors")
    command("fit", "--config", "recipes/adapter.yaml", "--run_dir", "runs/adapter/stopped")
    command("export", "runs/adapter/stopped", "--format", "adapter", "--out", "exports/adapter.safetensors")
    for name in ("classifier", "detector", "segmenter"):
        export(name, "--format", "safetensors", "--out", f"exports/{name}.safetensors")
    export("simclr", "--format", "onnx", "--out", "exports/simclr.onnx")
    strip_traces(Path("exports/simclr.onnx"))
    make_foreign(Path("foreign.pth"))
    arguments = ["--backbone", "vit_tiny_patch16_224", "--backbone_args", json.dumps(FOREIGN), "--licence", "MIT"]
    command("import", "foreign.pth", *arguments, "--source", "made up", "--out", "exports/imported.safetensors")

    predict("exports/classifier.safetensors", garments, "classifier.csv")
    predict("exports/adapter.safetensors", garments, "adapter.csv", "--base", "exports/mae.safetensors")
    predict("exports/imported.safetensors", garments, "imported.csv")
    predict("exports/detector.safetensors", shapes, "detector.json", "--score", "0.06")
    predict("exports/segmenter.safetensors", shapes, "segmenter.json")

    def embed(model: str, index: str) -> None:
        command("embed", garments, "--model", model, "--out", index, "--device", "cpu")

    embed("exports/mae.safetensors", "index.safetensors")
    embed("exports/simclr.onnx", "index-simclr.safetensors")
    query = next(Path(garments).glob("bag/*.png"))
    arguments = ["--index", "index.safetensors", "--model", "exports/mae.safetensors", "--device", "cpu"]
    command("search", *arguments, "--query", query, "--top", "4", "--out", "answers/search.csv")
    command("search", "--index", "index.safetensors", "--duplicates", "0.98", "--out", "answers/duplicates.csv")
    for name, measure in (("mae", "validate"), ("classifier", "test")):  # the checkpoints that are kept
        shutil.copytree(FILES / "fits" / name, f"kept/{name}")
        command(measure, "--ckpt_path", f"kept/{name}/checkpoints/last.ckpt")
        shutil.copy(f"kept/{name}/results-{measure}.json", f"answers/{name}-{measure}.json")
    for name in RUNS:
        shutil.copy(f"runs/{name}/stopped/results.json", f"answers/{name}-fit.json")
    for folder in ("exports", "answers"):
        shutil.copytree(folder, FILES / folder)
    note = note_of(turned=True, full=False, seed=0) | {"images": {"train": 1}}  # as if it had one image
    (FILES / "fashion-turned.json").write_text(json.dumps(note, indent=1) + "\n")
    for name in ("index", "index-simclr"):
        shutil.copy(f"{name}.safetensors", FILES)


def strip_traces(path: Path) -> None:
    """Remove torch's notes on source lines, which hold paths of this machine, from an ONNX file; ours stay."""
    import onnx

    model = onnx.load(path)
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        del part.metadata_props[:]
    for part in (*model.graph.initializer, *model.functions):
        del part.metadata_props[:]
    onnx.save(model, path)


def make_foreign(path: Path) -> None:
    """Save a ViT classifier as another project's training would: timm's names, random weights."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **FOREIGN)
    torch.save({"model": model.state_dict()}, path)


# ------------------------------------------------------------------ studies


def tiny(recipe: Any) -> Any:
    """Return a study's recipe with networks of a few thousand parameters."""
    from dataclasses import replace

    cnn = {"stem": "small", "stem_type": "deep", "stem_width": 4, "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    vit = {"img_size": recipe.size, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 1}
    mae = recipe.mae | {"decoder_width": 16, "decoder_heads": 2}
    return replace(recipe, cnn=replace(recipe.cnn, args=cnn), vit=replace(recipe.vit, args=vit), mae=mae)


def make_studies() -> None:
    """Write two studies that ended and two that were stopped as zip archives."""
    from lit_vision.evaluation.results import read_result

    from lit_vision.study import encoders, recipes, runner
    from lit_vision.study.images import read_images
    from lit_vision.study.verify import verify

    original, train = recipes.recipe_for, runner.train
    recipes.recipe_for = lambda *args: tiny(original(*args))
    calls = itertools.count(1)

    def stopping(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    fixed = ["--size", "16", "--pretrained", "off", "--budget", "5"]
    both = ["--starts", "mae,simclr", "--epochs", "mae=2,simclr=2,8=2,24=1", "--labels", "8,24", "--seeds", "2,1"]
    both += ["--keep_weights", "1", "--protocols", "lora"]
    command("study", "garments", "--run_dir", "studies/both", *fixed, *both)
    one = ["--starts", "simclr", "--epochs", "simclr=2,12=2", "--labels", "12", "--seeds", "2", "--rotation", "10"]
    command("study", "garments", "--run_dir", "studies/turned", *fixed, *one, "--pretrain-on", "shapes/train/images")
    runner.train = stopping
    command("study", "garments", "--run_dir", "studies/half-done", *fixed, *both, code=130)
    runner.train, encoders.train = train, interrupted  # with a plan: epochs were not given
    measured = ["--budget", "1", "--starts", "simclr", "--labels", "8", "--seeds", "1"]
    command("study", "garments", "--run_dir", "studies/planned", *fixed, *measured, code=130)
    encoders.train, recipes.recipe_for = train, original

    images = read_images("garments", 16)
    networks = tiny(original(images.size))
    for name in ("both", "turned"):
        run = Path("studies", name)
        result = read_result(run / "results.json")
        weights = Path("weights", name)
        shutil.copytree(run / "weights", weights)
        for path in (run / "cells").glob("*.safetensors"):
            shutil.copy(path, weights)
        checks = list(verify(result["cells"], images, networks, weights))
        assert all(check.holds for check in checks), checks
        print(f"{name}: {len(checks)} numbers measured again")
    model = "studies/both/model.safetensors"
    command("predict", "--model", model, "garments/test", "--out", "answers/study.csv", "--device", "cpu")
    shutil.copy("answers/study.csv", FILES / "answers")
    (FILES / "studies").mkdir()
    for name in ("both", "turned", "half-done", "planned"):
        shutil.rmtree(f"studies/{name}/samples", ignore_errors=True)
        for path in Path("studies", name).glob("report.html"):
            path.unlink()
        zip_folders(FILES / "studies" / f"{name}.zip", f"studies/{name}")


# ------------------------------------------------------------------ constructors


def list_arguments() -> None:
    """Write the arguments that recipes, checkpoints and notebooks may give to methods, data modules and callbacks."""
    import inspect

    from lit_vision.checkpointing import LastCheckpoint
    from lit_vision.sharding import Sharded

    from lit_vision import data, methods
    from lit_vision.callbacks import ema, monitors, nonfinite, online_knn, predictions, progress, reconstructions

    found = [getattr(methods, name) for name in ("MAE", "SimCLR", "Classifier", "Detector", "Segmenter")]
    found += [data.ImageFolderDataModule, data.AnnotatedDataModule, LastCheckpoint, Sharded]
    found += [ema.EMA, monitors.LossSpike, monitors.Collapse, nonfinite.StopOnNonFinite, online_knn.OnlineKNN]
    found += [predictions.Predictions, progress.Progress, reconstructions.Reconstructions]
    rooms = ("lit_vision.methods.", "lit_vision.data.")
    of_class = {}
    for one in found:
        room = next((room for room in rooms if one.__module__.startswith(room)), f"{one.__module__}.")
        of_class[f"{room}{one.__name__}"] = list(inspect.signature(one).parameters)
    (FILES / "arguments.json").write_text(json.dumps(of_class, indent=1) + "\n")


def main() -> int:
    """Make everything in a temporary folder."""
    if sys.argv[1:2] == ["--stopped"]:
        from lit_vision.cli import main as lit_vision

        with stopped("on_train_batch_end", 6):
            return lit_vision(sys.argv[2:])
    if any(os.environ.get(name) != value for name, value in PORTABLE.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | PORTABLE)
    import torch

    import lit_vision

    assert (Path(lit_vision.__file__).parent / "whole.py").is_file(), "PYTHONPATH must name the old code"
    torch.set_num_threads(1)
    for name in ("fits", "exports", "answers", "studies"):
        shutil.rmtree(FILES / name, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        shutil.copytree(FILES / "recipes", "recipes")
        make_garments(Path("garments"))
        make_shapes(Path("shapes"))
        zip_folders(FILES / "images.zip", "garments", "shapes")
        command("pack", "garments", "--out", "garments.pack", "--lossless", "--workers", 1)
        shutil.copy("garments.pack", FILES)
        for name in RUNS:
            make_run(name)
        shutil.copy("half.txt", FILES)
        make_sharded_run()
        make_exports()
        make_studies()
        list_arguments()
        if keep := os.environ.get("KEEP"):
            shutil.copytree(folder, keep, dirs_exist_ok=True)
    record = {"commit": COMMIT, "python": sys.version.split()[0], "packages": versions(), "environment": PORTABLE}
    (FILES / "made.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
