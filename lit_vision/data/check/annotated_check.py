"""Check a set with boxes or masks: its annotations by the readers of training, its images as in any folder.

`lit-vision doctor` prints the report for folders in which `recognize` finds annotations. It passes if a training run
with the settings that it names passes its set-up.
"""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.annotations import usable
from lit_vision.data.annotations.formats import FORMATS, Location
from lit_vision.data.annotations.locations import locate
from lit_vision.data.annotations.masks import IGNORE, MaskValues, mask_values
from lit_vision.data.annotations.table import AnnotationTable
from lit_vision.data.annotations.voc import VOC_CLASSES, voc_names
from lit_vision.data.check.content import ImageEntry
from lit_vision.data.check.folder_check import (
    FAIL,
    NOTE,
    WARN,
    Finding,
    copy_findings,
    file_findings,
    range_findings,
    similar_class_names,
)
from lit_vision.data.check.image_check import ImageCheck, ImageReport
from lit_vision.data.datasets import BAD_SHARE
from lit_vision.data.folder import Folder
from lit_vision.data.value_range import MeasuredRange, measure_range
from lit_vision.data.views.pixel_values import ValueRange
from lit_vision.errors import UserError
from lit_vision.io.processes import parallel_map

HOLD_OUT = 0.1  # share of the training images that the settings hold out where there is no validation split


@dataclass
class _FormatCheck:
    """Result of reading one format of a set.

    Attributes:
        settings: arguments of AnnotatedDataModule with which the set is read.
        tables: annotations by split, without images that have a fault.
        findings: what was found.
        quarantine: path and reason of images to leave out.
    """

    settings: dict[str, Any]
    tables: dict[str, AnnotationTable] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    quarantine: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """True if training with these annotations would fail."""
        return any(finding.level == FAIL for finding in self.findings)

    def fail(self, root: Path, message: str) -> None:
        """Add a failure, without the path of the root."""
        self.findings.append(Finding(FAIL, _without_root(root, message), 1))


def _without_root(root: Path, message: str) -> str:
    return message.removeprefix(f"{root}: ").replace(f"{root}/", "").replace(str(root), root.name or ".")


def check_annotated(
    root: Path,
    names: Sequence[str],
    formats: Sequence[str],
    workers: int = 1,
    progress: bool = False,
    quarantine: Set[str] = frozenset(),
    value_range: ValueRange | None = None,
) -> dict[str, Any]:
    """Check annotations and images of a set and return the report that goes into doctor.json.

    Args:
        root: the folder.
        names: of the training, validation and test splits.
        formats: from `recognize`.
        workers: processes.
        progress: show a bar.
        quarantine: paths to leave out, as data.quarantine does.
        value_range: declared for images deeper than 8 bits; None measures it as training does.

    Returns:
        As `folder_check.examine` (`fit` if the set is fit in one of the formats), and {settings: {format: arguments of
        AnnotatedDataModule}, objects: {format: {split: {class: objects that train}}}}; `classes` is empty.
    """
    checks = {name: _read_format(root, names, name, quarantine) for name in formats}
    split_of = {path: split for check in checks.values() for split, t in check.tables.items() for path in t.paths}
    for check in checks.values():  # images with a fault are no rows of the tables, but are checked like the others
        split_of.update({path: split_of.get(path, names[0]) for path in check.quarantine})
    items = [
        ImageEntry(path, split, "") for path, split in sorted(split_of.items()) if os.path.isfile(f"{root}/{path}")
    ]
    folder, paths = Folder(root, [], {}), [item.path for item in items]
    training = [item.path for item in items if item.split == names[0]]
    measured = measure_range(folder.read, training) if value_range is None else MeasuredRange(value_range)
    image_check = ImageCheck(folder, measured.value_range)
    reports: list[ImageReport] = list(parallel_map(image_check, paths, workers, "checking" if progress else ""))
    report_of = dict(zip(paths, reports))
    findings, listed = file_findings(items, reports, names[0]), {}
    findings += range_findings(measured, reports)
    for name, check in checks.items():
        _compare_sizes(check, report_of)
        if FORMATS[name].semantic:
            _check_masks(root, check, report_of, workers)
        _check_usable(root, names, check)
        check.findings.insert(0, Finding(NOTE, _describe_settings(name, check.settings), 0))
    passing = [name for name, check in checks.items() if not check.failed]
    for name, check in checks.items():
        if passing and name not in passing:  # boxes and masks of the same images: either will do
            failures = [finding for finding in check.findings if finding.level == FAIL]
            check.findings = [Finding(WARN, f"{name}: {f.what}", f.count, f.files) for f in failures]
            check.quarantine = {}
        findings += check.findings
        listed.update(check.quarantine)
    copies, leaked = copy_findings(items, reports, names[0])
    findings += copies
    listed.update({path: report.error for path, report in report_of.items() if report.error})
    listed.update({items[i].path: "the same picture is in an evaluation split" for i in sorted(leaked)})
    order = {FAIL: 0, WARN: 1, NOTE: 2}
    findings.sort(key=lambda f: order[f.level])
    return {
        "root": root.name,
        "images": len(items),
        "fit": all(f.level != FAIL for f in findings),
        "findings": [vars(f) for f in findings],
        "classes": {},
        "inventory": [],
        "uses": {"training on labels": ""},
        "settings": {name: check.settings for name, check in checks.items() if name in (passing or checks)},
        "objects": {
            name: {
                split: dict(zip(table.class_names, usable.count_objects(table).train.tolist()))
                for split, table in check.tables.items()
            }
            for name, check in checks.items()
            if check.tables and not FORMATS[name].semantic
        },
        "quarantine": sorted([path, _without_root(root, reason)] for path, reason in listed.items()),
    }


