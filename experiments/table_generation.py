"""Generation table: garments of 28 pixels made by flow matching and by a GAN at equal multiply-adds, three seeds.

The 10,000 embedded garments are split into halves. The generators see one, a made set of 5,000 images is compared with
the other: Frechet and kernel distance in 64 features of a small classifier (trained on the first half, committed), the
distance between the two real halves as the floor, and the accuracy on real images of the same classifier trained on
made ones. Prints from experiments/results/generation/ only.
Run: make table-generation        Measure images of the committed weights again: make verify-generation
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from studies.generation_cells import (
    DATA,
    FEATURE_WIDTH,
    HALF,
    RECIPES,
    RUNS,
    SAMPLING,
    Features,
    accuracy_after_training_on,
    grid_with_nearest,
    judge,
    make_halves,
    multiply_adds_of_training,
    read_halves,
    read_made,
    run,
    save_generator,
    train_classifier,
)
from table_script import RESULTS, ROOT, Tally, run_table
from table_script import WEIGHTS as ALL_WEIGHTS

SEEDS = (0, 1, 2)
REAL = "real images"
WEIGHTS, PLACE = ALL_WEIGHTS / "generation", RESULTS / "generation"
JUDGE = WEIGHTS / "classifier.safetensors"
TOLERANCE = {"frechet": 0.02, "kernel": 0.001, "nearest_train": 0.1}  # another machine rounds otherwise


def name_of(method: str, seed: int) -> str:
    """Return the name of a cell's files."""
    return f"{method.replace(' ', '-')}-{seed}"


def result_file(method: str, seed: int) -> Path:
    """Return the committed result of a cell."""
    return PLACE / f"{name_of(method, seed)}.json"


def make() -> None:
    """Train, generate and measure what is missing, a cell at a time."""
    make_halves()
    print_multiply_adds()
    prepare_judge()
    for seed in SEEDS:
        for method in (REAL, *RECIPES):
            if not result_file(method, seed).exists():
                began = time.perf_counter()
                print(f"{method}, seed {seed}", flush=True)
                facts = measure_real(seed) if method == REAL else measure_made(method, seed)
                publish(method, seed, facts, time.perf_counter() - began)
                show(quiet=True)


def prepare_judge() -> None:
    """Train the classifier whose features judge, unless it is committed."""
    from lit_vision.convert.export import write_safetensors
    from lit_vision.predict.models import load_method

    if not JUDGE.exists():
        method, metadata = load_method(train_classifier(RUNS / "judge", DATA, 0))
        JUDGE.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(method, metadata, JUDGE, half=True)


def measure_real(seed: int) -> dict[str, Any]:
    """Return the numbers of the floor: one real half against the other."""
    images, labels = read_halves()["train"]
    numbers = judge(None, Features(JUDGE)) if seed == SEEDS[0] else {}
    folder = RUNS / name_of(REAL, seed)
    return {**numbers, "real_top1": accuracy_after_training_on(images, labels, folder, seed)}


def measure_made(method: str, seed: int) -> dict[str, Any]:
    """Train a generator, make 5,000 images with its weights in half precision, and return their numbers."""
    from lit_vision.results.schema import read_result

    folder = RUNS / name_of(method, seed)
    if not (folder / "results.json").exists():
        fit = ["fit", "--config", RECIPES[method], "--seed_everything", str(seed)]
        run([*fit, "--run_dir", str(folder), "--resume", "auto"])
    weights = folder / "generator.safetensors"
    if not weights.exists():
        save_generator(folder / "checkpoints" / "last.ckpt", weights)
    began = time.perf_counter()
    images, labels = make_images(method, weights, folder / "made")
    numbers = {"sampling_seconds": round(time.perf_counter() - began, 1), **judge(images, Features(JUDGE))}
    numbers["real_top1"] = accuracy_after_training_on(images, labels, folder / "classifier", seed)
    numbers["named_right"] = Features(JUDGE).accuracy(images, labels)
    numbers["trained"] = {key: read_result(folder / "results.json")[key] for key in ("seconds", "images_seen", "steps")}
    if seed == SEEDS[0]:
        shutil.copy(weights, WEIGHTS / f"{name_of(method, seed)}.safetensors")
    write_grid(method, seed, images)
    return numbers


def make_images(method: str, weights: Path, out: Path) -> tuple[Any, Any]:
    """Return the 5,000 images of a generator's weights, seed 0, and their classes; a stopped call is continued."""
    from lit_vision.predict.generate import generate_images

    generate_images(weights, out, HALF, micro_batch=100, device="cpu", **SAMPLING[method])
    return read_made(out)


def write_grid(method: str, seed: int, images: Any) -> None:
    """Write the first 40 made images, each above its nearest training image."""
    import cv2

    picture = grid_with_nearest(images, read_halves()["train"][0])
    file = RESULTS / f"generation-{name_of(method, seed)}.png"
    cv2.imwrite(str(file), picture[:, :, 0], [cv2.IMWRITE_PNG_COMPRESSION, 9])  # gray


