"""The data command: make a data set from the embedded garments, installed photographs or a fetched file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lit_vision.cli.parser import CommandParser
from lit_vision.data.make import clipart, emoji, stamps
from lit_vision.data.make.fashion import make_fashion
from lit_vision.data.make.medmnist import unpack_medmnist
from lit_vision.data.make.patches import make_patches
from lit_vision.data.make.scene_captions import write_scene_captions
from lit_vision.data.make.scenes import SIZES, make_scenes
from lit_vision.data.make.trees import make_trees
from lit_vision.errors import UsageError

MOST_SCENES = 1_000_000  # of a split
MOST_SIDE = 1024  # pixels
CAPTIONED = {  # name: (function, command that fetches the archives, metavar of one, line of help)
    "emoji": (emoji.make_emoji, emoji.FETCH, "FILE.tgz", "1,600 emoji with names and tags (MIT)"),
    "clipart": (clipart.make_clipart, clipart.FETCH, "FILE.deb", "drawings with titles and keywords (public domain)"),
    "stamps": (stamps.make_stamps, stamps.FETCH, "FILE.deb", "photographs on white with captions (GPL-2)"),
}


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision data fashion|patches|trees|scenes|medmnist|emoji|clipart|stamps|frames --out DIR [options]`."""
    parser = CommandParser(
        prog="lit-vision data",
        description="Make a data set in a folder: images that this project or a package holds, a downloaded file, "
        "or the frames of videos.",
        epilog="example: lit-vision data fashion --out data/fashion",
    )
    names = parser.add_subparsers(
        dest="name", metavar="NAME", required=True, help="the data set; lit-vision data NAME --help lists its options"
    )
    _add_fashion(names.add_parser("fashion", help="28 x 28 gray garments, 10 classes (Fashion-MNIST, MIT)"))
    _add_patches(names.add_parser("patches", help="96 x 96 patches of 18 photographs of scikit-image, a class each"))
    _add_trees(names.add_parser("trees", help="tree crowns and background of aerial photographs (deepforest, MIT)"))
    _add_scenes(names.add_parser("scenes", help="128 x 128 scenes of several garments, with boxes and masks"))
    _add_medmnist(names.add_parser("medmnist", help="a file of medmnist.com, unpacked to a folder per class"))
    for name, (_, fetch, metavar, text) in CAPTIONED.items():
        _add_captioned(names.add_parser(name, help=text), fetch, metavar)
    _add_frames(names.add_parser("frames", help="the frames of your videos, extracted once by their time stamps"))
    args = parser.parse_args(list(argv))
    if args.name == "frames":
        return _extract_frames(args)
    if not 0 <= getattr(args, "seed", 0) < 2**64:
        raise UsageError(f"--seed {args.seed}: give 0 or more, below 2**64")
    if args.name == "fashion":
        counts = make_fashion(args.out, args.rotated, args.full, args.seed)
    elif args.name == "patches":
        counts = make_patches(args.out)
    elif args.name == "trees":
        counts = make_trees(args.archive, args.out, args.seed)
    elif args.name in CAPTIONED:
        counts = _make_captioned(args)
    elif args.name == "scenes":
        counts = _make_scenes(args)
    else:
        counts = unpack_medmnist(args.file, args.out, args.class_names)
    what = "scenes" if args.name == "scenes" else "images"
    print(f"{', '.join(f'{split} {count}' for split, count in counts.items())} {what} in {args.out}")
    return 0


def _extract_frames(args: argparse.Namespace) -> int:
    from lit_vision.data.video.extract import BROKEN_VIDEOS, FrameOptions, extract_frames
    from lit_vision.data.video.video_files import WITHOUT_PYAV, has_pyav

    if args.workers < 0:
        raise UsageError(f"--workers {args.workers}: give 1 or more, or 0 for all cores")
    options = FrameOptions(args.fps, args.short_side, args.format)
    if not has_pyav():
        print(WITHOUT_PYAV, flush=True)
    found = extract_frames(args.videos, args.out, options, args.workers)
    broken = f", {len(found.broken)} broken (see {args.out / BROKEN_VIDEOS})" if found.broken else ""
    print(f"{found.videos} videos in {args.out}, {found.frames} frames written now{broken}")
    return 0


