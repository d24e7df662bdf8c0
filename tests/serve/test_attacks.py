"""Attacks on the server that were tried. experiments/RELIABILITY.md lists them."""

import base64
import io
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_vision.errors import UsageError
from lit_vision.predict.search import Index
from lit_vision.serve.access import TOKEN_VARIABLE, Access, is_loopback
from lit_vision.serve.app import static_files
from lit_vision.serve.guard import HEADERS

OPEN = {"/", "/api", "/openapi.json", "/static/style.css", "/healthz"}  # without a token
CLOSED = {"/v1/model", "/metrics", "/v1/index/0", "/v1/predict", "/v1/embed", "/v1/search", "/nothing"}
STATIC = Path(__file__).parents[2] / "lit_vision/serve/static"


def header_of_png(width: int, height: int) -> bytes:
    """Return a PNG that claims a size, with a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def guarded(serve):
    """Return a client of a server that listens on all addresses, and so has a token."""
    with serve("vit", access={"host": "0.0.0.0"}) as client:
        yield client


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "8.8.8.8", ""]
)
def test_a_foreign_host_is_refused(client, host) -> None:
    """A page whose own name was pointed at this address (DNS rebinding)."""
    for path in OPEN | CLOSED:
        assert client.get(path, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "localhost", "LOCALHOST:1", "[::1]:8000", "127.1.2.3"])
def test_own_names_and_tunnels_are_let_in(client, host) -> None:
    assert client.get("/v1/model", headers={"Host": host}).status_code == 200


def test_names_of_a_server_for_others() -> None:
    access = Access("0.0.0.0", ["Vision.Example"])
    assert access.allows_host("vision.example:443")
    assert access.allows_host("192.168.1.7:8000")
    assert not access.allows_host("other.example")
    assert not Access("127.0.0.1").allows_host("192.168.1.7")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8001"},
        {"Origin": "http://localhost:8000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_is_refused(client, upload, headers) -> None:
    assert client.post("/v1/predict", files=upload, headers=headers).status_code == 403
    assert client.get("/v1/model", headers=headers).status_code == 403
    assert client.post("/session", json={"token": "x"}, headers=headers).status_code == 403


def test_the_own_page_is_let_in_and_links_to_it_work(client, upload) -> None:
    own = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/v1/predict", files=upload, headers=own).status_code == 200
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_no_answer_is_readable_by_other_sites(client, upload) -> None:
    for answer in (client.get("/v1/model"), client.options("/v1/predict", headers={"Origin": "http://127.0.0.1:8000"})):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_body_that_needs_no_preflight_is_refused(client) -> None:
    """A form of another site may send text/plain with JSON in it."""
    body = json.dumps({"images": [""]})
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert client.post("/v1/predict", content=body, headers={"Content-Type": kind}).status_code == 415


def test_without_the_token_nothing_but_empty_pages(guarded) -> None:
    for path in OPEN:
        assert guarded.get(path).status_code == 200
    for path in CLOSED:
        for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"):
            assert guarded.request(method, path).status_code == 401
    assert guarded.post("/").status_code == 401


def test_a_token_in_a_query_or_a_guess_opens_nothing(guarded) -> None:
    token = guarded.access.token
    assert len(token) >= 43  # 256 bits
    assert guarded.get("/v1/model", params={"token": token}).status_code == 401
    for given in ("", "x", token[:-1], token + "x", token.swapcase(), "ä", None, 1, [token], {"a": token}):
        assert guarded.post("/session", json={"token": given}).status_code == 401
        header = {"Authorization": f"Bearer {given}".encode()}
        assert guarded.get("/v1/model", headers=header).status_code == 401
    for name in (guarded.access.cookie, "lit_vision"):
        for value in (token, "", "x" * 43, '"'):
            assert guarded.get("/v1/model", headers={"Cookie": f"{name}={value}"}).status_code == 401


def test_a_token_is_exchanged_for_a_cookie_that_only_this_site_sends(serve, upload) -> None:
    with serve("vit", access={"require_token": True}) as client:
        token = client.access.token
        answer = client.post("/session", json={"token": token})
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert token not in cookie
        assert client.get("/v1/model").status_code == 200  # the client keeps cookies
        client.cookies.clear()
        assert client.get("/v1/model").status_code == 401
        assert client.get("/v1/model", headers={"Authorization": f"bearer {token}"}).status_code == 200


def test_the_oldest_session_ends_when_there_are_many() -> None:
    access = Access("0.0.0.0")
    sessions = [access.open_session(access.token) for _ in range(101)]
    known = [access.is_known({"cookie": f"{access.cookie}={session}"}) for session in sessions]
    assert known == [False] + [True] * 100


def test_an_address_of_others_always_has_a_token(monkeypatch) -> None:
    assert Access("127.0.0.1").token is None
    for host in ("0.0.0.0", "::", "192.168.1.7", "some-name", ""):
        assert not is_loopback(host)
        assert Access(host).token
    assert Access("10.0.0.1").token != Access("10.0.0.1").token
    monkeypatch.setenv(TOKEN_VARIABLE, "a-token-of-the-users-own")
    assert Access("::").token == "a-token-of-the-users-own"
    for bad in ("short", "has a space in it, and is long"):
        monkeypatch.setenv(TOKEN_VARIABLE, bad)
        with pytest.raises(UsageError, match=TOKEN_VARIABLE):
            Access("::")


def test_every_answer_has_the_headers(client, upload) -> None:
    answers = [client.get(path) for path in OPEN | CLOSED]
    answers += [client.post("/v1/predict", files=upload), client.post("/v1/predict", content=b"x")]
    answers += [client.get("/", headers={"Host": "evil.example"})]
    for answer in answers:
        assert dict(HEADERS) == {name: answer.headers[name] for name in HEADERS}


def test_pages_hold_no_script_or_style_of_their_own() -> None:
    """The policy forbids them; an element or address of another site would not load either."""
    for page in STATIC.glob("*.html"):
        text = page.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", text, re.IGNORECASE)
    for file in STATIC.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//\w+\.\w+/|\beval\(|innerHTML|insertAdjacentHTML|document\.write", text), file


@pytest.mark.parametrize(
    "name",
    [
        "../app.py",
        "..%2fapp.py",
        "%2e%2e/app.py",
        "..\\app.py",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "style.css%00",
        ".",
        "",
    ],
)
def test_static_files_are_a_list_of_names(client, name) -> None:
    assert client.get(f"/static/{name}").status_code in (404, 405)
    assert set(static_files()) == {path.name for path in STATIC.iterdir()}


def test_images_of_an_index_are_those_below_its_folder(serve, tmp_path) -> None:
    """Names in an index file lead nowhere else, and what is sent is pixels, never a file."""
    root = tmp_path / "root"
    root.mkdir()
    secret = tmp_path / "secret.png"
    Image.new("RGB", (9, 9)).save(secret)
    Image.new("RGB", (9, 9)).save(root / "fine.png")
    (root / "link.png").symlink_to(secret)
    (root / "page.png").write_text("<script>alert(1)</script>")
    (root / "loop.png").symlink_to(root / "loop.png")
    names = ["fine.png", "../secret.png", str(secret), "link.png", "page.png", "loop.png", "a\0b", ".", "none.png"]
    index = Index(tmp_path / "i", names, np.eye(len(names), 16, dtype=np.float32), {})
    with serve("cnn", index=index, index_root=root) as client:
        answers = [client.get(f"/v1/index/{i}") for i in range(len(names))]
        assert [answer.status_code for answer in answers] == [200] + [404] * (len(names) - 1)
        assert answers[0].content[:2] == b"\xff\xd8"
        for number in ("-1", "99", "9" * 40, "../0", "x", "0x0", "fine.png"):
            assert client.get(f"/v1/index/{number}").status_code == 404


def test_a_long_body_is_refused_before_it_is_read(serve) -> None:
    with serve("vit", limits={"body_bytes": 2000}) as client:
        read = []

        def chunks():
            for _ in range(100):
                read.append(1000)
                yield b"x" * 1000

        headers = {"Content-Type": "application/json"}
        assert client.post("/v1/predict", content=b"x" * 2001, headers=headers).status_code == 413
        assert client.post("/v1/predict", content=chunks(), headers=headers).status_code == 413
        form = {"a": ("a.png", b"x" * 3000)}
        assert client.post("/v1/predict", files=form).status_code == 413
        assert client.post("/session", content=b"x" * 3000).status_code == 413
        assert client.post("/v1/predict", content=b"{}", headers=headers).status_code == 400


def test_bodies_of_all_requests_share_a_limit(serve, upload) -> None:
    with serve("vit", limits={"held_bytes": 1000}) as client:
        answer = client.post("/v1/predict", files={"a": b"x" * 5000})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert client.post("/v1/predict", json={"images": ["eA=="]}).status_code == 422  # what was held is free again


def test_packed_bodies_are_refused(client) -> None:
    answer = client.post("/v1/predict", content=b"x", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


def test_an_image_of_many_pixels_is_refused_before_it_is_decoded(serve, monkeypatch) -> None:
    def never(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("lit_vision.serve.predictor.decode", never)
    tiff = io.BytesIO()
    Image.new("L", (2000, 1000)).save(tiff, "TIFF", compression="tiff_deflate")
    with serve("vit", limits={"pixels": 1_000_000}) as client:
        for bomb in (header_of_png(60_000, 60_000), header_of_png(1001, 1000), tiff.getvalue()):
            answer = client.post("/v1/predict", files={"a": bomb})
            assert answer.status_code == 422
            assert "pixels" in answer.json()["results"][0]["error"]


@pytest.mark.parametrize("ending", ["eps", "psd", "fits", "svg", "html", "pdf"])
def test_only_formats_of_photographs_are_opened(client, monkeypatch, ending) -> None:
    """Pillow hands PostScript to Ghostscript, a program of its own."""
    from PIL import EpsImagePlugin

    def never(*_, **__):
        raise AssertionError("Ghostscript ran")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    picture = io.BytesIO()
    if ending == "eps":
        Image.new("RGB", (9, 9)).save(picture, "EPS")
    texts = {"svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "html": b"<html>", "pdf": b"%PDF-1.4"}
    texts |= {"psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(60)}
    texts |= {"fits": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800)}
    answer = client.post("/v1/predict", files={"a": ("a.png", picture.getvalue() or texts[ending], "image/png")})
    assert answer.status_code == 422


def test_names_of_files_are_only_repeated(client, upload) -> None:
    name = "<img src=x onerror=alert(1)>\u202e\x07/../../etc/passwd"
    image = {"name": name, "data": base64.b64encode(upload["image"]).decode()}
    body = json.dumps({"images": [image, image | {"name": "\ud800"}]})
    answer = client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["results"][0]["path"] == name
    crlf = client.post("/v1/predict", files={"a": ("a\r\nSet-Cookie: x=1.png", upload["image"])})
    assert "set-cookie" not in crlf.headers


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"images":' * 5000,
        b'{"images": ' + b"9" * 100_000 + b"}",
        b'{"images": [NaN]}',
        b'{"images": {}}',
        b'{"images": [[]]}',
        b'{"images": [{"data": 1}]}',
        b'{"images": [{"data": "eA==", "name": {}}]}',
        b'{"images": ["not base64!"]}',
        b'{"images": ["\xc3\xa4"]}',
        b'{"images": []}',
        b"\xff\xfe{}",
        b"null",
        b"",
    ],
)
def test_broken_json_is_refused(client, body) -> None:
    answer = client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


@pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary=" + "x" * 5000, "; boundary=x", "; charset=\xff"])
@pytest.mark.parametrize("body", [b"", b"--x\r\n\r\n\r\n--x--", b"--x\r\nContent-Disposition: a\r\n\r\nb\r\n--x--"])
def test_broken_forms_are_refused(client, boundary, body) -> None:
    kind = f"multipart/form-data{boundary}".encode("latin-1")
    assert client.post("/v1/predict", content=body, headers={"Content-Type": kind}).status_code == 400


def test_many_parts_are_refused(serve, upload) -> None:
    with serve("vit", limits={"images": 3}) as client:
        many = [("a", (f"{i}.png", b"x")) for i in range(4)]
        assert client.post("/v1/predict", files=many).status_code == 413
        assert client.post("/v1/predict", files=upload, data={f"f{i}": "x" for i in range(11)}).status_code == 413
        assert client.post("/v1/predict", files=upload, data={"f": "x" * 2000}).status_code == 400
        assert client.post("/v1/predict", json={"images": ["eA=="] * 4}).status_code == 413


def test_a_slow_body_ends(serve) -> None:
    """The client waits after the first bytes of a form."""
    import asyncio

    with serve("vit", limits={"body_seconds": 0.2}) as client:
        sent: list[dict] = []
        parts = iter([{"type": "http.request", "body": b"--x", "more_body": True}])

        async def receive():
            message = next(parts, None)
            return message if message is not None else await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/predict",
            "raw_path": b"/v1/predict",
            "headers": headers,
        }
        asyncio.run(client.app(scope | {"query_string": b"", "root_path": ""}, receive, send))
    assert sent[0]["status"] == 408


def test_a_full_queue_says_when_to_come_back(serve, upload) -> None:
    with serve("vit", limits={"images": 2, "queued_images": 3}) as client:
        client.model_app.waiting = 3
        answer = client.post("/v1/predict", files=upload)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        client.model_app.waiting = 0
        assert client.post("/v1/predict", files=upload).status_code == 200
        assert client.model_app.waiting == 0


def test_more_requests_than_allowed_are_refused(serve) -> None:
    with serve("vit", limits={"requests": 0}) as client:
        answer = client.get("/v1/model")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_web_sockets_are_refused(client) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/predict"):
        pass


def test_the_table_of_attacks_names_tests_that_exist() -> None:
    root = Path(__file__).parents[2]
    text = (root / "experiments/RELIABILITY.md").read_text()
    table = text.partition("## Attacks on the pages and the API")[2].partition("\n## ")[0]
    named = set(re.findall(r"\b(test_\w+)`", table))
    assert len(named) > 25
    defined = {
        name for path in (root / "tests").rglob("test_*.py") for name in re.findall(r"def (\w+)", path.read_text())
    }
    files = {path.stem for path in (root / "tests").rglob("test_*.py")}
    assert named - defined - files == set()
    assert all((root / path).is_file() for path in re.findall(r"`(tests/[\w/]+\.py)`", table))
