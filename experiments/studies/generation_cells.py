"""Parts of the generation table: the two halves of the garments, multiply-adds, judges, and one measured cell."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

RUNS, DATA = Path("runs") / "table-generation", Path("data") / "garments-halves"
CLASSIFIER = "experiments/generation/classifier_garments_5ep.yaml"
RECIPES = {
    "flow matching": "experiments/generation/flow_garments_10ep.yaml",
    "GAN": "experiments/generation/gan_garments_10ep.yaml",
}
SAMPLING = {"flow matching": {"sampler": "heun", "steps": 5}, "GAN": {}}
HALF = 5000  # images a side
FEATURE_WIDTH = 64


# ---- data


def make_halves() -> None:
    """Write the 10,000 embedded garments as two halves, train and test, with the same share of each class."""
    from lit_vision.data.make.fashion import DATASET_NOTE, embedded_fashion, stratified_splits, write_folder

    if (DATA / DATASET_NOTE).exists():
        return
    images, labels = embedded_fashion()
    splits = stratified_splits(labels, {"train": HALF, "test": HALF}, 0)
    write_folder(DATA, {name: (images[at], labels[at], at) for name, at in splits.items()}, None, {"name": "halves"})


def read_halves() -> dict[str, tuple[Tensor, Tensor]]:
    """Return {train, test}: images (5000, 28, 28) uint8 and labels (5000,), as `make_halves` writes them."""
    from lit_vision.data.make.fashion import embedded_fashion, stratified_splits

    images, labels = embedded_fashion()
    splits = stratified_splits(labels, {"train": HALF, "test": HALF}, 0)
    return {name: (torch.from_numpy(images[at]), torch.from_numpy(labels[at])) for name, at in splits.items()}


def read_made(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the made images (N, 28, 28) uint8 of a folder of `lit-vision generate` and their classes (N,)."""
    import csv

    import cv2

    from lit_vision.data.make.fashion import GARMENT_CLASSES

    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    images = np.stack([cv2.imread(str(folder / row["path"]), cv2.IMREAD_GRAYSCALE) for row in rows])
    return torch.from_numpy(images), torch.tensor([GARMENT_CLASSES.index(row["label"]) for row in rows])


# ---- multiply-adds


class _Counter(TorchDispatchMode):
    """Adds up the multiply-adds of matrix products and convolutions, also of second derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out) // 2
        return out


def multiply_adds(work: Callable[[], Any]) -> int:
    """Return the multiply-adds of what a function computes."""
    with _Counter() as counter:
        work()
    return counter.total


def multiply_adds_of_training(name: str) -> float:
    """Return the multiply-adds of a recipe's whole training, from those of a step on a few images."""
    from lit_vision import methods

    recipe = yaml.safe_load(Path(RECIPES[name]).read_text())
    settings, images = recipe["model"]["init_args"], 4
    network: Any = methods.network_class("FlowMatching" if name == "flow matching" else "GAN")(settings)
    pixels, labels = torch.zeros(images, 1, 28, 28), torch.arange(images)
    keys = torch.arange(4 * images).view(images, 4)
    if name == "flow matching":
        step = multiply_adds(lambda: network.loss(pixels, labels, keys).backward())
    else:
        every = settings.get("r1_every", 16)

        def of_discriminator(weight: float) -> int:
            return multiply_adds(lambda: sum(network.discriminator_loss(pixels, labels, keys, weight)).backward())

        plain, with_r1 = of_discriminator(0.0), of_discriminator(1.0)
        for p in network.discriminator.parameters():  # as in training: the generator's step leaves it alone
            p.requires_grad_(False)
        of_generator = multiply_adds(lambda: network.generator_loss(labels, keys).backward())
        step = plain + (with_r1 - plain) / every + of_generator
    return step / images * HALF * recipe["trainer"]["max_epochs"]


# ---- judges


