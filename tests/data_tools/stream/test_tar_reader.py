"""Samples of tars in sequence: those of webdataset, each once per epoch; damage is an error."""

import gzip
import io
import tarfile
from dataclasses import replace
from itertools import chain, islice

import pytest
import webdataset

from kinemae.data_tools.command import DataError
from kinemae.data_tools.storage.location import RetryPolicy, StorageUnavailable
from kinemae.data_tools.stream.tar_list import TarsDone, TarSlice, open_tars
from kinemae.data_tools.stream.tar_reader import TarReader
from tests.data_tools.stream.tars import SAMPLES, clip, key, write_tars
from tests.faulty_server import faulty_server
from tests.source_collections import write_tar

ALL = {key(tar, sample) for tar in range(4) for sample in range(SAMPLES)}


def reader(pattern, own=None, **settings):
    return TarReader(open_tars(pattern), own or TarSlice(), **{"seed": 0, "buffer": 1, **settings})


def read_keys(samples, count):
    return [f"{sample['__tar__']}/{sample['__key__']}" for sample in islice(samples, count)]


def test_samples_are_those_of_webdataset_without_pickles(tmp_path, logged):
    write_tars(tmp_path, 1)
    tar = str(tmp_path / "x-000.tar")
    expected = [*webdataset.WebDataset(tar, shardshuffle=False)]
    for sample, reference in zip(islice(reader(tar), SAMPLES), expected, strict=True):
        assert reference.pop("pkl") and "pkl" not in sample
        assert reference.pop("__local_path__") == sample["__url__"]
        assert {name: sample[name] for name in reference} == reference
    assert logged.text.count("pickled members") == 1  # not once for each tar and epoch


@pytest.mark.parametrize("buffer", [1, 3, 100])
def test_each_sample_comes_once_per_epoch_and_its_tar_is_done_with_its_last_sample(tmp_path, buffer):
    samples = reader(write_tars(tmp_path), buffer=buffer)
    for epoch in range(2):
        keys, done = [], []
        for _ in range(4 * SAMPLES):
            keys += read_keys(samples, 1)
            done += samples.take_done()
        assert set(keys) == ALL and sorted(done) == [*range(4 * epoch, 4 * epoch + 4)]
    again = reader(write_tars(tmp_path), buffer=buffer)
    assert read_keys(again, 8 * SAMPLES)[4 * SAMPLES :] == keys  # a function of the seed
    in_order = [
        name for tar in dict.fromkeys(name[:9] for name in keys) for name in sorted(ALL) if tar in name
    ]
    assert (keys == in_order) == (buffer == 1)


def test_readers_share_the_tars_and_a_new_one_leaves_out_those_that_are_done(tmp_path):
    pattern = write_tars(tmp_path)
    own = [TarSlice(rank=rank, world=2, worker=worker, workers=2) for rank in (0, 1) for worker in (0, 1)]
    parts = [read_keys(reader(pattern, part), SAMPLES) for part in own]
    assert sorted(chain(*parts)) == sorted(ALL)
    samples = reader(pattern, TarSlice(rank=1, world=2))
    first = read_keys(samples, SAMPLES + 1)
    replaced = reader(pattern, TarSlice(rank=1, world=2, skipped=frozenset(samples.take_done())))
    assert read_keys(replaced, SAMPLES)[0] == first[-1]  # its open tar is read again


def test_every_cut_tar_is_an_error_and_no_silent_end(tmp_path):
    write_tars(tmp_path, 1)
    whole = (tmp_path / "x-000.tar").read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # of the last member
    cut = tmp_path / "cut.tar"
    for length in [0, 100, *range(512, end + 1, 512), end - 100, end + 100]:
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut.tar: expected a complete, plain tar, got invalid data"):
            read_keys(reader(cut), SAMPLES + 1)
    cut.write_bytes(whole[: end + 512])  # the mark of the end is complete
    assert len(read_keys(reader(cut), 2 * SAMPLES)) == 2 * SAMPLES


def sparse_tar():
    info = tarfile.TarInfo("a.mp4")
    info.type = tarfile.GNUTYPE_SPARSE
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole + whole, "got more data; fix: do not concatenate tars with cat"),
        (
            lambda whole: gzip.compress(whole),
            "expected a complete, plain tar, got invalid data at its beginning",
        ),
        (
            lambda whole: whole[:1024] + b"damaged " + whole[1032:],
            r"invalid data after 00000.cls \(bad checksum",
        ),
        (
            lambda whole: whole[:1024] + whole,
            "expected unique members, got a .*duplicate file name.*; fix: remove",
        ),
        (lambda whole: sparse_tar(), "expected plain members, got the sparse file a.mp4"),
    ],
)
def test_damaged_tars_are_named(tmp_path, damage, message):
    write_tars(tmp_path, 1)
    tar = tmp_path / "x-000.tar"
    tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(DataError, match=rf"x-000.tar: .*{message}"):
        read_keys(reader(tar), SAMPLES + 1)