def publish(method: str, seed: int, facts: dict[str, Any], seconds: float) -> None:
    """Write a cell's committed result."""
    from lit_vision.results.schema import write_result

    accuracy = facts.pop("real_top1")
    write_result(
        result_file(method, seed),
        recipe=RECIPES.get(method, "table-generation"),
        seed=seed,
        metric={"name": "real_top1", "value": accuracy},
        samples=HALF,
        seconds=round(seconds, 1),
        facts=facts,
    )


def read_cells() -> dict[tuple[str, int], dict[str, Any]]:
    """Return {(method, seed): facts and real_top1 of the committed result}."""
    from lit_vision.results.schema import read_result

    found = {}
    for method in (REAL, *RECIPES):
        for seed in SEEDS:
            if result_file(method, seed).exists():
                result = read_result(result_file(method, seed))
                found[method, seed] = {**result["facts"], "real_top1": result["metric"]["value"]}
    return found


def show(quiet: bool = False) -> None:
    """Write the table as Markdown and CSV; print it unless `quiet`."""
    from lit_vision.evaluation.metrics import mean_sd
    from lit_vision.results.tables import Table, to_csv, to_markdown

    cells, lines = read_cells(), []

    def entry(method: str, key: str, digits: int, factor: float = 1.0) -> str:
        values = [factor * cells[method, seed][key] for seed in SEEDS if key in cells.get((method, seed), {})]
        if not values:
            return "-" if (method, SEEDS[0]) in cells else "not run yet"
        mean, sd = mean_sd(values)
        return f"{mean:.{digits}f}" if sd is None else f"{mean:.{digits}f} ± {sd:.{digits}f}"

    for method in (REAL, *RECIPES):
        seeds = sum((method, seed) in cells for seed in SEEDS)
        work = "-" if method == REAL else f"{multiply_adds_of_training(method) / 1e12:.2f}"
        row = [method, str(seeds), work, entry(method, "frechet", 2), entry(method, "kernel", 4)]
        row += [entry(method, "real_top1", 1, 100), entry(method, "named_right", 1, 100)]
        lines.append([*row, entry(method, "nearest_train", 1), entry(method, "nearest_train_5_percent", 1)])
    columns = ["images", "seeds", "training, 10^12 multiply-adds", "Frechet distance", "kernel distance"]
    columns += ["a classifier trained on them, on real ones, %", "class named by the judge, %"]
    columns += ["nearest training image, median", "nearest, 5 % quantile"]
    note = (
        f"Mean ± standard deviation over seeds. Distances of {HALF} images to the other {HALF} real ones, in "
        f"{FEATURE_WIDTH} features of a small classifier (experiments/weights/generation), comparable with no FID; the "
        "first row, real against real, is the floor. The judge was trained on the half that the generators saw. "
        "Nearest training image: root mean square difference of a pixel, of 255; in the first row that of the other "
        "half's real images. Pictures generation-*.png: the first 40 by number, each above its nearest training image."
    )
    table = Table(columns, lines, note)
    (RESULTS / "generation.md").write_text(to_markdown(table), encoding="utf-8")
    (RESULTS / "generation.csv").write_text(to_csv(table), encoding="utf-8")
    if not quiet:
        print(to_markdown(table))


def verify() -> int:
    """Make the images of the committed weights again and measure them; return 1 if a number moved."""
    tally, cells = Tally(), read_cells()
    for method in (REAL, *RECIPES):
        weights = WEIGHTS / f"{name_of(method, SEEDS[0])}.safetensors"
        known = cells.get((method, SEEDS[0]))
        if known is None or (method != REAL and not weights.exists()):
            continue
        if method == REAL:
            images = None
        else:
            out = RUNS / f"verify-{name_of(method, SEEDS[0])}"
            shutil.rmtree(out, ignore_errors=True)
            images = make_images(method, weights, out)[0]
        measured = judge(images, Features(JUDGE))
        for key, tolerance in TOLERANCE.items():
            tally.add(f"{method} {key}", known[key], measured[key], tolerance)
    return tally.close(len(TOLERANCE) * (1 + len(RECIPES)))


def print_multiply_adds() -> None:
    """Print the multiply-adds of each generator's training."""
    for method in RECIPES:
        print(f"{method}: {multiply_adds_of_training(method):.4g} multiply-adds in training", flush=True)


def print_commands() -> None:
    """Print what is trained."""
    print_multiply_adds()
    for seed in SEEDS:
        for method, recipe in RECIPES.items():
            folder = RUNS / name_of(method, seed)
            print(f"lit-vision fit --config {recipe} --seed_everything {seed} --run_dir {folder} --resume auto")


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, verify, print_commands)


if __name__ == "__main__":
    sys.exit(main())
