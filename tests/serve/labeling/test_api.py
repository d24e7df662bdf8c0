"""The API of a labeling: answers are stored once, conflicts and changed files are said, the folder stays as it is."""

import io
import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lit_vision.serve.labeling.queue import ImageQueue, is_audit


def test_an_answer_is_on_the_disk_before_it_is_acknowledged(label, answer, photos) -> None:
    with label() as client:
        image = client.get("/v1/label/next").json()["images"][0]
        sent = answer(client, image["number"], "cat", answer_id="x")
        line = json.loads(client.lines()[-1])
        assert sent.json()["answer"] == {key: line[key] for key in ("id", "kind", "labels", "annotator", "time")}
        assert (line["path"], line["size"]) == (image["path"], (photos / image["path"]).stat().st_size)
        assert sent.json()["state"]["labeled"] == 1
        assert client.get(f"/v1/label/item/{image['number']}").json()["answer"]["id"] == "x"
        assert answer(client, image["number"], "cat", answer_id="x").json()["answer"] == sent.json()["answer"]
        assert len(client.lines()) == 4  # the folder, two classes, one answer
        other = (image["number"] + 1) % 20
        assert answer(client, other, "cat", answer_id="x").status_code == 400


def test_a_restart_has_the_same_answers_and_the_same_next_image(label, answer) -> None:
    with label() as client:
        for image in client.get("/v1/label/next", params={"count": 7}).json()["images"]:
            assert answer(client, image["number"], "dog").status_code == 200
        before = [client.get(f"/v1/label/{path}").json() for path in ("next?count=100", "state")]
    with label() as client:
        after = [client.get(f"/v1/label/{path}").json() for path in ("next?count=100", "state")]
    assert before[0] == after[0]
    assert before[1] == {**after[1], "run": before[1]["run"]}
    assert before[1]["run"] != after[1]["run"]


def test_an_answer_that_waited_for_a_restart_goes_to_the_image_that_was_seen(label, answer, photos) -> None:
    with label() as client:
        image, store = client.get("/v1/label/next").json()["images"][0], client.get("/v1/label/state").json()["store"]
    shutil.copy(photos / "day0/00.png", photos / "day0/00-before.png")  # sorts first: all numbers move
    body = {**image, "kind": "label", "labels": ["cat"], "id": "x", "replaces": None}
    with label() as client:
        assert client.get("/v1/label/state").json()["store"] == store
        assert client.post("/v1/label/answers", json=body).status_code == 200
        assert json.loads(client.lines()[-1])["path"] == image["path"]
        gone = client.post("/v1/label/answers", json={**body, "id": "y", "path": "day0/gone.png"})
        assert gone.status_code == 410


def test_two_browsers_do_not_overwrite_each_other(label, answer) -> None:
    with label() as client:
        assert answer(client, 3, "cat", answer_id="one").status_code == 200
        late = answer(client, 3, "dog", answer_id="two")
        assert late.status_code == 409
        assert late.json()["answer"]["id"] == "one"
        assert answer(client, 3, "dog", answer_id="two", replaces="one").status_code == 200
        stale = client.post("/v1/label/undo", json={"id": "one"})
        assert (stale.status_code, stale.json()["answer"]["id"]) == (409, "two")


def test_undo_brings_the_previous_answer_back_once(label, answer) -> None:
    with label() as client:
        answer(client, 3, "cat", answer_id="one")
        answer(client, 3, kind="unsure", answer_id="two", replaces="one")
        undone = client.post("/v1/label/undo", json={"id": "two"})
        assert undone.json() == {"number": 3, "answer": client.get("/v1/label/item/3").json()["answer"]}
        assert undone.json()["answer"]["id"] == "one"
        assert client.post("/v1/label/undo", json={"id": "two"}).status_code == 409
        assert client.post("/v1/label/undo", json={"id": "one"}).json()["answer"] is None
        assert client.post("/v1/label/undo", json={"id": "none"}).status_code == 404
    with label() as client:
        assert client.get("/v1/label/state").json()["answered"] == 0


def test_a_file_that_changes_while_it_is_shown_is_asked_again(label, answer, photos) -> None:
    with label() as client:
        number = client.get("/v1/label/next").json()["images"][0]["number"]
        path = photos / client.labeling.images.paths[number]
        first = client.get(f"/v1/label/images/{number}").content
        Image.new("RGB", (8, 8), "red").save(path)
        assert answer(client, number, "cat").status_code == 410
        assert client.get(f"/v1/label/images/{number}").content != first
        assert answer(client, number, "cat").status_code == 200
        path.unlink()
        assert answer(client, number, "dog", replaces="any").status_code == 410


