"""Locations: allowed URLs, retries, resumed downloads and errors."""

import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.command import DataError
from kinemae.data_tools.storage.location import Location, RetryPolicy, StorageError, location
from kinemae.data_tools.storage.remote import _file_system_of
from kinemae.data_tools.storage.retries import mask_secrets
from tests.faulty_server import FAULTS, FaultyServer, faulty_server
from tests.seeds import examples

QUICK = RetryPolicy(attempts=4, idle_s=0.4, total_s=5.0, pause_s=0.01)
DATA = bytes(range(256)) * 1000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a b.tar").write_bytes(DATA)
    with faulty_server(tmp_path / "web") as server:
        yield server


@pytest.fixture
def remote_file(server: FaultyServer) -> Location:
    return location(server.url, retry_policy=QUICK) / "a b.tar"


@pytest.mark.parametrize(
    "text",
    [
        "pipe:cat /etc/passwd",
        "ftp://host/x",
        "simplecache::s3://bucket/x",
        "s3:/bucket",
        "PIPE:ls",
        "zip://x",
    ],
)
def test_an_unknown_scheme_is_an_error(text: str):
    with pytest.raises(ValueError, match=r"cannot be used: .* begins with file://, s3://, gs://, http://"):
        location(text)


def test_a_url_in_a_path_object_is_an_error():
    with pytest.raises(ValueError, match="expected a URL as text"):
        location(Path("s3://bucket/x"))


def test_paths_with_any_names_are_local(tmp_path: Path):
    assert location("a:b/c.tar").path == Path("a:b/c.tar")
    assert location(tmp_path).path == tmp_path
    assert location("file:///a%20b/c").path == Path("/a b/c")
    assert str(location("a/b")) == "a/b"


@pytest.mark.parametrize(
    "base, name, joined",
    [
        ("a", "b.tar", "a/b.tar"),
        ("s3://bucket/x/", "b c.tar", "s3://bucket/x/b c.tar"),
        ("https://host/x?key=1", "b c.tar", "https://host/x/b%20c.tar?key=1"),
        ("s3://bucket/x", "gs://other/y.tar", "gs://other/y.tar"),
        ("a", "/b/y.tar", "/b/y.tar"),
    ],
)
def test_names_are_joined_by_the_rules_of_the_storage(base: str, name: str, joined: str):
    place = location(base) / name
    assert (place.url, place.name) == (joined, name.rpartition("/")[2])


def test_secrets_are_hidden_in_texts():
    place = location("https://host/x.tar?X-Amz-Signature=abc")
    for shown in (str(place), repr(place), f"{place}"):
        assert "abc" not in shown and "host/x.tar" in shown
    assert mask_secrets("see s3://key:secret@b/x and https://h/y?sig=1 there") == (
        "see s3://***@b/x and https://h/y?*** there"
    )


def test_a_location_is_a_plain_value():
    place = location("s3://bucket/x", retry_policy=QUICK)
    copied = pickle.loads(pickle.dumps(place))
    assert copied == place and hash(copied) == hash(place) and copied.retry_policy == QUICK


def places(tmp_path: Path, bucket: str) -> list[Location]:
    return [location(tmp_path / "local"), location(f"{bucket}/folder", retry_policy=QUICK)]


