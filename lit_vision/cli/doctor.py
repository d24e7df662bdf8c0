"""The doctor command: check every image of a folder for what would disturb training or evaluation.

Prints a table and writes doctor.json and quarantine.txt (a list for data.quarantine, with what `--quarantine` listed).
Exit code 1 if training or evaluation would fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_vision.cli.parser import CommandParser
from lit_vision.errors import UsageError


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision doctor ROOT [--out DIR] [--quarantine LIST] [--recipe RECIPE.yaml]`; 1 if training would fail."""
    parser = CommandParser(
        prog="lit-vision doctor",
        description="Check whether a folder of images is fit to train on; opens every image.",
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder (or a .pack file)")
    parser.add_argument("--out", type=Path, help="folder for doctor.json and quarantine.txt (default runs/doctor/NAME)")
    parser.add_argument("--recipe", type=Path, help="also time its loader against its training step")
    parser.add_argument("--train_split", default="train", help="name of the training folder (default train)")
    parser.add_argument("--val_split", default="val", help="name of the validation folder (default val)")
    parser.add_argument("--test_split", default="test", help="name of the test folder (default test)")
    parser.add_argument("--quarantine", metavar="LIST", help="files to leave out: what data.quarantine is set to")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default 0: all cores)")
    args = parser.parse_args(list(argv))
    if args.workers < 0:
        raise UsageError(f"--workers {args.workers}: give 0 (all cores) or more")
    if args.recipe and not args.recipe.is_file():
        raise UsageError(f"--recipe {args.recipe}: no such file; experiments/README.md lists the recipes")

    from lit_vision.data.annotations.locations import explain_unread, recognize
    from lit_vision.data.check.annotated_check import check_annotated
    from lit_vision.data.check.folder_check import check_folder, refuse
    from lit_vision.data.check.report import format_quarantine, format_report, format_verdict
    from lit_vision.data.splits import read_list
    from lit_vision.io.atomic import atomic_write, write_json
    from lit_vision.io.processes import cores

    names = (args.train_split, args.val_split, args.test_split)
    quarantine = read_list(args.quarantine) if args.quarantine else set()
    formats = recognize(args.root, *names) if args.root.is_dir() else []
    workers = args.workers or cores()
    if formats:
        report = check_annotated(args.root, names, formats, workers, progress=True, quarantine=quarantine)
    else:
        report = check_folder(args.root, names, workers, progress=True, quarantine=quarantine)
        if args.root.is_dir() and (unread := explain_unread(args.root, names[0])):
            refuse(report, f"annotations that no reader takes: {unread}")
    if args.recipe and report["fit"]:
        from lit_vision.data.check.loader_speed import compare_loader_to_step

        report["loader"] = compare_loader_to_step(args.recipe, args.root)
    out = args.out or Path("runs", "doctor", args.root.resolve().stem)
    report["quarantine"] += [[path, f"listed in {Path(args.quarantine).name}"] for path in sorted(quarantine)]
    listed = format_quarantine(report)
    write_json(out / "doctor.json", report)
    atomic_write(
        out / "quarantine.txt", lambda file: file.write_text(listed, encoding="utf-8", errors="surrogateescape")
    )
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
