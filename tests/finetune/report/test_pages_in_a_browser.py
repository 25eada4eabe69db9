"""Pages of runs in a browser: no errors, no requests, charts and clips are shown, tables can be sorted."""

import re
from pathlib import Path

import pytest
from PIL import Image

from kinemae.data_tools.report.render import write_page
from kinemae.finetune.report.command import render_page
from kinemae.finetune.report.comparison import gather_comparison
from kinemae.finetune.report.run_files import read_run
from tests.browser import (
    MEASURE,
    OWN_CALLS,
    browse,
    complaints,
    needs_browser,
    recording_proxy,
    without_policy,
)
from tests.finetune.report.conftest import MakeRun

pytestmark = [pytest.mark.slow, needs_browser]

# Sorts the table of classes by its second column twice, and presses the button of the clips.
USE = """<script>
const tables = [...document.querySelectorAll("table.sortable")];
const table = tables.find(t => t.tHead.textContent.includes("precision"));
const names = () => [...table.tBodies[0].rows].map(r => r.cells[2].dataset.v).join(" ");
const root = document.documentElement, button = table.tHead.querySelectorAll("button")[2];
root.dataset.before = names();
button.focus(); button.click(); root.dataset.descending = names();
button.click(); root.dataset.ascending = names();
root.dataset.sorted = table.tHead.rows[0].cells[2].getAttribute("aria-sort");
root.dataset.focus = document.activeElement === button;
const sources = () => [...new Set([...document.querySelectorAll("picture source")].map(s => s.media))].join();
root.dataset.playing = sources();
document.getElementById("animate").click();
root.dataset.stopped = sources();
</script>"""


@pytest.fixture(scope="module")
def comparison(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    runs = [make_run(folder / "first", right=0.3), make_run(folder / "second", overrides=("optim.lr=0.5",))]
    path = folder / "compare.html"
    write_page(path, render_page("compare.html", gather_comparison([read_run(run) for run in runs])))
    return path


@pytest.fixture(params=["page", "comparison"])
def any_page(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def attribute(dom: str, name: str) -> str:
    [value] = re.findall(rf'data-{name}="([^"]*)"', dom[: dom.index(">", dom.index("<html")) + 1])
    return str(value)


def test_the_browser_reports_no_errors_and_draws_the_charts(any_page: Path, tmp_path: Path) -> None:
    result = browse(any_page, tmp_path, "--dump-dom")
    assert complaints(result) == []
    assert result.stdout.count('<path class="curve"') >= 3
    assert '<button type="button">class' in result.stdout, "the page's script ran under its policy"


def test_the_policy_stops_other_scripts_and_requests(any_page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    addition = "<script>document.title='run'</script><img src='http://stranger.test/x.png'></body>"
    bad.write_text(any_page.read_text(encoding="utf-8").replace("</body>", addition), encoding="utf-8")
    result = browse(bad, tmp_path, "--dump-dom")
    assert len(complaints(result)) == 2 and "<title>run" not in result.stdout


def test_no_request_leaves_even_without_the_policy(any_page: Path, tmp_path: Path) -> None:
    with recording_proxy() as (proxy, seen):
        browse(without_policy(any_page, tmp_path), tmp_path, proxy, "--dump-dom")
    assert [line for line in seen if not any(host in line for host in OWN_CALLS)] == []


def test_tables_can_be_sorted_and_clips_stopped(page: Path, tmp_path: Path) -> None:
    result = browse(without_policy(page, tmp_path, USE), tmp_path, "--dump-dom")
    assert complaints(result) == []
    values = {
        order: [float(value) for value in attribute(result.stdout, order).split()]
        for order in ("descending", "ascending")
    }
    assert values["ascending"] == sorted(values["ascending"]) and len(set(values["ascending"])) > 1
    assert values["descending"] == values["ascending"][::-1]
    assert attribute(result.stdout, "sorted") == "ascending"
    assert attribute(result.stdout, "focus") == "true"
    assert {attribute(result.stdout, "playing"), attribute(result.stdout, "stopped")} == {"not all", "all"}


def test_the_mark_at_the_end_of_a_chart_has_one_line(page: Path, tmp_path: Path) -> None:
    move = """<script>
    const mark = document.querySelector(".mark");
    mark.classList.add("before"); mark.style.left = "100%";
    document.documentElement.dataset.heights = mark.offsetHeight + " " + mark.getClientRects().length;
    </script>"""
    result = browse(without_policy(page, tmp_path, move), tmp_path, "--dump-dom")
    height, boxes = (int(number) for number in attribute(result.stdout, "heights").split())
    assert boxes == 1 and 8 < height < 24


def test_every_clip_is_shown_and_nothing_is_wider_than_a_phone(any_page: Path, tmp_path: Path) -> None:
    page = without_policy(any_page, tmp_path, MEASURE)
    result = browse(page, tmp_path, "--window-size=500,900", "--dump-dom")
    shown = [int(size) for size in attribute(result.stdout, "sizes").split()]
    assert len(shown) >= 3 and min(shown) == 16 * 16
    assert int(attribute(result.stdout, "wide")) <= 500


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_renders_in_light_and_dark(page: Path, tmp_path: Path, dark: bool) -> None:
    file = tmp_path / "page.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    browse(page, tmp_path, scheme, f"--screenshot={file}", "--window-size=1000,2000")
    picture = Image.open(file).convert("RGB")
    assert (max(picture.getpixel((3, 3))) < 60) == dark  # type: ignore[arg-type,type-var]
    assert len(picture.resize((250, 500)).getcolors(1 << 20) or []) > 200
