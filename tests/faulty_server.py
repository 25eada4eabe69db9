"""HTTP server with injected faults: serves a folder, or forwards to another server."""

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

FAULTS = ("reset", "reset in the body", "cut", "short")
_CHUNK = 1 << 14


class FaultyServer(ThreadingHTTPServer):
    """Server that calls `fault(method, path)` for each request.

    None serves it, a number is its status, "slow" never answers, "trickle" sends a body in 20 pieces within
    6 seconds, and `FAULTS` break the connection or the body.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, source: Path | str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.source = source
        self.fault: Callable[[str, str], str | int | None] = lambda method, path: None
        self.without_ranges = False
        self.without_sizes = False
        self.password = ""  # required header
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range
        self.injected: list[str | int] = []
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def script(self, *faults: str | int | None) -> None:
        """Inject these faults, one per request, then none."""
        waiting = iter(faults)
        self.fault = lambda method, path: next(waiting, None)

    def at_random(self, share: float, seed: int, faults: tuple[str | int, ...] = (*FAULTS, 503)) -> None:
        """Inject faults into a fraction of all requests."""
        chance = random.Random(seed)
        self.fault = lambda method, path: chance.choice(faults) if chance.random() < share else None

    def ranges(self, method: str = "GET") -> list[str]:
        return [range_ for name, _, range_ in self.requests if name == method]


@contextmanager
def faulty_server(source: Path | str) -> Iterator[FaultyServer]:
    """Serve a folder, or forward to a URL."""
    server = FaultyServer(source)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise the second of two writes (header, body) waits 40 ms
    server: FaultyServer

    def _any(self) -> None:
        received = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, self.headers.get("Range", "")))
        fault = self.server.fault(self.command, self.path)
        if self.headers.get("Authorization", "") != self.server.password and self.server.password:
            fault = 401
        if fault is not None:
            self.server.injected.append(fault)
        if fault == "slow":
            self.server.stopped.wait(30)
            self.close_connection = True
        elif fault == "reset":
            self._reset()
        elif isinstance(fault, int):
            self._send(fault, {}, b"injected", None)
        else:
            serve = self._from_folder if isinstance(self.server.source, Path) else self._from_upstream
            self._send(*serve(received), fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: str | None) -> None:
        is_head = self.command == "HEAD"
        breaks = fault is not None and len(body) > 1 and status < 300
        half = body[: len(body) // 2]
        if self.server.without_sizes:
            headers = {"Transfer-Encoding": "chunked"}
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        elif not is_head:
            headers["Content-Length"] = str(len(half) if fault == "short" and breaks else len(body))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if is_head:
            return
        if fault == "trickle":
            self._trickle(body)
            return
        self.wfile.write(half if breaks else body)
        self.wfile.flush()
        if breaks and fault == "reset in the body":
            self._reset()
        elif breaks and fault == "cut":
            self.close_connection = True

    def _trickle(self, body: bytes) -> None:
        size = len(body) // 20 + 1
        for begin in range(0, len(body), size):
            self.wfile.write(body[begin : begin + size])
            self.wfile.flush()
            time.sleep(0.3)

    def _reset(self) -> None:
        """Close with a reset instead of an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _from_folder(self, received: bytes) -> tuple[int, dict[str, str], bytes]:
        assert isinstance(self.server.source, Path)
        path = self.server.source / unquote(urlsplit(self.path).path).lstrip("/")
        if path.is_dir():
            names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in path.iterdir())
            links = "".join(f'<a href="{name}">{name}</a>\n' for name in names)
            return 200, {"Content-Type": "text/html"}, links.encode()
        if not path.is_file():
            return 404, {}, b"no such file"
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or self.server.without_ranges:
            return 200, {"Content-Length": str(len(data))}, data
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if first >= len(data):
            return 416, {"Content-Range": f"bytes */{len(data)}"}, b""
        return 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]

    def _from_upstream(self, received: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(urlsplit(str(self.server.source)).netloc, timeout=30)
        kept = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        upstream.request(self.command, self.path, received, kept)
        answer = upstream.getresponse()
        body = answer.read()
        unwanted = ("connection", "transfer-encoding", "date", "server")
        is_head = self.command == "HEAD"
        if not is_head:
            unwanted += ("content-length",)
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in unwanted}
        upstream.close()
        return answer.status, headers, body

    def log_message(self, format: str, *arguments: object) -> None:
        pass
