"""Restoration of whole held-out photographs: noise, JPEG artifacts, half the size, holes, against classical filters.

Each network is trained from a recipe of experiments/restoration on crops of Debian's wallpapers (CC-BY, CC-BY-SA and
others: numbers only, no picture and no weights are committed); 13 other wallpapers and 4 photographs of scikit-image
are measured, their middle of at most 448 x 320 pixels at about a megapixel. A filter's strength is chosen on four of
the training photographs. Prints from experiments/results/restoration/values.json only.
Run: make table-restoration        Measure baselines again and train the shortest network again: make verify-restoration
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from restoration_photographs import DATA, SHOWN, make_photographs
from table_script import RESULTS, ROOT, Tally, run_table

FOLDER, VALUES = ROOT / "runs" / "table-restoration", RESULTS / "restoration" / "values.json"
RECIPES = ROOT / "experiments" / "restoration"
TASKS = {  # task: recipe
    "noise 25": "dncnn_photographs_noise25",
    "JPEG 10": "dncnn_photographs_jpeg10",
    "x2": "dncnn_photographs_x2",
    "holes 25 %": "resnet_photographs_holes25",
}
MAE_RECIPE = "mae_photographs_pixels"
METRICS = {"psnr_rgb": 2, "psnr_y": 2, "ssim_rgb": 4, "ssim_y": 4}  # and decimals
BLOCK = 64  # holes are drawn in blocks of this side
Picture = np.ndarray  # (H, W, 3) uint8
Filter = Callable[[Picture, "np.ndarray | None", Any], Picture]  # degraded picture, holes, strength


def degraded(task: str, clean: Picture, number: int) -> tuple[Picture, np.ndarray | None]:
    """Return the degraded picture, smaller for x2, and its holes, (H, W) bool or None; the same at each call.

    Args:
        task: one of TASKS.
        clean: sides are multiples of 64.
        number: of the photograph, the key of what is drawn.
    """
    import torch

    from lit_vision.data.views.degraded import DegradedViews, jpeg_artifacts
    from lit_vision.methods.keyed_noise import VALIDATION
    from lit_vision.methods.restoration.degradations import degrade, device_degradations

    if task == "JPEG 10":
        return jpeg_artifacts(clean, 10), None
    if task == "x2":
        return DegradedViews(["downsample 2"], 0)(clean[None], 0, number)[0], None
    height, width = clean.shape[:2]
    pixels = torch.tensor(clean).permute(2, 0, 1)[None] / 255
    if task == "noise 25":
        noisy, _ = degrade(
            pixels, torch.tensor([[0, number, 0]]), device_degradations(["gaussian_noise 25"]), 0, VALIDATION
        )
        return _to_picture(noisy[0]), None
    rows, columns = height // BLOCK, width // BLOCK
    blocks = pixels.reshape(3, rows, BLOCK, columns, BLOCK).permute(1, 3, 0, 2, 4).reshape(-1, 3, BLOCK, BLOCK)
    keys = torch.tensor([[0, number, block] for block in range(len(blocks))])
    settings = ["rectangle_holes 0.125", "stroke_holes 0.125"]
    filled, holes = degrade(blocks, keys, device_degradations(settings), 0, VALIDATION)
    assert holes is not None
    joined = torch.cat([filled, holes], 1).reshape(rows, columns, 4, BLOCK, BLOCK).permute(2, 0, 3, 1, 4)
    joined = joined.reshape(4, height, width)
    return _to_picture(joined[:3]), np.asarray(joined[3].numpy() > 0)


def _to_picture(pixels: Any) -> Picture:
    return np.ascontiguousarray((pixels * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def _nothing(picture: Picture, holes: np.ndarray | None, strength: Any) -> Picture:
    return picture


def _resized(picture: Picture, holes: np.ndarray | None, strength: Any) -> Picture:
    import cv2

    return np.asarray(cv2.resize(picture, None, fx=2, fy=2, interpolation=getattr(cv2, f"INTER_{strength}")))


def _pillow_bicubic(picture: Picture, holes: np.ndarray | None, strength: Any) -> Picture:
    from lit_vision.data.views.views import resize

    return resize(picture, 2 * picture.shape[0], 2 * picture.shape[1])


def _median(picture: Picture, holes: np.ndarray | None, strength: Any) -> Picture:
    import cv2

    return np.asarray(cv2.medianBlur(picture, strength))


def _non_local_means(picture: Picture, holes: np.ndarray | None, strength: Any) -> Picture:
    import cv2

    return np.asarray(cv2.fastNlMeansDenoisingColored(picture, None, strength, strength, 7, 21))


def _wavelet(picture: Picture, holes: np.ndarray | None, strength: Any) -> Picture:
    from skimage.restoration import denoise_wavelet

    options = {"convert2ycbcr": True, "method": "BayesShrink", "mode": "soft", "rescale_sigma": True}
    return _from_float(denoise_wavelet(picture / 255, channel_axis=-1, sigma=strength / 255, **options))


def _total_variation(picture: Picture, holes: np.ndarray | None, strength: Any) -> Picture:
    from skimage.restoration import denoise_tv_chambolle

    return _from_float(denoise_tv_chambolle(picture / 255, weight=strength, channel_axis=-1))


def _from_float(pixels: np.ndarray) -> Picture:
    return np.asarray((pixels * 255).round().clip(0, 255).astype(np.uint8))


def _inpainted(picture: Picture, holes: np.ndarray | None, strength: Any) -> Picture:
    import cv2

    assert holes is not None
    kind, radius = strength
    return np.asarray(cv2.inpaint(picture, holes.astype(np.uint8), radius, getattr(cv2, kind)))


def _network(picture: Picture, holes: np.ndarray | None, strength: Any) -> Picture:
    from lit_vision.predict.tiles import run_tiled

    return run_tiled(open_run(strength), picture, holes)


@cache
def open_run(recipe: str) -> Any:
    """Return the network of tiles of the last weights of a recipe's run."""
    from lit_vision.predict.restore import open_network

    return open_network(
        FOLDER / recipe / "checkpoints" / "last.ckpt", "holes" in recipe or "mae" in recipe, None, "cpu"
    )[0]


