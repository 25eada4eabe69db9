"""The report shows the content of a data set and its problems."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.index import NO_LABEL, Sample, Shard, write_index
from kinemae.data_tools.report.collection import open_collection
from kinemae.data_tools.report.content import LIMITS
from kinemae.data_tools.report.duplicates import exact_duplicates, groups_of_equal_rows
from kinemae.data_tools.report.video_stats import failed_stats
from kinemae.data_tools.storage.location import location


class Elements(HTMLParser):
    """Every element of a page and its attributes, and the text."""

    def __init__(self, page: Path):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def summary(odd_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The parsed output of `--json`."""
    out = tmp_path_factory.mktemp("json") / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("sys.stdout.write", printed.append)
        assert run_program(PROGRAM, ["report", str(odd_shards), str(out), "workers=1", "--json"]) == 0
    return json.loads("".join(printed))


def test_static_and_blank_videos_are_named(summary: dict[str, Any]) -> None:
    assert sorted(summary["static"]) == ["train_walk_blank", "train_walk_static"]
    assert summary["blank"] == ["train_walk_blank"]


def test_a_re_encoded_video_is_a_near_duplicate(summary: dict[str, Any]) -> None:
    groups = [set(group) for group in summary["near_duplicates"]]
    assert {"train_walk_0", "validation_walk_again"} in groups
    assert {"train_run_1", "validation_run_copy"} in groups
    assert len(groups) == summary["near_duplicate_groups"] == 2


def test_exact_duplicates_and_leaks_are_found_by_digest(summary: dict[str, Any]) -> None:
    assert [set(group) for group in summary["exact_duplicates"]] == [{"train_run_1", "validation_run_copy"}]
    assert (summary["leaked_files"], summary["leaked_groups"]) == (1, 0)
    [leak] = [entry for entry in summary["checks"] if "files in more than one split: 1" in entry["text"]]
    assert leak["level"] == "problem" and "run/" in leak["text"]


def test_unreadable_and_rejected_videos_are_listed_and_not_fatal(summary: dict[str, Any]) -> None:
    assert list(summary["unreadable"]) == ["train_walk_3"]
    assert "its checksum differs" in summary["unreadable"]["train_walk_3"]
    assert summary["rejected"] == 1
    assert summary["checks"][0] == {"level": "problem", "text": "1 of 17 decoded videos are unreadable"}


def test_untrusted_names_are_escaped(page: Path, odd_shards: Path) -> None:
    elements = Elements(page)
    assert {"<script>alert(1)</script>.mp4", '"><img src=x onerror=alert(2)>.mp4'} <= {
        name for name in re.findall(r"(?m)(?:^|/)(<script.*?mp4|\">.*?mp4)", elements.text)
    }
    assert not {tag for tag, _ in elements.found} & {"script", "iframe", "object", "embed", "link", "form"}
    assert not [key for _, attributes in elements.found for key in attributes if key.startswith("on")]
    # A character that changes the writing direction affects its own name only.
    assert re.search(r"<bdi>[^<]*\u202efdp[^<]*</bdi>", page.read_text(encoding="utf-8"))


def test_the_page_refers_to_nothing_outside_itself(page: Path) -> None:
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "srcset", "poster", "data", "action", "background", "style"):
            value = attributes.get(name) or ""
            is_own = value.startswith(("#", "data:image/jpeg;base64,")) or name == "style"
            assert not value or is_own, (tag, name, value)
            assert "url(" not in value
    text = page.read_text(encoding="utf-8")
    assert "@import" not in text and "url(" not in text
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html.unescape(text)


def test_images_have_alt_texts_and_tables_have_headers(page: Path) -> None:
    elements = Elements(page)
    pictures = [attributes for tag, attributes in elements.found if tag == "img"]
    assert len(pictures) >= 17
    assert all(picture["alt"] and picture["width"] and picture["height"] for picture in pictures)
    drawings = [attributes for tag, attributes in elements.found if tag == "svg"]
    assert len(drawings) == 10
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    headers = [attributes for tag, attributes in elements.found if tag == "th"]
    assert all(header.get("scope") in ("row", "col") for header in headers)
    ids = {attributes["id"] for _, attributes in elements.found if attributes.get("id")}
    links = {attributes["href"] for tag, attributes in elements.found if tag == "a"}
    assert links <= {f"#{name}" for name in ids}


