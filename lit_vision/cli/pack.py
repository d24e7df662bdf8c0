"""The pack command: store a folder of images as shards, few large files that train faster and from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_vision.cli.parser import CommandParser
from lit_vision.data.holdout import check_groups, folder_groups
from lit_vision.data.open_images import open_images
from lit_vision.data.shard_writer import Encoding, check_out, write_shards
from lit_vision.data.shards.address import is_address
from lit_vision.data.splits import read_list
from lit_vision.data.value_range import measure_folder_range, require_range
from lit_vision.data.views.pixel_values import check_range
from lit_vision.errors import UsageError

MOST_SHARDS = 1_000_000


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision pack",
        description="Store a folder of images as WebDataset tar files with an index, to train from: data.root: DIR.",
    )
    parser.add_argument(
        "root", metavar="ROOT", help="the folder: train/<class>/*.jpg and so on; or an older .pack file"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    parser.add_argument("--shards", type=int, default=0, metavar="N", help="tar files, about (default: one per 256 MB)")
    parser.add_argument("--overwrite", action="store_true", help="replace the shards that are in DIR")
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
    parser.add_argument("--group_by", type=int, metavar="LEVEL", help="store as each image's group this folder, as -1")
    parser.add_argument("--train_split", default="train", help="name of the training folder (default train)")
    parser.add_argument("--val_split", default="val", help="name of the validation folder (default val)")
    parser.add_argument("--test_split", default="test", help="name of the test folder (default test)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default 0: all cores)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision pack ROOT --out DIR [--shards N] [--lossless | --short_side 256 --quality 92] [...]`."""
    args = _parser().parse_args(list(argv))
    if args.lossless and not (args.short_side is None and args.quality is None):
        raise UsageError("--lossless keeps the files as they are; leave out --short_side and --quality")
    value_range = check_range(args.range, "--range")
    if args.lossless and value_range:
        raise UsageError("--range: --lossless keeps the files as they are; set data.range when you train")
    if is_address(args.out):
        raise UsageError(f"--out {args.out}: is no local folder; name one, and copy it there afterwards")
    args.out = Path(args.out)
    if args.out.suffix == ".pack":
        raise UsageError(f"--out {args.out}: packs are no longer written, but folders of shards; leave out the .pack")
    side = 256 if args.short_side is None else args.short_side
    quality = 92 if args.quality is None else args.quality
    if side < 1:
        raise UsageError(f"--short_side {side}: give at least 1 pixel")
    if not 1 <= quality <= 100:
        raise UsageError(f"--quality {quality}: give 1 to 100")
    if args.workers < 0:
        raise UsageError(f"--workers {args.workers}: give 0 (all cores) or more")
    if not 0 <= args.shards <= MOST_SHARDS:
        raise UsageError(f"--shards {args.shards}: give 1 to {MOST_SHARDS:,}, or leave it out")
    from lit_vision.io.processes import cores

    check_out(args.out, args.overwrite)
    folder = open_images(args.root, args.train_split, args.val_split, args.test_split)
    print(*folder.lines(), sep="\n", flush=True)
    left_out = folder.exclude(read_list(args.quarantine)) if args.quarantine else 0
    groups = folder.groups
    if args.group_by is not None:
        paths = [path for split in folder.splits.values() for path in split.paths]
        groups = dict(zip(paths, folder_groups(paths, args.group_by)))
        check_groups(folder, groups)
    if value_range is None and not args.lossless:
        measured = measure_folder_range(folder, args.train_split)
        value_range = require_range(measured, f"{args.root} (give --range)")
        if measured.images:
            print(measured.describe("--range"))
    written = write_shards(
        folder,
        args.out,
        args.shards,
        Encoding() if args.lossless else Encoding(side, quality, value_range),
        train=args.train_split,
        groups=groups,
        overwrite=args.overwrite,
        workers=args.workers or cores(),
        progress=True,
    )
    form = "as they were" if args.lossless else f"short side at most {side}, quality {quality}"
    print(
        f"{written.images} images ({form}; {left_out} left out), {written.bytes_before / 1e6:.1f} MB as files, "
        f"{written.bytes / 1e6:.1f} MB in {written.shards} tar file{'s' * (written.shards != 1)} in {args.out}"
    )
    return 0
