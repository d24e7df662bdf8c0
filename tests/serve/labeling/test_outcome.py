"""Review and what a labeling leaves: tables, JSON of other tools, a model that predict runs."""

import json
import os
import shutil

import numpy as np
import pytest

from lit_vision.data.label_table import TableColumns, read_label_table
from lit_vision.data.views.decode import decode
from lit_vision.predict.models import load_model
from lit_vision.predict.tasks import preprocess_for
from lit_vision.serve.labeling.outcome import fit_to_all


def test_the_table_is_read_as_labels(label, answer, tmp_path) -> None:
    with label(("a,b", 'say "x"')) as client:
        answer(client, 0, "a,b")
        answer(client, 1, 'say "x"')
        answer(client, 2, kind="skip")
        paths = [client.labeling.images.paths[number] for number in range(2)]
        (tmp_path / "x.csv").write_bytes(client.get("/v1/label/export/csv").content)
    read = read_label_table(tmp_path / "x.csv")
    assert (read.paths, read.labels) == (paths, [["a,b"], ['say "x"']])


def test_names_of_files_that_a_table_would_misread(label, answer, tmp_path, photos) -> None:
    """One name that is not UTF-8 made the whole table unreadable."""
    bad = ["a\\b.png", " a.png", os.fsdecode(b"caf\xe9.png")]
    good = ["=1+1.png", "a,\nb.png"]
    for name in (*bad, *good):
        shutil.copy(photos / "day0/00.png", photos / name)
    with label() as client:
        for number, path in enumerate(client.labeling.images.paths):
            answer(client, number, "cat" if path in (*bad, *good) else "dog")
        done = client.post("/v1/label/finish", json={}).json()
        assert "without 3 of files" in done["lines"][0]
        assert "caf\\xe9.png" in done["lines"][0]
    table = tmp_path / "store/labels.csv"
    assert b"\n=" not in table.read_bytes()  # a spreadsheet would run it
    read = read_label_table(table)
    assert sorted(p for p, names in zip(read.paths, read.labels) if names == ["cat"]) == sorted(good)


def test_names_of_classes_that_a_study_would_refuse_are_said(label, answer) -> None:
    with label(("cat", "dog", "cat+dog")) as client:
        for number, name in enumerate(("cat", "dog", "cat+dog")):
            answer(client, number, name)
        done = client.post("/v1/label/finish", json={}).json()
        assert "'cat+dog' lists the labels cat and dog" in done["lines"][1]
        assert done["next"] == ""


def test_several_labels_are_a_column_each(label, answer, tmp_path) -> None:
    with label(("sky", "sea"), multiple=True) as client:
        answer(client, 0, "sea", "sky")
        answer(client, 1)
        done = client.post("/v1/label/finish", json={}).json()
        assert "--label_columns=sky,sea" in done["next"]
    read = read_label_table(tmp_path / "store/labels.csv", TableColumns(labels=("sky", "sea")))
    assert (read.labels, read.unknown) == ([["sky", "sea"], []], [[], []])


def test_json_of_label_studio_and_coco(label, answer, photos) -> None:
    shutil.copy(photos / "day0/00.png", photos / "a b#.png")
    with label() as client:
        answer(client, 0, "dog", answer_id="x")
        answer(client, 1, kind="unsure")
        (task,) = client.get("/v1/label/export/label-studio").json()
        assert task["data"]["image"] == "/data/local-files/?d=a%20b%23.png"
        assert task["annotations"][0]["result"][0]["value"] == {"choices": ["dog"]}
        coco = client.get("/v1/label/export/coco").json()
        assert coco["images"] == [{"id": 1, "file_name": "a b#.png", "width": 24, "height": 16}]
        assert coco["annotations"][0]["bbox"] == [0, 0, 24, 16]
        assert coco["categories"][coco["annotations"][0]["category_id"] - 1]["name"] == "dog"
        assert client.get("/v1/label/export/xml").status_code == 404


@pytest.mark.parametrize("multiple", [False, True])
def test_the_model_answers_as_the_page_does(label, answer, read_features, photos, multiple) -> None:
    with label(multiple=multiple) as client:
        read_features(client)
        for number in range(20):
            answer(client, number, *(["cat"] if number % 10 < 6 else ["dog"]))
        client.learner.learn()
        done = client.post("/v1/label/finish", json={}).json()
        assert [file.rpartition("/")[2] for file in done["files"]] == ["labels.csv", "model.safetensors"]
        assert multiple or done["next"].startswith("lit-vision study ")
        model = load_model(done["files"][1], "cpu")
        wanted = fit_to_all(client.labeling, client.learner.features)
        assert tuple(model.metadata.class_names) == wanted.classes
        assert model.metadata.license.startswith("Apache-2.0")
        pixels = [decode((photos / path).read_bytes()) for path in client.labeling.images.paths]
        logits = model(np.stack([preprocess_for(model.metadata)(one) for one in pixels]))["logits"]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) if not multiple else 1 / (1 + np.exp(-logits))
        np.testing.assert_allclose(p, wanted.probabilities(client.learner.features.rows), atol=2e-3)


