"""Image sets and their frozen features, for the tables of label law, label errors and choice of labels.

Features are computed once per set and encoder, by `lit_vision.load(...).embed`, and kept in runs/frozen-sets.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from table_script import ROOT, Tally

# set: the command that makes it. Stamps come from Debian's package tuxpaint-stamps-default (GPL-2): numbers only.
SETS = {
    "garments": ["data", "fashion", "--out", "data/fashion-upright"],
    "turned garments": ["data", "fashion", "--rotated", "--out", "data/fashion-turned"],
    "patches": ["data", "patches", "--out", "data/patches"],
    "stamps": [],
}
ENCODERS = ("pixels", "lite0")
LITE0 = "tf_efficientnet_lite0"  # of the extra [public]: Apache-2.0, ImageNet-1k, seen at 224 pixels
PIXELS = 32  # side at which raw pixels are features
POOL = 2000  # images of the training part at most, stratified: the garments have 8,000
HELD_OUT = 0.3  # of stamps, which have no test split
STAMPS = "tuxpaint-stamps-default"
STAMP_CLASSES = {  # photographs only; a class each
    "bird": "animals/birds",
    "mammal": "animals/mammals",
    "fish": "animals/fish",
    "insect": "animals/insects",
    "fruit": "food/fruit",
    "vegetable": "food/vegetables",
    "flower": "plants/flowers",
    "household": "household",
    "clothes": "clothes",
    "vehicle": "vehicles",
    "space": "space",
    "music": "hobbies/music",
}


@dataclass(frozen=True)
class FrozenSet:
    """Features and labels of a set under one encoder.

    Attributes:
        features: (N, D) float32 of the training part.
        labels: (N,) int64, 0 to K - 1.
        test: (M, D) float32.
        test_labels: (M,) int64.
        classes: K names.
        fingerprint: of the images.
    """

    features: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    classes: list[str]
    fingerprint: str


def read_frozen(name: str, encoder: str) -> FrozenSet | None:
    """Return a set's features, computed if they are not in runs/frozen-sets; None for stamps without their package.

    Stamps are read from runs/tuxpaint-stamps-default*.deb (apt-get download tuxpaint-stamps-default).

    Args:
        name: one of SETS.
        encoder: one of ENCODERS.
    """
    cache = ROOT / "runs" / "frozen-sets" / f"{name.replace(' ', '-')}-{encoder}.npz"
    if not cache.exists():
        if name == "stamps" and not list((ROOT / "runs").glob(f"{STAMPS}*.deb")):
            return None
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            root = _unpack_stamps(Path(folder)) if name == "stamps" else _made(SETS[name])
            _compute(root, encoder, cache)
    with np.load(cache) as stored:
        arrays = {key: stored[key] for key in stored.files}
    classes = arrays.pop("classes").tolist()
    return FrozenSet(**arrays | {"classes": classes, "fingerprint": str(arrays["fingerprint"])})


def print_sets(names: Iterable[str]) -> None:
    """Print the command that makes each set."""
    for name in names:
        command = SETS[name]
        print(f"{name}: {'lit-vision ' + ' '.join(command) if command else 'apt-get download ' + STAMPS}")


def verify_sets(
    names: Iterable[str],
    encoders: Iterable[str],
    results_file: Callable[[str], Path],
    measure_again: Callable[[Tally, str, str, FrozenSet, list[dict[str, Any]]], None],
) -> int:
    """Measure committed values again; return 1 if a value moved, the images differ or nothing was measured.

    Args:
        names: of SETS.
        encoders: of ENCODERS.
        results_file: returns the results.json of a set; sets without one are passed over.
        measure_again: called with a tally to add values to, the names of set and encoder, the set's features and the
            cells of its file.
    """
    from lit_vision.results.schema import read_result

    tally, total, encoders = Tally(), 0, tuple(encoders)
    for name in names:
        file = results_file(name)
        result: dict[str, Any] = read_result(file) if file.exists() else {"cells": []}
        total += sum(len(cell["values"]) for cell in result["cells"])
        for encoder in encoders if result["cells"] else ():
            if (images := read_frozen(name, encoder)) is None:
                continue
            if images.fingerprint != result["data_fingerprint"]:
                print(f"{file.name}: made from other images (fingerprint differs); make the data again")
                return 1
            measure_again(tally, name, encoder, images, result["cells"])
    return tally.close(total)


def _made(command: list[str]) -> Path:
    from lit_vision.cli.main import main

    if code := main(command):
        raise SystemExit(code)
    return ROOT / command[-1]


def _unpack_stamps(folder: Path) -> Path:
    """Write the photographs on white to folder/sets/<class>/, and return folder/sets."""
    from PIL import Image

    (package, *_) = sorted((ROOT / "runs").glob(f"{STAMPS}*.deb"))
    subprocess.run(["dpkg", "-x", str(package), str(folder / "all")], check=True)
    root = next((folder / "all").rglob("stamps"))
    for name, kind in STAMP_CLASSES.items():
        for path in sorted((root / kind).rglob("*.png")):
            if "cartoon" in path.parts:
                continue
            with Image.open(path) as file:
                image = file.convert("RGBA")
            flat = Image.new("RGB", image.size, "white")
            flat.paste(image, mask=image.getchannel("A"))
            target = folder / "sets" / name / f"{path.parent.name}-{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            flat.save(target)
    return folder / "sets"


def _compute(root: Path, encoder: str, cache: Path) -> None:
    from lit_vision.data.folder import scan
    from lit_vision.data.splits import sample_fraction, sample_stratified
    from lit_vision.io.atomic import atomic_write

    folder = scan(root)
    train = folder.splits["train"]
    rows, test_rows, test = np.arange(len(train)), np.arange(len(train)), train
    if "test" in folder.splits:
        test = folder.splits["test"]
        test_rows = np.arange(len(test))
    else:
        test_rows = sample_fraction(train.labels, HELD_OUT, 0)
        rows = np.setdiff1d(rows, test_rows)
    if len(rows) > POOL:
        rows = rows[sample_stratified(train.labels[rows], POOL, 0)]
    parts = ((train, rows), (test, test_rows))
    features = [image_features([root / part.paths[i] for i in chosen], encoder) for part, chosen in parts]
    labels = [part.labels[chosen] for part, chosen in parts]
    arrays = {
        "features": features[0],
        "labels": labels[0],
        "test": features[1],
        "test_labels": labels[1],
        "classes": np.array(folder.classes),
        "fingerprint": np.array(folder.fingerprint()),
    }

    def write(file: Path) -> None:
        with open(file, "wb") as stream:
            np.savez(stream, **arrays)

    atomic_write(cache, write)


def image_features(paths: list[Path], encoder: str) -> np.ndarray:
    """Return (N, D) float32: raw pixels at 32 x 32, 0 to 1, or features of the public network."""
    if encoder == "pixels":
        from PIL import Image

        side = (PIXELS, PIXELS)
        pixels = [np.asarray(Image.open(path).convert("RGB").resize(side, Image.Resampling.BOX)) for path in paths]
        return np.stack(pixels).reshape(len(paths), -1).astype(np.float32) / 255
    from lit_vision import load

    os.environ["HF_HUB_OFFLINE"] = "1"  # the package's bytes, whether or not there is a network
    return np.asarray(load(LITE0, "cpu").embed([str(path) for path in paths], workers=1).features)
