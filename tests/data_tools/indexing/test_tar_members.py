"""Members of tars: grouped like in webdataset; damaged tars are errors, where webdataset stops silently."""

import io
import logging
import re
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.command import DataError
from kinemae.data_tools.indexing.tar_members import (
    TarMember,
    group_members,
    read_member,
    read_members,
    split_key,
)
from tests.source_collections import write_tar

MEMBERS = [
    ("sub/a.mp4", bytes(range(256)) * 5),
    ("sub/a.cls", b"3"),
    ("b.mp4", b"video"),
    ("b.json", b"{}"),
    ("long/" + "n" * 150 + ".mp4", b"x" * 600),
]


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tar(tmp_path_factory.mktemp("tar") / "x.tar", MEMBERS).read_bytes()


def members(content: bytes) -> list[TarMember]:
    return read_members(io.BytesIO(content), "x.tar")


def members_named(*names: str) -> list[TarMember]:
    return [TarMember(name=name, offset=number, length=1) for number, name in enumerate(names)]


def test_members_have_the_offsets_of_the_tar(tar: bytes):
    found = members(tar)
    assert [member.name for member in found] == [name for name, _ in MEMBERS]
    assert [tar[member.offset :][: member.length] for member in found] == [content for _, content in MEMBERS]


def test_a_tar_truncated_at_any_byte_is_an_error(tar: bytes):
    end = members(tar)[-1].offset + 1024  # the last member's blocks
    for length in range(0, end + 512, 97):
        with pytest.raises(
            DataError,
            match=r"^x.tar: expected a (tar, got invalid|complete tar, got one that is cut short after).*fix",
        ):
            members(tar[:length])
    assert len(members(tar[: end + 512])) == len(MEMBERS)


def test_webdataset_stops_silently_where_read_members_raises(tar: bytes, tmp_path: Path):
    """A tar truncated between two members, and a tar with one changed byte in a header."""
    third = members(tar)[2].offset - 512
    damaged = bytearray(tar)
    damaged[third + 1] ^= 1
    for content, message in (
        (tar[:third], r"x.tar: expected a complete tar, got one that is cut short after sub/a.cls"),
        (
            bytes(damaged),
            rf"x.tar: expected a header, got damaged bytes after sub/a.cls, at byte {third};",
        ),
    ):
        (tmp_path / "x.tar").write_bytes(content)
        silent = webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False)
        assert [sample["__key__"] for sample in silent] == ["sub/a"]
        with pytest.raises(DataError, match=message):
            members(content)


@given(st.data())
def test_a_changed_bit_in_a_header_is_an_error_or_has_no_effect(tar: bytes, data: st.DataObject):
    header = data.draw(st.sampled_from([member.offset - 512 for member in members(tar)]))
    byte, bit = data.draw(st.integers(0, 511)), data.draw(st.integers(0, 7))
    damaged = bytearray(tar)
    damaged[header + byte] ^= 1 << bit
    try:
        found = members(bytes(damaged))
    except DataError as error:
        assert re.match(r"x.tar: expected", str(error))
    else:
        assert found == members(tar)


def test_a_file_that_is_not_a_plain_tar_is_an_error(tar: bytes):
    with pytest.raises(DataError, match=r"x.tar: expected a tar, got invalid data .*; fix: download"):
        members(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"x.tar: expected the end of the tar at byte \d+, got more data"):
        members(tar + tar)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz"):
        pass
    with pytest.raises(
        DataError, match=r"x.tar: expected a plain tar, for reads of single videos, got a compressed one"
    ):
        members(packed.getvalue())


def test_a_sparse_member_is_an_error():
    info = tarfile.TarInfo("a.mp4")
    info.type = tarfile.GNUTYPE_SPARSE
    with pytest.raises(DataError, match=r"x.tar: expected plain members, got the sparse file a.mp4"):
        members(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def test_links_have_a_target_and_folders_are_skipped():
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("a.mp4")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    found = members(packed.getvalue())
    assert [(member.length, member.link) for member in found] == [(0, "/etc/passwd"), (0, "/etc/passwd")]


def test_a_tar_that_became_shorter_is_an_error():
    with pytest.raises(DataError, match=r"x.tar: expected 3 bytes of a.mp4, got 2"):
        read_member(io.BytesIO(b"abc"), TarMember(name="a.mp4", offset=1, length=3), "x.tar")


WORDS = st.lists(st.text("ab1_- \u00e9", min_size=1, max_size=3), min_size=1, max_size=3)


@given(WORDS, st.sampled_from(["", ".mp4", ".MP4", ".v2.mp4", ".cls", ".json"]))
def test_keys_and_extensions_are_those_of_webdataset(words: list[str], ending: str):
    for name in ["/".join(words) + ending, "__meta__/x.json", "__index__", "a.b/c.d.mp4", "./a.mp4"]:
        key, ending = webdataset.tariterators.base_plus_ext(name)
        skipped = key is None or re.match(r"__[^/]*__($|/)", name)
        assert split_key(name) == (("", "") if skipped else (key, ending.lower()))


def test_the_video_is_found_by_its_extension_and_other_files_are_counted():
    contents = group_members(
        members_named("a.MP4", "a.txt", "b.right.webm", "c.json", "README", "d/.hidden.mp4", "__x__/y.mp4"),
        "x",
    )
    assert [(sample.key, sample.video.name) for sample in contents.samples] == [
        ("a", "a.MP4"),
        ("b", "b.right.webm"),
    ]
    assert (contents.skipped, contents.ignored) == ({"c": "no member of the sample is a video"}, 3)


def test_several_videos_in_a_sample_need_the_argument_video():
    several = members_named("a.left.mp4", "a.right.mp4")
    with pytest.raises(
        DataError, match=r"x.tar, a: expected one video, got a.left.mp4 and a.right.mp4; .* video=mp4"
    ):
        group_members(several, "x.tar")
    [sample] = group_members(several, "x.tar", video="Right.mp4").samples
    assert sample.video.name == "a.right.mp4"


def test_a_repeated_member_is_an_error():
    with pytest.raises(DataError, match=r"x.tar: expected unique members, got a.MP4 twice"):
        group_members(members_named("a.mp4", "b.mp4", "a.MP4"), "x.tar")


def test_group_members_warns_about_pickles(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logging.getLogger("kinemae"), "propagate", True)
    group_members(members_named("a.mp4", "a.pyd", "b.mp4", "b.state.pth"), "x.tar")
    assert "x.tar holds 2 pickled members, first a.pyd: they can run code and are never read" in caplog.text
