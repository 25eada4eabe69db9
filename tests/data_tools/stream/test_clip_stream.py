"""`kinemae.clips` of tars without an index: hooks, epochs, columns, states."""

import json
from itertools import chain, islice

import pytest
from torch.utils.data import DataLoader

import kinemae
from kinemae.data_tools.command import DataError
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from tests.data_tools.stream.tars import SAMPLES, clip, key, write_tars
from tests.source_collections import write_tar

CLIP = ClipConfig(frames=2, stride=2, size=16)
ALL = sorted(key(tar, sample) for tar in range(4) for sample in range(SAMPLES))


def keys(batches):
    return [*chain(*(batch["key"] for batch in batches))]


def captioned(sample):
    return {**sample, "caption": sample["txt"].decode().upper()}


def test_hooks_see_the_samples_of_webdataset_and_columns_are_decoded(tmp_path):
    stream = kinemae.clips(
        write_tars(tmp_path), CLIP, batch_size=4, columns=["cls", "txt", "caption", "gone"]
    )
    [batch] = stream.select(lambda sample: sample["cls"] == b"1").map(captioned).with_epoch(1)
    assert batch["cls"] == [1] * 4 and batch["label"].tolist() == [1] * 4 and batch["gone"] == [None] * 4
    assert batch["caption"] == [text.upper() for text in batch["txt"]] and batch["txt"][0].startswith(
        "caption"
    )
    assert batch["clip"].shape == (4, 3, 2, 16, 16) and batch["position"].tolist() == [0, 1, 2, 3]
    single = next(iter(kinemae.clips([tmp_path / "x-001.tar"], CLIP, columns=["txt"]).shuffle(1)))
    assert single["key"] == "x-001.tar/00100" and single["txt"] == "caption 0"


def broken(sample):
    return sample["cls"] if sample["__key__"] != "00203" else sample["absent"]


@pytest.mark.parametrize("kind", ["map", "select"])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.processes)])
def test_an_error_of_a_function_names_the_sample_and_the_tar(tmp_path, kind, workers):
    write_tars(tmp_path)
    tar = str(tmp_path / "x-002.tar")
    stream = kinemae.clips(tar, CLIP, batch_size=4, workers=workers)
    function = broken if kind == "select" else with_broken
    with pytest.raises(KeyError, match="absent") as raised:
        keys(getattr(stream, kind)(function).with_epoch(2))
    assert f"{kind}: {function.__name__} failed for sample 00203 of {tar}" in raised.value.__notes__


def with_broken(sample):
    return {**sample, "found": broken(sample)}


def test_iterations_continue_and_an_epoch_has_each_sample_once(tmp_path):
    pattern = write_tars(tmp_path)
    stream = kinemae.clips(pattern, CLIP, batch_size=2).with_epoch(5)
    assert sorted(keys(stream) + keys(stream)) == ALL
    assert sorted(keys(islice(kinemae.clips(pattern, CLIP, batch_size=2), 10))) == ALL
    loader = DataLoader(
        kinemae.clips(pattern, CLIP, batch_size=2).with_epoch(10), batch_size=None, num_workers=2
    )
    first, second = keys(loader), keys(loader)
    assert sorted(first) == sorted(second) == ALL and first != second
    with pytest.raises(
        ValueError, match="state_dict: expected clips that this process reads, got a DataLoader"
    ):
        loader.dataset.state_dict()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_state_continues_with_the_tars_that_are_not_done_on_any_number_of_processes(tmp_path, workers):
    pattern = write_tars(tmp_path)
    ranks = [
        kinemae.clips(pattern, CLIP, batch_size=3, workers=workers, rank=rank, world=2).shuffle(1)
        for rank in (0, 1)
    ]
    before = keys(chain(*(islice(stream, 2) for stream in ranks)))  # a tar and a sample of each process
    states = json.loads(json.dumps([stream.state_dict() for stream in ranks]))
    assert states[0]["clips"] == 12
    restored = kinemae.clips(pattern, CLIP, batch_size=2).shuffle(1)
    restored.load_state_dict(states)
    after = [*islice(restored, 5)]
    assert after[0]["position"].tolist() == [12, 13]
    assert sorted({*before, *keys(after)}) == ALL
    assert {*before} & {*keys(after)} == {before[5], before[11]}  # their tars were open
    with pytest.raises(
        ValueError, match=r"state: expected the states of all 2 processes, got those of \[0\]"
    ):
        restored.load_state_dict(states[0])
    with pytest.raises(
        ValueError, match="seed: expected the state of a run with 1, got 0; fix: open the same"
    ):
        kinemae.clips(pattern, CLIP, seed=1).load_state_dict(states)


def test_an_error_is_raised_again_by_the_next_iteration(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"x" * 2000)
    stream = kinemae.clips(tmp_path / "x.tar", CLIP)
    for _ in range(2):
        with pytest.raises(DataError, match=r"x.tar: expected a complete, plain tar, got invalid data"):
            next(iter(stream))


def test_wrong_settings_and_columns_are_named(tmp_path):
    pattern = write_tars(tmp_path, 1)
    with pytest.raises(
        ValueError, match="where: expected it to be unset for tars without an index, got width > 1"
    ):
        kinemae.clips(pattern, CLIP, where="width > 1")
    with pytest.raises(ValueError, match="with_epoch must be a whole number above 0, got 0"):
        kinemae.clips(pattern, CLIP).with_epoch(0)
    with pytest.raises(ValueError, match="shuffle must be a whole number above 0, got 0"):
        kinemae.clips(pattern, CLIP).shuffle(0)
    with pytest.raises(DataError, match=r"got tars; fix: make an index with `kinemae data index .* INDEXES`"):
        kinemae.clips({pattern: 1.0}, CLIP)
    write_tar(tmp_path / "y.tar", [("1.mp4", clip(0)), ("1.json", b"{")])
    with pytest.raises(DataError, match=r"y.tar/1: expected a valid .json, got b'{' .*; fix: correct it"):
        next(iter(kinemae.clips(tmp_path / "y.tar", CLIP, columns=["json"])))


@pytest.mark.parametrize("method", ["map", "select"])
@pytest.mark.parametrize("given", [None, 5, "name"])
def test_what_is_no_function_is_rejected_at_once(method, given, tmp_path):
    write_tars(tmp_path)
    with pytest.raises(ValueError, match=f"{method} must be a function, got {given!r}"):
        getattr(kinemae.clips(str(tmp_path / "x-000.tar"), CLIP), method)(given)


@pytest.mark.parametrize("method", ["shuffle", "with_epoch"])
@pytest.mark.parametrize("given", ["a", 2.5, None])
def test_sizes_are_whole_numbers(method, given, tmp_path):
    write_tars(tmp_path)
    with pytest.raises(ValueError, match=f"{method} must be a whole number above 0, got {given!r}"):
        getattr(kinemae.clips(str(tmp_path / "x-000.tar"), CLIP), method)(given)


@pytest.mark.parametrize("columns", ["txt", [5], [None]])
def test_columns_are_names(columns, tmp_path):
    write_tars(tmp_path)
    with pytest.raises(ValueError, match="columns must be a list of names, got"):
        kinemae.clips(str(tmp_path / "x-000.tar"), CLIP, columns=columns)
