"""Folders that changes write: what they hold already is neither replaced, hidden nor repeated."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools.data_set_files import DataSetChange
from kinemae.data_tools.exit_codes import EXIT_DATA
from kinemae.data_tools.index import open_index
from kinemae.data_tools.storage.location import location
from tests.data_tools.editing.conftest import Run
from tests.label_index import label_index
from tests.sharding import contents, video_bytes


@pytest.mark.parametrize(
    "words", [["reshard", "S"], ["subset", "S", "where=True", "videos=copy"], ["merge", "S", "S2"]]
)
def test_a_folder_that_holds_data_is_refused_and_stays(
    synth_shards: Path, tmp_path: Path, run: Run, words: list[str]
) -> None:
    train = synth_shards / "train"
    source = [{"S": train, "S2": synth_shards / "validation"}.get(word, word) for word in words]
    at = 3 if words[0] == "merge" else 2
    shutil.copytree(train, tmp_path / "set")
    shutil.copytree(train, tmp_path / "tars")
    (tmp_path / "tars" / "dataset.json").unlink()
    before = contents(tmp_path)
    for out, message in (
        (tmp_path / "set", "expected a new folder, got a data set"),
        (tmp_path, "expected a folder without data sets in subfolders, got"),
        (tmp_path / "set" / "train", "expected a folder outside a data set, got one inside"),
        (tmp_path / "set" / "a" / "b" / "train", "expected a folder outside a data set, got one inside"),
        (tmp_path / "tars", "expected a folder without tars, got 2, first shard-000000.tar"),
    ):
        assert message in run(*source[:at], out, *source[at:], code=EXIT_DATA)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "words", [["reshard", "samples_per_shard=5"], ["subset", "videos=copy", "where=True"], ["merge"]]
)
def test_a_data_set_that_appears_meanwhile_in_an_object_store_stays(
    synth_shards: Path, run: Run, bucket: str, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    train, out = synth_shards / "train", location(f"{bucket}/out")
    commit = DataSetChange.commit

    def late(change: DataSetChange, *given: Any) -> None:
        monkeypatch.setattr(DataSetChange, "commit", commit)
        run("reshard", train, out.url, "samples_per_shard=8")
        commit(change, *given)

    monkeypatch.setattr(DataSetChange, "commit", late)
    others = [synth_shards / "validation", out.url, "videos=copy"] if words[0] == "merge" else [out.url]
    log = run(words[0], train, *others, *words[1:], code=EXIT_DATA)
    assert "expected a new folder, got a data set: another process made it; fix: give another OUT" in log
    assert video_bytes(open_index(out)) == video_bytes(open_index(train))
    if words[0] != "merge":
        assert set(out.list(".tar")) == {shard.name for shard in open_index(out).shards}


@pytest.mark.parametrize("words", [["reshard"], ["subset", "where=frames > 1"], ["merge"]])
def test_a_repeated_command_completes_splits_and_refuses_other_options(
    synth_shards: Path, tmp_path: Path, run: Run, words: Sequence[str]
) -> None:
    command, *options = words
    out = tmp_path / "out"
    run(command, synth_shards, out, *options)
    before = contents(out)
    (out / "validation" / "dataset.json").unlink()
    log = run(command, synth_shards, out, *options)
    assert f"{out / 'train'}: complete already" in log and contents(out) == before
    other = {"reshard": "samples_per_shard=3", "subset": "videos=copy", "merge": "videos=copy"}[command]
    assert "expected a new folder, got a data set that another command, other sources or other options" in (
        run(command, synth_shards, out, *options, other, code=EXIT_DATA)
    )
    run("remove", out, "where=key.endswith('0')")
    assert "expected a new folder" in run(command, synth_shards, out, *options, code=EXIT_DATA)


def test_samples_that_were_left_out_or_removed_can_be_added_again(tmp_path: Path, run: Run) -> None:
    label_index(tmp_path / "a", labels=[0, 1])
    run("subset", tmp_path / "a", tmp_path / "first", "where=key == 'key-0'")
    run("add", tmp_path / "first", tmp_path / "a", "duplicates=skip")
    assert len(open_index(tmp_path / "first")) == 2
    run("subset", tmp_path / "first", tmp_path / "second", "where=key == 'key-0'")
    run("remove", tmp_path / "first", "where=key == 'key-0'")
    for folder in (tmp_path / "first", tmp_path / "second"):
        run("add", folder, tmp_path / "a", "duplicates=skip")
        assert sorted(open_index(folder).column("key")) == ["key-0", "key-1"]