DENOISERS: Mapping[str, tuple[Filter, tuple[Any, ...]]] = {
    "nothing": (_nothing, (None,)),
    "median (OpenCV)": (_median, (3, 5)),
    "non-local means (OpenCV)": (_non_local_means, (4, 8, 12, 16, 22, 30)),
    "wavelet (scikit-image)": (_wavelet, (5, 12, 25, 35)),
    "total variation (scikit-image)": (_total_variation, (0.03, 0.06, 0.1, 0.15)),
}
# task: {method: (filter, strengths to choose from)}
METHODS: Mapping[str, Mapping[str, tuple[Filter, tuple[Any, ...]]]] = {
    "noise 25": DENOISERS,
    "JPEG 10": DENOISERS,
    "x2": {
        "nearest (OpenCV)": (_resized, ("NEAREST",)),
        "bicubic (a = -0.5, as Pillow)": (_pillow_bicubic, (None,)),
        "bicubic (OpenCV)": (_resized, ("CUBIC",)),
        "Lanczos (OpenCV)": (_resized, ("LANCZOS4",)),
    },
    "holes 25 %": {
        "nothing": (_nothing, (None,)),
        "Telea (OpenCV)": (_inpainted, tuple(("INPAINT_TELEA", radius) for radius in (3, 6, 12))),
        "Navier-Stokes (OpenCV)": (_inpainted, tuple(("INPAINT_NS", radius) for radius in (3, 6, 12))),
    },
}
LEARNED = {task: {"network": (_network, (recipe,))} for task, recipe in TASKS.items()}
LEARNED["holes 25 %"]["MAE's fill"] = (_network, (MAE_RECIPE,))


def photographs(split: str) -> dict[str, Picture]:
    """Return {name: picture} of "held-out" or "tuning"."""
    from lit_vision.data.views.decode import decode

    return {path.stem: decode(path.read_bytes()) for path in sorted((DATA / split).glob("*.png"))}


def quality(task: str, restored: Picture, clean: Picture) -> dict[str, float]:
    """Return PSNR and SSIM; two pixels at each border do not count for x2."""
    import torch

    from lit_vision.evaluation.restoration import restoration_values

    a, b = (torch.tensor(x).permute(2, 0, 1)[None].double() / 255 for x in (restored, clean))
    return {name: float(v[0]) for name, v in restoration_values(a, b, 2 if task == "x2" else 0).items()}