def test_tars_without_a_video_are_an_error_and_samples_without_one_are_passed_over(tmp_path, logged):
    write_tar(
        tmp_path / "a.tar", [("README.md", b""), ("1.txt", b"one"), ("2.mp4", clip(0)), ("3.txt", b"three")]
    )
    samples = reader(tmp_path / "a.tar")
    assert read_keys(samples, 2) == ["a.tar/2", "a.tar/2"]
    assert logged.text.count("a sample without a video is skipped") == 1
    write_tar(tmp_path / "b.tar", [("1.txt", b"one")])
    with pytest.raises(DataError, match=r"b.tar: expected samples with a video, got none in 1 tars"):
        next(reader(tmp_path / "b.tar"))
    with pytest.raises(
        DataError, match=r"got none in 1 tars.*and check the functions given to map and select"
    ):
        next(reader(tmp_path / "a.tar", hooks=(("select", lambda sample: False),)))


def test_tars_without_a_sample_are_done_and_no_error_while_others_have_one(tmp_path):
    write_tars(tmp_path, 2)
    write_tar(tmp_path / "x-002.tar", [("1.txt", b"one")])
    write_tar(tmp_path / "x-003.tar", [])
    pattern = str(tmp_path / "x-{000..003}.tar")
    for own in (TarSlice(), TarSlice(worker=1, workers=4)):  # an epoch of the latter has one tar
        samples, done = reader(pattern, own, keeps=lambda extension: extension == "mp4"), []
        for _ in range(20 * SAMPLES):
            next(samples)
            done += samples.take_done()
        assert sorted(done) == [*islice(own.numbers(), len(done))]  # none is read again after a restart
    stuck = TarSlice(done=TarsDone(0, frozenset(done)), worker=1, workers=4)
    assert next(reader(pattern, stuck))


def test_a_shuffle_buffer_may_be_larger_than_all_tars_and_dropped_samples_leave_no_open_tar(tmp_path):
    tars = 101
    for number in range(tars):
        write_tar(tmp_path / f"x-{number:03d}.tar", [(f"{number}.mp4", clip(0)), (f"{number}b.mp4", clip(1))])
    pattern, hooks = str(tmp_path / "x-{000..100}.tar"), (("select", is_first),)
    samples = reader(pattern, buffer=5000, hooks=hooks)
    assert len({*read_keys(samples, tars)}) == tars == len(samples.take_done())


def is_first(sample):
    return not sample["__key__"].endswith("b")


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (True, "bool"),
        (["a"], "list"),
        (("a",), "tuple"),
        (0, "int"),
        ({5: 1}, "the key 5"),
        ({None: 1}, "the key"),
    ],
)
def test_a_map_function_that_returns_no_sample_is_named(result, got, tmp_path):
    def wrong(sample):
        return result

    samples = reader(write_tars(tmp_path, 1), hooks=(("map", wrong),))
    message = (
        rf"map: expected a dictionary with texts as keys, or None, from wrong, got {got}.* for x-000.tar/0"
    )
    with pytest.raises(DataError, match=message):
        next(samples)


def test_remote_tars_are_read_one_by_one_despite_faults(tmp_path):
    write_tars(tmp_path)
    with faulty_server(tmp_path) as server:
        server.at_random(0.3, 1)
        samples = reader(f"{server.url}/x-{{000..003}}.tar", buffer=4)
        first = next(samples)["__tar__"]
        assert {path for _, path, _ in server.requests} == {f"/{first}"}  # no other request at the start
        assert server.injected or len(read_keys(samples, 4 * SAMPLES)) == 4 * SAMPLES
        server.fault = lambda method, path: 404 if "002" in path else None
        with pytest.raises(DataError, match=r"x-002.tar: there is no such file \(HTTP 404\)"):
            read_keys(reader(f"{server.url}/x-{{000..003}}.tar"), 4 * SAMPLES)


def test_members_after_a_long_name_and_links_are_read(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a" * 150 + ".mp4", "b.mp4"):
            info = tarfile.TarInfo(name)
            info.size = len(clip(0))
            tar.addfile(info, io.BytesIO(clip(0)))
        link = tarfile.TarInfo("c.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert read_keys(reader(tmp_path / "x.tar"), 3) == [f"x.tar/{'a' * 150}", "x.tar/b", f"x.tar/{'a' * 150}"]


def test_an_outage_is_waited_for_and_loses_no_sample(tmp_path):
    write_tars(tmp_path)
    with faulty_server(tmp_path) as server:
        listed = open_tars(f"{server.url}/x-{{000..003}}.tar")

        def waiting(outage_s):
            policy = RetryPolicy(attempts=1, pause_s=0.01, outage_s=outage_s)
            places = tuple(replace(place, retry_policy=policy) for place in listed.places)
            return TarReader(replace(listed, places=places), TarSlice(), seed=0, buffer=1)

        server.script(None, 503)
        assert {*read_keys(waiting(20), 4 * SAMPLES)} == ALL and server.injected == [503]
        server.fault = lambda method, path: 503
        with pytest.raises(StorageUnavailable, match=r"cannot read .*tar: HTTP 503"):
            next(waiting(0))
