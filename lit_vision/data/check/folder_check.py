"""Check a data set for broken files, duplicates and leaks.

Opens every image of a folder and finds broken and odd files, copies, leaks between splits, and classes that are empty,
rare or missing in a split. `lit-vision doctor` prints the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.check.content import FolderContent, ImageEntry, list_items
from lit_vision.data.check.duplicates import connected_groups, exact_groups, near_pairs
from lit_vision.data.check.image_check import HUGE, THUMB, TINY, ImageCheck, ImageReport
from lit_vision.data.datasets import BAD_SHARE
from lit_vision.data.fitness import uses_of
from lit_vision.data.labeled_folder import LabelOptions
from lit_vision.data.value_range import MeasuredRange, measure_folder_range, measure_range
from lit_vision.data.views.pixel_values import FULL_16_BIT, MIN_LEVELS, ValueRange
from lit_vision.io.processes import parallel_map

FAIL, WARN, NOTE = "FAIL", "warn", "note"
# uses that broken images stop, for those of the training, validation and test split, and for images without a split
_USES_OF_SPLIT = (
    ("pre-training", "training on labels"),
    ("pre-training", "training on labels", "validation"),
    ("testing",),
    ("pre-training",),
)
_EXPLANATIONS = {
    "wrong extension": "the file name's suffix belongs to another format; the file is read by its content",
    "damaged": "libjpeg-turbo reports errors, Pillow reads it; look at it",
    "cmyk": "CMYK, converted to RGB without a color profile",
    "16-bit": "deeper than 8 bits (16-bit, 32-bit integers or floats); mapped to 8 bits by one range for all",
    "clipped": "more than 0.1 % of the values lie outside the range of values (data.range)",
    "few levels": f"fewer than {MIN_LEVELS} of 256 gray levels are left in 8 bits; see data.range",
    "grayscale": "gray, repeated to three channels",
    "alpha": "transparent parts; alpha is dropped",
    "exif-rotated": "EXIF orientation, applied when read",
    "animated": "more than one frame; the first is used",
    "several pages": "a TIFF of several pages; only the first is used: save the pages as files of their own",
    "tiny": f"a side below {TINY} pixels",
    "huge": f"more than {HUGE / 1e6:.0f} million pixels; slow to decode (lit-vision pack shrinks them)",
}

_WARNED = ("damaged", "wrong extension", "tiny", "huge", "clipped", "few levels", "several pages")


@dataclass
class Finding:
    """A line of the report: level (FAIL, warn, note), description, number of files, names of files."""

    level: str
    what: str
    count: int
    files: list[str] = field(default_factory=list)


def layout_findings(content: FolderContent, names: Sequence[str]) -> list[Finding]:
    """Return the findings about the folder's layout and about what the scan left out."""
    if content.refused:
        return [Finding(FAIL, content.refused, 1)]
    folder, found = content.folder, []
    inventory, left_out = folder.inventory, folder.inventory.left_out
    for name, place in inventory.splits.items():
        if name != place:
            found.append(Finding(NOTE, f"{place}/ is the {name} split", len(folder.splits.get(name, ()))))
    if inventory.beside:
        folders = [f"{name}: {count} images" for name, count in inventory.beside.items()]
        found.append(Finding(WARN, "folders with images beside the splits (left out)", len(folders), folders))
    if inventory.loose:
        found.append(Finding(WARN, "images beside the splits (left out)", len(inventory.loose), inventory.loose))
    if inventory.empty:
        found.append(Finding(WARN, "class folders without an image", len(inventory.empty), inventory.empty))
    if left_out.pictures:
        kinds = left_out.phrases()[: len(left_out.pictures)]
        found.append(Finding(WARN, "pictures left out by their ending", sum(left_out.pictures.values()), kinds))
    if rest := left_out.phrases()[len(left_out.pictures) :]:
        found.append(Finding(NOTE, f"left out: {'; '.join(rest)}", left_out.count_of_others))
    if inventory.unlisted:
        found.append(Finding(WARN, "images that the table does not list", inventory.unlisted))
    if inventory.not_labeled:
        found.append(Finding(WARN, "images to validate or test with without a label (left out)", inventory.not_labeled))
    found += similar_class_names(folder.classes)
    uses = uses_of(folder, (names[0], names[1], names[2]))
    if all(uses.values()):
        reason = uses["training on labels"].removeprefix(f"{folder.root}: ")
        found.append(Finding(FAIL, f"fit for no use: {reason}", 1))
    return found


