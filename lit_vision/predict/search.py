"""Feature index and nearest-neighbor search.

An index is a safetensors file: `features` (N, D) float32 as the model returned them, `names` of the images joined by
zero bytes, and in its metadata the settings of the features; features of another model, view or precision are refused.
Features that texts can be compared with have the setting `space`: "images and texts". An approximate index
(ann_index.py) lies in the same file, as bytes `ann`, with its record in the metadata. Files are mapped, not read: N may
exceed memory.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_path
from lit_vision.weights.model_metadata import SHARED_SPACE, ModelMetadata

_QUERIES_AT_ONCE, _ROWS_AT_ONCE = 1024, 1 << 16


@dataclass
class Index:
    """Features of N images, D wide.

    Attributes:
        path: the file.
        names: of the N images.
        features: (N, D) float32, mapped from the file; not to be written to.
        feature_settings: model, space, view and precision that the features depend on.
        ann: bytes of an approximate index, uint8, mapped from the file; None for exact search.
        ann_record: what is known of these bytes (`ann_index.AnnRecord`).
    """

    path: Path
    names: list[str]
    features: np.ndarray
    feature_settings: dict[str, Any]
    ann: np.ndarray | None = None
    ann_record: dict[str, Any] = field(default_factory=dict)

    @property
    def in_shared_space(self) -> bool:
        """True if texts can be compared with the features (see shared_space.py)."""
        return self.feature_settings.get("space") == SHARED_SPACE


def feature_settings(metadata: ModelMetadata) -> dict[str, Any]:
    """Return the settings that a model's features depend on; indices with equal settings can be compared."""
    return {
        "features": metadata.features,
        "mean": metadata.mean,
        "std": metadata.std,
        "size": metadata.size,
        "crop_pct": metadata.crop_pct,
        "precision": metadata.precision,
        **({"value_range": metadata.value_range} if metadata.value_range else {}),
        **({"space": metadata.options["space"]} if "space" in metadata.options else {}),
    }


@dataclass(frozen=True)
class FilePiece:
    """`size` bytes of a file from `start`; attributes: the file's path, and these numbers."""

    path: Path
    start: int
    size: int

    @classmethod
    def all_of(cls, path: Path) -> FilePiece:
        """Return all bytes of a file."""
        return cls(path, 0, path.stat().st_size)

    def copy_to(self, file: BinaryIO) -> None:
        """Write the bytes to a file, in pieces."""
        with open(self.path, "rb") as source:
            source.seek(self.start)
            left = self.size
            while piece := source.read(min(left, 1 << 22)):
                file.write(piece)
                left -= len(piece)