def test_local_and_remote_folders_behave_alike(tmp_path: Path, bucket: str):
    (tmp_path / "source").write_bytes(DATA)
    for folder in places(tmp_path, bucket):
        assert not folder.exists() and not folder.is_dir() and folder.list() == []
        file = folder / "a b.tar"
        file.write(b"old")
        file.upload(tmp_path / "source")
        (folder / "sub" / "c.json").write(b"{}")
        assert folder.is_dir() and file.exists() and not file.is_dir()
        assert folder.list() == ["a b.tar", "sub"] and folder.list(".tar") == ["a b.tar"]
        assert folder.list_sizes()["a b.tar"] == file.size() == len(DATA)
        assert file.read() == DATA
        assert file.read(10, 20) == DATA[10:30]
        assert file.read(len(DATA) - 5, 20) == DATA[-5:]
        assert file.read(len(DATA) + 5, 20) == b"" == file.read(7, 0)
        assert b"".join(file.iter_chunks(100_000)) == DATA
        file.download(tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == DATA
        file.remove()
        file.remove()
        assert not file.exists()
        with pytest.raises(StorageError, match=r"cannot read .*a b\.tar: .*no such") as caught:
            (folder / "a b.tar").read() if folder.is_remote else raise_like_remote(file)
        assert caught.value.is_missing
    assert not list(tmp_path.rglob("*.partial"))


def raise_like_remote(file: Location) -> None:
    try:
        file.read()
    except StorageError as error:
        raise StorageError(str(error).lower(), error.status) from error


def test_a_web_server_can_be_read_and_listed_but_not_written(server: FaultyServer, remote_file: Location):
    assert remote_file.read() == DATA and remote_file.size() == len(DATA)
    assert location(server.url).list(".tar") == ["a b.tar"]
    assert not (location(server.url, retry_policy=QUICK) / "no").exists()
    for write in (lambda: remote_file.write(b""), lambda: remote_file.upload(Path("x")), remote_file.remove):
        with pytest.raises(ValueError, match=r"can only be read: write to a folder, s3:// or gs://"):
            write()


@examples(30)
@given(data=st.data())
def test_any_range_is_read_despite_faults(folder_server: FaultyServer, data: st.DataObject):
    offset = data.draw(st.integers(0, len(DATA) + 10))
    length = data.draw(st.none() | st.integers(0, len(DATA) + 10))
    folder_server.script(*data.draw(st.lists(st.sampled_from([*FAULTS, 503, 429]), max_size=3)))
    place = location(folder_server.url, retry_policy=QUICK) / "data"
    assert place.read(offset, length) == DATA[offset:][:length]


@pytest.fixture(scope="module")
def folder_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    folder = tmp_path_factory.mktemp("web")
    (folder / "data").write_bytes(DATA)
    with faulty_server(folder) as server:
        yield server


@pytest.mark.parametrize("fault", ["reset in the body", "cut", "short"])
def test_a_broken_body_is_resumed_where_it_broke(server: FaultyServer, remote_file: Location, fault: str):
    server.script(fault)
    assert remote_file.read(1000, 200_000) == DATA[1000:201_000]
    first, second = server.ranges()
    assert first == "bytes=1000-200999"
    resumed = int(second.removeprefix("bytes=").partition("-")[0])
    assert 1000 < resumed <= 101_000 and second.endswith("-200999")


@pytest.mark.parametrize(
    "fault, what", [(503, "HTTP 503"), (429, "HTTP 429"), ("reset", "Disconnected|OSError|Reset")]
)
def test_retries_of_a_server_that_stays_down_end(
    server: FaultyServer, remote_file: Location, fault: str | int, what: str
):
    server.fault = lambda method, path: fault
    with pytest.raises(
        StorageError, match=rf"cannot read {server.url}/a%20b.tar: .*({what}).* retried for 0 s"
    ):
        remote_file.read(0, 10)
    assert len(server.requests) >= QUICK.attempts  # aiohttp repeats some resets by itself, once


@pytest.mark.slow
def test_a_silent_server_times_out(server: FaultyServer, remote_file: Location):
    server.fault = lambda method, path: "slow"
    with pytest.raises(StorageError, match=r"Timeout.*; check the address and the network"):
        remote_file.read(0, 10)
    assert len(server.requests) == QUICK.attempts


def test_retries_have_a_time_limit(server: FaultyServer):
    server.fault = lambda method, path: "slow"
    retry_policy = RetryPolicy(attempts=100, idle_s=0.2, total_s=0.6, pause_s=0.01)
    with pytest.raises(StorageError, match="retried for"):
        (location(server.url, retry_policy=retry_policy) / "a b.tar").read(0, 10)
    assert 2 <= len(server.requests) <= 5


@pytest.mark.parametrize(
    "status, message",
    [
        (403, r"access denied \(HTTP 403\); check that the credentials are set and allow it"),
        (401, r"access denied \(HTTP 401\)"),
        (404, r"there is no such file \(HTTP 404\); check the name"),
        (400, r"HTTP 400; the server refuses such a request"),
    ],
)
def test_permanent_errors_fail_at_once(
    server: FaultyServer, remote_file: Location, status: int, message: str
):
    server.fault = lambda method, path: status
    with pytest.raises(StorageError, match=message) as caught:
        remote_file.read(0, 10)
    assert len(server.requests) == 1 and caught.value.status == status
    assert pickle.loads(pickle.dumps(caught.value)).status == status
    assert isinstance(caught.value, DataError) and "\n" not in str(caught.value)


def test_an_error_does_not_show_a_signature(server: FaultyServer):
    server.fault = lambda method, path: 403
    with pytest.raises(StorageError, match=r"/x\?\*\*\*: ") as caught:
        location(f"{server.url}/x?sig=secret", retry_policy=QUICK).read(0, 10)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["https://me:hidden@host/x", "s3://key:hidden@bucket/x"])
