"""`lit-vision data NAME`: make a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_vision.cli.parser import CommandParser
from lit_vision.data.make.fashion import fashion
from lit_vision.data.make.scenes import SIZES, scenes


def main(argv: Sequence[str]) -> int:
    """`lit-vision data fashion --out DIR [--turned] [--full] [--seed N]`, or `lit-vision data scenes ...` (scenes.py)."""
    if argv and argv[0] == "scenes":
        return _main_scenes(argv[1:])
    parser = CommandParser(prog="lit-vision data", description="Make a data set as an ImageFolder.")
    parser.add_argument(
        "name",
        choices=["fashion", "scenes"],
        help="fashion: 28 x 28 gray garments, 10 classes (Fashion-MNIST, MIT); scenes: several of them on textures, with boxes and masks "
        "(its options: lit-vision data scenes --help)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to make: DIR/train/<class>/*.png, DIR/val, DIR/test"
    )
    parser.add_argument("--turned", action="store_true", help="turn, scale and shift every garment once, on 32 x 32")
    parser.add_argument(
        "--full", action="store_true", help="the official 60,000 / 10,000 instead of the embedded 8,000 / 1,000 / 1,000"
    )
    parser.add_argument("--seed", type=int, default=0, help="of split and turning (default 0)")
    args = parser.parse_args(list(argv))
    if not 0 <= args.seed < 2**64:
        parser.error("--seed: give 0 or more, below 2**64")
    counts = fashion(args.out, args.turned, args.full, args.seed)
    print(f"{', '.join(f'{name} {count}' for name, count in counts.items())} images in {args.out}")
    return 0


def _main_scenes(argv: Sequence[str]) -> int:
    """`lit-vision data scenes --out DIR [--seed N] [--train N] [--val N] [--test N]`."""
    parser = CommandParser(
        prog="lit-vision data scenes",
        description="Garments on textured backgrounds, 128 x 128, with boxes and masks.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to make: DIR/<split>/images, annotations.json, ..."
    )
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default 0)")
    for split, count in SIZES.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"how many scenes (default {count}; 0: none)")
    args = parser.parse_args(list(argv))
    sizes = {split: getattr(args, split) for split in SIZES}
    if not 0 <= args.seed < 2**64 or min(sizes.values()) < 0 or not any(sizes.values()):
        parser.error("--seed, --train, --val, --test: give 0 or more (a seed below 2**64), and at least one scene")
    made = scenes(args.out, sizes, args.seed)
    print(f"{', '.join(f'{name} {count}' for name, count in made.items())} scenes in {args.out}")
    return 0