def test_an_answer_counts_for_the_picture_that_its_browser_saw(label, answer, photos) -> None:
    with label() as client:
        path = photos / client.labeling.images.paths[3]
        first = client.get("/v1/label/images/3")
        before = path.read_bytes()
        Image.new("RGB", (8, 8), "red").save(path)
        client.get("/v1/label/images/3?side=256")  # another browser has the list of the last answers open
        assert client.get("/v1/label/images/3").content != first.content
        body = {"number": 3, "kind": "label", "labels": ["cat"], "id": "x", "replaces": None}
        seen = {"seen": first.headers["etag"].strip('"')}
        assert client.post("/v1/label/answers", json={**body, **seen}).status_code == 410
        assert client.post("/v1/label/answers", json={**body, "seen": 3}).status_code == 400
    with label() as client:  # an answer that waited for the server to start again
        assert client.post("/v1/label/answers", json={**body, **seen}).status_code == 410
        path.write_bytes(before)
        assert client.post("/v1/label/answers", json={**body, **seen}).status_code == 200


def test_a_file_that_was_being_written_is_readable_when_it_is_complete(label, photos) -> None:
    with label() as client:
        path = photos / client.labeling.images.paths[3]
        content = path.read_bytes()
        path.write_bytes(content[:30])
        assert client.get("/v1/label/images/3").status_code == 404
        path.write_bytes(content)
        assert client.get("/v1/label/images/3").status_code == 200
        assert client.get("/v1/label/state").json()["unreadable"] == 0


def test_moved_files_keep_their_answers_and_changed_ones_are_asked_again(label, answer, photos) -> None:
    with label() as client:
        for number in range(6):
            answer(client, number, "cat", answer_id=f"n{number}")
        paths = [photos / client.labeling.images.paths[number] for number in range(6)]
    moved = photos / "elsewhere" / "new.png"
    moved.parent.mkdir()
    shutil.move(paths[0], moved)
    swapped = paths[1].read_bytes()
    paths[1].write_bytes(paths[2].read_bytes())
    paths[2].write_bytes(swapped)
    Image.new("RGB", (9, 9), "blue").save(paths[3])
    paths[4].unlink()
    os.utime(paths[5], (1, 1))  # copied: another time, the same content
    with label() as client:
        matched = client.labeling.matched
        assert (matched.moved, matched.changed, matched.missing) == (3, 3, 1)
        found = {client.labeling.images.paths[n]: a.id for n, a in client.labeling.answers().items()}
        names = [str(path.relative_to(photos)) for path in paths]
        assert found == {"elsewhere/new.png": "n0", names[1]: "n2", names[2]: "n1", names[5]: "n5"}
        number = list(client.labeling.images.paths).index("elsewhere/new.png")
        assert answer(client, number, "dog", replaces="n0").status_code == 200
    with label() as client:
        assert client.labeling.answers()[number].labels == ("dog",)


def test_equal_files_keep_their_own_answers(label, answer, photos) -> None:
    shutil.copy(photos / "day0/00.png", photos / "day0/00-copy.png")
    with label() as client:
        answer(client, 0, "cat")
        answer(client, 1, "dog")
    with label() as client:
        assert [client.labeling.answers()[number].labels for number in (0, 1)] == [("cat",), ("dog",)]


def test_every_fifth_image_is_of_a_sample_that_follows_from_the_paths(label, answer) -> None:
    paths = [f"{i}.png" for i in range(5000)]
    queue = ImageQueue(paths)
    assert sorted(queue.audit_order + queue.random_order) == list(range(5000))
    assert abs(len(queue.audit_order) - 1000) < 120  # four standard deviations
    assert queue.audit_order != sorted(queue.audit_order)
    queue.chosen = [(number, "chosen") for number in queue.random_order[:1000:-1]]
    done: set[int] = set()
    for turn in range(100):
        audits = sum(is_audit(paths[number]) for number in done)
        held = done and {next(iter(done))}
        first = queue.next(3, held - done if held else set(), done.__contains__, (audits, len(done) - audits))
        assert [choice.audit for choice in first] == [(turn + i) % 5 == 4 for i in range(3)]
        done.add(first[0].number)
    # what a browser holds counts as asked
    held = {choice.number for choice in queue.next(4, set(), set().__contains__, (0, 0))}
    assert [choice.audit for choice in queue.next(2, held, set().__contains__, (0, 0))] == [True, False]
    with label() as client:
        asked = client.get("/v1/label/next", params={"count": 100}).json()["images"]
        assert sorted(image["number"] for image in asked) == list(range(20))
        skip = ",".join(str(image["number"]) for image in asked[:3])
        rest = client.get("/v1/label/next", params={"count": 100, "skip": skip}).json()["images"]
        assert rest == asked[3:]


def test_skipped_images_count_and_are_not_asked_again(label, answer) -> None:
    with label() as client:
        for kind in ("skip", "unsure", "label"):
            number = client.get("/v1/label/next").json()["images"][0]["number"]
            assert answer(client, number, *(["cat"] if kind == "label" else []), kind=kind).status_code == 200
        state = client.get("/v1/label/state").json()
        assert Counter(state[key] for key in ("skipped", "unsure", "labeled")) == {1: 3}
        assert state["answered"] == 3