class Features(nn.Module):
    """Features (B, 64) of gray uint8 images (B, 28, 28) by a stored classifier."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        from lit_vision.predict.models import load_method

        self.method, self.metadata = load_method(file)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features before the classifier's last layer."""
        features: Tensor = self.method.backbone(self.normalized(images))
        return features

    def normalized(self, images: Tensor) -> Tensor:
        """Return (B, 1, 28, 28) float."""
        method: Any = self.method
        normalized: Tensor = (images[:, None].float() / 255 - method.mean[:, None, None]) / method.std[:, None, None]
        return normalized

    @torch.inference_mode()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images whose class, a number of GARMENT_CLASSES, the classifier names right."""
        from lit_vision.data.make.fashion import GARMENT_CLASSES

        found = torch.cat([self.method(self.normalized(part)).argmax(1) for part in images.split(500)])
        numbers = torch.tensor([GARMENT_CLASSES.index(name) for name in self.metadata.class_names])  # theirs are sorted
        return float((numbers[found] == labels).double().mean())


def run(arguments: list[str]) -> None:
    """Run a command of lit-vision; exit with its code if it fails."""
    from lit_vision.cli.main import main

    if code := main(arguments):
        sys.exit(code)


def train_classifier(folder: Path, root: Path, seed: int) -> Path:
    """Train the classifier on the train split of a folder; return its last checkpoint."""
    last = folder / "checkpoints" / "last.ckpt"
    if not (folder / "results.json").exists():
        fit = ["fit", "--config", CLASSIFIER, "--seed_everything", str(seed), "--data.root", str(root)]
        run([*fit, "--run_dir", str(folder), "--resume", "auto"])
    return last


def accuracy_after_training_on(images: Tensor, labels: Tensor, folder: Path, seed: int) -> float:
    """Return the accuracy on the real test half of the classifier trained on these images."""
    from lit_vision.data.make.fashion import DATASET_NOTE, write_folder

    root = folder / "images"
    if not (root / DATASET_NOTE).exists():
        splits = {"train": (images.numpy(), labels.numpy(), np.arange(len(images)))}
        write_folder(root, splits, None, {"name": "made"})
    return Features(train_classifier(folder / "run", root, seed)).accuracy(*read_halves()["test"])


def judge(made: Tensor | None, features: nn.Module) -> dict[str, float]:
    """Return the distances of images to the real test half, and how near images are to the training images.

    Args:
        made: (5000, 28, 28) uint8. None is the floor: the distances of the real training half, and how near the real
            test images are to it.
        features: the judge.
    """
    from lit_vision.evaluation.generation import generation_distances, nearest_images

    train, test = (images for images, _ in read_halves().values())
    distances = generation_distances(test, train if made is None else made, features, FEATURE_WIDTH)
    nearest = nearest_images(test if made is None else made, train)[1]
    quantiles = {"nearest_train": float(nearest.median()), "nearest_train_5_percent": float(nearest.quantile(0.05))}
    return {**distances, **quantiles}


def grid_with_nearest(made: Tensor, train: Tensor, rows: int = 4, columns: int = 10, factor: int = 2) -> np.ndarray:
    """Return a picture: rows of made images by their number, each above the training image nearest to it."""
    from lit_vision.evaluation.generation import nearest_images
    from lit_vision.results.overlays import tile_images

    shown = made[: rows * columns]
    nearest = train[nearest_images(shown, train)[0]]
    order = torch.stack((shown.view(rows, columns, 28, 28), nearest.view(rows, columns, 28, 28)), dim=1).flatten(0, 2)
    pixels = order.numpy()[..., None].repeat(3, 3).repeat(factor, 1).repeat(factor, 2)
    return tile_images(pixels, columns)


def save_generator(checkpoint: Path, file: Path) -> None:
    """Write a generator's weights in half precision, with what loading takes."""
    from safetensors.torch import save_file

    content = torch.load(checkpoint, weights_only=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    header = {name: json.dumps(content[name]) for name in ("hyper_parameters", "card")}
    save_file({key: value.half().contiguous() for key, value in content["state_dict"].items()}, file, metadata=header)