def similar_class_names(names: Sequence[str]) -> list[Finding]:
    """Return a finding if classes may be one: their names differ in case or spaces only."""
    by_lower_case: dict[str, list[str]] = {}
    for name in names:
        by_lower_case.setdefault(name.strip().casefold(), []).append(name)
    alike = [", ".join(map(repr, same)) for same in by_lower_case.values() if len(same) > 1]
    return [Finding(WARN, "classes whose names differ in case or spaces only", len(alike), alike)] if alike else []


def file_findings(items: list[ImageEntry], reports: list[ImageReport], train: str) -> list[Finding]:
    """Return the findings about single files: those that cannot be read, and those that are unusual."""
    findings, bad = [], [i for i, report in enumerate(reports) if report.error]
    for kind in sorted({reports[i].kind for i in bad}):
        of_kind = [i for i in bad if reports[i].kind == kind]
        files = [f"{items[i].path}: {reports[i].error}" for i in of_kind]
        findings.append(Finding(WARN, f"{kind} (left out by the quarantine list)", len(of_kind), files))
    broken = Counter(items[i].split for i in bad)
    findings += [Finding(FAIL, reason, broken[split]) for split, reason in broken_splits(items, reports, train).items()]
    for note, explanation in _EXPLANATIONS.items():
        files = [item.path for item, report in zip(items, reports) if note in report.notes]
        if files:
            level = WARN if note in _WARNED else NOTE
            findings.append(Finding(level, f"{note}: {explanation}", len(files), files))
    return findings


def broken_splits(items: list[ImageEntry], reports: list[ImageReport], train: str) -> dict[str, str]:
    """Return {split: reason} of the splits with so many broken images that training or evaluation stops."""
    sizes = Counter(item.split for item in items)
    found = {}
    for split, count in Counter(item.split for item, report in zip(items, reports) if report.error).items():
        if split not in (train, ""):
            found[split] = f"{split}: {count} of {sizes[split]} broken: evaluation stops"
        elif count > max(1, BAD_SHARE * sizes[split]):
            broken = f"{split or 'images'}: {count} of {sizes[split]} broken"
            found[split] = f"{broken}, more than {BAD_SHARE:.0%}: training stops"
    return found


def range_findings(measured: MeasuredRange, reports: list[ImageReport]) -> list[Finding]:
    """Return the findings about images deeper than 8 bits: the range that training uses, or that none fits them."""
    deep = sum("16-bit" in report.notes for report in reports)
    if measured.problem:
        return [Finding(FAIL, f"range of values: {measured.problem}", deep)]
    lost = sum("few levels" in report.notes for report in reports)
    if 2 * lost > deep:
        what = f"range of values: most deep images keep fewer than {MIN_LEVELS} of 256 gray levels; declare data.range"
        return [Finding(FAIL, what, lost)]
    if not measured.images:
        return []
    usual = measured.value_range == FULL_16_BIT
    what = f"16-bit or other {measured.describe()}"
    return [Finding(NOTE if usual else WARN, what + ("" if usual else "; declare it, so that it cannot change"), deep)]


def copy_findings(items: list[ImageEntry], reports: list[ImageReport], train: str) -> tuple[list[Finding], set[int]]:
    """Return the copies within and between splits, and the training images that are also in an evaluation split."""
    exact = exact_groups([report.digest for report in reports])
    readable = [i for i, report in enumerate(reports) if report.thumb]
    thumbs = np.frombuffer(b"".join(reports[i].thumb for i in readable), np.uint8).reshape(-1, THUMB, THUMB)
    same = {pair for group in exact for pair in pairwise(group)}
    near = [(readable[a], readable[b]) for a, b in near_pairs(thumbs)]
    near_only = [(a, b) for a, b in near if reports[a].digest != reports[b].digest]
    groups, findings = connected_groups([*same, *near]), []

    def text(group: Sequence[int]) -> str:
        return " = ".join(items[i].path for i in group)

    if exact:
        extra = sum(len(group) - 1 for group in exact)
        findings.append(Finding(WARN, "exact copies of another file", extra, [text(group) for group in exact]))
    if near_only:
        findings.append(Finding(WARN, "near copies (pairs)", len(near_only), [text(pair) for pair in near_only]))
    leaks, clashes = [], []
    leaked: set[int] = set()
    for group in groups:
        splits = {items[i].split for i in group}
        if train in splits and splits - {train, ""}:
            leaks.append(text(group))
            leaked |= {i for i in group if items[i].split == train}
        if len({items[i].label for i in group if items[i].label}) > 1:
            clashes.append(text(group))
    if leaks:
        what = (
            f"the same picture in {train} and an evaluation split: the score is too good "
            f"(the quarantine list leaves the image of {train} out)"
        )
        findings.append(Finding(WARN, what, len(leaks), leaks))
    if clashes:
        findings.append(Finding(WARN, "the same picture under different labels", len(clashes), clashes))
    return findings, leaked


