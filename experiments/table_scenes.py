"""Scenes table: test mAP of detection and Dice of segmentation, from scratch and from a pre-trained backbone.

One backbone is pre-trained by SimCLR on tiles of the training scenes, without labels; then every task is trained from
it and from scratch: same network, same schedule, three seeds. The same command again resumes each run where it stopped.
Prints from experiments/results/scenes/ only.
Run: make table-scenes SCALE=desk        Measure the committed weights again: make verify-scenes
"""

from __future__ import annotations

import csv
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from table_script import RESULTS, ROOT, Tally, run_table
from table_script import WEIGHTS as ALL_WEIGHTS

WEIGHTS = ALL_WEIGHTS / "scenes"
RUNS, DATA, TILES = Path("runs") / "table-scenes", Path("data") / "scenes", Path("data") / "scenes-tiles"
PRETRAIN = "experiments/simclr/resnet10_scenes_12ep.yaml"
RECIPES = {
    "detect": "experiments/detect/resnet10_scenes_20ep.yaml",
    "segment": "experiments/segment/resnet10_scenes_16ep.yaml",
}
METRICS = {"detect": "map", "segment": "dice"}
INITS, SEEDS = ("scratch", "simclr"), (0, 1, 2)
SIDE, STRIDE = 64, 32  # of a tile, pixels
TOLERANCE = 0.005  # committed weights are float16, measured in float32; the run measured in bfloat16


@dataclass(frozen=True)
class Run:
    """One training of the table."""

    task: str
    init: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.init}-{self.seed}"

    @property
    def folder(self) -> Path:
        return RUNS / self.name

    @property
    def result(self) -> Path:
        return RESULTS / "scenes" / f"{self.name}.json"

    def commands(self) -> list[list[str]]:
        """Return the commands after `lit-vision`: train, then measure the last weights on the test split."""
        recipe = RECIPES[self.task]
        fit = ["fit", "--config", recipe, "--seed_everything", str(self.seed)]
        if self.init != "scratch":
            fit += ["--model.backbone_checkpoint", str(RUNS / self.init / "checkpoints" / "last.ckpt")]
        fit += ["--run_dir", str(self.folder), "--resume", "auto"]
        last = str(self.folder / "checkpoints" / "last.ckpt")
        return [fit, ["test", "--config", recipe, "--seed_everything", str(self.seed), "--ckpt_path", last]]


ALL = [Run(task, init, seed) for seed in SEEDS for task in RECIPES for init in INITS]
PRETRAIN_COMMAND = ["fit", "--config", PRETRAIN, "--run_dir", str(RUNS / "simclr"), "--resume", "auto"]
DATA_COMMAND = ["data", "scenes", "--out", str(DATA)]


def cut_tiles(source: Path, out: Path) -> int:
    """Write overlapping SIDE x SIDE tiles of every image in `source` to `out` as PNG files, unless done before.

    Why tiles: two crops of a scene share its background and often no garment; two crops of a tile mostly show one.

    Returns:
        Number of tiles.
    """
    import cv2

    done = out / "done.txt"
    if done.exists():
        return int(done.read_text())
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for path in sorted(source.glob("*.png")):
        image = cv2.imread(str(path))
        for top in range(0, image.shape[0] - SIDE + 1, STRIDE):
            for left in range(0, image.shape[1] - SIDE + 1, STRIDE):
                cv2.imwrite(f"{out}/{path.stem}-{top:03d}-{left:03d}.png", image[top : top + SIDE, left : left + SIDE])
                count += 1
    done.write_text(f"{count}\n")
    return count


def make() -> None:
    """Make the data, train what is missing, measure and publish each run as it ends."""
    _run_command(DATA_COMMAND)
    print(f"{cut_tiles(DATA / 'train' / 'images', TILES)} tiles in {TILES}", flush=True)
    if not (RUNS / "simclr" / "results.json").exists():
        print(f"[0/{len(ALL)}] pre-training", flush=True)
        _run_command(PRETRAIN_COMMAND)
    for number, run in enumerate(ALL, 1):
        if not (run.folder / "results-test.json").exists():
            print(f"[{number}/{len(ALL)}] {run.name}", flush=True)
            fit, test = run.commands()
            if not (run.folder / "results.json").exists():
                _run_command(fit)
            _run_command(test)
        publish(run)
        show(quiet=True)
    for run in ALL:  # last, so that nothing waits for it
        if run.seed == SEEDS[0]:
            add_int8(run)


def _run_command(arguments: list[str]) -> None:
    from lit_vision.cli.main import main

    if code := main(arguments):
        sys.exit(code)


