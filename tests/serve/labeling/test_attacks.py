"""Attacks on the labeling server that were tried. experiments/RELIABILITY.md lists them."""

import json

import pytest
from PIL import Image

ROUTES = (
    "/v1/label/state",
    "/v1/label/next",
    "/v1/label/images/0",
    "/v1/label/item/0",
    "/v1/label/answers",
    "/v1/label/undo",
    "/v1/label/classes",
    "/v1/label/review",
    "/v1/label/similar/0",
    "/v1/label/export/csv",
    "/v1/label/finish",
)


def test_every_route_is_in_this_list(label) -> None:
    with label() as client:
        app = client.app.app  # behind the guard
        paths = {route.path for route in app.routes if route.path.startswith("/v1/")}
        assert {path.replace("{number:int}", "0").replace("{name}", "csv") for path in paths} == set(ROUTES)


def test_without_the_token_or_from_another_site_nothing_is_read_or_stored(label) -> None:
    body = {"number": 0, "kind": "label", "labels": ["cat"], "id": "a"}
    with label(access={"host": "0.0.0.0"}) as client:
        for path in ROUTES:
            for method in ("GET", "POST"):
                assert client.request(method, path, json=body).status_code == 401
        assert client.get("/").status_code == 200  # a page without content of its own
        assert len(client.lines()) == 3
    with label() as client:
        for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            for path in ROUTES:
                assert client.post(path, json=body, headers=headers).status_code == 403
        assert len(client.lines()) == 3


@pytest.mark.parametrize("path", ["answers", "undo", "classes", "finish"])
def test_a_body_of_another_kind_is_refused(label, path) -> None:
    """A form of another site may send text/plain without asking first; long and deep bodies cost memory."""
    with label() as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            sent = client.post(f"/v1/label/{path}", content=b'{"add": "x"}', headers={"Content-Type": kind})
            assert sent.status_code == 415
        headers = {"Content-Type": "application/json"}
        for content, status in ((b"x" * 100_001, 413), (b"[" * 90_000, 400), (b"\xff", 400), (b"[]", 400)):
            assert client.post(f"/v1/label/{path}", content=content, headers=headers).status_code == status
        assert len(client.lines()) == 3


def test_links_that_lead_out_of_the_folder_are_no_images_of_it(label, photos, tmp_path) -> None:
    outside = tmp_path / "private"
    outside.mkdir()
    Image.new("RGB", (9, 9), "red").save(outside / "secret.png")
    (photos / "link.png").symlink_to(outside / "secret.png")
    (photos / "folder").symlink_to(outside)
    (photos / "inside.png").symlink_to(photos / "day0/00.png")
    (photos / "loop.png").symlink_to(photos / "loop.png")
    with label() as client:
        paths = list(client.labeling.images.paths)
        assert "inside.png" in paths
        assert not {"link.png", "folder/secret.png", "loop.png"} & set(paths)
        assert client.labeling.images.links_out == 3
        number = paths.index("day0/02.png")
        (photos / "day0/02.png").unlink()
        (photos / "day0/02.png").symlink_to(outside / "secret.png")  # swapped while the server runs
        assert client.get(f"/v1/label/images/{number}").status_code == 404
        body = {"number": number, "kind": "label", "labels": ["cat"], "id": "a"}
        assert client.post("/v1/label/answers", json=body).status_code == 410


@pytest.mark.parametrize("out", ["photos", "photos/day0/x", "linked", "around"])
def test_the_folder_of_images_is_never_written_to(photos, tmp_path, out) -> None:
    """Also when the answers' folder or a part of it is a link into it, or lies around it."""
    from lit_vision.cli.label import main
    from lit_vision.errors import UserError

    root = photos
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/weights").symlink_to(photos / "day0")
    if out == "around":
        (tmp_path / "around").mkdir()
        root = photos.rename(tmp_path / "around/features")
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError, match="never written to"):
        main([str(root), "--out", str(tmp_path / out), "--port", "0"])
    assert sorted(root.rglob("*")) == before


def test_images_are_asked_for_by_number_and_sent_as_pixels(label, photos) -> None:
    (photos / "a.png").write_text("<script>alert(1)</script>")
    with label() as client:
        assert client.labeling.images.paths[0] == "a.png"
        assert client.get("/v1/label/images/0").status_code == 404
        shown = client.get("/v1/label/images/1")
        assert (shown.headers["content-type"], shown.content[:2]) == ("image/jpeg", b"\xff\xd8")
        for path in ("../../etc/passwd", "%2e%2e%2fstore%2flabels.jsonl", "day0/00.png"):
            assert client.get(f"/v1/label/images/{path}").status_code == 404
        for name in ("../labels.jsonl", "labels.jsonl", "..%2flabels.jsonl"):
            assert client.get(f"/v1/label/export/{name}").status_code == 404
        body = {"number": 0, "path": "../../etc/passwd", "kind": "skip", "labels": [], "id": "a"}
        assert client.post("/v1/label/answers", json=body).status_code == 410


def test_names_of_classes_are_only_repeated(label, answer) -> None:
    name = "<img src=x onerror=alert(1)>\"'=cmd|' /C calc'!A0"
    with label((name,)) as client:
        answer(client, 0, name)
        state = client.get("/v1/label/state")
        assert state.headers["content-type"] == "application/json"
        assert state.json()["classes"][0]["name"] == name
        assert json.loads(client.lines()[-1])["labels"] == [name]
        shown = client.get("/v1/label/export/csv")
        assert shown.headers["content-disposition"] == 'attachment; filename="labels.csv"'  # a download, no page
        for bad in ("a\nb", "\u202egnp", "\x00", "x" * 101):
            assert client.post("/v1/label/classes", json={"add": bad}).status_code == 400
