"""Approximate nearest neighbors (faiss): built in pieces beside the features of an index, ranked again exactly.

`hnsw` is a graph over 8-bit copies of the vectors (Malkov & Yashunin, arXiv:1603.09320), `ivfpq` are lists of short
codes (Jegou et al. 2011, IEEE TPAMI 33(1)). Both propose candidates; the float vectors of the candidates, read from the
mapped file, give the cosines that are returned. N vectors, D wide.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.errors import UserError
from lit_vision.io.hashing import sha256_of_file
from lit_vision.predict.search import (
    Index,
    NearestNeighbors,
    import_faiss,
    index_pieces,
    read_index,
    write_index,
)

INDEX_TYPES = ("exact", "hnsw", "ivfpq")
IVFPQ_LEAST = 9_984  # vectors: 39 for each of 256 centroids, what faiss asks for its training
MEASURED_AT, _QUERIES = 10, 1_000  # recall@10 of 1,000 of the vectors
_PIECE = 1 << 16  # vectors in memory at a time
_HNSW_LINKS, _HNSW_BREADTH = 32, 100  # M and efConstruction
_CANDIDATES = {"hnsw": 10, "ivfpq": 40}  # a result; codes tell near vectors apart less well than 8-bit values do
_LEAST_RESULTS = 10  # that candidates are counted for
SAMPLE_PER_LIST, MOST_LISTS, ITERATIONS, _PROBES = 40, 4_096, 10, 64  # of k-means: vectors a list, iterations
_CODE_SAMPLE = 128  # vectors a centroid, for the 256 of each byte of the codes
_MOST_CODE_BYTES = 96
_ROUNDING = 1e-6  # of a cosine in float32


@dataclass(frozen=True)
class AnnRecord:
    """Record of an approximate index, in the metadata of the file that it lies in.

    Attributes:
        type: "hnsw" or "ivfpq".
        seed: of the training sample, and of k-means.
        size: bytes.
        sha256: of these bytes.
        bytes_per_vector: size / N.
        recall_at_10: share of the 10 nearest other vectors that it finds, mean over `queries`, after exact ranking.
        queries: number of the vectors that were looked for.
    """

    type: str
    seed: int
    size: int
    sha256: str
    bytes_per_vector: float
    recall_at_10: float
    queries: int

    def line(self, seconds: float) -> str:
        """Return a line for a command to print; `seconds` is how long building took."""
        return (
            f"{self.type}: recall@{MEASURED_AT} {self.recall_at_10:.4f} against exact search on {self.queries} "
            f"queries, {self.bytes_per_vector:.1f} bytes a vector, {seconds:.0f} s"
        )


def check_trainable(index_type: str, vectors: int) -> None:
    """Refuse too few vectors for an index that is trained.

    Raises:
        UserError: names the number that is needed.
    """
    if index_type == "ivfpq" and vectors < IVFPQ_LEAST:
        raise UserError(
            f"--index_type ivfpq: is trained on at least {IVFPQ_LEAST} vectors, and there are {vectors}; use exact "
            "(as quick for so few) or hnsw"
        )


def add_ann(path: Path, index_type: str, seed: int = 0) -> tuple[AnnRecord, float]:
    """Put an approximate index into an index for exact search; return its record and the seconds of building.

    Args:
        path: the file; it is replaced.
        index_type: "hnsw" or "ivfpq".
        seed: as for `build_ann`.

    Raises:
        UserError: as `build_ann`.
    """
    index = read_index(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".ann") as folder:
        file = Path(folder) / "ann"
        record, seconds = build_ann(index_type, index.features, file, seed)
        rows, names = index_pieces(path)
        write_index(path, [rows], [names], index.features.shape[1], index.feature_settings, file, asdict(record))
    return record, seconds


def build_ann(index_type: str, features: np.ndarray, path: Path, seed: int = 0) -> tuple[AnnRecord, float]:
    """Write an approximate index of features, and measure it.

    In memory are the index, a training sample of at most 40 vectors a list, and one piece of the features. Equal
    features, seeds and versions of faiss give equal bytes.

    Args:
        index_type: "hnsw" or "ivfpq".
        features: (N, D) float32, usually mapped from a file.
        path: the file to write.
        seed: of the training sample and of k-means.

    Returns:
        Its record, and the seconds that building took, without the measurement.

    Raises:
        UserError: faiss is not installed, or too few vectors.
    """
    check_trainable(index_type, len(features))
    faiss = import_faiss()
    began = time.perf_counter()
    index = _new_hnsw(faiss, features.shape[1]) if index_type == "hnsw" else _new_ivfpq(faiss, features, seed)
    sample = _sample(features, SAMPLE_PER_LIST * (index.nlist if index_type == "ivfpq" else 256), seed)
    index.train(_unit(sample, index.d))
    del sample
    threads = faiss.omp_get_max_threads()
    if index_type == "hnsw":
        faiss.omp_set_num_threads(1)  # the graph depends on the order of additions
    try:
        for piece in _pieces(features):
            index.add(_unit(piece, index.d))
    finally:
        faiss.omp_set_num_threads(threads)
    faiss.write_index(index, str(path))
    seconds = time.perf_counter() - began
    queries = np.sort(np.random.default_rng(seed).choice(len(features), min(_QUERIES, len(features)), replace=False))
    recall = recall_at(ApproximateNeighbors(index, features), queries)
    size = path.stat().st_size
    per_vector = round(size / len(features), 2)
    record = AnnRecord(index_type, seed, size, sha256_of_file(path), per_vector, round(recall, 4), len(queries))
    return record, seconds


def _new_hnsw(faiss: Any, width: int) -> Any:
    """Return an empty graph over 8-bit values."""
    index = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_8bit, _HNSW_LINKS)
    index.hnsw.efConstruction = _HNSW_BREADTH
    return index


def _new_ivfpq(faiss: Any, features: np.ndarray, seed: int) -> Any:
    """Return empty lists of codes of at most 96 bytes: D is filled up with zeros to a multiple of the code's bytes."""
    count, width = features.shape
    lists = number_of_lists(count)
    code_bytes = min(_MOST_CODE_BYTES, -(-width // 4))
    padded = -(-width // code_bytes) * code_bytes
    quantizer = faiss.IndexFlatIP(padded)
    index = faiss.IndexIVFPQ(quantizer, padded, lists, code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    quantizer.this.disown()
    index.own_fields = True
    index.nprobe = min(_PROBES, lists)
    index.cp.seed = index.pq.cp.seed = seed + 1
    index.cp.spherical, index.cp.niter = True, ITERATIONS
    index.pq.cp.niter, index.pq.cp.max_points_per_centroid = ITERATIONS, _CODE_SAMPLE
    return index


def number_of_lists(count: int) -> int:
    """Return the lists of an IVF-PQ index of so many vectors: the power of two that is nearest to 2 sqrt(count)."""
    return int(min(MOST_LISTS, 1 << round(np.log2(2 * np.sqrt(count))), count // 39))


class ApproximateNeighbors:
    """Candidates of a faiss index, ranked again by the exact cosine of their float vectors.

    Args:
        index: of unit vectors, filled up with zeros to its width.
        features: (N, D) float32 that it was made of, usually mapped from a file. A row of zeros is similar to nothing.
    """

    def __init__(self, index: Any, features: np.ndarray) -> None:
        self.index, self.features = index, features

    def top(self, queries: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
        """Return the k nearest rows of each query (M, D), best first, as (row, cosine); equal ones by row."""
        count = len(self.features)
        is_graph = hasattr(self.index, "hnsw")
        wanted = min(_CANDIDATES["hnsw" if is_graph else "ivfpq"] * max(k, _LEAST_RESULTS), count)
        queries = _unit(queries, self.index.d)
        faiss = import_faiss()
        breadth = faiss.SearchParametersHNSW(efSearch=wanted) if is_graph else None
        _, rows = self.index.search(queries, wanted, params=breadth)
        if not is_graph and (rows[:, min(k, count) - 1] < 0).any():  # the lists that were searched are too short
            _, rows = self.index.search(queries, wanted, params=faiss.SearchParametersIVF(nprobe=self.index.nlist))
        found = []
        for query, candidates in zip(queries, rows):
            candidates = np.sort(candidates[candidates >= 0])
            scores = _unit(self.features[candidates], self.index.d) @ query
            order = np.argsort(-scores, kind="stable")[:k]
            found.append([(int(candidates[i]), float(scores[i])) for i in order])
        return found


def recall_at(searcher: ApproximateNeighbors, rows: np.ndarray, k: int = MEASURED_AT) -> float:
    """Return the share of the k nearest other vectors that a search finds, mean over some of the vectors.

    What is found counts if it is as near as the k-th of them: of equal vectors, any will do.

    Args:
        searcher: of N vectors.
        rows: (M,) int, those that are looked for; none finds itself.
        k: number of neighbors, at least 1.
    """
    queries = np.asarray(searcher.features[rows])
    scores, exact = exact_top(searcher.features, queries, min(k + 1, len(searcher.features)))
    hits = total = 0
    for query, found in enumerate(searcher.top(queries, k + 1)):
        row = int(rows[query])
        wanted = scores[query][exact[query] != row][:k]
        nearest = [score for i, score in found if i != row][: len(wanted)]
        hits += sum(score >= float(wanted[-1]) - _ROUNDING for score in nearest)
        total += len(wanted)
    return hits / total if total else 1.0


def exact_top(features: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and rows of the k nearest of all vectors, (M, k) each, with one piece of them in memory."""
    faiss, width = import_faiss(), features.shape[1]
    queries = _unit(queries, width)
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    first = 0
    for piece in _pieces(features):
        new_scores, new_rows = faiss.knn(queries, _unit(piece, width), min(k, len(piece)), faiss.METRIC_INNER_PRODUCT)
        scores, rows = np.hstack([scores, new_scores]), np.hstack([rows, new_rows + first])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        first += len(piece)
    return scores, rows


def open_neighbors(index: Index) -> NearestNeighbors | ApproximateNeighbors:
    """Return the search of an index: the approximate one that lies in it, or an exact one.

    Raises:
        UserError: faiss is not installed, or the approximate index is damaged.
    """
    if index.ann is None:
        return NearestNeighbors(index.features)
    faiss = import_faiss()
    damaged = UserError(f"--index {index.path}: its approximate index is damaged; embed again")
    try:
        record = AnnRecord(**index.ann_record)
    except TypeError:
        raise damaged from None
    content = index.ann.data
    if record.size != len(content) or hashlib.sha256(content).hexdigest() != record.sha256:
        raise damaged  # faiss does not check what it reads

    def read(size: int) -> bytes:
        nonlocal content
        piece, content = bytes(content[:size]), content[size:]
        return piece

    try:
        found = faiss.read_index(faiss.PyCallbackIOReader(read))
    except RuntimeError:
        raise damaged from None
    kind = {"IndexHNSWSQ": "hnsw", "IndexIVFPQ": "ivfpq"}.get(type(found).__name__)
    if kind != record.type or found.ntotal != len(index.features) or found.d < index.features.shape[1]:
        raise damaged
    return ApproximateNeighbors(found, index.features)


def _sample(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return `count` of the vectors, or all if there are fewer, in their order."""
    rows = np.random.default_rng(seed).choice(len(features), min(count, len(features)), replace=False, shuffle=False)
    return np.asarray(features[np.sort(rows)])


def _pieces(features: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the vectors in pieces that fit in memory."""
    for first in range(0, len(features), _PIECE):
        yield features[first : first + _PIECE]


def _unit(vectors: np.ndarray, width: int) -> np.ndarray:
    """Return vectors scaled to length 1, as float32 filled up with zeros to a width; zeros stay zeros."""
    found = np.zeros((len(vectors), width), np.float32)
    found[:, : vectors.shape[1]] = vectors
    import_faiss().normalize_L2(found)
    return found