def test_a_password_in_a_url_is_an_error_that_does_not_show_it(text: str):
    with pytest.raises(ValueError, match=r"holds a password: put it in ~/.netrc") as caught:
        location(text)
    assert "hidden" not in str(caught.value)


def test_a_password_comes_from_netrc(
    server: FaultyServer, remote_file: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hidden\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.password = "Basic bWU6aGlkZGVu"
    assert remote_file.read(0, 10) == DATA[:10]
    monkeypatch.delenv("NETRC")
    _file_system_of.cache_clear()
    with pytest.raises(StorageError, match=r"access denied \(HTTP 401\).*a password in ~/.netrc"):
        remote_file.read(0, 10)


def test_a_server_without_ranges_is_read_whole_and_never_in_parts(tmp_path: Path):
    (tmp_path / "x").write_bytes(DATA)
    with faulty_server(tmp_path) as server:
        server.without_ranges = True
        place = location(server.url, retry_policy=QUICK) / "x"
        assert place.read() == DATA and place.read(0, 10) == DATA[:10]
        with pytest.raises(StorageError, match="its server ignores byte ranges; copy the shards"):
            place.read(10, 10)


def test_a_server_without_sizes_is_read_whole(server: FaultyServer, remote_file: Location):
    server.without_ranges = server.without_sizes = True
    assert remote_file.read() == DATA
    with pytest.raises(StorageError, match=r"cannot determine the size of .*: its server does not report it"):
        remote_file.size()


def test_an_outage_is_not_a_missing_file(server: FaultyServer, remote_file: Location):
    server.fault = lambda method, path: 503
    with pytest.raises(StorageError, match=r"cannot look up .* HTTP 503"):
        remote_file.exists()


def test_a_conditional_write_replaces_only_the_expected_object(bucket: str):
    place = location(f"{bucket}/x", retry_policy=QUICK)
    assert place.etag() is None
    place.write(b"one", expected_etag="")
    with pytest.raises(StorageError, match="HTTP 412"):
        place.write(b"two", expected_etag="")
    old = place.etag()
    place.write(b"two", expected_etag=old)
    with pytest.raises(StorageError, match="HTTP 412"):
        place.write(b"three", expected_etag=old)
    assert place.read() == b"two"
    place.write(b"two", expected_etag=old)  # as a retry does if the first answer was lost
    place.write(b"three")
    assert place.read() == b"three"


def test_a_store_without_conditional_writes_is_written_without_them(
    proxied_bucket: tuple[FaultyServer, str],
):
    proxy, bucket = proxied_bucket
    place = location(f"{bucket}/x", retry_policy=QUICK)
    place.write(b"one")
    proxy.script(501)
    place.write(b"two", expected_etag='"another"')
    assert place.read() == b"two" and proxy.injected == [501]


def test_files_have_no_conditional_writes(tmp_path: Path):
    place = location(tmp_path / "x")
    place.write(b"one")
    assert place.etag() is None
    place.write(b"two", expected_etag="")
    assert place.read() == b"two"


def test_an_unreachable_address_is_an_error_with_the_address():
    with pytest.raises(StorageError, match=r"cannot read http://127.0.0.1:9/x: ClientConnectorError: .*"):
        location("http://127.0.0.1:9/x", retry_policy=QUICK).read(0, 1)
    with pytest.raises(StorageError, match=r"cannot look up http://127.0.0.1:9/x: "):
        location("http://127.0.0.1:9/x", retry_policy=QUICK).exists()


def test_missing_credentials_are_an_error_at_once(bucket: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    _file_system_of.cache_clear()
    with pytest.raises(StorageError, match=r"access denied \(NoCredentialsError\).*AWS_PROFILE"):
        location(f"{bucket}/x", retry_policy=QUICK).read(0, 1)
    _file_system_of.cache_clear()


def test_a_missing_library_is_an_error_with_its_name():
    code = (
        "import sys; sys.modules['s3fs'] = None; from kinemae.data_tools.storage.location import location; "
    )
    result = subprocess.run(
        [sys.executable, "-c", f"{code} location('s3://bucket/x').read()"], capture_output=True, text=True
    )
    assert "ValueError: s3:// needs a library that is not installed" in result.stderr
    assert "pip install 'kinemae[s3]'" in result.stderr


def read_in_child(place: Location, results: "multiprocessing.Queue[bytes]") -> None:
    results.put(place.read(0, 1000))


@pytest.mark.processes
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_child_process_opens_its_own_connections(remote_file: Location, bucket: str, start: str):
    stored = location(f"{bucket}/x", retry_policy=QUICK)
    stored.write(DATA)
    context = multiprocessing.get_context(start)
    for place in (remote_file, stored):
        assert place.read(0, 1000) == DATA[:1000]  # connections are open when the child is forked
        results = context.Queue()
        child = context.Process(target=read_in_child, args=(place, results))
        child.start()
        assert results.get(timeout=60) == DATA[:1000]
        child.join()
        assert place.read(0, 1000) == DATA[:1000]


def test_a_local_failure_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write .*file/x: File exists"):
        (location(tmp_path) / "file" / "x").write(b"data")
    with pytest.raises(StorageError, match=r"cannot write .*: No such file"):
        (location(tmp_path) / "x").upload(tmp_path / "absent")
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupted_upload_is_detected_and_repeated(
    tmp_path: Path, proxied_bucket: tuple[FaultyServer, str]
):
    proxy, url = proxied_bucket
    (tmp_path / "shard").write_bytes(DATA)
    proxy.at_random(0.3, seed=1)
    place = location(
        f"{url}/shard", retry_policy=RetryPolicy(attempts=10, idle_s=5.0, total_s=30.0, pause_s=0.01)
    )
    for _ in range(5):
        place.upload(tmp_path / "shard")
        assert place.read() == DATA
        assert place.size() == len(DATA)


@pytest.mark.parametrize(
    "folder, name, expected",
    [
        ("s3://bucket/set/parts/part/train/", "../../../train/a.tar", "s3://bucket/set/train/a.tar"),
        ("s3://bucket/set", "../../a.tar", "s3://bucket/../a.tar"),
        ("https://host/set/train?key=1", "../test/a b.tar", "https://host/set/test/a%20b.tar?key=1"),
        ("/set/parts/part/train", "../../../train/a.tar", "/set/parts/part/train/../../../train/a.tar"),
    ],
)
def test_an_entry_may_be_above_its_folder_but_not_above_its_bucket(folder: str, name: str, expected: str):
    assert (location(folder) / name).url == expected
