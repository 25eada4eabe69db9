"""A headless browser for tests of pages: open, find errors, and record requests."""

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium on this machine to open the page with"
)

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
]
# Hosts that the browser itself contacts for updates, with any flags.
OWN_CALLS = ("google.com", "googleapis.com", "gvt1.com")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
MEASURE = """<script>
const root = document.documentElement;
root.dataset.sizes = [...document.images].map(i => i.naturalWidth * i.naturalHeight).join(" ");
root.dataset.wide = root.scrollWidth;
</script>"""


def browse(page: Path, folder: Path, *flags: str, query: str = "") -> subprocess.CompletedProcess[str]:
    """Open a page in a new browser."""
    assert BROWSER is not None
    profile = folder / f"profile-{page.stem}-{len(list(folder.iterdir()))}"
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri() + query]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result


def complaints(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if ":CONSOLE" in line]


@contextmanager
def recording_proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy that records the first line of every request and does not answer."""
    seen: list[str] = []
    server = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                caller, _ = server.accept()
            except OSError:
                return
            with caller:
                caller.settimeout(10)
                seen.append(caller.recv(4096).split(b"\r\n")[0].decode("latin-1"))

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield f"--proxy-server=http://127.0.0.1:{server.getsockname()[1]}", seen
    finally:
        server.close()


def without_policy(page: Path, folder: Path, addition: str = "") -> Path:
    """The page without its Content-Security-Policy."""
    text, count = POLICY.subn("", page.read_text(encoding="utf-8"))
    assert count == 1
    path = folder / "without-policy.html"
    path.write_text(text.replace("</body>", f"{addition}</body>"), encoding="utf-8")
    return path
