"""Logged results of a video are valid while its files are unchanged, locally or at a URL."""

import tarfile
from pathlib import Path

import pytest

from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.sharding.transcode import source_states
from kinemae.data_tools.storage.location import location
from tests.faulty_server import faulty_server
from tests.sharding import encoded, moving, shard, stopped_before_shards


def test_a_local_file_of_the_same_name_does_not_affect_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.mp4").write_bytes(b"remote")
    monkeypatch.chdir(tmp_path)
    with faulty_server(tmp_path / "web") as server:
        video = SourceVideo(path=Path("a.mp4"), name="a.mp4", url=f"{server.url}/a.mp4")
        [before] = source_states([video])
        assert before.size == 6
        (tmp_path / "a.mp4").write_bytes(b"a file of this machine")
        assert source_states([video]) == [before]
        (tmp_path / "web" / "a.mp4").write_bytes(b"another remote")
        assert source_states([video]) != [before]
        [lost] = source_states([SourceVideo(path=Path("b"), name="b", url=f"{server.url}/b")])
        assert lost.size == 0


def test_each_url_is_looked_up_once(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(bytes(100))
    with faulty_server(tmp_path) as server:
        url = f"{server.url}/a.tar"
        members = [SourceVideo(path=Path("a.tar"), name=str(n), url=url, member=(n, 7)) for n in range(20)]
        states = source_states(members)
        assert len(server.requests) == 1
    assert len({state.stamp for state in states}) == 20
    assert {state.size for state in states} == {7}


@pytest.mark.slow
def test_a_changed_remote_video_is_stored_again(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A file changes between two runs; it keeps its size, so only its tag differs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second = encoded(moving(5)), encoded(moving(9))
    length = max(len(first), len(second))
    place = location(f"{bucket}/a.mp4")
    place.write(first.ljust(length, b"\0"))
    location(f"{bucket}/b.mp4").write(b"no video")
    table = tmp_path / "list.csv"
    table.write_text(f"path\n{bucket}/a.mp4\n{bucket}/b.mp4\n")
    out = tmp_path / "out"
    log = out / "work" / "transcoded.jsonl"
    with stopped_before_shards():
        assert shard(table, out) == 3
        before = log.read_text()
        assert '"frames": 5' in before
        assert shard(table, out) == 3
        assert log.read_text() == before
        place.write(second.ljust(length, b"\0"))
        assert shard(table, out) == 3
        assert '"frames": 9' in log.read_text()


@pytest.mark.parametrize("layout", ["copy", "h264"])
@pytest.mark.parametrize("kind, ending", [(("mp4", "libx264"), "mp4"), (("webm", "libvpx"), "mkv")])
def test_a_url_without_an_extension_gets_that_of_its_container(
    layout: str, kind: tuple[str, str], ending: str, tmp_path: Path
):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "watch.v1").write_bytes(encoded(moving(5), kind=(*kind, "yuv420p")))
    with faulty_server(tmp_path / "web") as server:
        (tmp_path / "list.csv").write_text(f"path\n{server.url}/watch.v1\n")
        assert shard(tmp_path / "list.csv", tmp_path / "out", f"layout.name={layout}") == 0
    with tarfile.open(tmp_path / "out" / "train" / "shard-000000.tar") as tar:
        endings = [name.partition(".")[2] for name in tar.getnames()]
    assert endings == ["json", ending if layout == "copy" else "mp4"]
