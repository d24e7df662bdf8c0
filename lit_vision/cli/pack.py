"""The pack command: store a folder of images as one file, which trains faster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_vision.cli.parser import CommandParser
from lit_vision.data.open_images import open_images
from lit_vision.data.pack import write_pack
from lit_vision.data.splits import read_list
from lit_vision.data.value_range import measure_folder_range, require_range
from lit_vision.data.views.pixel_values import check_range
from lit_vision.errors import UsageError


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision pack ROOT --out FILE.pack [--short_side 256] [--quality 92] [--lossless] [--quarantine LIST]`."""
    parser = CommandParser(
        prog="lit-vision pack",
        description="Store a folder of images as one file, which trains faster: data.root: FILE.pack.",
    )
    parser.add_argument("root", metavar="ROOT", help="the folder: train/<class>/*.jpg and so on")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.pack", help="the file to make")
    parser.add_argument("--short_side", type=int, help="shrink larger images to this short side, pixels (default 256)")
    parser.add_argument("--quality", type=int, help="of the JPEGs, 1 to 100 (default 92)")
    parser.add_argument("--lossless", action="store_true", help="keep the files as they are: same pixels, same keys")
    parser.add_argument(
        "--range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="values of 16-bit, integer or float images that become 0 and 255 (default: measured in a sample)",
    )
    parser.add_argument("--quarantine", help="a list of files to leave out, as lit-vision doctor writes it")
    parser.add_argument("--train_split", default="train", help="name of the training folder (default train)")
    parser.add_argument("--val_split", default="val", help="name of the validation folder (default val)")
    parser.add_argument("--test_split", default="test", help="name of the test folder (default test)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default 0: all cores)")
    args = parser.parse_args(list(argv))
    if args.lossless and not (args.short_side is None and args.quality is None):
        raise UsageError("--lossless keeps the files as they are; leave out --short_side and --quality")
    value_range = check_range(args.range, "--range")
    if args.lossless and value_range:
        raise UsageError("--range: --lossless keeps the files as they are; set data.range when you train")
    if args.out.suffix != ".pack":
        raise UsageError(f"--out {args.out}: give it the ending .pack, by which data.root knows it")
    if args.out.is_dir():
        raise UsageError(f"--out {args.out}: is a folder; name a file")
    side = 256 if args.short_side is None else args.short_side
    quality = 92 if args.quality is None else args.quality
    if side < 1:
        raise UsageError(f"--short_side {side}: give at least 1 pixel")
    if not 1 <= quality <= 100:
        raise UsageError(f"--quality {quality}: give 1 to 100")
    if args.workers < 0:
        raise UsageError(f"--workers {args.workers}: give 0 (all cores) or more")
    from lit_vision.io.processes import cores

    folder = open_images(args.root, args.train_split, args.val_split, args.test_split)
    print(*folder.lines(), sep="\n", flush=True)
    left_out = folder.exclude(read_list(args.quarantine)) if args.quarantine else 0
    if value_range is None and not args.lossless:
        measured = measure_folder_range(folder, args.train_split)
        value_range = require_range(measured, f"{args.root} (give --range)")
        if measured.images:
            print(measured.describe("--range"))
    written = write_pack(
        folder, args.out, None if args.lossless else side, quality, args.workers or cores(), True, value_range
    )
    what = "as they were" if args.lossless else f"short side at most {side}, quality {quality}"
    print(
        f"{written['images']} images ({what}; {left_out} left out), {written['bytes_before'] / 1e6:.1f} MB as files, "
        f"{written['bytes'] / 1e6:.1f} MB in {args.out}"
    )
    return 0