def test_equal_data_sets_give_equal_pages_with_any_number_of_workers(
    odd_shards: Path, page: Path, tmp_path: Path
):
    again = tmp_path / "again.html"
    assert run_program(PROGRAM, ["report", str(odd_shards), str(again), "workers=1"]) == 0
    assert again.read_bytes() == page.read_bytes()


def test_a_large_data_set_is_sampled(odd_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "part.html"
    assert (
        run_program(PROGRAM, ["report", str(odd_shards), str(out), "samples=5", "pictures=3", "workers=1"])
        == 0
    )
    text = " ".join(Elements(out).text.split())
    assert "Images, static and blank videos cover a sample of 5 of 17 videos (seed 0)" in text
    assert "3 randomly chosen videos (seed 0)" in text
    assert "groups of exact duplicates: 1" in text, "the check covers all videos"


def test_one_data_set_is_reported_inside_its_folder(odd_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "validation"
    shutil.copytree(odd_shards / "validation", folder)
    assert run_program(PROGRAM, ["report", str(folder), "workers=1", "pictures=0"]) == 0
    text = " ".join(Elements(folder / "report.html").text.split())
    assert "The report covers only one data set" in text
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["{shards}", "pictures=-1"], 2, "pictures must be 0 or more, got -1"),
        (["{shards}", "samples=0"], 2, "samples must be at least 1, got 0"),
        (["{shards}", "near_duplicate_bits=-1"], 2, "near_duplicate_bits must lie between 0 and 256, got -1"),
        (["{shards}", "static_threshold=-1"], 2, "static_threshold must be 0 or more, got -1.0"),
        (["{shards}", "blank_threshold=-1"], 2, "blank_threshold must be 0 or more, got -1.0"),
        (["{shards}", "workers=-1"], 2, "workers must be 0 or more, got -1"),
        (["{shards}", "page.txt"], 2, "OUT page.txt: expected the name of a page, as in page.html"),
        (["s3://bucket/shards"], 2, "s3://bucket/shards is remote: expected OUT"),
        (["{empty}"], 3, "expected a data set, got a folder without dataset.json"),
        (["{shards}", "{empty}/file/x.html"], 3, "cannot write to {empty}/file"),
        (["{shards}", "page.htm"], 2, "OUT page.htm: expected the name of a page, as in page.html"),
    ],
)
def test_a_wrong_call_is_one_line(
    arguments: list[str],
    code: int,
    message: str,
    odd_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    places = {"{shards}": str(odd_shards / "validation"), "{empty}": str(tmp_path)}
    for place, path in places.items():
        arguments = [text.replace(place, path) for text in arguments]
        message = message.replace(place, path)
    assert run_program(PROGRAM, ["report", *arguments]) == code
    [line] = [line for line in capsys.readouterr().err.splitlines() if "ERROR" in line]
    assert message in line


def test_a_remote_data_set_is_reported_here(odd_shards: Path, bucket: str, tmp_path: Path) -> None:
    there, page, here = location(f"{bucket}/shards"), tmp_path / "there.html", tmp_path / "here.html"
    for path in odd_shards.rglob("*"):
        if path.is_file():
            (there / str(path.relative_to(odd_shards))).upload(path)
    # workers=1: the fork server keeps the environment of the test that started it.
    assert run_program(PROGRAM, ["report", str(there), str(page), "workers=1"]) == 0
    assert run_program(PROGRAM, ["report", str(odd_shards), str(here), "workers=1"]) == 0
    assert page.read_bytes() == here.read_bytes()


def rows(folder: Path, *samples: dict[str, Any], **extra: list[Any]) -> None:
    """A data set of made-up rows; its one shard is empty."""
    folder.mkdir(parents=True)
    (folder / "shard-000000.tar").touch()
    plain = {"shard": 0, "offset": 0, "length": 9, "crc32": 0, "frames": 8, "duration_s": 1.0, "width": 4}
    plain |= {"height": 4, "codec": "h264", "label": NO_LABEL}
    made = [Sample(**{"key": f"k{at}", "name": f"n{at}", **plain, **row}) for at, row in enumerate(samples)]
    shards = [Shard(name="shard-000000.tar", samples=len(made), bytes=0, sha256="")]
    write_index(folder, made, shards, [], {}, extra=extra)


def test_segments_of_one_video_are_no_duplicates_but_leak_across_splits(tmp_path: Path) -> None:
    rows(tmp_path / "train", *({"content": "abc", "start_s": float(at)} for at in range(3)), {"content": ""})
    rows(
        tmp_path / "test",
        {"content": "abc", "start_s": 9.0},
        {"content": "abc", "start_s": 1.0},
        {"content": ""},
    )
    collection = open_collection(location(tmp_path))
    assert collection.splits == ("train", "test")
    assert exact_duplicates(collection) == [[1, 5]]
    [leak] = collection.leaks("content")
    assert (leak.value, leak.first, leak.samples) == ("abc", {0: 0, 1: 0}, 5)
    assert collection.first_rows(leak) == [0, 4]
    assert collection.leaks("group") == []


def test_groups_in_two_splits_are_leaks(tmp_path: Path) -> None:
    rows(tmp_path / "train", {"group": "ann"}, {"group": "bob"}, {"group": ""})
    rows(tmp_path / "validation", {"group": "bob"}, {"group": "bob"}, {"group": ""})
    [leak] = open_collection(location(tmp_path)).leaks("group")
    assert (leak.value, leak.first, leak.samples) == ("bob", {0: 1, 1: 0}, 3)


@pytest.mark.slow
def test_equal_rows_are_found_among_many_at_once() -> None:
    one = np.arange(1_000_000) // 2
    assert [run.tolist() for run in groups_of_equal_rows(one[:6])] == [[0, 1], [2, 3], [4, 5]]
    assert len(groups_of_equal_rows(one)) == 500_000
    assert groups_of_equal_rows(np.zeros(0)) == []


def test_missing_digests_give_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    rows(folder, {}, {}, speed=[1.5, None], camera=["<i>", "<i>"])
    assert run_program(PROGRAM, ["report", str(folder), "workers=1"]) == 0
    text = " ".join(Elements(folder / "report.html").text.split())
    assert "the index has no digests of the original files: exact duplicates cannot be found" in text
    assert "no exact duplicates" not in text
    assert "2 of 2 decoded videos are unreadable" in text
    assert "speed" in text and "1 of 2" in text and "<i> (2)" in text


def test_long_lists_are_cut_with_their_lengths(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    rows(folder, {})
    lines = [json.dumps({"path": f"{at}.mp4", "reason": f"reason {chr(97 + at % 20)}"}) for at in range(300)]
    (folder / "rejected.jsonl").write_text("\n".join([*lines, "half a li"]))
    (folder / "notes.jsonl").write_text('{"path": "<i>.mp4", "note": "7 of 9 frames"}\n')
    assert run_program(PROGRAM, ["report", str(folder), "workers=1"]) == 0
    text = " ".join(Elements(folder / "report.html").text.split())
    assert f"{301 - LIMITS['listed']} more files are not shown" in text
    assert f"{21 - LIMITS['cards']} more reasons are not shown" in text
    assert "files with notes: 1, first: 7 of 9 frames" in text and "<i>.mp4" in text
    assert "files rejected while sharding: 301, most frequent reason: reason a" in text


def test_a_video_that_kills_its_process_is_listed() -> None:
    assert failed_stats((location("set"), 0), "timed out").reason == "timed out"