def _describe_settings(name: str, settings: dict[str, Any]) -> str:
    shown = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return f"{name} annotations: train with data.class_path lit_vision.data.AnnotatedDataModule and {{{shown}}}"


def _read_format(root: Path, names: Sequence[str], name: str, quarantine: Set[str]) -> _FormatCheck:
    """Read all splits in one format, and collect every image whose annotations have a fault."""
    check, chosen = _FormatCheck({"format": name}), FORMATS[name]
    class_names: list[str] | None = None
    training: Location | None = None
    for number, split in enumerate(names):
        try:
            place = locate(root, name, split, only_split=number == 0)
        except UserError as error:  # Roboflow's data.yaml names a test split that may not be there
            check.findings.append(Finding(WARN if number == 2 else FAIL, _without_root(root, str(error)), 1))
            continue
        if place is None or (number and place == training):
            _report_no_split(check, number, split, len(check.tables.get(names[0], ())))
            continue
        if number == 0:
            training = place
            class_names = _settings_of_classes(root, name, place, check.settings)
        faults: list[tuple[str, str]] = []
        try:
            table = _read(root, name, place, check.settings, class_names, quarantine, faults)
        except UserError as error:
            if not faults:
                check.fail(root, str(error))
                if number == 0:
                    break  # the other splits are read with the classes of this one
                continue
            table = None  # no image without a fault
        if faults:
            _report_faults(root, check, split, faults)
            if "on_bad_box" in chosen.options:
                _report_what_fix_takes(root, name, place, check, class_names, quarantine, len(faults), split)
        if table is not None:
            class_names = table.class_names
            _report_missing(root, check, split, table, trains=number == 0)
            check.tables[split] = table
            if name == "coco":
                _report_instance_masks(root, place, check, class_names, quarantine, split)
    return check


def _read(
    root: Path, name: str, place: Location, settings: dict[str, Any], class_names: list[str] | None,
    quarantine: Set[str], faults: list[tuple[str, str]] | None, **options: Any,
) -> AnnotationTable:  # fmt: skip
    chosen = FORMATS[name]
    if "split_list" in chosen.options:
        options["split_list"] = place.split_list
    if "colors" in chosen.options and "colors" in settings:
        options["colors"] = str(root / settings["colors"])
    return chosen.read(
        root, place.annotations, place.images, class_names=class_names, excluded=quarantine, faults=faults, **options
    )


def _settings_of_classes(root: Path, name: str, place: Location, settings: dict[str, Any]) -> list[str] | None:
    """Add the settings that name the classes, where the format's files do not; return the names, or None."""
    if name == "voc":
        found = voc_names(root / place.annotations)
        if not set(found) <= set(VOC_CLASSES):
            settings["class_names"] = found
            return found
    named = any((root / file).is_file() for file in ("classes.txt", "class_names.txt", "_classes.csv"))
    if name == "masks" and not named and (root / "labelmap.txt").is_file():
        settings["colors"] = "labelmap.txt"
    return None


def _report_no_split(check: _FormatCheck, number: int, split: str, images: int) -> None:
    if number == 0:
        check.findings.append(Finding(FAIL, f"no {split} split: nothing to train on", 1))
    elif number == 1:
        share = check.settings["hold_out"] = HOLD_OUT if round(HOLD_OUT * images) else 0.5
        what = f"no {split} split: data.hold_out: {share} keeps part of the training images for validation"
        check.findings.append(Finding(WARN if images > 1 else FAIL, what, 0))
    else:
        check.findings.append(Finding(NOTE, f"no {split} split", 0))


def _report_faults(root: Path, check: _FormatCheck, split: str, faults: list[tuple[str, str]]) -> None:
    messages = [_without_root(root, message) for _, message in faults]
    what = f"{split}: images whose annotations are refused (the quarantine list leaves them out)"
    check.findings.append(Finding(FAIL, what, len(faults), messages))
    check.quarantine.update(faults)


