"""The page in a browser: images are shown, no errors, no requests, names are escaped."""

import html
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.browser import (
    MEASURE,
    OWN_CALLS,
    browse,
    complaints,
    needs_browser,
    recording_proxy,
    without_policy,
)

pytestmark = [pytest.mark.slow, needs_browser]


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
