"""Layout of the images in the tar files: names, keys, and the order in which they are stored.

The order is fixed and spread out: neighbors in a tar file come from places far apart in the sorted list of images, so
that every part of a file has about the shares of classes of the whole. `stored_order` computes it from the number of
images alone; the windowed order of training (data/order.py) goes through it, which makes that order a function of the
number of images too, the same for a folder and for its shards.
"""

from __future__ import annotations

import math

import numpy as np

GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it spread evenly over [0, 1), for any number of them


def stored_step(n: int) -> int:
    """Return the step of the stored order: the smallest number from n x GOLDEN on that shares no divisor with n."""
    step = max(1, math.ceil(n * GOLDEN))
    while math.gcd(step, n) != 1:
        step += 1
    return step


def stored_order(first: int, stop: int, n: int) -> np.ndarray:
    """Return which of n sorted images are stored at some places: image (place x step) mod n at each place.

    Args:
        first: place in the tar files, one after the other.
        stop: place after the last.
        n: number of images, below 2**31, so that no product overflows.

    Returns:
        (stop - first,) int64. All places together have each image once, since step and n share no divisor.

    Raises:
        ValueError: n is out of its range.
    """
    if not 0 <= n < 1 << 31:
        raise ValueError(f"n={n}")
    return np.arange(first, stop, dtype=np.int64) * stored_step(n) % max(n, 1)


def shard_name(split: str, number: int, count: int) -> str:
    """Return the name of a tar file: train-00003.tar; in a shell and for webdataset, train-{00000..00063}.tar."""
    plain = "".join(character if character.isascii() and character.isalnum() else "_" for character in split)
    return f"{plain or 'unlabeled'}-{number:0{max(5, len(str(count - 1)))}}.tar"


def key_of(row: int, rows: int) -> str:
    """Return the key of an image in its tar file: its row in the index, zero-padded."""
    return f"{row:0{max(8, len(str(rows - 1)))}}"
