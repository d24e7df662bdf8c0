"""Make images with a generator: files of a folder that depend on the model, the seed and their number alone.

The network always sees a micro-batch of the same size, the last one filled up with images that are thrown away, because
a network gives other last bits in batches of another size. So neither the number of images nor a kill changes a bit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_vision import methods
from lit_vision.errors import UsageError, UserError
from lit_vision.io.atomic import atomic_write, write_json
from lit_vision.io.hashing import state_dict_sha256
from lit_vision.methods.generation.flow_matching_network import check_sampling
from lit_vision.methods.generation.sampling import AnyGenerator, class_of_index, sample_images, to_levels
from lit_vision.predict.models import resolve_model_file, torch_device
from lit_vision.predict.writers import check_output_path, csv_line
from lit_vision.results.overlays import tile_images
from lit_vision.weights.checkpoint_layouts import load_own_weights, read_file_and_content
from lit_vision.weights.compatibility import method_of_hyper_parameters

GENERATORS = ("FlowMatching", "GAN")
RECORD, LABELS = "generate.json", "labels.csv"  # files beside the images
LARGEST_SEED, LARGEST_NUM = 2**63 - 1, 10_000_000
MICRO_BATCH = 64
GRID_IMAGES, GRID_COLUMNS = 100, 10


def load_generator(source: str | os.PathLike[str], device: str = "auto") -> tuple[AnyGenerator, list[str], Path]:
    """Load a generator from a run's folder or a checkpoint.

    Args:
        source: a run's folder (best.ckpt, else last.ckpt) or a .ckpt or .safetensors file of FlowMatching or GAN.
        device: "cpu", "cuda" or "auto".

    Returns:
        The network in evaluation mode, the names of its classes (numbers where the file has none), and the file.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """
    path = resolve_model_file(source)
    state, header, content = read_file_and_content(path)
    if isinstance(content, dict):
        hyper, card = content.get("hyper_parameters"), content.get("card")
    else:
        hyper, card = (_json(header.get(name)) for name in ("hyper_parameters", "card"))
    name = method_of_hyper_parameters(hyper) if isinstance(hyper, Mapping) else None
    if name not in GENERATORS:
        raise UserError(f"{path}: is no generator{f' but {name}' if name else ''}; give a run of FlowMatching or GAN")
    network: Any = methods.network_class(name)(hyper)
    load_own_weights(network, state, path)
    names = list((card if isinstance(card, Mapping) else {}).get("class_names") or [])
    names = [str(n) for n in names] or [str(i) for i in range(network.num_classes)]
    return network.to(torch_device(device)).eval(), names, path


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:
        return None


def class_numbers(names: Sequence[str], wanted: Sequence[str], where: str) -> list[int]:
    """Return the numbers of named classes.

    Args:
        names: of the model's classes, in order.
        wanted: names, any number of times each.
        where: the list is from, for messages.

    Raises:
        UserError: a name that is no class of the model, no name at all, or a model without classes.
    """
    if not names:
        raise UserError(f"{where}: the model was trained without classes (model.num_classes: 0); leave it out")
    if not wanted:
        raise UserError(f"{where}: names no class; write one a line, of {', '.join(names[:5])}")
    known = {name: number for number, name in enumerate(names)}
    for name in wanted:
        if name not in known:
            raise UserError(f"{where}: {name!r} is no class of the model; it has {', '.join(names[:20])}")
    return [known[name] for name in wanted]


def generate_images(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    num: int = 64,
    *,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    grid: str | os.PathLike[str] | None = None,
    micro_batch: int = MICRO_BATCH,
    device: str = "auto",
    classes_from: str = "classes",
    **options: Any,
) -> int:
    """Write OUT/000000.png to OUT/<num - 1>.png; a call that was stopped, or had a smaller `num`, is continued.

    Image i is made from the noise of (seed, i) and the class i modulo the number of `classes`. With classes,
    OUT/labels.csv lists path and label, as `data.label_file` reads it. OUT/generate.json says what made the images.

    Args:
        source: as `load_generator`.
        out: the folder; it must be missing, empty, or of the same model, seed, classes and options.
        num: images.
        seed: of the noise, from 0.
        classes: names of the model's classes, for the images in turn; None is all of them in turn.
        grid: PNG file of the first 100 images, ten a row.
        micro_batch: images that the network sees at once; another one changes a pixel by at most one grey level.
        device: "cpu", "cuda" or "auto".
        classes_from: where `classes` are from, for messages.
        options: of the model's sampling: sampler, steps and guidance of flow matching.

    Returns:
        The number of images that this call made; the others were there.

    Raises:
        UserError: in one line, the file or argument and what to do.
    """
    for name, value, low, high in (
        ("num", num, 1, LARGEST_NUM),
        ("seed", seed, 0, LARGEST_SEED),
        ("batch_size", micro_batch, 1, 65536),
    ):
        if not low <= value <= high:
            raise UsageError(f"--{name} {value}: give a whole number from {low} to {high}")
    network, names, path = load_generator(source, device)
    used = _sampling_options(network, options, path)
    numbers = None if classes is None else class_numbers(names, classes, classes_from)
    folder = Path(out)
    if grid is not None:
        _check_grid(Path(grid), folder)
    identity = {
        "method": network.method_name,
        "weights": state_dict_sha256(network.state_dict()),
        "seed": seed,
        "classes": None if numbers is None else [names[i] for i in numbers],
        **used,
    }
    _begin(folder, identity)
    made = 0
    for first in range(0, num, micro_batch):
        wanted = [i for i in range(first, min(first + micro_batch, num)) if not _is_made(_image(folder, i))]
        if not wanted:
            continue
        pixels = make_micro_batch(network, path, first, numbers, seed, micro_batch, **used)
        for i in wanted:
            _write_png(_image(folder, i), pixels[i - first], gray=network.shape[0] == 1)
        made += len(wanted)
    if network.num_classes:
        order = range(network.num_classes) if numbers is None else numbers
        lines = [csv_line(["path", "label"])]
        lines += [csv_line([_image(folder, i).name, names[order[i % len(order)]]]) for i in range(num)]
        atomic_write(folder / LABELS, lambda file: file.write_bytes(b"".join(lines)))
    if grid is not None:
        _write_grid(Path(grid), folder, min(num, GRID_IMAGES))
    return made


def make_micro_batch(
    network: AnyGenerator,
    path: Path,
    first: int,
    numbers: Sequence[int] | None,
    seed: int,
    micro_batch: int = MICRO_BATCH,
    **options: Any,
) -> np.ndarray:
    """Return the images from number `first`, as many as a micro-batch has.

    Args:
        network, path: from `load_generator`.
        first: a multiple of `micro_batch`, for the bits of `generate_images`.
        numbers: of the classes, for the images in turn; None is all of them in turn.
        seed: of the noise.
        micro_batch: images that the network sees at once.
        options: some of the network's `sampling_options`.

    Returns:
        (micro_batch, H, W, 3) uint8; gray images have three equal channels.

    Raises:
        UserError: an option that cannot work, or pixels that are not finite.
    """
    index = torch.arange(first, first + micro_batch)
    labels = class_of_index(network, index) if numbers is None else torch.tensor(numbers)[index % len(numbers)]
    images = sample_images(network, index, labels, seed, **options)
    if not bool(images.isfinite().all()):
        raise UserError(f"{path}: its pixels are not finite; check its training, or give a smaller --guidance")
    return to_levels(images)


def grid_of_images(images: np.ndarray) -> np.ndarray:
    """Return one picture, (H', W', 3) uint8, of images (N, H, W, 3), ten a row: what --grid writes."""
    return tile_images(images, min(GRID_COLUMNS, len(images)))


def _sampling_options(network: AnyGenerator, options: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the network's options of sampling with those given, None for its own, before any file is written."""
    used = dict(network.sampling_options)
    for name, value in options.items():
        if value is not None and name not in used:
            raise UsageError(f"--{name}: is for flow matching, and {path} is a {network.method_name}; leave it out")
        if value is not None:
            used[name] = value
    if used:
        try:
            check_sampling(**used)
        except UserError as error:
            raise UsageError(f"--{error}") from None
    return used


