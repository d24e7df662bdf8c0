"""Label 100 of 600 photographs on the page of lit-vision label, as a person at a keyboard would, and measure the model.

    lit-vision data patches --out data/patches
    python experiments/label_trial.py

600 patches of scikit-image's 18 photographs lie in one folder without a label. Chromium opens the page; at each image
the script waits as long as a person might look (--seconds), then presses the key of the class that the patch is of. The
model that is left is tested on the 720 patches of the test split, from other parts of the photographs. Writes
experiments/results/label-trial.json and .md. Needs Debian's chromium and Playwright (make test-pages installs it).
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from table_script import RESULTS, ROOT

from lit_vision.cli.parser import ScriptParser
from lit_vision.io.atomic import write_json
from lit_vision.results.environment import collect_environment

IMAGES, LABELS, SEED = 600, 100, 0
KEYS = "123456789abcdefghijklmnopqrstuvwxyz"


def copy_images(source: Path, folder: Path) -> dict[str, str]:
    """Copy a drawn part of the images of all classes to one folder under neutral names; return {name: class}."""
    found = sorted(path for path in source.glob("*/*") if path.is_file())
    folder.mkdir()
    truth = {}
    for i, path in enumerate(random.Random(SEED).sample(found, IMAGES)):
        name = f"photo_{i:03d}{path.suffix}"
        shutil.copyfile(path, folder / name)
        truth[name] = path.parent.name
    return truth


def label(photos: Path, store: Path, truth: dict[str, str], seconds: float) -> dict[str, Any]:
    """Label on the page; return its state at the end and the seconds it took, with the longest wait for an image."""
    from playwright.sync_api import sync_playwright

    classes = sorted(set(truth.values()))
    command = [sys.executable, "-m", "lit_vision", "label", str(photos), "--out", str(store), "--port", "0"]
    server = subprocess.Popen([*command, "--classes", ",".join(classes)], stdout=subprocess.PIPE, text=True)
    start = time.perf_counter()
    try:
        lines = iter(server.stdout.readline, "")  # type: ignore[union-attr]
        address = next(line.strip() for line in lines if line.startswith("http"))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(address)
            opened, waits = time.perf_counter() - start, []
            for _ in range(LABELS):
                page.wait_for_selector("#stage img")
                name = page.inner_text("#name")
                time.sleep(seconds)
                page.keyboard.press(KEYS[classes.index(truth[name])])
                pressed = time.perf_counter()
                page.wait_for_function("(name) => document.getElementById('name').textContent !== name", arg=name)
                waits.append(time.perf_counter() - pressed)
            page.wait_for_function("() => document.getElementById('saved-text').textContent === 'All saved'")
            labeled = time.perf_counter() - start
            time.sleep(10)  # the model learns from the last labels
            state = page.request.get(f"{address.rstrip('/')}/v1/label/state").json()
            browser.close()
    finally:
        server.terminate()
        server.wait()
    waits.sort()
    times = {"to_the_page": opened, "labeling": labeled - opened, "whole": time.perf_counter() - start}
    times |= {"wait_median": waits[len(waits) // 2], "wait_p95": waits[95 * len(waits) // 100]}
    return {"audit": state["audit"], "more": state["more"], **{key: round(value, 3) for key, value in times.items()}}


def measure(model: Path, test: Path) -> tuple[float, int]:
    """Return the accuracy of a model on a folder with a class a folder, and the number of its images."""
    import lit_vision

    paths = sorted(path for path in test.glob("*/*") if path.is_file())
    found = lit_vision.load(model).predict(paths)
    right = sum(answer.classes[0] == path.parent.name for path, answer in zip(paths, found, strict=True))
    return right / len(paths), len(paths)


def to_text(row: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    audit = row["audit"]
    return (
        "# From 600 photographs without a label to a model\n\n"
        f"`python experiments/label_trial.py`: {row['labels']} of {row['images']} patches of 18 photographs, labeled "
        f"by keyboard on the page in Chromium. A script looks {row['seconds_an_image']:g} seconds at each image and "
        "presses the right key; a person may err and take longer.\n\n"
        f"- Command to page: {row['to_the_page']:.0f} s. Labeling: {row['labeling'] / 60:.1f} minutes. From the "
        f"command to the model: {row['whole'] / 60:.1f} minutes.\n"
        f"- Key to next image: {1000 * row['wait_median']:.0f} ms (median), {1000 * row['wait_p95']:.0f} ms (95 %).\n"
        f"- The page says: {100 * audit['accuracy']:.0f} % right ({100 * audit['low']:.0f} to "
        f"{100 * audit['high']:.0f} %, from {audit['images']} images drawn at random); {row['more']}.\n"
        f"- The model on {row['tests']} patches of other parts of the photographs: {100 * row['accuracy']:.1f} %.\n"
    )


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)
    parser = ScriptParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("data/patches"), help="images (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="that a person looks at an image (default 3)")
    options = parser.parse_args()
    environment = collect_environment()
    with tempfile.TemporaryDirectory() as place:
        photos, store = Path(place) / "photos", Path(place) / "store"
        truth = copy_images(options.folder / "train", photos)
        row = label(photos, store, truth, options.seconds)
        print(*sorted(path.name for path in store.iterdir()))
        accuracy, tests = measure(store / "model.safetensors", options.folder / "test")
    row |= {"images": IMAGES, "labels": LABELS, "seconds_an_image": options.seconds}
    row |= {"accuracy": round(accuracy, 4), "tests": tests} | environment
    write_json(RESULTS / "label-trial.json", row)
    (RESULTS / "label-trial.md").write_text(to_text(row), encoding="utf-8")
    print(to_text(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
