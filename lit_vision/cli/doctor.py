"""`lit-vision doctor ROOT`: is this folder fit to train on? Opens every image, and says what training would stumble over, before it does.

Prints a table and writes doctor.json and quarantine.txt (a list for data.quarantine). Exit code 1 if training or evaluation would fail.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lit_vision.errors import UserError

_EXAMPLES = 5  # of each finding, in the table; all of them are in the JSON


def format_report(report: dict) -> str:
    """The report as a table for the terminal."""
    lines = []
    for f in report["findings"]:
        lines.append(f"{f['level']}  {f['count']:>7}  {f['what']}")
        lines += [f"{'':15}{file}" for file in f["files"][:_EXAMPLES]]
        if len(f["files"]) > _EXAMPLES:
            lines.append(f"{'':15}and {len(f['files']) - _EXAMPLES} more")
    for split, counts in report["classes"].items():
        sizes = sorted(counts.values())
        lines.append(
            f"{split}: {sum(sizes)} images in {len(sizes)} classes, {sizes[0]} to {sizes[-1]} each, median {sizes[len(sizes) // 2]}"
        )
    return "\n".join(lines or ["nothing to report"])


def format_quarantine(report: dict) -> str:
    """The list for data.quarantine, each path under its reason."""
    lines = [f"# images of {report['root']} to leave out: data.quarantine"]
    for path, reason in report["quarantine"]:
        lines += ["# " + " ".join(reason.split()), path]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """`lit-vision doctor ROOT [--out DIR] [--recipe R.yaml]`; returns 1 if training would fail."""
    parser = argparse.ArgumentParser(
        prog="lit-vision doctor", description="Is this folder fit to train on? Opens every image.", allow_abbrev=False
    )
    parser.add_argument("root", type=Path, help="the folder (or a .pack file)")
    parser.add_argument("--out", type=Path, help="folder for doctor.json and quarantine.txt (default runs/doctor/NAME)")
    parser.add_argument("--recipe", type=Path, help="also time its loader against its training step")
    parser.add_argument("--train-split", default="train", help="name of the training folder (default train)")
    parser.add_argument("--val-split", default="val", help="name of the validation folder (default val)")
    parser.add_argument("--test-split", default="test", help="name of the test folder (default test)")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    args = parser.parse_args(list(argv))
    from lit_vision.data.check.folder_check import check_folder
    from lit_vision.io.atomic import write_json
    from lit_vision.io.processes import cores

    names = (args.train_split, args.val_split, args.test_split)
    if args.recipe and not args.recipe.is_file():
        raise UserError(f"--recipe {args.recipe}: no such file; experiments/README.md lists them")
    report = check_folder(args.root, names, args.workers or cores(), progress=True)
    if args.recipe and report["fit"]:
        from lit_vision.data.check.loader_speed import compare_loader_to_step

        report["loader"] = compare_loader_to_step(args.recipe, args.root)
    out = args.out or Path("runs", "doctor", args.root.resolve().stem)
    write_json(out / "doctor.json", report)
    (out / "quarantine.txt").write_text(format_quarantine(report), encoding="utf-8", errors="surrogateescape")
    print(format_report(report))
    if "loader" in report:
        print(report["loader"]["words"])
    if report["quarantine"]:
        print(f"to leave {len(report['quarantine'])} images out: --data.quarantine {out / 'quarantine.txt'}")
    verdict = "fit to train on" if report["fit"] else "NOT fit to train on, see FAIL above"
    print(f"{report['images']} images, {verdict}; details: {out / 'doctor.json'}")
    return 0 if report["fit"] else 1