def measure(task: str, method: str) -> dict[str, Any]:
    """Return {strength, seconds_per_megapixel, photographs: {name: values}} of one method, strengths chosen on tuning.

    Seconds are of one thread and this machine as it was, per megapixel of the result.
    """
    apply, strengths = {**METHODS[task], **LEARNED[task]}[method]
    best = strengths[0]
    if len(strengths) > 1:
        tuning = photographs("tuning")

        def mean_psnr(strength: Any) -> float:
            found = [
                quality(task, apply(*degraded(task, clean, 1000 + n), strength), clean)["psnr_rgb"]
                for n, clean in enumerate(tuning.values())
            ]
            return float(np.mean(found))

        best = max(strengths, key=mean_psnr)
    values, seconds, pixels = {}, 0.0, 0
    for number, (name, clean) in enumerate(photographs("held-out").items()):
        picture, holes = degraded(task, clean, number)
        start = time.process_time()
        restored = apply(picture, holes, best)
        seconds, pixels = seconds + time.process_time() - start, pixels + clean.shape[0] * clean.shape[1]
        values[name] = quality(task, restored, clean)
    return {"strength": best, "seconds_per_megapixel": seconds / pixels * 1e6, "photographs": values}


def multiply_adds(recipe: str) -> float:
    """Return the multiply-adds of a network per pixel of its result, counted on convolutions and linear layers."""
    import torch
    import yaml
    from torch.utils.flop_counter import FlopCounterMode

    from lit_vision import methods

    arguments = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())["model"]["init_args"]
    network = methods.network_class("MAE" if "mae" in recipe else "Restorer")(arguments).eval()
    side = 64
    images = torch.zeros(1, 3, side // arguments.get("scale", 1), side // arguments.get("scale", 1))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return float(counter.get_total_flops()) / 2 / side**2


def make() -> None:
    """Train what is missing, measure what is missing, and write the values."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    make_photographs()
    print_commands()
    for recipe in (*TASKS.values(), MAE_RECIPE):
        train(recipe, FOLDER / recipe)
    for task in TASKS:
        for method in (*METHODS[task], *LEARNED[task]):
            _stored_cell(task, method)
    write_values()
    draw_examples(json.loads(VALUES.read_text())["cells"])


def write_values() -> None:
    """Write the committed values from what is measured in runs/."""
    from lit_vision.io.atomic import write_json
    from lit_vision.results.environment import collect_environment

    cells: dict[str, dict[str, Any]] = {task: {} for task in TASKS}
    for task in TASKS:
        for method in (*METHODS[task], *LEARNED[task]):
            if _cell_file(task, method).exists():
                cells[task][method] = _stored_cell(task, method)
    runs = {}
    for recipe in (*TASKS.values(), MAE_RECIPE):
        if (FOLDER / recipe / "results.json").exists():
            result = json.loads((FOLDER / recipe / "results.json").read_text())
            keys = ("seconds", "images_seen", "weights_sha256", "recipe_sha256", "commit")
            runs[recipe] = {key: result[key] for key in keys}
    facts = {"data": json.loads((DATA / "fingerprint.json").read_text()), "environment": collect_environment(0)}
    VALUES.parent.mkdir(parents=True, exist_ok=True)
    write_json(VALUES, {**facts, "runs": runs, "cells": cells})


# task: photograph of scikit-image, top and left of its crop, and the classical method beside the network
EXAMPLES = {
    "noise 25": ("chelsea", 90, 190, "wavelet (scikit-image)"),
    "JPEG 10": ("astronaut", 0, 130, "median (OpenCV)"),
    "x2": ("coffee", 120, 170, "bicubic (a = -0.5, as Pillow)"),
    "holes 25 %": ("rocket", 100, 150, "Telea (OpenCV)"),
}
EXAMPLE_SIDE = 128


def draw_examples(cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Write examples.png: a row a task with degraded, classically restored, restored and clean pixels of scikit-image.

    Crops were fixed before any result was seen.
    """
    import cv2

    from lit_vision.io.atomic import atomic_path

    held_out, rows = photographs("held-out"), []
    for task, (name, top, left, method) in EXAMPLES.items():
        clean, number = held_out[name], list(held_out).index(name)
        picture, holes = degraded(task, clean, number)
        shown = _resized(picture, None, "NEAREST") if task == "x2" else picture
        classical = METHODS[task][method][0](picture, holes, _as_strength(cells[task][method]["strength"]))
        panels = [shown, classical, _network(picture, holes, TASKS[task]), clean]
        crops = [panel[top : top + EXAMPLE_SIDE, left : left + EXAMPLE_SIDE] for panel in panels]
        rows.append(np.hstack([np.pad(crop, ((2, 2), (2, 2), (0, 0)), constant_values=255) for crop in crops]))
    with atomic_path(VALUES.with_name("examples.png"), fsync=False) as temporary:
        cv2.imwrite(str(temporary), np.vstack(rows)[..., ::-1])


def _as_strength(stored: Any) -> Any:
    return tuple(stored) if isinstance(stored, list) else stored


def train(recipe: str, run: Path) -> None:
    """Run `lit-vision fit` on a recipe unless it is done; a killed run goes on."""
    from lit_vision.cli.main import main as command

    if (run / "results.json").exists():
        return
    file = f"experiments/restoration/{recipe}.yaml"
    if code := command(["fit", "--config", file, "--run_dir", str(run), "--resume", "auto"]):
        raise SystemExit(code)


def _stored_cell(task: str, method: str) -> dict[str, Any]:
    """Return what `measure` found, from runs/ if it was measured before."""
    from lit_vision.io.atomic import write_json

    file = _cell_file(task, method)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, measure(task, method))
        print(f"{task}, {method}: done", flush=True)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _cell_file(task: str, method: str) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in f"{task} {method}")
    return FOLDER / "cells" / f"{name}.json"