def class_findings(
    items: list[ImageEntry], names: Sequence[str], several: bool = False
) -> tuple[list[Finding], dict[str, dict[str, int]]]:
    """Return findings about classes (rare, not in every split), and the counts per split and class.

    With several labels an image each label counts by itself: a set of them that only validation has is no new class.
    """
    counts: dict[str, Counter[str]] = {}
    for item in items:
        if item.label:
            counts.setdefault(item.split, Counter()).update(item.label.split(" + ") if several else [item.label])
    findings = []
    if names[0] in counts:
        findings += _balance_findings(counts, names)
    splits = {item.split for item in items}
    findings += [Finding(NOTE, f"no {split} split", 0) for split in names[1:] if split not in splits]
    return findings, {split: dict(sorted(count.items())) for split, count in counts.items()}


def _balance_findings(counts: dict[str, Counter[str]], names: Sequence[str]) -> list[Finding]:
    """Return findings about the classes of the training split: one only, imbalance, other classes in another split."""
    findings, train = [], names[0]
    of_class = counts[train]
    if len(of_class) == 1:
        findings.append(Finding(WARN, "one class only: fit for pre-training, not for classification", 1, [*of_class]))
    most, least = of_class.most_common()[0], of_class.most_common()[-1]
    if most[1] >= 10 * least[1]:
        what = f"imbalance: {most[0]} has {most[1]} images, {least[0]} {least[1]}"
        findings.append(Finding(WARN, what, round(most[1] / least[1])))
    for split in names[1:]:
        if split in counts:
            missing = sorted(set(of_class) - set(counts[split]))
            if missing:
                findings.append(Finding(WARN, f"classes of {train} that {split} lacks", len(missing), missing))
            unknown = sorted(set(counts[split]) - set(of_class))
            if unknown:
                findings.append(Finding(FAIL, f"classes of {split} that {train} lacks", len(unknown), unknown))
    return findings


def refuse(report: dict[str, Any], reason: str) -> None:
    """Add a failure to a report of `check_folder`."""
    report["findings"].insert(0, vars(Finding(FAIL, reason, 1)))
    report["fit"] = False


def examine(
    root: Path,
    names: Sequence[str],
    workers: int = 1,
    progress: bool = False,
    quarantine: Set[str] = frozenset(),
    labels: LabelOptions | None = None,
    value_range: ValueRange | None = None,
) -> dict[str, Any]:
    """Check every image of a folder and return the report of `check_folder`; writes nothing.

    Args:
        root: the folder, or shards.
        names: of the training, validation and test splits.
        workers: processes.
        progress: show a bar.
        quarantine: paths to leave out, as data.quarantine does.
        labels: a table of labels and groups, or None for labels from folders' names.
        value_range: declared for images deeper than 8 bits; None measures it as training does.

    Returns:
        As `check_folder`, without loader.

    Raises:
        UserError: the folder does not exist.
    """
    content = list_items(root, names, quarantine, labels)
    items, folder = content.items, content.folder
    paths = [item.path for item in items]
    if value_range is not None:
        measured = MeasuredRange(value_range)
    else:
        measured = measure_folder_range(folder, names[0]) if folder.count() else measure_range(folder.read, paths)
    check = ImageCheck(folder, measured.value_range)
    reports: list[ImageReport] = list(parallel_map(check, paths, workers, "checking" if progress else ""))
    findings = layout_findings(content, names) + file_findings(items, reports, names[0])
    findings += range_findings(measured, reports)
    copies, leaked = copy_findings(items, reports, names[0])
    several = any(split.labels.ndim == 2 for split in folder.splits.values())
    classes, counts = class_findings(items, names, several)
    findings += copies + classes
    listed = [[item.path, report.error] for item, report in zip(items, reports) if report.error]
    listed += [[items[i].path, "the same picture is in an evaluation split"] for i in sorted(leaked)]
    order = {FAIL: 0, WARN: 1, NOTE: 2}
    findings.sort(key=lambda f: order[f.level])
    uses = uses_of(folder, (names[0], names[1], names[2]))
    for split, reason in broken_splits(items, reports, names[0]).items():
        for use in _USES_OF_SPLIT[(*names, "").index(split)]:
            uses[use] = uses[use] or reason
    hide = f"{folder.root}: "  # the report names no absolute path
    return {
        "root": root.name,
        "images": len(items),
        "fit": all(f.level != FAIL for f in findings),
        "uses": {use: content.refused or reason.removeprefix(hide) for use, reason in uses.items()},
        "inventory": [line.removeprefix(hide) for line in folder.lines()] if not content.refused else [],
        "findings": [vars(f) for f in findings],
        "classes": counts,
        "quarantine": listed,
    }
