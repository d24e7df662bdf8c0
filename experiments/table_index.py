"""Search in a million vectors: recall@10, size, memory, seconds to build and to answer, of the three types of index.

The vectors are made of real ones: features of the patches (EfficientNet-Lite0 of the extra [public], 1280 values, their
384 principal components), repeated, each with Gaussian noise whose expected length is the median distance of a real
vector to its nearest neighbor. Queries are 1,000 more such vectors, which no index holds. Building and search
are measured in processes of their own, on one core; IVF-PQ and exact search have a million vectors, HNSW 200,000.
Run: make table-index (1.6 GB of disk, up to 4.8 while an index is written)      Measure HNSW again: make verify-index
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from table_script import RESULTS, ROOT, Tally, run_table

WIDTH, QUERIES, EXACT_QUERIES, TOP = 384, 1_000, 100, 10  # exact search is timed on fewer, since it is slow
ROWS = (("exact", 1_000_000), ("ivfpq", 1_000_000), ("hnsw", 200_000), ("exact", 200_000))
LIMITS = {"ivfpq": {"file_mb": 150, "build_mb": 1000, "search_mb": 1000}}  # at most, of the million vectors
AT_ONCE = 20_000  # vectors made at a time
FOLDER = ROOT / "runs" / "table-index"
RESULT, PAGE = RESULTS / "index.json", RESULTS / "index.md"


class AnonymousMemory:
    """Peak of this process's anonymous memory (RssAnon), MB. Use it as a context manager."""

    def __enter__(self) -> AnonymousMemory:
        self.peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.05):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


