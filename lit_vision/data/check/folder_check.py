"""What a look at every image of a folder finds: broken and odd files, copies, leaks between splits, classes. `lit-vision doctor` prints it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from lit_vision.data.check.duplicates import duplicate_groups, exact_groups, near_pairs
from lit_vision.data.check.image_check import HUGE, THUMB, TINY, ImageCheck, ImageReport
from lit_vision.data.datasets import BAD_SHARE
from lit_vision.data.folder import EXTENSIONS, UNLABELED, Folder
from lit_vision.data.open_images import open_images
from lit_vision.errors import UserError
from lit_vision.io.processes import parallel_map

FAIL, WARN, NOTE = "FAIL", "warn", "note"
_EXPLANATIONS = {
    "wrong extension": "the name's ending is another format's; it is read by its content",
    "damaged": "libjpeg-turbo finds faults, Pillow reads it; look at it",
    "cmyk": "CMYK, converted to RGB without a colour profile",
    "16-bit": "deeper than 8 bits; the upper 8 are used",
    "grayscale": "gray, repeated to three channels",
    "alpha": "transparent parts; alpha is dropped",
    "exif-rotated": "EXIF orientation, applied when read",
    "animated": "more than one frame; the first is used",
    "tiny": f"a side below {TINY} pixels",
    "huge": f"more than {HUGE / 1e6:.0f} million pixels; slow to decode (lit-vision pack shrinks them)",
}


@dataclass
class Finding:
    """One line of the report: level (FAIL, warn, note), what, how many, which files."""

    level: str
    what: str
    count: int
    files: list[str] = field(default_factory=list)


@dataclass
class ImageEntry:
    """One image file and its place: split ("" for images beside the splits), class ("" without one)."""

    path: str
    split: str
    label: str


def list_items(root: Path, names: Sequence[str]) -> tuple[list[ImageEntry], Folder, str]:
    """All images below a folder, its scan, and the reason why it cannot be scanned ("" if it can).

    A folder that cannot be scanned is walked without any rule, so that its files can be looked at all the same.

    Raises:
        UserError: there is no folder.
    """
    try:
        folder = open_images(root, *names)
    except UserError as error:
        if not root.is_dir():
            raise
        return _walk(root, names), Folder(root, [], {}), str(error)
    items = []
    for name, split in {**folder.splits, "": folder.unlabeled}.items():
        labels = (folder.classes[n] if n >= 0 else "" for n in split.labels.tolist())
        items += [ImageEntry(path, name, label) for path, label in zip(split.paths, labels)]
    return items, folder, ""


def _walk(root: Path, names: Sequence[str]) -> list[ImageEntry]:
    items = []
    for here, folders, files in os.walk(root):  # links to folders are not followed: no loop
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            if file.rpartition(".")[2].lower() in EXTENSIONS and not file.startswith("."):
                parts = Path(here, file).relative_to(root).parts
                split = parts[0] if parts[0] in names and len(parts) > 1 else ""
                label = parts[1] if split and len(parts) > 2 else ""
                items.append(ImageEntry("/".join(parts), split, label))
    return items


def file_findings(items: list[ImageEntry], seen: list[ImageReport], train: str) -> list[Finding]:
    """What is wrong or odd with single files."""
    findings, bad = [], [i for i, s in enumerate(seen) if s.fault]
    for kind in sorted({seen[i].kind for i in bad}):
        here = [i for i in bad if seen[i].kind == kind]
        files = [f"{items[i].path}: {seen[i].fault}" for i in here]
        findings.append(Finding(WARN, f"{kind} (left out by the quarantine list)", len(here), files))
    sizes, broken = Counter(item.split for item in items), Counter(items[i].split for i in bad)
    for split, count in broken.items():
        if split in (train, ""):
            allowed = max(1, BAD_SHARE * sizes[split])
            if count > allowed:
                what = (
                    f"{split or 'images'}: {count} of {sizes[split]} broken, more than {BAD_SHARE:.0%}: training stops"
                )
                findings.append(Finding(FAIL, what, count))
        else:
            findings.append(Finding(FAIL, f"{split}: {count} of {sizes[split]} broken: evaluation stops", count))
    for mark, words in _EXPLANATIONS.items():
        files = [item.path for item, s in zip(items, seen) if mark in s.marks]
        if files:
            level = WARN if mark in ("damaged", "wrong extension", "tiny", "huge") else NOTE
            findings.append(Finding(level, f"{mark}: {words}", len(files), files))
    return findings


def copy_findings(items: list[ImageEntry], seen: list[ImageReport], train: str) -> tuple[list[Finding], set[int]]:
    """Copies within and between splits; and the training images that are also in an evaluation split."""
    exact = exact_groups([s.digest for s in seen])
    shown = [i for i, s in enumerate(seen) if s.thumb]
    thumbs = np.frombuffer(b"".join(seen[i].thumb for i in shown), np.uint8).reshape(-1, THUMB, THUMB)
    same = {pair for group in exact for pair in pairwise(group)}
    near = [(shown[a], shown[b]) for a, b in near_pairs(thumbs)]
    near_only = [(a, b) for a, b in near if seen[a].digest != seen[b].digest]
    groups, findings = duplicate_groups([*same, *near], len(items)), []

    def text(group: Sequence[int]) -> str:
        return " = ".join(items[i].path for i in group)

    if exact:
        extra = sum(len(group) - 1 for group in exact)
        findings.append(Finding(WARN, "exact copies of another file", extra, [text(group) for group in exact]))
    if near_only:
        findings.append(Finding(WARN, "near copies (pairs)", len(near_only), [text(pair) for pair in near_only]))
    leaks, clashes, leaked = [], [], set()
    for group in groups:
        splits = {items[i].split for i in group}
        if train in splits and splits - {train, ""}:
            leaks.append(text(group))
            leaked |= {i for i in group if items[i].split == train}
        if len({items[i].label for i in group if items[i].label}) > 1:
            clashes.append(text(group))
    if leaks:
        what = f"the same picture in {train} and an evaluation split: the score is too good (the list leaves {train}'s out)"
        findings.append(Finding(WARN, what, len(leaks), leaks))
    if clashes:
        findings.append(Finding(WARN, "the same picture under different labels", len(clashes), clashes))
    return findings, leaked


def class_findings(items: list[ImageEntry], root: Path, names: Sequence[str]) -> tuple[list[Finding], dict]:
    """Counts per class and split; empty classes, imbalance, classes that not every split has."""
    counts: dict[str, Counter] = {}
    for item in items:
        if item.label:
            counts.setdefault(item.split, Counter())[item.label] += 1
    findings, train = [], names[0]
    tops = [root / name for name in names if (root / name).is_dir()] or ([root] if root.is_dir() else [])
    empty = [
        str(folder.relative_to(root))
        for top in tops
        for folder in sorted(top.iterdir())
        if folder.is_dir() and folder.name != UNLABELED and not folder.name.startswith(".") and not _has_image(folder)
    ]
    if empty:
        findings.append(Finding(WARN, "class folders without an image", len(empty), empty))
    if train in counts:
        of_class = counts[train]
        if len(of_class) == 1:
            findings.append(
                Finding(WARN, "one class only: fit for pre-training, not for classification", 1, [*of_class])
            )
        most, least = of_class.most_common()[0], of_class.most_common()[-1]
        if most[1] >= 10 * least[1]:
            what = f"imbalance: {most[0]} has {most[1]} images, {least[0]} {least[1]}"
            findings.append(Finding(WARN, what, round(most[1] / least[1])))
        for split in names[1:]:
            if split in counts:
                lacking = sorted(set(of_class) - set(counts[split]))
                if lacking:
                    findings.append(Finding(WARN, f"classes of {train} that {split} lacks", len(lacking), lacking))
                strange = sorted(set(counts[split]) - set(of_class))
                if strange:
                    findings.append(Finding(FAIL, f"classes of {split} that {train} lacks", len(strange), strange))
    for split in names[1:]:
        if split not in {item.split for item in items}:
            findings.append(Finding(NOTE, f"no {split} split", 0))
    return findings, {split: dict(sorted(count.items())) for split, count in counts.items()}


def _has_image(folder: Path) -> bool:
    return any(
        name.rpartition(".")[2].lower() in EXTENSIONS and not name.startswith(".")
        for _, _, files in os.walk(folder)
        for name in files
    )


def check_folder(root: Path, names: Sequence[str], workers: int = 1, progress: bool = False) -> dict:
    """The whole examination, as it goes into doctor.json.

    Args:
        root: the folder, or a pack.
        names: of the training, validation and test splits.
        workers: processes.
        progress: show a bar.

    Returns:
        {root, images, fit (bool), findings: [{level, what, count, files}], classes: {split: {class: count}}, quarantine: [[path, reason]]}.

    Raises:
        UserError: there is no such folder.
    """
    items, folder, fault = list_items(root, names)
    seen = list(parallel_map(ImageCheck(folder), [item.path for item in items], workers, "looking" if progress else ""))
    findings = [Finding(FAIL, fault.removeprefix(f"{root}: "), 1)] if fault else []
    findings += file_findings(items, seen, names[0])
    copies, leaked = copy_findings(items, seen, names[0])
    classes, counts = class_findings(items, root, names)
    findings += copies + classes
    listed = [[item.path, s.fault] for item, s in zip(items, seen) if s.fault]
    listed += [[items[i].path, "the same picture is in an evaluation split"] for i in sorted(leaked)]
    order = {FAIL: 0, WARN: 1, NOTE: 2}
    findings.sort(key=lambda f: order[f.level])
    return {
        "root": root.name,  # never a path
        "images": len(items),
        "fit": all(f.level != FAIL for f in findings),
        "findings": [vars(f) for f in findings],
        "classes": counts,
        "quarantine": listed,
    }
