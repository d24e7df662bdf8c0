"""HTTP server on the loopback interface for the files of a folder, in ranges: a stand-in for a bucket.

Run: python experiments/range_server.py FOLDER [--delay 0.005] [--fail_every 10]. It prints its address, and answers
/counts with {"requests", "failed", "bytes": of tar files, "again": bytes of them that were sent before}. The tests, the
soak test and the benchmark of shards read from it.
"""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lit_vision.cli.parser import ScriptParser


class RangeServer(ThreadingHTTPServer):
    """Server of a folder.

    Attributes:
        counts: what was asked for and sent.

    Args:
        folder: of the files.
        delay: seconds that each answer waits.
        fail_every: every so many requests one fails: in turn by status 503, by half an answer, by a closed connection;
            0 for none.
    """

    daemon_threads = True

    def __init__(self, folder: Path, delay: float = 0.0, fail_every: int = 0) -> None:
        self.folder, self.delay, self.fail_every = folder, delay, fail_every
        self.lock = threading.Lock()
        self.reset()
        super().__init__(("127.0.0.1", 0), _Handler)

    def reset(self) -> None:
        """Set the counts to zero."""
        with self.lock:
            self.counts = {"requests": 0, "failed": 0, "bytes": 0, "again": 0}
            self.sent: set[tuple[str, int, int]] = set()

    @property
    def address(self) -> str:
        """Address of the folder."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> RangeServer:
        """Serve in a thread of this process, until `shutdown`."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def handle_error(self, *args: Any) -> None:
        """Say nothing of clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open
    disable_nagle_algorithm = True
    server: RangeServer

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, with_body: bool) -> None:
        server = self.server
        if self.path in ("/counts", "/reset"):
            text = json.dumps(server.counts).encode()
            if self.path == "/reset":
                server.reset()
            return self._send(200, text, {})
        with server.lock:
            server.counts["requests"] += 1
            number = server.counts["requests"]
            fails = server.fail_every and number % server.fail_every == 0
            server.counts["failed"] += bool(fails)
        time.sleep(server.delay)
        kind = number // server.fail_every % 3 if fails else -1
        if kind == 0:
            return self._send(503, b"busy", {})
        if kind == 1:
            self.close_connection = True
            return None
        path = server.folder / self.path.lstrip("/")
        if not path.is_file():
            return self._send(404, b"", {})
        size = path.stat().st_size
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, stop = (int(found[1]), min(size, int(found[2]) + 1)) if found else (0, size)
        headers = {"Accept-Ranges": "bytes"} | ({"Content-Range": f"bytes {first}-{stop - 1}/{size}"} if found else {})
        if not with_body:
            headers["Content-Length"] = str(size)
            return self._send(200, b"", headers)
        with open(path, "rb") as file:
            file.seek(first)
            data = file.read(stop - first)
        if path.suffix == ".tar" and kind != 2:
            with server.lock:
                server.counts["bytes"] += len(data)
                server.counts["again"] += len(data) if (path.name, first, stop) in server.sent else 0
                server.sent.add((path.name, first, stop))
        if kind == 2:
            self.close_connection = True
            headers["Content-Length"] = str(len(data))
            return self._send(206, data[: len(data) // 2], headers)
        return self._send(206 if found else 200, data, headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


def main() -> None:
    """Serve until killed."""
    parser = ScriptParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--fail_every", type=int, default=0)
    args = parser.parse_args()
    server = RangeServer(args.folder, args.delay, args.fail_every)
    print(server.address, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
