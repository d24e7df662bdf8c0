"""Check a folder of images, and write the report and the list of images to leave out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lit_vision.data.check.report import format_quarantine
from lit_vision.data.shards.address import Address, is_address
from lit_vision.data.splits import read_list
from lit_vision.data.views.pixel_values import check_range
from lit_vision.errors import UsageError
from lit_vision.io.atomic import atomic_write, write_json
from lit_vision.io.processes import cores
from lit_vision.io.text import check_text_file


def check_folder(
    root: str | Path,
    *,
    out: str | Path | None = None,
    recipe: str | Path | None = None,
    train_split: str = "train",
    val_split: str = "val",
    test_split: str = "test",
    quarantine: str | Path | None = None,
    range: Sequence[float] | None = None,
    workers: int = 0,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    label_file: str | Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    label_columns: str | None = None,
    label_separator: str | None = None,
    split_column: str | None = None,
    group_by: str | int | None = None,
) -> dict[str, Any]:
    """Run `lit-vision doctor`: open every image of a folder, find what would disturb training or evaluation.

    Writes doctor.json (the report) and quarantine.txt (a list for data.quarantine).

    Args:
        root: the folder, or one of shards, here or at an address.
        out: folder for the two files; None: runs/doctor/<name of root>.
        recipe: a recipe whose loader is timed against its training step, or None.
        train_split: name of the training folder.
        val_split: name of the validation folder.
        test_split: name of the test folder.
        quarantine: a list of files to leave out: what data.quarantine is set to.
        range: values of images deeper than 8 bits that become 0 and 255; None measures them as training does.
        workers: processes, 0 for all cores.
        val_fraction, test_fraction: shares of the training images that data.val_fraction and data.test_fraction draw.
        label_file: a table of labels, CSV or JSON lines, instead of labels from the folders' names.
        path_column, label_column, split_column: its columns, if they have unusual names.
        label_columns: columns of 1 and 0 for several labels an image, separated by commas.
        label_separator: between several labels in one cell.
        group_by: what must not stand on both sides of a split: a column, or the level of a folder.

    Returns:
        {root, images (number), fit (bool: training and evaluation would not fail), uses: {use: why the folder is not
        fit for it, "" if it is}, inventory: [lines], findings: [{level: FAIL, warn or note; what, count, files}],
        classes: {split: {class: number of images}}, quarantine: [[path, reason]]}, and with a recipe, if fit, loader.
        For a set with boxes or masks also {settings: {format: arguments of AnnotatedDataModule}, objects: {format:
        {split: {class: number that trains}}}}, and classes is empty.

    Raises:
        UserError: the folder does not exist. UsageError (a UserError): a value is wrong.
    """
    # an address stands where a path does: it has no files beside the shards
    root = cast(Path, Address(root)) if is_address(root) else Path(root)
    recipe = Path(recipe) if recipe else None
    if workers < 0:
        raise UsageError(f"--workers {workers}: give 0 (all cores) or more")
    if recipe and not recipe.is_file():
        raise UsageError(f"--recipe {recipe}: no such file; experiments/README.md lists the recipes")
    if recipe:
        check_text_file("--recipe", recipe)
    value_range = check_range(range, "--range")
    from lit_vision.data.annotations.locations import explain_unread, recognize
    from lit_vision.data.check.annotated_check import check_annotated
    from lit_vision.data.check.caption_check import add_captions
    from lit_vision.data.check.folder_check import examine, refuse
    from lit_vision.data.labeled_folder import label_options

    options = label_options(
        label_file,
        path_column=path_column,
        label_column=label_column,
        label_columns=label_columns,
        label_separator=label_separator,
        split_column=split_column,
        group_by=group_by,
        fractions={"val": val_fraction, "test": test_fraction},
    )
    labels = options if options.given else None
    names, left_out = (train_split, val_split, test_split), read_list(quarantine) if quarantine else set()
    formats = recognize(root, *names) if root.is_dir() and labels is None else []
    if formats:
        report = check_annotated(root, names, formats, workers or cores(), True, left_out, value_range)
    else:
        report = examine(root, names, workers or cores(), True, left_out, labels, value_range)
        if labels is None and root.is_dir() and (unread := explain_unread(root, names[0])):
            refuse(report, f"annotations that no reader takes: {unread}")
        if root.is_dir():
            add_captions(report, root, names, options.fractions)
    if recipe and report["fit"]:
        from lit_vision.data.check.loader_speed import compare_loader_to_step

        report["loader"] = compare_loader_to_step(recipe, root)
    report["quarantine"] += [[path, f"listed in {Path(quarantine).name}"] for path in sorted(left_out) if quarantine]
    folder, listed = default_folder(root) if out is None else Path(out), format_quarantine(report)
    write_json(folder / "doctor.json", report)
    atomic_write(
        folder / "quarantine.txt",
        lambda file: file.write_text(listed, encoding="utf-8", errors="surrogateescape"),
    )
    return report


def default_folder(root: str | Path) -> Path:
    """Return the folder that `check_folder` writes to without `out`."""
    return Path("runs", "doctor", Address(root).name if is_address(root) else Path(root).resolve().stem)
