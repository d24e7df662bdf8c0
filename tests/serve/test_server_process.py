"""The command as a process: one socket, a token that is printed once, no Lightning, an end that answers first."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from lit_vision.serve import run_server
from lit_vision.serve.access import Access
from lit_vision.serve.app import make_app
from lit_vision.serve.guard import Limits

RUN = """
import atexit, sys
from lit_vision.cli.main import main
heavy = {"lightning", "torchmetrics", "tensorboard", "matplotlib"}
atexit.register(lambda: print("imported", heavy & set(sys.modules), flush=True))
sys.exit(main(sys.argv[1:]))
"""


def listening(process: int) -> list[str]:
    """Return the addresses on which a process listens, as /proc/net/tcp writes them."""
    links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{process}/fd")]
    sockets = {link[8:-1] for link in links if link.startswith("socket:")}
    tables = [Path(f"/proc/{process}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()]
    return [row[1] for row in rows if row[9] in sockets and row[3] == "0A"]


def answers(address: str) -> bool:
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="needs Linux")
def test_a_server_from_its_start_to_sigterm(place, upload) -> None:
    command = [sys.executable, "-c", RUN, "serve", str(place / "vit"), "--port", "0", "--token", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        address, token = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/#token=(\S+)\n", lines[1]).groups()
        port = int(address.rpartition(":")[2])
        assert listening(process.pid) == [f"0100007F:{port:04X}"]  # 127.0.0.1 and nothing else
        assert httpx.get(f"{address}/v1/model", params={"token": token}).status_code == 401
        bearer = {"Authorization": f"Bearer {token}"}
        assert httpx.post(f"{address}/v1/predict", files=upload, headers=bearer).status_code == 200

        # a request that is half sent when the server is told to stop
        body = json.dumps({"images": ["eA=="]}).encode()
        head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head.encode() + body[:5])
            while httpx.get(f"{address}/healthz").status_code != 200:  # so that the request has begun
                pass
            process.send_signal(signal.SIGTERM)
            while answers(f"{address}/healthz"):  # until no new ones are taken
                pass
            connection.sendall(body[5:])
            assert connection.recv(1000).startswith(b"HTTP/1.1 422")  # its image is none
        rest = process.stdout.read()
        assert process.wait(30) == 143
        assert token not in rest
        assert "imported set()" in rest
    finally:
        process.kill()
        process.wait()


def test_headers_that_do_not_come_end_the_connection(monkeypatch) -> None:
    monkeypatch.setattr(run_server, "HEADER_SECONDS", 0.3)
    access = Access()
    server = run_server.make_server(make_app([], {}, access, Limits()))
    listener = run_server.listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        for first in (b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            for start in (b"", b"GET / HTTP/1.1\r\nHost: loc"):
                with socket.create_connection(listener.getsockname(), timeout=20) as connection:
                    if first:
                        connection.sendall(first)
                        assert connection.recv(10_000).startswith(b"HTTP/1.1 200 OK")
                    connection.sendall(start)
                    if first and not start:
                        continue  # uvicorn closes idle connections itself, after 5 seconds
                    while connection.recv(10_000):  # until the server closes it
                        pass
    finally:
        server.should_exit = True
        thread.join()


def test_a_port_that_is_taken_is_said(place, capsys) -> None:
    from lit_vision.cli.main import main

    with run_server.listen("127.0.0.1", 0) as listener:
        port = str(listener.getsockname()[1])
        assert main(["serve", str(place / "vit"), "--device", "cpu", "--port", port]) == 1
    assert f"--port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("0.0.0.0", socket.gethostname())]
)
def test_the_link_can_be_opened(host: str, shown: str) -> None:
    class Listener:
        def getsockname(self) -> tuple[str, int]:
            return host, 8000

    assert run_server.address_of(Listener(), host, None) == f"http://{shown}:8000/"
    assert run_server.address_of(Listener(), host, "x") == f"http://{shown}:8000/#token=x"
