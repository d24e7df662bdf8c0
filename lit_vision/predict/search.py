"""`lit-vision embed` and `lit-vision search`: features of images as one file, and what lies near what in it.

An index is a safetensors file: `features` (N, D) float32 as the model gave them, `names` the images' names joined by zero bytes, and in
its metadata what they were made with; features of another model, view or precision are refused.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError

ROWS = 1024  # queries looked up at once


@dataclass
class Index:
    """Features of N images, D wide.

    path: the file.   names: N.   features: (N, D) float32.   feature_settings: what decided the features (model, view, precision).
    """

    path: Path
    names: list[str]
    features: Any
    feature_settings: dict[str, Any]


def feature_settings(metadata: Any) -> dict[str, Any]:
    """What decides a model's features: two indices with the same can be compared."""
    return {
        "features": metadata.features,
        "mean": metadata.mean,
        "std": metadata.std,
        "size": metadata.size,
        "crop_pct": metadata.crop_pct,
        "precision": metadata.precision,
    }


def write_index(path: Path, rows: Path, names: Path, width: int, about: dict[str, Any]) -> None:
    """An index from raw float32 rows and zero-ended names, copied in pieces: N may be larger than memory."""
    size, text = rows.stat().st_size, names.stat().st_size
    header = {
        "__metadata__": {"format": "pt", "lit_vision": "Index", "made_with": json.dumps(about)},
        "features": {"dtype": "F32", "shape": [size // (4 * width), width], "data_offsets": [0, size]},
        "names": {"dtype": "U8", "shape": [text], "data_offsets": [size, size + text]},
    }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # the format wants the data aligned
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for source in (rows, names):
            with open(source, "rb") as part:
                while piece := part.read(1 << 22):
                    file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def read_index(path: str | os.PathLike) -> Index:
    """The index in a file.

    Raises:
        UserError: no such file, or no index.
    """
    from lit_vision.weights.checkpoint_layouts import read_file

    if Path(path).suffix.lower() != ".safetensors":
        raise UserError(f"--index {path}: an index is a .safetensors file of lit-vision embed; name one")
    state, metadata = read_file(path)
    if metadata.get("lit_vision") != "Index":
        raise UserError(f"--index {path}: is no index; make one with lit-vision embed")
    names = state["names"].numpy().tobytes().split(b"\0")[:-1]
    features = state["features"].numpy()
    if len(names) != len(features):
        raise UserError(f"--index {path}: {len(features)} features for {len(names)} names, it is damaged; embed again")
    return Index(Path(path), [os.fsdecode(n) for n in names], features, json.loads(metadata["made_with"]))


def check_same_model(index: Index, about: dict[str, Any]) -> None:
    """Refuse to compare features of different models.

    Raises:
        UserError: names what differs.
    """
    differing = [key for key in about if index.feature_settings.get(key) != about[key]]
    if differing:
        what = "another model" if "features" in differing else f"another {differing[0]}"
        raise UserError(
            f"--index {index.path}: its features are of {what} than --model; embed the images with this model"
        )


class NearestNeighbors:
    """Exact search by cosine similarity (faiss, inner product of vectors of length 1).

    Args:
        features: (N, D) float32; copied and scaled. A row of zeros is similar to nothing.
    """

    def __init__(self, features: Any) -> None:
        import numpy as np

        try:
            import faiss
        except ImportError as error:
            raise UserError("search: faiss is not installed; pip install 'lit-vision[search]'") from error
        self.features = np.array(features, dtype=np.float32, order="C")
        faiss.normalize_L2(self.features)
        self.index = faiss.IndexFlatIP(self.features.shape[1])
        self.index.add(self.features)
        self.faiss = faiss

    def top(self, queries: Any, k: int) -> list[list[tuple[int, float]]]:
        """The k nearest rows of each query (M, D), best first: (row, cosine)."""
        import numpy as np

        queries = np.array(queries, dtype=np.float32, order="C")
        self.faiss.normalize_L2(queries)
        scores, rows = self.index.search(queries, min(k, len(self.features)))
        return [[(int(r), float(s)) for r, s in zip(*both)] for both in zip(rows, scores)]

    def pairs(self, threshold: float) -> Iterator[tuple[int, int, float]]:
        """All (i, j, cosine) with i < j and cosine above the threshold, by i, then j."""
        for start in range(0, len(self.features), ROWS):
            limits, scores, rows = self.index.range_search(self.features[start : start + ROWS], threshold)
            for i in range(len(limits) - 1):
                mine = slice(limits[i], limits[i + 1])
                for j, score in sorted(zip(rows[mine].tolist(), scores[mine].tolist())):
                    if j > start + i:
                        yield start + i, j, score


def connected_groups(pairs: Sequence[tuple[int, int, float]]) -> list[list[int]]:
    """Images that are linked by pairs, directly or through others; each group sorted, groups by their first image."""
    above: dict[int, int] = {}

    def root(i: int) -> int:
        while above.setdefault(i, i) != i:
            above[i] = above[above[i]]
            i = above[i]
        return i

    for i, j, _ in pairs:
        above[max(root(i), root(j))] = min(root(i), root(j))
    found: dict[int, list[int]] = {}
    for i in sorted(above):
        found.setdefault(root(i), []).append(i)
    return list(found.values())


# ------------------------------------------------------------------ commands