def _make_captioned(args: argparse.Namespace) -> dict[str, int]:
    make, fetch, *_ = CAPTIONED[args.name]
    if not args.archive:
        raise UsageError(f"--archive: give what `{fetch}` fetches; it is unpacked here and not installed")
    if not 16 <= args.side <= MOST_SIDE:
        raise UsageError(f"--side {args.side}: give 16 to {MOST_SIDE} pixels")
    return make(args.archive, args.out, args.side, args.seed)


def _make_scenes(args: argparse.Namespace) -> dict[str, int]:
    sizes = {split: getattr(args, split) for split in SIZES}
    for split, count in sizes.items():
        if not 0 <= count <= MOST_SCENES:
            raise UsageError(f"--{split} {count}: give 0 to {MOST_SCENES} scenes")
    if not any(sizes.values()):
        raise UsageError("--train, --val, --test: give at least one scene")
    counts = make_scenes(args.out, sizes, args.seed)
    if args.captions:
        write_scene_captions(args.out, counts)
    return counts


def _add_fashion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to make: DIR/train/<class>/*.png, DIR/val, ..."
    )
    parser.add_argument(
        "--rotated", action="store_true", help="rotate, scale and shift every garment once, on 32 x 32 pixels"
    )
    parser.add_argument(
        "--full", action="store_true", help="the official 60,000 / 10,000 instead of the embedded 8,000 / 1,000 / 1,000"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the splits and the rotation (default 0)")


def _add_patches(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to make: DIR/{train,test}/<photograph>/*.png"
    )


def _add_trees(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--archive",
        type=Path,
        required=True,
        metavar="FILE.whl",
        help="what `pip download --no-deps deepforest==2.1.0` fetches; do not install it",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to make: DIR/<split>/{tree,background}/*.png"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the places of the background (default 0)")


def _add_captioned(parser: argparse.ArgumentParser, fetch: str, metavar: str) -> None:
    parser.add_argument(
        "--archive", type=Path, nargs="+", metavar=metavar, help=f"what `{fetch}` fetches, in any order"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to make: DIR/<class>/**/*.png, DIR/captions.csv"
    )
    parser.add_argument("--side", type=int, default=256, metavar="PIXELS", help="of the square pictures (default 256)")
    parser.add_argument("--seed", type=int, default=0, help="of the splits by concept (default 0)")


def _add_scenes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to make: DIR/<split>/images, annotations.json, semantic, instances",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default 0)")
    parser.add_argument("--captions", action="store_true", help="also DIR/captions.csv, two captions an image")
    for split, count in SIZES.items():
        parser.add_argument(
            f"--{split}", type=int, default=count, metavar="N", help=f"number of scenes (default {count}; 0: none)"
        )


def _add_medmnist(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.npz", help="a 2-D file with one label per image")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to make: DIR/train/<class>/*.png, DIR/val, ..."
    )
    parser.add_argument(
        "--class_names", nargs="+", metavar="NAME", help="names of the classes, class 0 first (default class-0, ...)"
    )


def _add_frames(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEOS", help="video files, or folders of them such as VIDEOS/train/<class>/*.mp4"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to make: DIR/train/<class>/<video>/*.jpg and frame_times.csv; a call that was stopped goes on "
        "when it is repeated",
    )
    parser.add_argument(
        "--fps",
        type=float,
        metavar="F",
        help="frames per second, each the one shown at that time (default: every frame)",
    )
    parser.add_argument(
        "--short_side",
        type=int,
        metavar="PIXELS",
        help="shrink larger frames to this shorter side (default: as they are)",
    )
    parser.add_argument("--format", default="jpg", help="jpg (quality 95, default) or png (without loss)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="videos at a time (default 0: all cores)")
