"""The doctor command: check every image of a folder for what would disturb training or evaluation.

Prints a table and writes doctor.json and quarantine.txt (a list for data.quarantine, with what `--quarantine` listed).
Exit code 1 if training or evaluation would fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_vision.cli.parser import CommandParser, add_label_arguments


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision doctor",
        description="Check whether a folder of images is fit to train on; opens every image.",
    )
    parser.add_argument("root", metavar="ROOT", help="the folder, or one of shards")
    parser.add_argument("--out", type=Path, help="folder for doctor.json and quarantine.txt (default runs/doctor/NAME)")
    parser.add_argument("--recipe", type=Path, help="also time its loader against its training step")
    parser.add_argument(
        "--range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="values of 16-bit, integer or float images that become 0 and 255, as data.range (default: measured)",
    )
    parser.add_argument("--train_split", default="train", help="name of the training folder (default train)")
    parser.add_argument("--val_split", default="val", help="name of the validation folder (default val)")
    parser.add_argument("--test_split", default="test", help="name of the test folder (default test)")
    parser.add_argument("--quarantine", metavar="LIST", help="files to leave out: what data.quarantine is set to")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default 0: all cores)")
    for split in ("val", "test"):
        help_text = f"share of the training images that data.{split}_fraction draws as the {split} split"
        parser.add_argument(f"--{split}_fraction", type=float, default=0.0, metavar="SHARE", help=help_text)
    add_label_arguments(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision doctor ROOT [--out DIR] [--quarantine LIST] [--recipe RECIPE.yaml]`; 1 if training would fail."""
    args = _parser().parse_args(list(argv))
    from lit_vision.data.check.check_folder import check_folder, default_folder
    from lit_vision.data.check.report import format_report, format_verdict

    report, out = check_folder(**vars(args)), args.out or default_folder(args.root)
    print(format_report(report))
    if "loader" in report:
        print(report["loader"]["words"])
    if report["quarantine"]:
        listed_in = out / "quarantine.txt"
        print(
            f"to leave {len(report['quarantine'])} images out: --data.quarantine {listed_in}; "
            f"doctor --quarantine {listed_in} checks the others"
        )
    print(f"{report['images']} images, {format_verdict(report)}; details: {out / 'doctor.json'}")
    return 0 if report["fit"] else 1