def test_broken_images_are_not_asked(label, photos) -> None:
    for path in sorted(photos.rglob("*.png"))[:10]:
        path.write_bytes(path.read_bytes()[:30])
    with label() as client:
        for number in range(20):
            assert client.get(f"/v1/label/images/{number}").status_code == (404 if number < 10 else 200)
        assert client.get("/v1/label/state").json()["unreadable"] == 10
        left = client.get("/v1/label/next", params={"count": 100}).json()["images"]
        assert {image["number"] for image in left} == set(range(10, 20))


def test_pictures_are_upright_and_small(label, photos) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(np.full((10, 2000, 3), 90, np.uint8)).save(photos / "a.jpg", exif=exif)
    with label() as client:
        for side in (1024, 256):
            shown = client.get("/v1/label/images/0", params={"side": side})
            assert (
                max(Image.open(io.BytesIO(shown.content)).size) == Image.open(io.BytesIO(shown.content)).height == side
            )


def test_several_labels_an_image(label, answer) -> None:
    with label(multiple=True) as client:
        assert answer(client, 0, "cat", "dog").status_code == 200
        assert answer(client, 1).status_code == 200  # none applies
        assert answer(client, 2, "cat", "cat").status_code == 400
        assert [c["images"] for c in client.get("/v1/label/state").json()["classes"]] == [1, 1]


def test_classes_are_added_and_renamed(label, answer) -> None:
    def classes(client, **body):
        return client.post("/v1/label/classes", json=body)

    with label() as client:
        answer(client, 0, "dog")
        assert [c["name"] for c in classes(client, add=" bird ").json()["classes"]] == ["cat", "dog", "bird"]
        made = classes(client, rename="dog", to="hund").json()["classes"]
        assert made[1] == {"name": "hund", "key": "2", "images": 1}
        assert classes(client, rename="hund", to="cat").status_code == 409
        assert classes(client, rename="hund", to="cat", merge=True).json()["classes"][0]["images"] == 1
        assert client.get("/v1/label/item/0").json()["answer"]["labels"] == ["cat"]
        assert answer(client, 1, "dog").json()["answer"]["labels"] == ["cat"]  # of a browser that has the old names
        assert client.get("/v1/label/state").json()["classes"][0]["images"] == 2
        for body in ({}, {"add": ""}, {"add": 3}, {"rename": "none", "to": "x"}, {"rename": "cat"}):
            assert classes(client, **body).status_code in (400, 404)
    with label() as client:
        assert [c["name"] for c in client.get("/v1/label/state").json()["classes"]] == ["cat", "bird"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"number": -1}, 404),
        ({"number": 20}, 404),
        ({"number": True}, 400),
        ({"number": 1.5}, 400),
        ({"number": "0"}, 400),
        ({"number": 10**30}, 404),
        ({"kind": "delete"}, 400),
        ({"kind": "skip"}, 400),
        ({"labels": []}, 400),
        ({"labels": ["cat", "dog"]}, 400),
        ({"labels": ["bird"]}, 400),
        ({"labels": "cat"}, 400),
        ({"labels": [["cat"]]}, 400),
        ({"id": ""}, 400),
        ({"id": "x" * 101}, 400),
        ({"id": "a\nb"}, 400),
        ({"id": None}, 400),
        ({"replaces": 5}, 400),
        ({"replaces": "other"}, 409),
    ],
)
def test_an_answer_that_cannot_be_is_refused_and_not_stored(label, change, status) -> None:
    body = {"number": 0, "kind": "label", "labels": ["cat"], "id": "a", "replaces": None, **change}
    with label() as client:
        sent = client.post("/v1/label/answers", json=body)
        assert sent.status_code == status
        assert sent.json()["error"]
        assert len(client.lines()) == 3


def test_queries_that_cannot_be(label) -> None:
    with label() as client:
        for query in ("count=0", "count=x", "count=101", "skip=a", "skip=-1", "skip=²", f"skip={'1,' * 1001}"):
            assert client.get(f"/v1/label/next?{query}").status_code == 400
        assert client.get("/v1/label/images/0?side=5").status_code == 400
        for path in ("images", "item"):
            for number in ("20", "9" * 30, "-1", "x", "../0"):
                assert client.get(f"/v1/label/{path}/{number}").status_code == 404


def test_the_folder_is_never_written_to(label, answer, photos) -> None:
    def listing():
        return sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in [photos, *photos.rglob("*")])

    before = listing()
    with label() as client:
        for image in client.get("/v1/label/next", params={"count": 9}).json()["images"]:
            client.get(f"/v1/label/images/{image['number']}")
            answer(client, image["number"], "cat")
    assert listing() == before
