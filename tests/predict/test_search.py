"""embed and search: exact neighbors, near duplicates, indices of other models, wrong commands."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from toy_models import make_classifier, write_images, write_run

from lit_vision.cli.main import main
from lit_vision.predict.search import read_index
from lit_vision.weights.load import save_backbone


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A run, images with two near copies, and their index."""
    folder = tmp_path_factory.mktemp("search")
    write_run(folder / "run", make_classifier())
    write_images(folder / "images")
    for source, copy in (("red/000.png", "red/000_copy.png"), ("green/001.png", "blue/001_copy.png")):
        pixels = np.asarray(Image.open(folder / "images" / source)).copy()
        pixels[0, 0] ^= 1
        Image.fromarray(pixels).save(folder / "images" / copy)
    (folder / "images" / "torn.png").touch()
    assert embed(folder, folder / "index.safetensors") == 0
    return folder


def embed(root: Path, out: Path, *more: str, model: str = "run", images: str = "images") -> int:
    arguments = ["embed", str(root / images), "--model", str(root / model), "--out", str(out), "--device", "cpu"]
    return main([*arguments, "--batch_size", "4", *more])


def search(root: Path, *more: str, model: str = "run", index: str = "index.safetensors") -> int:
    return main(["search", "--index", str(root / index), "--model", str(root / model), "--device", "cpu", *more])