def test_review_finds_wrong_labels_duplicates_and_thin_classes(label, many) -> None:
    with label(("cat", "dog", "rare"), root=many) as client:
        rng = np.random.default_rng(1)
        groups = rng.integers(0, 2, len(client.labeling.images))
        rows = (6 * np.eye(2, 8)[groups] + rng.normal(size=(len(groups), 8))).astype(np.float32)
        client.learner.features.rows = rows
        order = client.labeling.queue.random_order
        rows[order[1]] = 1.01 * rows[order[0]]
        wrong = order[1]
        rows[order[2], 5] += 9  # rare, as is the unlabeled one beside it
        rows[order[80]] = rows[order[2]] + rng.normal(size=8) / 10
        for number in order[:60]:
            name = "dog" if groups[number] else "cat"
            name = "rare" if number == order[2] else name
            given = {"cat": "dog", "dog": "cat"}["dog" if groups[order[0]] else "cat"] if number == wrong else name
            client.labeling.answer(number, "label", [given], f"a{number}", None)

        def review(kind: str, page: int = 0) -> dict:
            return client.get("/v1/label/review", params={"kind": kind, "page": page}).json()

        found = review("wrong")
        assert found["items"][0]["images"][0]["number"] == wrong
        assert found["items"][0]["text"].startswith("labeled ")
        assert found["items"][0]["images"][0]["proposal"]["labels"] == ["dog" if groups[order[0]] else "cat"]
        pairs = review("duplicates")["items"]
        found_pairs = len(pairs)
        assert {image["number"] for image in pairs[0]["images"]} == {order[0], order[1]}
        (thin,) = review("thin")["items"]
        assert (thin["class"], thin["text"][:13]) == ("rare", "rare: 1 label")
        assert thin["images"][0]["number"] == order[80] or client.labeling.is_audit(order[80])
        assert not [image for image in thin["images"] if image["audit"] or image["answer"]]
        newest = review("answers")
        assert newest["total"] == 60
        assert len(review("answers", 2)["items"]) == 60 - 2 * 24
        for number in order[:2]:  # looked at again and kept
            labels = client.labeling.answer_of(number).labels
            client.labeling.answer(number, "label", labels, f"b{number}", f"a{number}")
        assert wrong not in [item["images"][0]["number"] for item in review("wrong")["items"]]
        assert review("duplicates")["total"] == found_pairs - 1
        for number in order[:2]:
            client.labeling.undo(f"b{number}")
        assert review("duplicates")["total"] == found_pairs
        client.labeling.answer(wrong, "label", [given_right(groups, order)], "again", f"a{wrong}")
        assert wrong not in [item["images"][0]["number"] for item in review("wrong")["items"]]
        assert review("duplicates")["total"] == 0
        assert client.get("/v1/label/review", params={"kind": "x"}).status_code == 400


def given_right(groups: np.ndarray, order: list[int]) -> str:
    return "dog" if groups[order[0]] else "cat"


def test_review_of_several_labels(label, many) -> None:
    with label(("cat", "dog"), multiple=True, root=many) as client:
        rng = np.random.default_rng(1)
        rows = rng.normal(size=(len(client.labeling.images), 4)).astype(np.float32)
        rows[:, :2] *= 5
        client.learner.features.rows = rows
        for number in range(70):
            names = [name for name, value in zip(("cat", "dog"), rows[number]) if value > 0]
            if number == 7:
                rows[7, 0] = 20
                names = [name for name in names if name != "cat"]
            client.labeling.answer(number, "label", names, f"a{number}", None)
        found = client.get("/v1/label/review", params={"kind": "wrong"}).json()["items"]
        assert found[0]["images"][0]["number"] == 7
        assert found[0]["text"].startswith("labeled cat: no; looks like yes")


def test_the_store_has_a_line_an_answer_and_nothing_else_of_the_model(label, answer) -> None:
    with label() as client:
        answer(client, 0, "cat")
        client.post("/v1/label/finish", json={})
        assert [json.loads(line)["event"] for line in client.lines()] == ["open", "add_class", "add_class", "answer"]