def real_vectors() -> np.ndarray:
    """Return (N, 384) float32: principal components of the real features."""
    from frozen_sets import read_frozen

    images = read_frozen("patches", "lite0")
    assert images is not None
    features = np.concatenate([images.features, images.test]).astype(np.float64)
    centered = features - features.mean(0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    return (centered @ axes[:WIDTH].T).astype(np.float32)


def median_nearest(vectors: np.ndarray) -> float:
    """Return the median Euclidean distance of a vector to its nearest other one."""
    squares = (vectors.astype(np.float64) ** 2).sum(1)
    distances = squares[:, None] + squares - 2 * vectors.astype(np.float64) @ vectors.T
    np.fill_diagonal(distances, np.inf)
    return float(np.median(np.sqrt(np.maximum(distances.min(1), 0))))


def noisy(vectors: np.ndarray, distance: float, first: int, count: int) -> np.ndarray:
    """Return vectors first to first + count - 1 of the endless list: the real ones in turn, each with its own noise."""
    rng = np.random.default_rng([7, first])
    rows = np.arange(first, first + count) % len(vectors)
    noise = rng.standard_normal((count, vectors.shape[1]), np.float32) * np.float32(distance / vectors.shape[1] ** 0.5)
    return vectors[rows] + noise


def write_vectors(path: Path, count: int) -> None:
    """Write an index for exact search of `count` vectors, and its queries beside it."""
    from lit_vision.predict.search import FilePiece, write_index

    real = real_vectors()
    distance = median_nearest(real)
    rows, names = path.with_suffix(".rows"), path.with_suffix(".names")
    with open(rows, "wb") as file:
        for first in range(0, count, AT_ONCE):
            noisy(real, distance, first, min(AT_ONCE, count - first)).tofile(file)
    names.write_bytes(b"".join(b"%d\0" % i for i in range(count)))
    chosen = np.random.default_rng(7).permutation(len(real))  # the real ones are sorted by class
    np.save(FOLDER / "queries.npy", noisy(real[chosen], distance, 10**9, QUERIES))
    note = {"made up": True, "real vectors": len(real), "median nearest": distance}
    write_index(path, [FilePiece.all_of(rows)], [FilePiece.all_of(names)], WIDTH, note)
    rows.unlink()
    names.unlink()


def measure_building(index_type: str, count: int) -> dict[str, Any]:
    """Build an index, and return what was measured; the index, and the answers of exact search, stay in FOLDER."""
    import faiss

    from lit_vision.predict.ann_index import add_ann, exact_top
    from lit_vision.predict.search import read_index

    faiss.omp_set_num_threads(1)
    path = FOLDER / f"{index_type}-{count}.safetensors"
    write_vectors(path, count)
    found: dict[str, Any] = {"type": index_type, "vectors": count}
    if index_type != "exact":
        began = time.process_time()
        with AnonymousMemory() as memory:
            record, seconds = add_ann(path, index_type)
        print(f"{count:,}: {record.line(seconds)}", flush=True)
        found |= {"record": asdict(record), "build_mb": memory.peak, "build_s": seconds}
        found["build_cpu_s"] = time.process_time() - began
    index = read_index(path)
    _, wanted = exact_top(index.features, np.load(FOLDER / "queries.npy"), TOP)
    np.save(path.with_suffix(".npy"), wanted)
    return found | {"note": index.feature_settings}


def measure_search(index_type: str, count: int) -> dict[str, Any]:
    """Return what was measured of answering the queries with an index that `measure_building` left, and remove it."""
    import faiss

    from lit_vision.predict.ann_index import open_neighbors
    from lit_vision.predict.search import read_index

    faiss.omp_set_num_threads(1)
    path = FOLDER / f"{index_type}-{count}.safetensors"
    queries, wanted = np.load(FOLDER / "queries.npy"), np.load(path.with_suffix(".npy"))
    if index_type == "exact":
        queries, wanted = queries[:EXACT_QUERIES], wanted[:EXACT_QUERIES]
    with AnonymousMemory() as memory:
        index = read_index(path)
        neighbors = open_neighbors(index)
        neighbors.top(queries[:20], TOP)
        began, began_cpu = time.perf_counter(), time.process_time()
        answers = [neighbors.top(query[None], TOP)[0] for query in queries]
        found = {"query_ms": 1000 * (time.perf_counter() - began) / len(queries)}
        found["query_cpu_ms"] = 1000 * (time.process_time() - began_cpu) / len(queries)
    found["search_mb"] = memory.peak
    hits = [len({row for row, _ in answer} & {*rows}) for answer, rows in zip(answers, wanted.tolist())]
    found["recall"] = sum(hits) / (TOP * len(queries))
    found["file_mb"] = (index.features if index.ann is None else index.ann).nbytes / 1e6
    found["bytes_per_vector"] = 1e6 * found["file_mb"] / count
    path.unlink()
    path.with_suffix(".npy").unlink()
    return found


PARTS = {"building": measure_building, "search": measure_search}  # of a row, a process each, for their memory


def make() -> None:
    """Measure what is missing and write the results."""
    from lit_vision.io.atomic import write_json
    from lit_vision.results.environment import collect_environment

    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"about {multiply_adds() / 1e12:.1f} trillion multiply-adds", flush=True)
    rows = []
    for index_type, count in ROWS:
        row = {}
        for part in PARTS:
            file = FOLDER / f"{index_type}-{count}-{part}.json"
            if not file.exists():
                code = f"import table_index as t; t.write_part({part!r}, {index_type!r}, {count})"
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()}
                subprocess.run([sys.executable, "-c", code], check=True, env=environment)
            row |= json.loads(file.read_text())
        rows.append(row)
    write_json(RESULT, {"rows": rows, "multiply_adds": multiply_adds(), "environment": collect_environment()})
    PAGE.write_text(to_markdown(json.loads(RESULT.read_text())) + "\n")


def _python_path() -> str:
    return os.pathsep.join([str(ROOT / "experiments"), *filter(None, [os.environ.get("PYTHONPATH")])])


def write_part(part: str, index_type: str, count: int) -> None:
    """Measure one part of a row, "building" or "search", and write its file."""
    from lit_vision.io.atomic import write_json

    write_json(FOLDER / f"{index_type}-{count}-{part}.json", PARTS[part](index_type, count))