def test_embed__is_the_backbone_and_survives_a_stop(root, tmp_path, stopped_writer) -> None:
    index = read_index(root / "index.safetensors")
    assert len(index.names) == 14
    assert index.features.shape == (14, 32)
    assert sorted(index.names) == index.names
    assert "torn.png" not in index.names
    assert "torn.png" in (root / "index.safetensors.skipped.csv").read_text()
    with stopped_writer(3):
        assert embed(root, tmp_path / "i.safetensors") == 130
    assert embed(root, tmp_path / "i.safetensors") == 0
    assert (tmp_path / "i.safetensors").read_bytes() == (root / "index.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_embed__takes_a_body_without_a_head_and_agrees(root, tmp_path) -> None:
    method = make_classifier()
    path = save_backbone(tmp_path / "body.safetensors", method.backbone, method.mean, method.std)
    assert embed(root, tmp_path / "i.safetensors", model=str(path)) == 0
    a, b = read_index(tmp_path / "i.safetensors"), read_index(root / "index.safetensors")
    np.testing.assert_allclose(a.features, b.features, atol=1e-6)
    assert a.feature_settings == b.feature_settings  # one backbone, one index


def test_search__is_the_sorted_list_of_all_cosines(root, tmp_path, capsys) -> None:
    pytest.importorskip("faiss", reason="needs the search extra")
    query = root / "images/red/000.png"
    assert search(root, "--query", str(query), "--top_k", "5", "--out", str(tmp_path / "o.csv")) == 0
    text = capsys.readouterr().out.splitlines()
    index = read_index(root / "index.safetensors")
    unit = index.features / np.linalg.norm(index.features, axis=1, keepdims=True)
    cosine = unit @ unit[index.names.index("red/000.png")]
    order = np.argsort(-cosine, kind="stable")[:5]
    assert {text[0].split("  ")[1], text[1].split("  ")[1]} == {"red/000.png", "red/000_copy.png"}
    assert text[0].startswith("1.0000")
    with open(tmp_path / "o.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows][2:] == [index.names[i] for i in order][2:]
    np.testing.assert_allclose([float(row["score"]) for row in rows], cosine[order], atol=1e-4)
    assert [row["rank"] for row in rows] == list("12345")


def test_answers_name_their_query_where_there_are_several(root, tmp_path, capsys) -> None:
    pytest.importorskip("faiss", reason="needs the search extra")
    write_images(tmp_path / "asked", 2)
    write_images(tmp_path / "one", 1)
    assert search(root, "--query", str(tmp_path / "asked"), "--top_k", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("  ")[2] for line in lines] == ["(green/001.png)"] * 2 + ["(red/000.png)"] * 2
    assert search(root, "--query", str(tmp_path / "one"), "--top_k", "2") == 0
    assert "(" not in capsys.readouterr().out


def test_search__a_query_that_cannot_be_read_is_named_and_the_others_are_answered(root, tmp_path, capsys) -> None:
    pytest.importorskip("faiss", reason="needs the search extra")
    write_images(tmp_path / "asked", 2)
    (tmp_path / "asked/green/000.png").write_bytes(b"no image")
    out = tmp_path / "o.csv"
    assert search(root, "--query", str(tmp_path / "asked"), "--top_k", "1", "--out", str(out)) == 0
    assert [row["query"] for row in csv.DictReader(out.open())] == ["green/001.png", "red/000.png"]
    assert f"skipped --query {tmp_path / 'asked/green/000.png'}: " in capsys.readouterr().err
    for path in (tmp_path / "asked").rglob("*.png"):
        path.write_bytes(b"no image")
    assert search(root, "--query", str(tmp_path / "asked")) == 1
    assert "none of the 3 images" in capsys.readouterr().err


def test_duplicates__are_all_pairs_above_the_threshold(root, tmp_path, capsys) -> None:
    pytest.importorskip("faiss", reason="needs the search extra")
    index = read_index(root / "index.safetensors")
    unit = index.features / np.linalg.norm(index.features, axis=1, keepdims=True)
    cosine = unit @ unit.T
    threshold = 0.99999
    want = {(index.names[i], index.names[j]) for i in range(14) for j in range(i + 1, 14) if cosine[i, j] > threshold}
    assert ("red/000.png", "red/000_copy.png") in want
    out = tmp_path / "pairs.csv"
    assert (
        main(["search", "--index", str(root / "index.safetensors"), "--duplicates", str(threshold), "--out", str(out)])
        == 0
    )
    with open(out, newline="") as file:
        assert {(row["a"], row["b"]) for row in csv.DictReader(file)} == want
    assert f"{len(want)} pairs above 0.99999" in capsys.readouterr().out


def write_odd_index(path: Path, name: str) -> None:
    parts = {"features": torch.zeros(2, 32), "names": torch.tensor([97, 0, 98, 0], dtype=torch.uint8)}
    notes = {"lit_vision": "Index", "made_with": "[" if name == "index without settings" else "{}"}
    if name == "index without names":
        del parts["names"]
    elif name == "index of halves":
        parts["features"] = parts["features"].half()
    save_file(parts, path, notes)


def wrong_command(root: Path, name: str) -> list[str]:
    """Return the arguments of a command with one thing wrong."""
    index, query = str(root / "index.safetensors"), str(root / "images/red/000.png")
    base = ["search", "--index", index, "--model", str(root / "run")]
    work = root / "wrong"
    work.mkdir(exist_ok=True)
    if name == "another model":
        (work / "other").exists() or write_run(work / "other", make_classifier(mean=[0.1] * 3))
        return ["search", "--index", index, "--model", str(work / "other"), "--query", query]
    if name == "another backbone":
        (work / "cnn").exists() or write_run(work / "cnn", make_classifier("cnn"))
        return ["search", "--index", index, "--model", str(work / "cnn"), "--query", query]
    if name == "not an index":
        save_file({"x": torch.zeros(1)}, work / "x.safetensors")
        return ["search", "--index", str(work / "x.safetensors"), "--duplicates", "0.9"]
    if name in ("index without names", "index without settings", "index of halves"):
        write_odd_index(work / "odd.safetensors", name)
        return ["search", "--index", str(work / "odd.safetensors"), "--duplicates", "0.9"]
    if name == "torn index":
        (work / "torn.safetensors").write_bytes(Path(index).read_bytes()[:300])
        return ["search", "--index", str(work / "torn.safetensors"), "--duplicates", "0.9"]
    if name == "images as index":
        return ["search", "--index", query, "--duplicates", "0.9"]
    if name == "broken query":
        return [*base, "--query", str(root / "images/torn.png")]
    if name == "no such query":
        return [*base, "--query", str(work / "none.png")]
    if name == "out is there":
        (work / "o.csv").write_text("keep")
        return [*base, "--query", query, "--out", str(work / "o.csv")]
    run, new, torn = str(root / "run"), str(work / "a.safetensors"), str(root / "images/torn.png")
    embed_one = ["embed", query, "--model", run, "--out", new]
    return {
        "no such index": ["search", "--index", str(work / "none.safetensors"), "--duplicates", "0.9"],
        "neither": base,
        "both": [*base, "--query", query, "--duplicates", "0.9"],
        "query without model": ["search", "--index", index, "--query", query],
        "cosine above one": ["search", "--index", index, "--duplicates", "1.5"],
        "no such model": ["search", "--index", index, "--model", str(work / "none"), "--query", query],
        "embed into csv": ["embed", query, "--model", run, "--out", str(work / "o.csv")],
        "embed nothing": ["embed", str(work / "none"), "--model", run, "--out", new],
        "embed over it": ["embed", query, "--model", run, "--out", index],
        "embed broken": ["embed", torn, "--model", run, "--out", new],
        "embed without model": ["embed", query, "--out", new],
        "embed onto a folder": ["embed", query, "--model", run, "--out", str(work / "folder.safetensors")],
        "embed a text model": ["embed", query, "--model", torn, "--out", new],
        "embed batch": [*embed_one, "--batch_size", "-1"],
        "embed workers": [*embed_one, "--workers", "-1"],
        "embed device": [*embed_one, "--device", "tpu"],
        "embed base": [*embed_one, "--base", index],
    }[name]


BROKEN = {
    "another model": (1, "another mean"),
    "another backbone": (1, "another model"),
    "no such index": (1, "none.safetensors"),
    "not an index": (1, "x.safetensors"),
    "index without names": (1, "is damaged"),
    "index without settings": (1, "is damaged"),
    "index of halves": (1, "is damaged"),
    "torn index": (1, "torn.safetensors"),
    "images as index": (1, "--index"),
    "broken query": (1, "torn.png"),
    "no such query": (1, "none.png"),
    "out is there": (1, "--overwrite"),
    "neither": (2, "--query"),
    "both": (2, "--duplicates"),
    "query without model": (2, "--model"),
    "cosine above one": (2, "--duplicates 1.5"),
    "no such model": (1, "/none"),
    "embed into csv": (2, "o.csv"),
    "embed nothing": (1, "/none"),
    "embed over it": (1, "--overwrite"),
    "embed broken": (1, "a.safetensors.skipped.csv"),
    "embed without model": (2, "--model"),
    "embed onto a folder": (1, "folder.safetensors"),
    "embed a text model": (1, "torn.png"),
    "embed batch": (2, "--batch_size -1"),
    "embed workers": (2, "--workers -1"),
    "embed device": (2, "--device"),
    "embed base": (1, "--base"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_command__one_line_and_nothing_lost(name: str, root, capsys) -> None:
    arguments = wrong_command(root, name)
    (root / "wrong" / "folder.safetensors").mkdir(exist_ok=True)
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    capsys.readouterr()
    code, text = BROKEN[name]
    assert main(arguments) == code
    error = capsys.readouterr().err.strip()
    assert text in error
    assert len(error.splitlines()) == 1
    assert {p: p.read_bytes() for p in before} == before
    assert not (root / "wrong" / "a.safetensors").exists()