def _report_what_fix_takes(
    root: Path, name: str, place: Location, check: _FormatCheck, class_names: list[str] | None,
    quarantine: Set[str], count: int, split: str,
) -> None:  # fmt: skip
    rest: list[tuple[str, str]] = []
    with suppress(UserError):
        _read(root, name, place, check.settings, class_names, quarantine, rest, on_bad_box="fix")
    if len(rest) < count:
        what = f"{split}: data.on_bad_box: fix takes {count - len(rest)} of these images, with boxes cut or dropped"
        check.findings.append(Finding(NOTE, what, count - len(rest)))


def _report_missing(root: Path, check: _FormatCheck, split: str, table: AnnotationTable, trains: bool) -> None:
    missing = [path for path in table.paths if not os.path.isfile(f"{root}/{path}")]
    if missing:
        few = trains and len(missing) <= max(1, BAD_SHARE * len(table)) and len(missing) < len(table)
        what = f"{split}: images that the annotations name are not there; correct file_name, or bring them"
        check.findings.append(Finding(WARN if few else FAIL, what, len(missing), missing))
        check.quarantine.update(dict.fromkeys(missing, "the file does not exist"))


def _report_instance_masks(
    root: Path, place: Location, check: _FormatCheck, class_names: list[str], quarantine: Set[str], split: str
) -> None:
    """Note images that `with_masks: true` would refuse."""
    faults: list[tuple[str, str]] = []
    excluded = {*quarantine, *check.quarantine}
    with suppress(UserError):
        _read(root, "coco", place, check.settings, class_names, excluded, faults, with_masks=True)
    if faults:
        what = f"{split}: images with objects without a usable mask: data.with_masks: true refuses them"
        check.findings.append(Finding(NOTE, what, len(faults), [_without_root(root, message) for _, message in faults]))


def _compare_sizes(check: _FormatCheck, report_of: dict[str, ImageReport]) -> None:
    """Report images of another size than annotated."""
    for split, table in check.tables.items():
        wrong = []
        for i, path in enumerate(table.paths):
            report, claimed = report_of.get(path), tuple(table.sizes[i].tolist())
            if report and not report.error and claimed not in ((0, 0), (report.height, report.width)):
                wrong.append(f"{path}: is {report.width} x {report.height}, annotated as {claimed[1]} x {claimed[0]}")
                check.quarantine[path] = "another size than annotated"
        if wrong:
            what = f"{split}: images of another size than annotated (an EXIF orientation may rotate an image)"
            check.findings.append(Finding(FAIL, what, len(wrong), wrong))


class _MaskCheck:
    """Read one mask: returns its error ("" without one) and the pixels of each class and of ignored ones."""

    def __init__(self, root: Path, values: MaskValues, classes: int):
        self.root, self.values, self.classes = root, values, classes

    def __call__(self, item: tuple[str, int, int]) -> tuple[str, np.ndarray]:
        path, height, width = item
        try:
            mask = self.values.read(self.root / path, (height, width), self.classes)
        except UserError as error:
            return str(error), np.zeros(self.classes + 1, np.int64)
        numbers = np.where(mask == IGNORE, self.classes, mask).ravel()
        return "", np.bincount(numbers, minlength=self.classes + 1)


def _check_masks(root: Path, check: _FormatCheck, report_of: dict[str, ImageReport], workers: int) -> None:
    """Read every mask; report those that are refused, and a split whose pixels teach nothing."""
    colors = check.settings.get("colors")
    for number, (split, table) in enumerate(check.tables.items()):
        try:
            values = mask_values(0, [IGNORE], colors and str(root / colors), table.class_names)
        except UserError as error:
            check.fail(root, str(error))
            return
        assert table.masks is not None
        rows = [i for i, path in enumerate(table.paths) if path in report_of and not report_of[path].error]
        images = [report_of[table.paths[i]] for i in rows]
        wanted = [(table.masks[i], image.height, image.width) for i, image in zip(rows, images)]
        results = list(parallel_map(_MaskCheck(root, values, len(table.class_names)), wanted, workers, ""))
        wrong = [(table.paths[i], error) for i, (error, _) in zip(rows, results) if error]
        if wrong:
            _report_faults(root, check, split, wrong)
        good = len(results) - len(wrong)
        if good:
            counts = np.sum([count for _, count in results], axis=0)
            try:
                usable.require_pixels(table, values, counts, good, split, trains=number == 0)
            except UserError as error:
                check.fail(root, str(error))
            check.findings.append(Finding(NOTE, usable.describe_pixels(table, counts, good, split), good))


def _check_usable(root: Path, names: Sequence[str], check: _FormatCheck) -> None:
    """Report how many objects of each split train, and a split without any."""
    if FORMATS[check.settings["format"]].semantic:
        return
    for split, table in check.tables.items():
        try:
            usable.require_objects(table, split)
        except UserError as error:
            check.fail(root, str(error))
        check.findings.append(Finding(NOTE, usable.describe_objects(table, split), len(table)))
    for table in list(check.tables.values())[:1]:
        check.findings += similar_class_names(table.class_names)
