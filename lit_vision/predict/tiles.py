"""Apply a network to an image of any size by overlapping tiles, with bounded memory and without seams.

H W rows and columns of the input image, C channels, S the factor by which the result is larger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RAMP_SHARE = 4  # where a network sees everything, tiles blend over a fourth of their side


@dataclass(frozen=True)
class TiledNetwork:
    """A network that restores tiles.

    Attributes:
        run: (h, w, C) float32 in [0, 1] and (h, w) bool, True where a pixel is missing, to (S h, S w, C) float32.
        tile: side of the tiles, pixels of the input; at least four times `reach`, a multiple of `stride`.
        reach: how far an output pixel sees, in pixels of the input; None if it sees the whole tile.
        stride: the network does the same at places that are multiples of it.
        scale: S.
        fixed: the network takes tiles of exactly this side.
        needs_holes: only images with missing pixels are changed.
    """

    run: Callable[[np.ndarray, np.ndarray], np.ndarray]
    tile: int
    reach: int | None
    stride: int = 1
    scale: int = 1
    fixed: bool = False
    needs_holes: bool = False


def run_tiled(network: TiledNetwork, pixels: np.ndarray, holes: np.ndarray | None = None) -> np.ndarray:
    """Return a restored image.

    With a network of limited reach each tile gives only what no border of its own touches, so the result is that of the
    whole image up to rounding. Tiles of a network that sees everything are blended linearly. A band of one row of tiles
    is held in floats, besides the image and the result.

    Args:
        network: of the tiles.
        pixels: (H, W, C) uint8 or uint16.
        holes: (H, W) bool, True where a pixel is missing; None: nowhere.

    Returns:
        (S H, S W, C) in the type of the pixels.
    """
    height, width, channels = pixels.shape
    scale, top_value = network.scale, np.iinfo(pixels.dtype).max
    rows, columns = (_places(network, side) for side in (height, width))
    down, across = (_weights(network, places, side) for places, side in ((rows, height), (columns, width)))
    out = np.empty((height * scale, width * scale, channels), pixels.dtype)
    band = np.zeros((0, width * scale, channels), np.float32)
    first = 0  # row of the result where the band begins
    for number, top in enumerate(rows):
        end = min(top + network.tile, height)
        grown = np.zeros((end * scale - first, width * scale, channels), np.float32)
        grown[: len(band)] = band
        for place, left in enumerate(columns):
            right = min(left + network.tile, width)
            part = pixels[top:end, left:right]
            missing = np.zeros(part.shape[:2], bool) if holes is None else holes[top:end, left:right]
            tile = part.astype(np.float32) / top_value
            if missing.any() or not network.needs_holes:
                tile = _run_one(network, tile, missing)
            weight = down[number][:, None, None] * across[place][None, :, None]
            at = slice(top * scale - first, end * scale - first), slice(left * scale, right * scale)
            grown[at] += tile * weight
        done = (rows[number + 1] * scale if number + 1 < len(rows) else height * scale) - first
        finished = grown[:done] * top_value
        out[first : first + done] = finished.round(out=finished).clip(0, top_value, out=finished)
        band, first = grown[done:], first + done
    return out


def _run_one(network: TiledNetwork, tile: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Run a tile; to one of a fixed size the pixels at its edge are repeated, and cut off again."""
    height, width = missing.shape
    below, right = (network.tile - height, network.tile - width) if network.fixed else (0, 0)
    if below or right:
        tile = np.pad(tile, ((0, below), (0, right), (0, 0)), mode="edge")
        missing = np.pad(missing, ((0, below), (0, right)), mode="edge")
    return network.run(tile, missing)[: height * network.scale, : width * network.scale]


def _places(network: TiledNetwork, side: int) -> list[int]:
    """Return where tiles begin along an axis: the last one ends at the image's end or just behind it."""
    if side <= network.tile:
        return [0]
    lost = 2 * network.reach if network.reach is not None else network.tile // RAMP_SHARE
    step = max(network.stride, (network.tile - lost) // network.stride * network.stride)
    last = -((network.tile - side) // network.stride) * network.stride
    return [*range(0, last, step), last]


def _weights(network: TiledNetwork, places: list[int], side: int) -> list[np.ndarray]:
    """Return each tile's weights along an axis, at the result's size; they add up to 1 everywhere."""
    found = []
    for place in places:
        end = min(place + network.tile, side)
        distance = np.arange(end - place) + 0.5
        before = np.full(len(distance), np.inf) if place == 0 else distance
        behind = np.full(len(distance), np.inf) if end == side else distance[::-1]
        inside = np.minimum(before, behind)
        if network.reach is not None:
            weight = (inside > network.reach).astype(np.float64)
        else:
            weight = np.minimum(1.0, inside / (network.tile / RAMP_SHARE))
        found.append(weight)
    total = np.zeros(side)
    for place, weight in zip(places, found):
        total[place : place + len(weight)] += weight
    return [
        np.repeat(weight / total[place : place + len(weight)], network.scale).astype(np.float32)
        for place, weight in zip(places, found)
    ]
