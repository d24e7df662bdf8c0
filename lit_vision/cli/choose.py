"""The choose command: which images of a folder to label next, as a CSV and a page."""

from __future__ import annotations

from collections.abc import Sequence

from lit_vision.cli.parser import CommandParser, add_label_arguments, add_overwrite_argument
from lit_vision.evaluation.acquisition import STRATEGIES
from lit_vision.study.choose import DEFAULT_NUM, choose_images


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision choose",
        description="Choose which images to label next, from frozen features: a CSV with the reasons, and a page with "
        "the images.",
        epilog="example: lit-vision choose photos --num 100 --label_file labels.csv",
    )
    add = parser.add_argument
    add(
        "root",
        metavar="ROOT",
        help="a folder of images with its subfolders, or shards. Without --label_file the names of class folders are "
        "labels, and images in unlabeled/ or directly in ROOT have none",
    )
    add("--num", type=int, default=DEFAULT_NUM, metavar="N", help="images to choose (default: %(default)s)")
    add(
        "--strategy",
        default="auto",
        metavar="NAME",
        help="auto (ProbCover; from four labels a class on, the margin), or one of " + ", ".join(STRATEGIES),
    )
    add(
        "--model",
        metavar="WEIGHTS",
        help="weights whose features the images are compared by: timm:NAME, a file of weights, or a run's folder "
        "(default: public weights by image size and machine, as lit-vision study --pretrained auto takes)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of all random draws (default: %(default)s)")
    add(
        "--out",
        metavar="FILE.csv",
        help="the CSV; the page FILE.html stands beside it (default: choose.csv in --run_dir, replaced by each call)",
    )
    add("--run_dir", metavar="DIR", help="folder for weights and features (default: runs/choose/<name of ROOT>)")
    add(
        "--frozen_size",
        type=int,
        metavar="PIXELS",
        help="side of the images that the weights see (default: 96 for images up to 64 pixels, else 224)",
    )
    add(
        "--ignore_folders",
        action="store_true",
        help="the names of folders are no labels: without --label_file no image has one",
    )
    add_overwrite_argument(parser)
    add_label_arguments(parser, groups=False)
    return parser


def main(argv: Sequence[str]) -> int:
    """Choose images and write the list. Returns 0.

    Raises:
        UserError: one line that names the file or flag and what to do.
    """
    for path in choose_images(**vars(_parser().parse_args(list(argv)))):
        print(path)
    return 0