def write_index(
    path: Path,
    rows: Sequence[FilePiece],
    names: Sequence[FilePiece],
    width: int,
    settings: dict[str, Any],
    ann: Path | None = None,
    ann_record: Mapping[str, Any] | None = None,
) -> None:
    """Write an index, in pieces: N may exceed memory.

    Args:
        path: the file.
        rows: raw float32 rows.
        names: of the images, each ended by a zero byte.
        width: D.
        settings: from `feature_settings`.
        ann: file of an approximate index; None for exact search.
        ann_record: of it.

    Raises:
        OSError: the file cannot be written.
    """
    parts = {"features": list(rows), "names": list(names), **({"ann": [FilePiece.all_of(ann)]} if ann else {})}
    metadata = {"format": "pt", "lit_vision": "Index", "made_with": json.dumps(settings)}
    if ann:
        metadata["ann"] = json.dumps(ann_record)
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, pieces in parts.items():
        size = sum(piece.size for piece in pieces)
        kind, shape = ("F32", [size // (4 * width), width]) if name == "features" else ("U8", [size])
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # safetensors aligns the data to 8 bytes
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for pieces in parts.values():
            for piece in pieces:
                piece.copy_to(file)


def join_indices(path: Path, parts: Sequence[Path]) -> None:
    """Write the features and names of several indices, in their order, as one index for exact search."""
    first = read_index(parts[0])
    rows, names = zip(*(index_pieces(part) for part in parts))
    write_index(path, rows, names, first.features.shape[1], first.feature_settings)


def index_pieces(path: Path) -> tuple[FilePiece, FilePiece]:
    """Return where the features and the names of an index lie in its file."""
    with open(path, "rb") as file:
        begin, header = _header(file)
    offsets = [header[name]["data_offsets"] for name in ("features", "names")]
    rows, names = (FilePiece(path, begin + first, last - first) for first, last in offsets)
    return rows, names


def _header(file: BinaryIO) -> tuple[int, dict[str, Any]]:
    """Return where the data of a safetensors file begin, and its header."""
    (length,) = struct.unpack("<Q", file.read(8))
    return 8 + length, json.loads(file.read(length))


def read_index(path: str | os.PathLike[str]) -> Index:
    """Map an index.

    Raises:
        UserError: no such file, or no index.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"--index {path}: an index is a .safetensors file of lit-vision embed; name one")
    if not path.is_file():
        raise UserError(f"--index {path}: no such file; check the path of the index")
    try:
        with safe_open(path, "np") as checked:  # compares all offsets with the size of the file
            metadata = checked.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"--index {path}: is not a complete safetensors file ({error}); take another copy") from None
    if metadata.get("lit_vision") != "Index":
        raise UserError(f"--index {path}: is not an index; make one with lit-vision embed")
    try:
        with open(path, "rb") as file:
            begin, header = _header(file)
        features = _mapped(path, begin, header["features"], "F32")
        names = _mapped(path, begin, header["names"], "U8").tobytes().split(b"\0")[:-1]
        ann = _mapped(path, begin, header["ann"], "U8") if "ann" in metadata else None
        settings, ann_record = json.loads(metadata["made_with"]), json.loads(metadata.get("ann", "{}"))
        if features.ndim != 2 or not isinstance(settings, dict) or not isinstance(ann_record, dict):
            raise ValueError
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"--index {path}: is damaged: it lacks what every index has; embed again") from None
    if len(names) != len(features):
        raise UserError(f"--index {path}: is damaged: {len(features)} features for {len(names)} names; embed again")
    if not names or not features.shape[1]:
        raise UserError(f"--index {path}: holds no features; embed again")
    return Index(path, [os.fsdecode(n) for n in names], features, settings, ann, ann_record)


def _mapped(path: Path, begin: int, entry: Mapping[str, Any], kind: str) -> np.ndarray:
    """Return a tensor of a safetensors file as an array that is mapped from it; ValueError for another type."""
    if entry["dtype"] != kind:
        raise ValueError(entry["dtype"])
    shape, offset = tuple(entry["shape"]), begin + entry["data_offsets"][0]
    dtype = np.dtype("<f4" if kind == "F32" else "u1")
    if 0 in shape:  # an empty part of a file cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape)


def check_same_model(index: Index, settings: dict[str, Any]) -> None:
    """Refuse to compare features of different models.

    Args:
        index: the index.
        settings: from `feature_settings`, of the model of the queries.

    Raises:
        UserError: names the first setting that differs.
    """
    compared = [key for key in settings if key != "space"]  # `features` differs with it, and older files have none
    differing = [key for key in compared if index.feature_settings.get(key) != settings[key]]
    if differing:
        what = "another model" if "features" in differing else f"another {differing[0]}"
        raise UserError(
            f"--index {index.path}: its features are of {what} than --model; embed the images with this model"
        )


def check_holds_texts_of(index: Index, metadata: ModelMetadata) -> None:
    """Refuse to compare texts with features of another space than a model's; the images' view does not matter.

    Args:
        index: the index.
        metadata: of the model that encodes the texts, loaded with `shared_space`.

    Raises:
        UserError: features of another model, or of this model's backbone alone.
    """
    if index.feature_settings.get("features") != metadata.features:
        raise UserError(
            f"--index {index.path}: its features are not in the space of --model's texts (they are of another model, "
            "or of a backbone alone); embed the images with this model"
        )


def import_faiss() -> Any:
    """Return the package faiss.

    Raises:
        UserError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError("search: faiss is not installed; pip install 'lit-vision[search]'") from error
    return faiss


class NearestNeighbors:
    """Exact search by cosine similarity (faiss, inner product of vectors of length 1).

    Args:
        features: (N, D) float32; copied and scaled. A row of zeros is similar to nothing.

    Raises:
        UserError: faiss is not installed.
    """

    def __init__(self, features: np.ndarray) -> None:
        self.faiss = import_faiss()
        self.index = self.faiss.IndexFlatIP(features.shape[1])
        for first in range(0, len(features), _ROWS_AT_ONCE):  # one copy of them in memory
            rows = np.array(features[first : first + _ROWS_AT_ONCE], dtype=np.float32, order="C")
            self.faiss.normalize_L2(rows)
            self.index.add(rows)

    def top(self, queries: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
        """Return the k nearest rows of each query (M, D), best first, as (row, cosine)."""
        queries = np.array(queries, dtype=np.float32, order="C")
        self.faiss.normalize_L2(queries)
        scores, rows = self.index.search(queries, min(k, self.index.ntotal))
        # faiss fills up with -1 what it does not find, as for a query or rows that are not finite
        return [[(int(r), float(s)) for r, s in zip(*both) if r >= 0] for both in zip(rows, scores)]

    def pairs(self, threshold: float) -> Iterator[tuple[int, int, float]]:
        """Yield all (i, j, cosine) with i < j and a cosine above the threshold, by i, then j."""
        count = self.index.ntotal
        for start in range(0, count, _QUERIES_AT_ONCE):
            queries = self.index.reconstruct_n(start, min(_QUERIES_AT_ONCE, count - start))
            limits, scores, rows = self.index.range_search(queries, threshold)
            for i in range(len(limits) - 1):
                matches = slice(limits[i], limits[i + 1])
                for j, score in sorted(zip(rows[matches].tolist(), scores[matches].tolist())):
                    if j > start + i:
                        yield start + i, j, score
