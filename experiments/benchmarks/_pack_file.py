"""Writer of a pack, the one-file format that lit-vision pack wrote before shards: what shards are measured against.

The tests of lit_vision/data/pack.py, which still reads packs, use it too.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

from lit_vision.data.folder import Folder
from lit_vision.data.pack import MAGIC, TAIL


def write_pack(folder: Folder, out: Path) -> None:
    """Write the files of a folder as they are into a pack."""
    splits = {**folder.splits, "": folder.unlabeled}
    paths = sorted(path for split in splits.values() for path in split.paths)
    row = {path: i for i, path in enumerate(paths)}
    rows = {
        name: [[row[path], label] for path, label in zip(split.paths, split.labels.tolist())]
        for name, split in splits.items()
    }
    contents = [folder.read(path) for path in paths]
    starts = [len(MAGIC)]
    for data in contents:
        starts.append(starts[-1] + len(data))
    index = {"paths": paths, "classes": folder.classes, "unlabelled": rows.pop(""), "splits": rows}
    index |= {"made": {"short_side": None, "quality": None}, "starts": starts[:-1], "sizes": list(map(len, contents))}
    text = json.dumps(index | {"crc32": list(map(zlib.crc32, contents))}).encode()
    tail = TAIL.pack(starts[-1], len(text), hashlib.sha256(text).digest(), MAGIC)
    out.write_bytes(b"".join([MAGIC, *contents, text, tail]))
