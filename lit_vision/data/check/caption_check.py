"""Check a folder's table of captions, by reading it as training does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_vision.data.check.folder_check import NOTE, WARN, Finding
from lit_vision.data.pairs.caption_files import CaptionOptions, find_table, open_pairs
from lit_vision.errors import UserError


def add_captions(report: dict[str, Any], root: Path, names: Sequence[str], fractions: Mapping[str, float]) -> None:
    """Add to a report of `check_folder` what PairsDataModule makes of the folder; nothing if it has no table.

    Args:
        report: gets a finding, and the use "training on captions".
        root: the folder.
        names: of the training, validation and test splits.
        fractions: {"val", "test": share of the training images that becomes this split}.
    """
    reason, table = "", None
    try:
        table = find_table(root)
        if table is None:
            return
        split_names = dict(zip(("train", "val", "test"), names))
        folder, captions = open_pairs(root, split_names, CaptionOptions(str(table), fractions=fractions))
        folder.require_split(names[0], "training on captions")
        count = sum(len(captions[path]) for split in folder.splits.values() for path in split.paths)
        sizes = ", ".join(f"{name} {len(split)}" for name, split in folder.splits.items())
        found = Finding(NOTE, f"{table.name}: {count} captions; images with captions: {sizes}", folder.count())
    except UserError as error:
        reason = str(error).removeprefix(f"{root}/").removeprefix(f"{root}: ")
        if table is not None and table.stem == "metadata":  # a usual name of tables without captions too
            return
        found = Finding(WARN, f"captions cannot be read: {reason}", 1)
    report["findings"].append(vars(found))
    report["uses"]["training on captions"] = reason