def paired(cells: Mapping[str, Any], metric: str, ours: str, other: str) -> tuple[float, float]:
    """Return the mean difference of two methods over the photographs, and its standard error."""
    a, b = ({n: v[metric] for n, v in cells[m]["photographs"].items()} for m in (ours, other))
    differences = np.array([a[name] - b[name] for name in a])
    return float(differences.mean()), float(differences.std(ddof=1) / len(differences) ** 0.5)


def show() -> None:
    """Print the table from the committed values and write it as Markdown."""
    from lit_vision.results.tables import Table, to_markdown

    if not VALUES.exists():
        print("not run yet")
        return
    stored = json.loads(VALUES.read_text())
    text = ["# Restoration of photographs\n"]
    counts = stored["data"]["photographs"]
    text.append(
        f"{counts['test']} held-out photographs ({len(SHOWN)} of scikit-image, the others Debian's wallpapers), "
        f"networks trained on crops of {counts['train']} others. Mean over photographs ± standard error. Gain: mean of "
        "the network's PSNR (RGB) minus this method's on the same photograph, ± its standard error. Seconds: CPU time "
        "of one thread per megapixel of the result, on a busy machine.\n"
    )
    for task, cells in stored["cells"].items():
        rows = []
        for method, cell in cells.items():
            values = [[v[m] for v in cell["photographs"].values()] for m in METRICS]
            numbers = [
                f"{np.mean(v):.{d}f} ± {np.std(v, ddof=1) / len(v) ** 0.5:.{d}f}"
                for v, d in zip(values, METRICS.values())
            ]
            gain = (
                ""
                if method == "network" or "network" not in cells
                else "{:+.2f} ± {:.2f}".format(*paired(cells, "psnr_rgb", "network", method))
            )
            strength = "" if cell["strength"] is None or method in LEARNED[task] else _strength_text(cell["strength"])
            rows.append([method, strength, *numbers, gain, f"{cell['seconds_per_megapixel']:.2f}"])
        columns = ["method", "strength", "PSNR RGB, dB", "PSNR Y, dB", "SSIM RGB", "SSIM Y", "gain, dB", "s / MP"]
        rows += [[m, "", "not run yet", *[""] * 5] for m in LEARNED[task] if m not in cells]
        note = verdict(task, cells) if "network" in cells else "The network was not trained yet."
        text += [f"## {task}\n", to_markdown(Table(columns, rows, note))]
    lines = [
        f"- `{name}`: {run['seconds'] / 60:.0f} minutes on a machine with {os.cpu_count()} busy cores, "
        f"{run['images_seen']:,} crops"
        for name, run in stored["runs"].items()
    ]
    text += ["## Training\n", *lines, ""]
    if VALUES.with_name("examples.png").exists():
        text += ["## Examples\n", "![examples](examples.png)\n"]
        text.append(
            "Degraded, classical, network, clean; a row a task: "
            + "; ".join(f"{task} ({name} of scikit-image, {method})" for task, (name, _, _, method) in EXAMPLES.items())
            + ". The crops were fixed before any result was seen.\n"
        )
    print("\n".join(text))
    VALUES.with_name("README.md").write_text("\n".join(text), encoding="utf-8")


