"""Server of a folder for `streaming.py`: plain HTTP and the reading part of S3, with latency and a bandwidth.

    python tests/benchmarks/streaming_server.py FOLDER        # prints its port

`/BUCKET/KEY` is the file FOLDER/BUCKET/KEY. `/-/configure?latency_s=0.05&megabytes_per_s=100` sets the
waiting time before each answer and the bandwidth of all connections together, and clears the counters of
`/-/stats`. moto serves the tests; it needs several milliseconds of CPU time for each request, which would
limit the rates here.
"""

import json
import re
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_PIECE = 1 << 16


class Server(ThreadingHTTPServer):
    """The server, its limits and its counters."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self._lock = threading.Lock()
        self.configure(0.0, 0.0)

    def configure(self, latency_s: float, megabytes_per_s: float) -> None:
        self.latency_s = latency_s
        self._bytes_per_s = megabytes_per_s * 1e6
        self._free_s = 0.0  # when the link is free
        self.requests = self.bytes = 0

    def count(self, size: int) -> None:
        with self._lock:
            self.requests += 1
            self.bytes += size

    def throttle(self, size: int) -> None:
        """Wait until the shared link has sent these bytes."""
        if not self._bytes_per_s:
            return
        with self._lock:
            self._free_s = max(self._free_s, time.monotonic()) + size / self._bytes_per_s
            wait_s = self._free_s - time.monotonic()
        time.sleep(max(wait_s, 0.0))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # header and body in one packet
    server: Server

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        if url.path == "/-/configure":
            self.server.configure(float(query["latency_s"]), float(query["megabytes_per_s"]))
            self._answer(200, b"{}")
        elif url.path == "/-/stats":
            counters = {"requests": self.server.requests, "bytes": self.server.bytes}
            self._answer(200, json.dumps(counters).encode())
        else:
            time.sleep(self.server.latency_s)
            name = unquote(url.path).strip("/")
            if "/" not in name:
                self._answer(200, self._listing(name, query.get("prefix", ""), query.get("delimiter", "")))
            else:
                self._file(self.server.folder / name)

    do_HEAD = do_GET

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        size, first, status = path.stat().st_size, 0, 200
        last = size - 1
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        headers = {"Last-Modified": formatdate(path.stat().st_mtime, usegmt=True), "ETag": '"0"'}
        if asked is not None:
            status = 206
            first = int(asked[1]) if asked[1] else size - int(asked[2])
            last = min(int(asked[2]), last) if asked[1] and asked[2] else last
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(last + 1 - first) if self.command == "GET" else b""
        self._answer(status, content, headers, length=last + 1 - first)

    def _listing(self, bucket: str, prefix: str, delimiter: str) -> bytes:
        """ListObjectsV2."""
        root = self.server.folder / bucket
        items, folders = [], set()
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            key = str(path.relative_to(root))
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            items.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{path.stat().st_size}</Size><ETag>0</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        items += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders]
        head = f"<Name>{bucket}</Name><IsTruncated>false</IsTruncated><KeyCount>{len(items)}</KeyCount>"
        return f'<?xml version="1.0"?><ListBucketResult>{head}{"".join(items)}</ListBucketResult>'.encode()

    def _answer(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, *, length: int | None = None
    ) -> None:
        if not self.path.startswith("/-/"):
            self.server.count(len(content))
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            for begin in range(0, len(content), _PIECE):
                piece = content[begin : begin + _PIECE]
                self.server.throttle(len(piece))
                self.wfile.write(piece)
        self.wfile.flush()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    server = Server(Path(sys.argv[1]))
    print(server.server_address[1], flush=True)
    server.serve_forever()
