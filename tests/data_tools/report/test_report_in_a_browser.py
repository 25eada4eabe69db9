"""The page in a browser: images are shown, no errors, no requests, names are escaped."""

import html
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine to open the page with"),
]

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


def browse(page: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a new browser."""
    assert BROWSER is not None
    profile = folder / f"profile-{page.stem}-{len(list(folder.iterdir()))}"
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
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


def test_the_browser_reports_no_errors(page: Path, tmp_path: Path) -> None:
    result = browse(page, tmp_path, "--dump-dom")
    assert complaints(result) == []
    assert "Summary</h2>" in result.stdout


def test_the_pages_own_policy_stops_scripts_and_requests(page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    addition = "<script>document.title='run'</script><img src='http://stranger.test/x.png'></body>"
    bad.write_text(page.read_text(encoding="utf-8").replace("</body>", addition), encoding="utf-8")
    result = browse(bad, tmp_path, "--dump-dom")
    assert len(complaints(result)) == 2 and all("blocked" in line for line in complaints(result))
    assert "<title>run" not in result.stdout


def test_no_request_leaves_even_without_the_policy(page: Path, tmp_path: Path) -> None:
    with recording_proxy() as (proxy, seen):
        browse(without_policy(page, tmp_path), tmp_path, proxy, "--dump-dom")
        assert [line for line in seen if not any(host in line for host in OWN_CALLS)] == []
        calling = "<img src='http://stranger.test/x.png'>"
        browse(without_policy(page, tmp_path, calling), tmp_path, proxy, "--dump-dom")
        assert any("stranger.test" in line for line in seen), "the proxy sees what leaves"


def test_every_picture_is_shown_and_names_are_text(page: Path, tmp_path: Path) -> None:
    result = browse(without_policy(page, tmp_path, MEASURE), tmp_path, "--dump-dom")
    [sizes] = re.findall(r'data-sizes="([^"]*)"', result.stdout)
    shown = [int(size) for size in sizes.split()]
    assert len(shown) == page.read_text(encoding="utf-8").count("<img ") >= 17
    assert min(shown) >= 4 * 40 * 112
    assert "alert(1)" in result.stdout and complaints(result) == []
    assert html.escape("<script>alert(1)</script>.mp4") in result.stdout


@pytest.mark.parametrize("width, dark", [(1280, False), (1280, True), (500, False)])
def test_the_page_renders_in_light_and_dark(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    file = tmp_path / "page.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    browse(page, tmp_path, scheme, f"--screenshot={file}", f"--window-size={width},2400")
    picture = Image.open(file).convert("RGB")
    assert picture.size == (width, 2400)
    red, green, blue = picture.getpixel((3, 3))  # type: ignore[misc]
    assert (max(red, green, blue) < 60) == dark
    assert len(picture.resize((width // 4, 600)).getcolors(1 << 20) or []) > 1000


def test_nothing_is_wider_than_a_phone(page: Path, tmp_path: Path) -> None:
    result = browse(without_policy(page, tmp_path, MEASURE), tmp_path, "--window-size=500,900", "--dump-dom")
    [wide] = re.findall(r'data-wide="(\d+)"', result.stdout)
    assert int(wide) <= 500