def _strength_text(strength: Any) -> str:
    return f"radius {strength[1]}" if isinstance(strength, list) else str(strength)


def verdict(task: str, cells: Mapping[str, Any]) -> str:
    """Return a line: the network against the best classical method, in standard errors of the paired difference."""
    best = max(METHODS[task], key=lambda m: np.mean([v["psnr_rgb"] for v in cells[m]["photographs"].values()]))
    words = []
    for metric in ("psnr_rgb", "ssim_rgb"):
        worst = min(METHODS[task], key=lambda m: _errors(*paired(cells, metric, "network", m)))
        mean, error = paired(cells, metric, "network", worst)
        above = _errors(mean, error) > 2
        name = "PSNR" if metric == "psnr_rgb" else "SSIM"
        words.append(
            f"{name} (RGB): {'above' if above else 'NOT above'} every classical method by more than two standard "
            f"errors (closest: {worst}, {mean:+.3f} ± {error:.3f})"
        )
    return f"Best classical method by PSNR: {best}. {'; '.join(words)}."


def _errors(mean: float, error: float) -> float:
    return mean / error if error else float(np.sign(mean)) * np.inf


def verify() -> int:
    """Measure the quick baselines again and train the x2 network again; return 1 if a value moved.

    Nothing that was trained is committed, because of the photographs' licenses: another machine's network may differ by
    a few hundredths of a decibel. Not measured again: non-local means, total variation and the other networks.
    """
    import cv2

    if not VALUES.exists():
        print("not run yet")
        return 1
    cv2.setNumThreads(1)
    stored, tally = json.loads(VALUES.read_text()), Tally()
    total = sum(len(c["photographs"]) for cells in stored["cells"].values() for c in cells.values())
    if json.loads((make_photographs() / "fingerprint.json").read_text()) != stored["data"]:
        print("the photographs differ from those of the table (another version of a package or decoder)")
        return 1
    train(TASKS["x2"], FOLDER / f"verify-{TASKS['x2']}")
    quick = [("noise 25", "nothing"), ("JPEG 10", "nothing"), ("JPEG 10", "median (OpenCV)")]
    quick += [("x2", m) for m in METHODS["x2"]] + [("holes 25 %", m) for m in METHODS["holes 25 %"]]
    for task, method in quick:
        _compare(tally, f"{task} {method}", stored["cells"][task][method], measure(task, method), 0.02)
    LEARNED["x2"]["network"] = (_network, (f"verify-{TASKS['x2']}",))
    _compare(tally, "x2 network", stored["cells"]["x2"]["network"], measure("x2", "network"), 0.3)
    return tally.close(total)


def _compare(tally: Tally, name: str, stored: Mapping[str, Any], found: Mapping[str, Any], tolerance: float) -> None:
    for photograph, values in found["photographs"].items():
        committed = stored["photographs"][photograph]["psnr_rgb"]
        tally.add(f"{name}, {photograph}, PSNR in dB", committed, values["psnr_rgb"], tolerance)


def print_commands() -> None:
    """Print the counted cost and what is run."""
    for recipe in (*TASKS.values(), MAE_RECIPE):
        print(f"{recipe}: {multiply_adds(recipe) / 1e3:.0f} thousand multiply-adds a pixel forward")
        print(
            f"  lit-vision fit --config experiments/restoration/{recipe}.yaml --run_dir runs/table-restoration/{recipe}"
        )


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, verify, print_commands)


if __name__ == "__main__":
    sys.exit(main())
