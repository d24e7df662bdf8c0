"""Approximate indices: recall against all cosines, the same bytes for the same seed, and damage is refused."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from lit_vision.cli.main import main
from lit_vision.errors import UserError
from lit_vision.predict.ann_index import (
    IVFPQ_LEAST,
    add_ann,
    build_ann,
    exact_top,
    open_neighbors,
    recall_at,
)
from lit_vision.predict.search import FilePiece, NearestNeighbors, read_index, write_index

faiss = pytest.importorskip("faiss", reason="needs the search extra")


def made_up_features(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Return (count, width) float32 in clusters, with lengths that differ, and one row of zeros."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(50, width))
    rows = (centers[rng.integers(0, 50, count)] + 0.5 * rng.normal(size=(count, width))) * rng.uniform(1, 3, (count, 1))
    rows[count // 2] = 0
    return rows.astype(np.float32)


def write_made_up(path: Path, features: np.ndarray) -> Path:
    rows, names = path.with_suffix(".rows"), path.with_suffix(".names")
    features.tofile(rows)
    names.write_bytes(b"".join(b"%d.png\0" % i for i in range(len(features))))
    write_index(path, [FilePiece.all_of(rows)], [FilePiece.all_of(names)], features.shape[1], {"size": 16})
    return path


@pytest.fixture(scope="module")
def indices(tmp_path_factory) -> dict[str, Path]:
    """Index files of vectors, 22 wide, by type."""
    found = {}
    for kind, count in (("hnsw", 2000), ("ivfpq", IVFPQ_LEAST)):
        path = tmp_path_factory.mktemp("ann") / f"{kind}.safetensors"
        found[kind] = write_made_up(path, made_up_features(count, 22))
        add_ann(path, kind)
    return found


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_scores_are_exact_cosines_and_recall_is_that_of_numpy(kind: str, indices) -> None:
    index = read_index(indices[kind])
    features = made_up_features(len(index.names), 22)
    np.testing.assert_array_equal(index.features, features)
    rng = np.random.default_rng(1)
    rows = rng.integers(0, len(features), 20)
    queries = 3 * features[rows] + 0.1 * rng.normal(size=(20, 22)).astype(np.float32)
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
    cosines = queries @ unit.T / np.linalg.norm(queries, axis=1, keepdims=True)
    wanted = np.argsort(-cosines, 1, kind="stable")[:, :10]
    found = open_neighbors(index).top(queries, 10)
    for query, row in enumerate(found):
        assert [score for _, score in row] == sorted((score for _, score in row), reverse=True)
        np.testing.assert_allclose([s for _, s in row], cosines[query, [i for i, _ in row]], atol=1e-5)
    recall = np.mean([len({i for i, _ in row} & {*best}) / 10 for row, best in zip(found, wanted.tolist())])
    assert recall > 0.9
    record = index.ann_record
    assert abs(record["recall_at_10"] - recall) < 0.1
    assert record["queries"] == 1000
    assert record["bytes_per_vector"] == round(len(index.ann) / len(index.features), 2)
    everything = open_neighbors(index).top(queries[:1], 2 * len(index.names))[0]
    if kind == "ivfpq":  # hnsw may miss some
        assert sorted(i for i, _ in everything) == list(range(len(index.names)))


def test_exact_top__is_numpy_over_several_pieces(monkeypatch) -> None:
    from lit_vision.predict import ann_index

    monkeypatch.setattr(ann_index, "_PIECE", 7)
    features = made_up_features(30, 5)
    scores, rows = exact_top(features, features[:4], 9)
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
    cosines = unit[:4] @ unit.T
    np.testing.assert_array_equal(rows, np.argsort(-cosines, 1, kind="stable")[:, :9])
    np.testing.assert_allclose(scores, -np.sort(-cosines, 1)[:, :9], atol=1e-6)


def test_recall_at__of_a_search_that_finds_every_second_neighbor() -> None:
    features = made_up_features(60, 8)

    class EverySecond(NearestNeighbors):
        def top(self, queries: np.ndarray, k: int) -> list:
            return [[row[0], *row[1::2]] for row in super().top(queries, k)]

    with_all = NearestNeighbors(features)
    with_all.features = features
    assert recall_at(with_all, np.arange(5), 10) == 1.0
    half = EverySecond(features)
    half.features = features
    assert recall_at(half, np.arange(5), 10) == 0.5


@pytest.mark.parametrize("kind", ["hnsw", pytest.param("ivfpq", marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_bytes(kind: str, indices, tmp_path) -> None:
    index = read_index(indices[kind])
    assert build_ann(kind, index.features, tmp_path / "a", seed=0)[0].sha256 == index.ann_record["sha256"]
    if kind == "ivfpq":
        assert build_ann(kind, index.features, tmp_path / "b", seed=1)[0].sha256 != index.ann_record["sha256"]


def test_too_few_vectors_for_ivfpq(tmp_path) -> None:
    path = write_made_up(tmp_path / "i.safetensors", made_up_features(100, 8))
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"at least {IVFPQ_LEAST} vectors, and there are 100; use exact"):
        add_ann(path, "ivfpq")
    assert path.read_bytes() == before
    record, _ = add_ann(path, "hnsw")
    assert "hnsw: recall@10 " in (line := record.line(3.4))
    assert " against exact search on 100 queries, " in line


def damage(path: Path, case: str) -> None:
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    if case == "a byte":
        data[-5000] ^= 1
    elif case == "cut":
        data = data[:-1]
    elif case == "of other vectors":
        header["features"]["shape"] = [header["features"]["shape"][0] * 2, header["features"]["shape"][1] // 2]
        names = b"".join(b"%07d\0" % i for i in range(header["features"]["shape"][0]))
        first, last = header["names"]["data_offsets"]
        data = data[:first] + names + data[last:]
        header["names"] = {"dtype": "U8", "shape": [len(names)], "data_offsets": [first, first + len(names)]}
        start, end = header["ann"]["data_offsets"]
        header["ann"]["data_offsets"] = [first + len(names), first + len(names) + end - start]
    elif case == "record":
        header["__metadata__"]["ann"] = '{"type": "hnsw"}'
    elif case == "no bytes":
        header["__metadata__"].pop("ann")
        header["__metadata__"]["ann"] = header["__metadata__"].get("ann", "[]")
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


@pytest.mark.parametrize("case", ["a byte", "cut", "of other vectors", "record", "no bytes"])
def test_a_damaged_index_is_refused_in_one_line(case: str, indices, tmp_path, capsys) -> None:
    path = tmp_path / "i.safetensors"
    path.write_bytes(indices["hnsw"].read_bytes())
    damage(path, case)
    with pytest.raises(UserError, match=r"i\.safetensors: (is|its).*(damaged|complete)") as error:
        open_neighbors(read_index(path))
    assert "\n" not in str(error.value)


def test_embed_and_search_use_the_index_that_lies_there(tmp_path, capsys) -> None:
    from toy_models import make_classifier, write_images, write_run

    write_run(tmp_path / "run", make_classifier())
    write_images(tmp_path / "images", 30)
    model = ["--model", str(tmp_path / "run")]
    answers = []
    for kind in ("exact", "hnsw"):
        out = str(tmp_path / f"{kind}.safetensors")
        assert main(["embed", str(tmp_path / "images"), *model, "--out", out, "--index_type", kind]) == 0
        assert ("hnsw: recall@10 1.0000" in capsys.readouterr().out) == (kind == "hnsw")
        query = ["--query", str(tmp_path / "images/red/000.png"), "--top_k", "4"]
        assert main(["search", "--index", out, *model, *query]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    ivfpq = ["--out", str(tmp_path / "p.safetensors"), "--index_type", "ivfpq"]
    assert main(["embed", str(tmp_path / "images"), *model, *ivfpq]) == 1
    assert f"at least {IVFPQ_LEAST} vectors, and there are 30" in capsys.readouterr().err


def test_equal_vectors__are_all_found(tmp_path) -> None:
    features = np.repeat(made_up_features(30, 8), 20, axis=0)
    path = write_made_up(tmp_path / "x.safetensors", features)
    add_ann(path, "hnsw")
    assert read_index(path).ann_record["recall_at_10"] == 1


def test_rows_that_are_not_finite__are_found_by_nothing() -> None:
    features = made_up_features(50, 8)
    features[7, 3], features[8, 3] = np.nan, np.inf
    found = NearestNeighbors(features).top(features[6:9], 50)
    assert {row for rows in found for row, _ in rows} == {*range(50)} - {7, 8}


def test_an_index_of_nothing(tmp_path) -> None:
    with pytest.raises(UserError, match="holds no features"):
        read_index(write_made_up(tmp_path / "x.safetensors", np.zeros((0, 8), np.float32)))
