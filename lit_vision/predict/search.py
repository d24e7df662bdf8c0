"""Feature index and nearest-neighbor search.

An index is a safetensors file: `features` (N, D) float32 as the model returned them, `names` of the images joined by
zero bytes, and in its metadata the settings of the features; features of another model, view or precision are refused.
Features that texts can be compared with have the setting `space`: "images and texts".
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_path
from lit_vision.weights.model_metadata import SHARED_SPACE, ModelMetadata

_QUERIES_AT_ONCE = 1024


@dataclass
class Index:
    """Features of N images, D wide.

    Attributes:
        path: the file.
        names: of the N images.
        features: (N, D) float32.
        feature_settings: model, space, view and precision that the features depend on.
    """

    path: Path
    names: list[str]
    features: np.ndarray
    feature_settings: dict[str, Any]

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


def write_index(path: Path, rows: Path, names: Path, width: int, settings: dict[str, Any]) -> None:
    """Write an index from files of raw float32 rows and of zero-terminated names, in pieces: N may exceed memory."""
    rows_size, names_size = rows.stat().st_size, names.stat().st_size
    header = {
        "__metadata__": {"format": "pt", "lit_vision": "Index", "made_with": json.dumps(settings)},
        "features": {"dtype": "F32", "shape": [rows_size // (4 * width), width], "data_offsets": [0, rows_size]},
        "names": {"dtype": "U8", "shape": [names_size], "data_offsets": [rows_size, rows_size + names_size]},
    }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # safetensors aligns the data to 8 bytes
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for source in (rows, names):
            with open(source, "rb") as part:
                while piece := part.read(1 << 22):
                    file.write(piece)


def read_index(path: str | os.PathLike[str]) -> Index:
    """Read an index.

    Raises:
        UserError: no such file, or no index.
    """
    from lit_vision.weights.checkpoint_layouts import read_file

    if Path(path).suffix.lower() != ".safetensors":
        raise UserError(f"--index {path}: an index is a .safetensors file of lit-vision embed; name one")
    state, metadata = read_file(path)
    if metadata.get("lit_vision") != "Index":
        raise UserError(f"--index {path}: is not an index; make one with lit-vision embed")
    try:
        names = state["names"].numpy().tobytes().split(b"\0")[:-1]
        features, settings = state["features"].numpy(), json.loads(metadata["made_with"])
        if features.ndim != 2 or features.dtype != np.float32 or not isinstance(settings, dict):
            raise ValueError
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"--index {path}: is damaged: it lacks what every index has; embed again") from None
    if len(names) != len(features):
        raise UserError(f"--index {path}: is damaged: {len(features)} features for {len(names)} names; embed again")
    return Index(Path(path), [os.fsdecode(n) for n in names], features, settings)


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


class NearestNeighbors:
    """Exact search by cosine similarity (faiss, inner product of vectors of length 1).

    Args:
        features: (N, D) float32; copied and scaled. A row of zeros is similar to nothing.

    Raises:
        UserError: faiss is not installed.
    """

    def __init__(self, features: np.ndarray) -> None:
        try:
            import faiss
        except ImportError as error:
            raise UserError("search: faiss is not installed; pip install 'lit-vision[search]'") from error
        self.features = np.array(features, dtype=np.float32, order="C")
        faiss.normalize_L2(self.features)
        self.index = faiss.IndexFlatIP(self.features.shape[1])
        self.index.add(self.features)
        self.faiss = faiss

    def top(self, queries: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
        """Return the k nearest rows of each query (M, D), best first, as (row, cosine)."""
        queries = np.array(queries, dtype=np.float32, order="C")
        self.faiss.normalize_L2(queries)
        scores, rows = self.index.search(queries, min(k, len(self.features)))
        return [[(int(r), float(s)) for r, s in zip(*both)] for both in zip(rows, scores)]

    def pairs(self, threshold: float) -> Iterator[tuple[int, int, float]]:
        """Yield all (i, j, cosine) with i < j and a cosine above the threshold, by i, then j."""
        for start in range(0, len(self.features), _QUERIES_AT_ONCE):
            queries = self.features[start : start + _QUERIES_AT_ONCE]
            limits, scores, rows = self.index.range_search(queries, threshold)
            for i in range(len(limits) - 1):
                matches = slice(limits[i], limits[i + 1])
                for j, score in sorted(zip(rows[matches].tolist(), scores[matches].tolist())):
                    if j > start + i:
                        yield start + i, j, score