def publish(run: Run) -> None:
    """Write the table's numbers of a run, its picture, and for the first seed its weights to experiments/."""
    from lit_vision.io.atomic import write_json
    from lit_vision.results.schema import read_result

    if run.result.exists() and run.result.stat().st_mtime >= (run.folder / "results-test.json").stat().st_mtime:
        return
    trained, result = (read_result(run.folder / f"results{part}.json") for part in ("", "-test"))
    keys = ("commit", "dirty", "seconds", "images_seen", "epochs", "steps", "overrides", "recipe_sha256")
    result["trained"] = {key: trained.get(key) for key in keys}
    result["recipe_sha256"], result["images_seen"] = trained["recipe_sha256"], trained["images_seen"]
    result |= {"task": run.task, "init": run.init, "pretrain_seconds": 0.0}
    if run.init != "scratch":
        before = read_result(RUNS / run.init / "results.json")
        keys = ("recipe", "recipe_sha256", "commit", "dirty", "seconds", "images_seen", "weights_sha256")
        result["pretrained"] = {key: before.get(key) for key in keys}
        result["pretrain_seconds"] = before["seconds"]
    result["curve"] = curve(run.folder / "metrics.csv", f"val/{METRICS[run.task]}")
    if run.seed == SEEDS[0]:
        file = WEIGHTS / f"{run.name}.safetensors"
        save_half(run.folder / "checkpoints" / "last.ckpt", file)
        result["weights"] = {"file": file.relative_to(ROOT).as_posix(), "value": measure(run.task, file)}
        pictures = sorted((run.folder / "samples").glob("predictions-e*.png"))
        if pictures:
            shutil.copy(pictures[-1], RESULTS / f"scenes-{run.task}-{run.init}.png")
    run.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(run.result, result)
    read_result(run.result)  # a file that the table could not read is found now


def curve(path: Path, name: str) -> list[list[float]]:
    """Return [[epoch, value], ...] of a metric in a run's metrics.csv; epochs are counted from 1."""
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(name)]
    return [[int(float(row["epoch"])) + 1, round(float(row[name]), 5)] for row in rows]


def save_half(checkpoint: Path, file: Path) -> None:
    """Export a run's weights to a safetensors file in half precision."""
    from lit_vision.convert.export import write_safetensors
    from lit_vision.predict.models import load_method

    method, metadata = load_method(checkpoint)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(method, metadata, file, half=True)


def add_int8(run: Run) -> None:
    """Add to a run's result what its int8 OpenVINO export loses on the test scenes."""
    from lit_vision.convert.export import export
    from lit_vision.convert.quantize import require_packages
    from lit_vision.errors import UserError
    from lit_vision.io.atomic import write_json
    from lit_vision.predict.models import load_method
    from lit_vision.predict.tasks import accuracy_check_for
    from lit_vision.results.schema import read_result

    result = read_result(run.result)
    if "int8" in result:
        return
    try:
        require_packages()
        method, metadata = load_method(run.folder / "checkpoints" / "last.ckpt")
        summary = export(
            method, metadata, "openvino", run.folder / "model-int8.xml", accuracy_check_for(str(DATA), metadata)
        )
    except UserError as error:
        print(f"{run.name}: no int8 figure: {error}", flush=True)
        return
    print(f"{run.name}: {summary}", flush=True)
    write_json(run.result, {**result, "int8": {**metadata.options["int8"], "format": "openvino"}})


def measure(task: str, file: Path) -> float:
    """Return the task's metric of an exported model on the test scenes, in float32."""
    import yaml
    from lightning.pytorch import Trainer

    from lit_vision.data import AnnotatedDataModule
    from lit_vision.methods import lightning_module
    from lit_vision.predict.models import load_method

    network, _ = load_method(file)
    data = yaml.safe_load((ROOT / RECIPES[task]).read_text())["data"]["init_args"]
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    (found,) = trainer.test(lightning_module(network), datamodule=AnnotatedDataModule(**data), verbose=False)
    return found[f"test/{METRICS[task]}"]


def read_run_results() -> dict[Run, dict[str, Any]]:
    """Return {run: its committed result}."""
    from lit_vision.results.schema import read_result

    return {run: read_result(run.result) for run in ALL if run.result.exists()}


def show(quiet: bool = False) -> None:
    """Write the table, the curves and the page that shows them; print the table unless `quiet`."""
    from scenes_report import make_table, write_page

    from lit_vision.results.tables import to_csv, to_markdown

    results = read_run_results()
    table = make_table(results)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scenes.csv").write_text(to_csv(table), encoding="utf-8")
    write_page(results, table, RESULTS)
    if not quiet:
        print(to_markdown(table))
        print(f"scenes.md, scenes.csv, scenes-*.png in experiments/{RESULTS.name}/")


def verify() -> int:
    """Measure the committed weights again; return 1 if a value moved or none was measured."""
    from lit_vision.cli.main import main

    if code := main(DATA_COMMAND):
        return code
    results, tally = read_run_results(), Tally()
    for run, result in results.items():
        if (weights := result.get("weights")) and (ROOT / weights["file"]).exists():
            tally.add(run.name, result["metric"]["value"], measure(run.task, ROOT / weights["file"]), TOLERANCE)
    return tally.close(len(results))


def print_commands() -> None:
    """Print the commands."""
    print("lit-vision " + shlex.join(DATA_COMMAND))
    print(f"tiles of {DATA}/train/images in {TILES}")
    for command in [PRETRAIN_COMMAND, *(command for run in ALL for command in run.commands())]:
        print("lit-vision " + shlex.join(command))


def print_paper_scale() -> None:
    """Print the recipes that are nearest to it at the scale of papers."""
    print("scenes has no paper scale: detect/vitb16_coco_100ep.yaml and segment/vitb16_ade20k_127ep.yaml (not run yet)")


def main() -> int:
    """Run the script; return its exit code."""
    return run_table(str(__doc__), make, show, verify, print_commands, print_paper_scale)


if __name__ == "__main__":
    sys.exit(main())
