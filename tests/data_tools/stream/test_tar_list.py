"""Tars of a run: each once per epoch, dealt to any number of readers, and the ones that are done."""

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemae.data_tools.command import DataError
from kinemae.data_tools.stream.tar_list import TarsDone, TarSlice, open_tars
from tests.data_tools.stream.tars import write_tars

NUMBERS = st.sets(st.integers(0, 60))


@given(st.integers(0, 20), NUMBERS, st.lists(NUMBERS))
def test_done_tars_are_those_of_a_plain_set(before: int, later: set[int], added: list[set[int]]) -> None:
    done, plain = TarsDone(before).plus(later), {*range(before), *later}
    for numbers in added:
        done, plain = done.plus(numbers), plain | numbers
    assert {*range(done.before), *done.later} == plain
    assert done.before not in plain and all(number > done.before for number in done.later)
    assert [*islice(done.left(), 80)] == [number for number in range(200) if number not in plain][:80]
    assert TarsDone.of_json(done.as_json(0, 7)) == done


@settings(max_examples=15)
@given(
    st.sampled_from([1, 2, 3, 7, 32, 512]),
    st.lists(st.integers(1, 4), min_size=1),
    NUMBERS,
    st.integers(0, 9),
)
def test_the_readers_of_any_topology_share_the_tars_that_are_left(
    world: int, workers: list[int], later: set[int], before: int
) -> None:
    done = TarsDone(before).plus(later)
    read = []
    for rank in range(world):
        own = workers[rank % len(workers)]  # processes may have different numbers of workers
        for worker in range(own):
            read += islice(
                TarSlice(rank=rank, world=world, worker=worker, workers=own, done=done).numbers(), 2
            )
    assert len(set(read)) == len(read)
    assert {*islice(done.left(), 2 * world)} <= {*read}  # each process has the same number of tars


@given(st.integers(1, 30), st.integers(0, 5))
def test_an_epoch_has_each_tar_once_in_a_new_order(tars: int, seed: int) -> None:
    listed = open_tars(f"s3://bucket/x-{{000..{tars - 1:03d}}}.tar")
    epochs = [[listed.at(seed, epoch * tars + i)[0] for i in range(tars)] for epoch in range(3)]
    assert all(sorted(names) == list(listed.names) for names in epochs)
    if tars > 8:
        assert len({tuple(names) for names in epochs}) == 3


def test_tars_are_listed_without_a_request_and_do_not_depend_on_the_folder(tmp_path):
    pattern = write_tars(tmp_path / "a", 2)
    listed = open_tars(pattern)
    assert listed.names == ("x-000.tar", "x-001.tar")
    assert open_tars("hf://datasets/owner/name/x-{000..001}.tar").identity == listed.identity
    assert open_tars(f"{tmp_path}/a/*.tar").identity == listed.identity
    single = open_tars([tmp_path / "a" / "x-000.tar", f"{tmp_path}/a/x-001.tar"])
    assert single.names == listed.names


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("pipe:cat x.tar", "'pipe:cat x.tar' cannot be used: expected a path or a URL"),
        ("x-{0..9999999}.tar", "expected at most 1000000 shards"),
        ("x-{0..1.tar", "x-{0..1.tar: expected a pattern with balanced braces"),
        (["a/x.tar", "a/x.tar"], "shards: expected different tars, got a/x.tar twice; fix: name it once"),
        ("nothing/*.tar", "expected .*.tar, train/.*.tar, or a pattern"),
    ],
)
def test_wrong_patterns_are_named(patterns, message):
    with pytest.raises((ValueError, DataError), match=message):
        open_tars(patterns)


def test_a_pattern_whose_ends_do_not_exist_is_an_error(tmp_path):
    write_tars(tmp_path, 2)
    with pytest.raises(DataError, match=r"expected .*x-002.tar, got no such file; fix: correct it"):
        open_tars(f"{tmp_path}/x-{{000..002}}.tar").check_ends()