def _check_grid(grid: Path, folder: Path) -> None:
    """Refuse a grid that would replace an image, or a file that no call for this folder has written."""
    if grid.resolve().parent == folder.resolve() and grid.stem.isdecimal():
        raise UsageError(f"--grid {grid}: has the name of an image of --out; give another name")
    if grid.exists() and not grid.is_dir() and not (folder / RECORD).exists():
        raise UserError(f"--grid {grid}: exists already; choose another name")
    check_output_path(grid, overwrite=True, flag="--grid")


def _image(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _is_made(path: Path) -> bool:
    """True if the file is there; one without a byte, as after a power failure, is made again."""
    return path.exists() and path.stat().st_size > 0


def _begin(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make the folder and its record, or check that what is there is of the same call; remove what a kill left.

    Raises:
        UserError: the folder is a file, holds something else, or cannot be written.
    """
    identity = json.loads(json.dumps(identity))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made ({error.strerror}); name another folder") from error
    for name in entries:
        if name.startswith(".") and name.endswith(".tmp"):
            shutil.rmtree(folder / name, ignore_errors=True)
    others = [name for name in entries if not (name.startswith(".") and name.endswith(".tmp"))]
    if RECORD in others:
        try:
            before = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / RECORD}: is damaged; remove it and the images beside it") from error
        if before != identity:
            changed = [key for key in identity if not isinstance(before, dict) or before.get(key) != identity[key]]
            raise UserError(
                f"--out {folder}: holds images of another call ({', '.join(changed) or 'other settings'} differ); "
                "name another folder"
            )
    elif others:
        raise UserError(f"--out {folder}: holds {others[0]}; name a new or empty folder")
    else:
        write_json(folder / RECORD, identity)


def _write_png(path: Path, pixels: np.ndarray, gray: bool) -> None:
    import cv2

    data = cv2.imencode(".png", pixels[:, :, 0] if gray else pixels[:, :, ::-1])[1].tobytes()
    atomic_write(path, lambda file: file.write_bytes(data), fsync=False)


def _write_grid(path: Path, folder: Path, count: int) -> None:
    """Write the first images of a folder as one PNG."""
    import cv2

    images = []
    for file in (_image(folder, i) for i in range(count)):
        pixels = cv2.imread(str(file))
        if pixels is None:  # a power failure, or somebody's editor
            raise UserError(f"{file}: is damaged; remove it and run the same command again")
        images.append(pixels[:, :, ::-1])
    _write_png(path, grid_of_images(np.stack(images)), gray=False)