def multiply_adds() -> int:
    """Return the multiply-adds of what can be counted: training and filling IVF-PQ, and the exact comparisons."""
    from lit_vision.predict.ann_index import ITERATIONS, SAMPLE_PER_LIST, number_of_lists

    training = filling = 0
    for count in (count for kind, count in ROWS if kind == "ivfpq"):
        lists = number_of_lists(count)
        training += SAMPLE_PER_LIST * lists**2 * WIDTH * ITERATIONS
        filling += count * (lists + 256) * WIDTH
    exact = sum(count * (2 if kind == "exact" else 3) * QUERIES * WIDTH for kind, count in ROWS)
    return training + filling + exact


def to_markdown(found: dict[str, Any]) -> str:
    """Return the page of a result."""
    note = found["rows"][0]["note"]
    lines = [
        f"# Search in a million vectors of {WIDTH} values",
        "",
        f"{note['real vectors']:,} real vectors, repeated, with noise of the median distance to the nearest neighbor; "
        f"recall@{TOP} and milliseconds of {QUERIES:,} queries (exact search: {EXACT_QUERIES}), one at a time on one "
        "core, after exact ranking. CPU seconds of building contain measuring its recall; wall time (in the JSON file) "
        "depends on what else the machine does. MB of anonymous memory are of all of the process, while building and "
        f"while searching. The float vectors ({4 * WIDTH} bytes each) are mapped from the file, except by exact "
        "search. `make table-index`.",
        "",
        "| index | vectors | recall@10 | MB | bytes each | build, CPU s | CPU ms a query | build, MB | search, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        seconds, memory = (f"{row[name]:.0f}" if name in row else "-" for name in ("build_cpu_s", "build_mb"))
        query = f"{row['query_cpu_ms']:.2f}"
        lines.append(
            f"| {row['type']} | {row['vectors']:,} | {row['recall']:.4f} | {row['file_mb']:.0f} | "
            f"{row['bytes_per_vector']:.0f} | {seconds} | {query} | {memory} | {row['search_mb']:.0f} |"
        )
    lines += ["", *(f"- {limit}" for limit in limits(found["rows"]))]
    lines += [f"- counted: {found['multiply_adds'] / 1e12:.1f} trillion multiply-adds"]
    lines += [
        f"- {row['type']}, recall@{TOP} that `lit-vision embed` measures while building, on "
        f"{row['record']['queries']:,} of the vectors themselves: {row['record']['recall_at_10']:.4f}"
        for row in found["rows"]
        if "record" in row
    ]
    return "\n".join(lines)


def limits(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each limit: what was measured, and if it holds."""
    return [
        f"{row['type']}, {name}: {row[name]:.0f}, limit {most}: {'holds' if row[name] <= most else 'does not hold'}"
        for row in rows
        for name, most in LIMITS.get(row["type"], {}).items()
    ]


def show() -> None:
    """Print the table from the committed result."""
    print(to_markdown(json.loads(RESULT.read_text())) if RESULT.exists() else "not run yet")


def verify() -> int:
    """Build the HNSW row again, and compare its recall."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    tally, (committed,) = Tally(), [row for row in json.loads(RESULT.read_text())["rows"] if row["type"] == "hnsw"]
    measured = {**measure_building("hnsw", committed["vectors"]), **measure_search("hnsw", committed["vectors"])}
    tally.add("hnsw, recall@10", committed["recall"], measured["recall"], 0.005)
    return tally.close(len(ROWS))


def print_commands() -> None:
    """Print what would be measured."""
    for index_type, count in ROWS:
        print(f"{index_type} on {count:,} vectors")


def main() -> int:
    """Read the command line of the table."""
    return run_table(__doc__, make, show, verify, print_commands)


if __name__ == "__main__":
    raise SystemExit(main())
