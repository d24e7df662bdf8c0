"""Restore images of any size into a folder; a stopped run continues where it was."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_vision.errors import UsageError, UserError
from lit_vision.predict.image_writer import ImageWriter
from lit_vision.predict.inference import exit_on_sigterm, progress_bar
from lit_vision.predict.writers import check_not_existing, check_output_path, csv_line

if TYPE_CHECKING:
    from lit_vision.predict.full_depth import FullImage
    from lit_vision.predict.inputs import Inputs
    from lit_vision.predict.tiles import TiledNetwork

RECORD = "restored.csv"  # in the output folder: which file was made from which image
COMPARE = "compare"  # folder in it of the images before and after
COMPARE_SIDE = 1024  # most pixels a side of each half of a comparison


@dataclass(frozen=True)
class Restored:
    """Result of `restore_images`.

    Attributes:
        folder: with the restored images.
        done, skipped: numbers of images; those skipped are listed in restored.csv.skipped.csv.
    """

    folder: Path
    done: int
    skipped: int


def restore_images(
    model: str | os.PathLike[str],
    images: str | Sequence[str],
    out: str | os.PathLike[str],
    *,
    mask: str | os.PathLike[str] | None = None,
    compare: bool = False,
    tile: int | None = None,
    device: str = "auto",
    trust_pt2: bool = False,
    overwrite: bool = False,
) -> Restored:
    """Run `lit-vision restore`: write OUT/NAME.png for each image NAME.*, restored at its own size.

    Args:
        model: a run of Restorer, its checkpoint or export; with `mask` also a run of MAE with norm_pix_loss false.
        images: as for `lit-vision predict`: folders, files, patterns, lists.
        out: the folder; created if it is not there.
        mask: an image, white where pixels are missing, for all images; or a folder with OUT's file names.
        compare: also write OUT/compare/NAME.png: the image and the result side by side, at most 1,024 pixels each.
        tile: side of the tiles, pixels; None: 256, or what the model takes.
        device: "auto", "cpu" or "cuda".
        trust_pt2: load a .pt2, which can run code.
        overwrite: replace a finished or another unfinished result.

    Raises:
        UserError: one line that names the file or flag and what to do. UsageError (a UserError): a value is wrong.
    """
    from lit_vision.predict.inputs import find_images

    if tile is not None and not 16 <= tile <= 4096:
        raise UsageError(f"--tile {tile}: give 16 to 4096 pixels")
    folder = Path(out).expanduser()
    inputs = below_one_folder(
        find_images([images] if isinstance(images, str) else list(images), {"--out": str(folder)})
    )
    for line in inputs.lines():
        print(line, flush=True)
    writer = ImageWriter("--out", folder, inputs)
    comparisons = ImageWriter("--out", folder / COMPARE, inputs) if compare else None
    _refuse_existing(writer, comparisons, inputs, overwrite)
    network, identity = open_network(model, mask is not None, tile, device, trust_pt2)
    masks = Masks(mask, writer) if mask is not None else None
    return _restore_all(network, identity, inputs, writer, masks, comparisons, overwrite)


def _refuse_existing(writer: ImageWriter, comparisons: ImageWriter | None, inputs: Inputs, overwrite: bool) -> None:
    """Refuse files of two kinds under one name, and files that no stopped run of this folder has written.

    Raises:
        UserError: an image would be written where a comparison goes, or replace what is there.
    """
    if comparisons is not None:
        pictures = {writer.path(name): name for name in inputs.names}
        for name in inputs.names:
            if (other := pictures.get(comparisons.path(name))) is not None:
                raise UserError(
                    f"--compare: {comparisons.path(name)} would be both {other}, restored, and the comparison of "
                    f"{name}; leave it out, or restore them into two folders"
                )
    if overwrite or (writer.folder / (RECORD + ".part.json")).exists():
        return
    check_not_existing(writer.folder / RECORD, False)
    for name in inputs.names:
        for kind in (writer, comparisons):
            if kind is not None:
                check_not_existing(kind.path(name), False)


def open_network(
    model: str | os.PathLike[str], with_mask: bool, tile: int | None, device: str, trust_pt2: bool = False
) -> tuple[TiledNetwork, dict[str, Any]]:
    """Return the network of tiles of a model, and what names it in the record of a run.

    Raises:
        UserError: the model does not restore images, or needs a mask and gets none.
    """
    from lit_vision.io.hashing import state_dict_sha256
    from lit_vision.predict.mae_fill import open_mae, tiled_mae
    from lit_vision.predict.models import load_model, resolve_model_file, torch_device
    from lit_vision.predict.restoration import tiled_restorer

    path = resolve_model_file(model)
    mae = open_mae(path) if with_mask else None
    if mae is not None:
        filling = tiled_mae(mae, torch_device(device))
        if tile not in (None, filling.tile):
            raise UserError(f"--tile {tile}: {path} takes tiles of {filling.tile} pixels; leave it out")
        return filling, {"model": state_dict_sha256(mae.state_dict()), "runtime": "torch"}
    loaded = load_model(path, device, trust_pt2=trust_pt2)
    network = tiled_restorer(loaded, tile)
    has_holes = bool(loaded.metadata.options["holes"])
    if with_mask and not has_holes:
        raise UserError(f"--mask: {path} was not trained with holes; leave it out, or give a model that was")
    if has_holes and not with_mask:
        raise UserError(f"--mask: {path} fills missing pixels; give an image that is white where they are")
    return network, {"model": loaded.metadata.weights, "runtime": loaded.runtime, "tile": network.tile}


def below_one_folder(inputs: Inputs) -> Inputs:
    """Return files that were named one by one, each once, as those of the folder that holds them all.

    So OUT has no more folders than they differ by.
    """
    from lit_vision.predict.inputs import Inputs

    if inputs.folder or inputs.source is not None:
        return inputs
    paths = list(dict.fromkeys(os.path.abspath(path) for path in inputs.names))
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return Inputs([os.path.relpath(path, folder) for path in paths], folder, left_out=inputs.left_out)


class Masks:
    """Masks of missing pixels: one for all images, or a folder with one for each.

    Args:
        source: an image file, or a folder with the output's file names (sub/a.png for the image sub/a.jpg).
        names: gives the file of an image.

    Raises:
        UserError: there is no such file or folder, or the file is no image.
    """

    def __init__(self, source: str | os.PathLike[str], names: Any) -> None:
        self.source, self.names = Path(source).expanduser(), names
        self.one: np.ndarray | None = None
        if not self.source.exists():
            raise UserError(f"--mask {source}: no such file or folder; check the path")
        if not self.source.is_dir():
            self.one = _read_mask(self.source)

    def of(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """Return the mask of an image, (H, W) bool, True where a pixel is missing.

        Raises:
            UserError: it is not there, cannot be read, or has another size than the image.
        """
        file = self.source
        mask = self.one
        if mask is None:
            file = self.source / self.names.path(name).relative_to(self.names.folder)
            mask = _read_mask(file)
        if mask.shape != size:
            raise UserError(
                f"--mask {file}: has {mask.shape[1]} x {mask.shape[0]} pixels, {name} {size[1]} x {size[0]}; make it "
                "the same size"
            )
        return mask

    def digest(self) -> str:
        """Return what names the masks in the record of a run."""
        import hashlib

        if self.one is not None:
            return hashlib.sha256(self.one.tobytes()).hexdigest()
        return os.path.realpath(self.source)


def _read_mask(path: Path) -> np.ndarray:
    from lit_vision.data.views.decode import ImageDecodeError, decode

    try:
        with open(path, "rb") as file:
            pixels = decode(file.read())
    except ImageDecodeError as error:
        raise UserError(f"--mask {path}: {error}") from None
    except OSError as error:
        raise UserError(
            f"--mask {path}: {error.strerror}; give an image that is white where pixels are missing"
        ) from None
    return np.asarray(pixels.max(2) > 127)


def _restore_all(
    network: TiledNetwork,
    identity: dict[str, Any],
    inputs: Inputs,
    writer: Any,
    masks: Masks | None,
    comparisons: ImageWriter | None,
    overwrite: bool,
) -> Restored:
    """Restore each image, and record it before the next one begins."""
    from lit_vision.predict.full_depth import read_full
    from lit_vision.predict.resumable_writer import ResumableWriter

    record = check_output_path(writer.folder / RECORD, overwrite)
    settings = {
        **identity,
        "images": inputs.digest(),
        "compare": comparisons is not None,
        "mask": masks.digest() if masks else "",
    }
    lines = ResumableWriter(record, ["rows", "skipped"], settings, overwrite)
    if lines.resumed:
        print(f"continuing after {lines.done} of {len(inputs)} images", flush=True)
    else:
        lines.notes["skipped"] = 0
        header = csv_line(["path", "restored", "height", "width"])
        lines.append({"rows": header, "skipped": csv_line(["path", "reason"])}, 0)
    try:
        with exit_on_sigterm(), progress_bar(len(inputs), lines.done) as advance:
            for number in range(lines.done, len(inputs)):
                name = inputs.names[number]
                try:
                    image = read_full(inputs.read(number))
                    holes = masks.of(name, image.pixels.shape[:2]) if masks else None
                except (UserError, OSError) as error:
                    reason = error.strerror if isinstance(error, OSError) else str(error)
                    lines.notes["skipped"] += 1
                    lines.append({"skipped": csv_line([name, " ".join(str(reason).split())])}, number + 1)
                else:
                    comparison = None if comparisons is None else comparisons.path(name)
                    _restore_one(network, image, holes, writer.path(name), comparison)
                    file = writer.path(name).relative_to(writer.folder)
                    size = [side * network.scale for side in image.pixels.shape[:2]]
                    lines.append({"rows": csv_line([name, str(file), *size])}, number + 1)
                advance(1)
    except BaseException as error:
        lines.close()
        if isinstance(error, KeyboardInterrupt | SystemExit):
            print(
                f"stopped after {lines.done} of {len(inputs)} images; run the same command again to continue",
                file=sys.stderr,
            )
        raise
    skipped_file, skipped = record.with_name(RECORD + ".skipped.csv"), int(lines.notes["skipped"])
    if skipped == len(inputs):
        lines.finish({"skipped": skipped_file}, main=False)
        raise UserError(
            f"{skipped_file}: lists all {skipped} images, none could be restored; the first, {inputs.names[0]}: "
            f"{_first_reason(skipped_file)}"
        )
    skipped_file.unlink(missing_ok=True)
    lines.finish({"skipped": skipped_file} if skipped else {})
    return Restored(writer.folder, len(inputs) - skipped, skipped)


def _first_reason(skipped_file: Path) -> str:
    with open(skipped_file, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return next(csv.DictReader(file))["reason"]


def _restore_one(
    network: TiledNetwork, image: FullImage, holes: np.ndarray | None, path: Path, comparison: Path | None
) -> None:
    """Write the restored image, and its comparison with the given one; None for no comparison."""
    from lit_vision.predict.full_depth import FullImage, enlarged, write_full
    from lit_vision.predict.tiles import run_tiled

    pixels = run_tiled(network, image.pixels, holes)
    alpha = None if image.alpha is None else enlarged(image.alpha, network.scale)
    try:
        write_full(path, FullImage(pixels, alpha, image.profile, image.exif))
        if comparison is not None:
            write_full(comparison, FullImage(side_by_side(image.pixels, pixels)))
    except OSError as error:
        raise UserError(
            f"--out {path}: cannot be written ({error.strerror}); make room and run the same command again"
        ) from error


def side_by_side(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return an image and its restored version as one picture of 8 bits, at most 1,024 pixels a side each.

    Args:
        before: (H, W, C) uint8 or uint16.
        after: the same type, the same size or an integer multiple of it.

    Returns:
        (h, 2 w + 8, 3) uint8, white between them.
    """
    import cv2

    height, width = after.shape[:2]
    shrink = min(1.0, COMPARE_SIDE / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    halves = []
    for picture in (before, after):
        picture = picture if picture.dtype == np.uint8 else (picture >> 8).astype(np.uint8)
        filter_ = cv2.INTER_AREA if picture.shape[1] > size[0] else cv2.INTER_NEAREST
        resized = cv2.resize(picture, size, interpolation=filter_)
        halves.append(np.broadcast_to(resized.reshape(size[1], size[0], -1), (size[1], size[0], 3)))
    return np.hstack([halves[0], np.full((size[1], 8, 3), 255, np.uint8), halves[1]])
