"""Checkpoints are complete or absent; damaged ones are skipped; training continues during a save."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from kinemae.data_tools.command import CheckpointError
from kinemae.pretrain.runtime import async_writer
from kinemae.pretrain.runtime.async_writer import PinnedBuffer
from kinemae.pretrain.runtime.checkpoint import RunState
from kinemae.pretrain.runtime.checkpoint_files import FileChecksum, ShardStream, is_shard_file, read_metadata
from kinemae.pretrain.runtime.tensor_shards import TensorShard
from tests.checkpointing import (
    SHAPES,
    PlainEngine,
    checkpoints,
    save,
    stored_steps,
)
from tests.full_disk import no_file_above

PIECES = "shard-00000-of-00001.safetensors"


def newest_of(run_dir: Path, *, before: int | None = None) -> int:
    """Step of the checkpoint that a new start loads; checks that all values are of that step."""
    engine = PlainEngine()
    state = checkpoints(run_dir).load_newest(engine, before=before)
    assert engine.is_at(state.step)
    return state.step


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_without_checkpoints_starts_at_step_0(tmp_path: Path) -> None:
    assert checkpoints(tmp_path).load_newest(PlainEngine()) == RunState()


@pytest.mark.parametrize("background", [True, False])
def test_a_loaded_checkpoint_is_bitwise_equal(tmp_path: Path, background: bool) -> None:
    saver, engine = checkpoints(tmp_path, background=background), PlainEngine()
    engine.train_to(7)
    state = RunState(
        step=7, clips=70, skipped_clips=1, skipped_steps=2, world=1, zero_stage=3, omitted=[4, 5]
    )
    saver.save(engine, state)
    saver.commit()
    loaded = PlainEngine()
    assert checkpoints(tmp_path).load_newest(loaded) == state
    assert loaded.is_at(7)
    assert stored_steps(tmp_path) == ["step-00000007"]


def test_updates_during_a_save_do_not_change_the_checkpoint(tmp_path: Path) -> None:
    saver, engine = checkpoints(tmp_path), PlainEngine()
    saver.attempt = "one"
    pipe = tmp_path / "checkpoints" / "step-00000003.one.partial" / PIECES
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)  # who writes to it waits for a reader
    engine.train_to(3)
    saver.save(engine, RunState(step=3))
    assert not saver.is_written()
    engine.train_to(4)
    written = load(pipe.read_bytes())
    expected = PlainEngine()
    expected.train_to(3)
    for (name, kind), values_V in expected.values.items():
        assert torch.equal(written[f"{kind}/{name}@0"], values_V)
    with pytest.raises(CheckpointError, match="Invalid argument"):  # a pipe cannot be put on the disk
        saver.commit()


def test_a_save_is_a_checkpoint_after_commit_only(tmp_path: Path) -> None:
    saver, engine = checkpoints(tmp_path), PlainEngine()
    engine.train_to(2)
    saver.save(engine, RunState(step=2))
    deadline = time.monotonic() + 60
    while not saver.is_written() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert saver.is_written()
    assert stored_steps(tmp_path) == [f"step-00000002.{saver.attempt}.partial"]
    saver.commit()
    assert stored_steps(tmp_path) == ["step-00000002"]
    saver.commit()  # nothing is under way
    assert stored_steps(tmp_path) == ["step-00000002"]


def test_a_resumed_process_of_an_earlier_start_changes_no_checkpoint(tmp_path: Path) -> None:
    old, new = checkpoints(tmp_path), checkpoints(tmp_path)
    frozen, engine = PlainEngine(), PlainEngine()
    frozen.train_to(3)
    old.save(frozen, RunState(step=3))
    while not old.is_written():
        time.sleep(0.001)
    engine.train_to(3)
    engine.values["table", "weight"][0] = -1  # as sums are rounded differently on another number of processes
    new.save(engine, RunState(step=3))
    while not new.is_written():
        time.sleep(0.001)
    assert len(stored_steps(tmp_path)) == 2, "each writes into a folder of its own"
    new.commit()
    new.commit()  # waits for the removal
    assert stored_steps(tmp_path) == ["step-00000003"]
    with pytest.raises(CheckpointError, match="could not write the checkpoint of step 3"):
        old.commit()
    loaded = PlainEngine()
    assert checkpoints(tmp_path).load_newest(loaded).step == 3 and loaded.values["table", "weight"][0] == -1


@pytest.mark.parametrize("action", ["save", "load"])
def test_the_next_save_or_load_commits_an_unfinished_save(tmp_path: Path, action: str) -> None:
    saver, engine = checkpoints(tmp_path), PlainEngine()
    engine.train_to(2)
    saver.save(engine, RunState(step=2))
    if action == "load":
        assert saver.load_newest(engine).step == 2
    else:
        engine.train_to(3)
        saver.save(engine, RunState(step=3))
    assert "step-00000002" in stored_steps(tmp_path)
    saver.commit()


def test_the_buffer_is_allocated_once_and_shards_may_cross_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_writer, "_BLOCK_VALUES", 8)
    copy, places = PinnedBuffer(), []
    for first in (0.0, 100.0):
        runs = torch.arange(first, first + 37).split([5, 0, 3, 20, 9])
        copy.copy_from([TensorShard(name="w", kind="weight", start=0, values_V=run_V) for run_V in runs])
        assert torch.cat(copy.values()).tolist() == torch.arange(first, first + 37).tolist()
        places.append([block.data_ptr() for block in copy.values()])
    assert places[0] == places[1]
    assert [len(block) for block in copy.values()] == [8, 8, 8, 8, 5]


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(tmp_path: Path, background: bool) -> None:
    save(tmp_path, 1)
    saver, engine = checkpoints(tmp_path, background=background), PlainEngine()
    engine.train_to(2)
    with (
        no_file_above(3000),
        pytest.raises(
            CheckpointError,
            match=r"could not write the checkpoint of step 2 to .*\(rank 0 on .*: .*File too large.*\); "
            "older checkpoints are intact; fix: remove the cause and repeat the command",
        ),
    ):
        saver.save(engine, RunState(step=2))
        saver.commit()
    assert stored_steps(tmp_path) == ["step-00000001"]
    assert newest_of(tmp_path) == 1
    saver.save(engine, RunState(step=2))  # the disk has space again
    saver.commit()
    assert newest_of(tmp_path) == 2


def test_a_full_disk_leaves_the_loaded_checkpoint_that_is_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 2)
    saver, engine = checkpoints(tmp_path), PlainEngine()
    saver.load_newest(engine)
    more = RunState(step=2, validations=[{"step": 1, "text": "x" * 20_000}])
    saver.save(engine, more)
    with no_file_above(10_000), pytest.raises(CheckpointError, match="older checkpoints are intact"):
        saver.commit()  # the shards are on the disk, and the state is too large for it
    assert newest_of(tmp_path) == 2
    saver.save(engine, more)
    saver.commit()
    saver.commit()  # waits for the removal of the replaced one
    assert stored_steps(tmp_path) == ["step-00000002"]
    assert checkpoints(tmp_path).load_newest(engine) == more


@pytest.mark.parametrize("is_written", [True, False])
def test_a_kill_while_a_checkpoint_is_replaced_leaves_one(tmp_path: Path, is_written: bool) -> None:
    save(tmp_path, 2)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-00000002", folder / "step-00000002.replaced")
    if not is_written:
        (folder / "step-00000002").rename(folder / "step-00000002.one.partial")
    assert newest_of(tmp_path) == 2
    assert stored_steps(tmp_path) == ["step-00000002"]


def test_a_save_with_missing_values_fails(tmp_path: Path) -> None:
    saver, engine = checkpoints(tmp_path), PlainEngine()
    engine.train_to(1)
    engine.held["table"] = (0, 439)
    saver.save(engine, RunState(step=1))
    with pytest.raises(CheckpointError, match="expected 440 values of exp_avg of table, got 439"):
        saver.commit()
    assert stored_steps(tmp_path) == []


def test_a_damaged_checkpoint_is_skipped_with_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1, 2, 3)
    flip_a_bit(tmp_path / "checkpoints" / "step-00000003" / PIECES)
    (tmp_path / "checkpoints" / "step-00000002" / "manifest.json").unlink()
    with caplog.at_level("ERROR", logger="kinemae"):
        assert newest_of(tmp_path) == 1
    assert f"step-00000003 is damaged ({PIECES} has changed since it was written)" in caplog.text
    assert "step-00000002 is damaged (manifest.json is missing)" in caplog.text


@pytest.mark.parametrize("file", [PIECES, "state.json", "parameters.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "empty", "changed"])
def test_every_damage_of_every_file_is_detected(tmp_path: Path, file: str, damage: str) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "checkpoints" / "step-00000002" / file
    if damage == "missing":
        path.unlink()
    elif damage == "changed":
        text = path.read_bytes()
        is_list = file == "manifest.json"
        path.write_bytes(text.replace(b'"bytes": ', b'"bytes": 9') if is_list else text[::-1])
    else:
        os.truncate(path, path.stat().st_size // 2 if damage == "short" else 0)
    assert newest_of(tmp_path) == 1


def test_a_run_stops_if_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for manifest in tmp_path.rglob("manifest.json"):
        manifest.unlink()
    with pytest.raises(
        CheckpointError,
        match=r"all 2 checkpoints in .* are damaged \(step 2: manifest.json is missing; step 1: .*\); fix: "
        "restore one of them from a copy, or rename the folder to start again from step 0; keep it",
    ):
        checkpoints(tmp_path).load_newest(PlainEngine())
    assert stored_steps(tmp_path) == ["step-00000001", "step-00000002"]  # another start gives the same error


def test_a_skipped_damaged_checkpoint_is_quarantined(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    for _ in range(2):
        save(tmp_path, 4)
        flip_a_bit(tmp_path / "checkpoints" / "step-00000004" / PIECES)
        assert newest_of(tmp_path) == 1
    assert "step-00000004.2.quarantined: remove it when it is no longer needed" in caplog.text
    save(tmp_path, 2, keep=1)
    aside = ["step-00000004.2.quarantined", "step-00000004.quarantined"]
    assert stored_steps(tmp_path) == ["step-00000002", *aside]
    assert newest_of(tmp_path) == 2


def test_a_checkpoint_of_another_run_is_quarantined_and_not_overwritten(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 9)
    save(tmp_path, 2)
    assert newest_of(tmp_path) == 2
    aside = ["step-00000002.quarantined", "step-00000009.quarantined"]
    assert stored_steps(tmp_path) == ["step-00000001", "step-00000002", *aside]


def test_the_next_start_removes_interrupted_saves_and_removals(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000002").rename(folder / "step-00000002.partial")
    (folder / "step-00000009.dropped").mkdir()
    assert newest_of(tmp_path) == 1
    assert stored_steps(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize(
    ("keep", "every", "kept"),
    [(1, 0, [6]), (2, 0, [5, 6]), (1, 2, [2, 4, 6]), (2, 3, [3, 5, 6]), (9, 4, [1, 2, 3, 4, 5, 6])],
)
def test_the_newest_and_every_nth_checkpoint_are_kept(
    tmp_path: Path, keep: int, every: int, kept: list[int]
) -> None:
    saver, engine = checkpoints(tmp_path, keep=keep, every=every), PlainEngine()
    for step in range(1, 7):
        saver.save(engine, RunState(step=step))
    saver.commit()
    saver.commit()  # waits for the removal of old ones
    assert stored_steps(tmp_path) == [f"step-{step:08d}" for step in kept]


def test_a_rollback_loads_an_older_checkpoint_and_drops_later_ones(tmp_path: Path) -> None:
    save(tmp_path, 2, 4, 6)
    assert newest_of(tmp_path, before=5) == 4
    assert newest_of(tmp_path) == 4
    with pytest.raises(CheckpointError, match="expected a checkpoint of step 1 or earlier, got none"):
        newest_of(tmp_path, before=1)
    assert stored_steps(tmp_path) == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({**SHAPES, "table": (11, 40)}, "table: checkpoint 40x11, model 11x40"),
        ({**SHAPES, "more": (2,)}, "more: checkpoint none, model 2"),
        (
            {"table": (40, 11)},
            "frozen: checkpoint 7, model none; head.bias: checkpoint scalar, model none",
        ),
        ({f"w{i}": (1,) for i in range(9)}, "w0: checkpoint none, model 1, and 8 more"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_the_differences(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    save(tmp_path, 1)
    with pytest.raises(
        CheckpointError, match="step-00000001: expected a checkpoint of this model"
    ) as refused:
        checkpoints(tmp_path).load_newest(PlainEngine(shapes))
    assert message in str(refused.value)


def test_another_format_is_refused_and_is_not_damage(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / "checkpoints" / "step-00000001" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="step-00000001: expected checkpoint format 1, got 2; fix"):
        checkpoints(tmp_path).load_newest(PlainEngine())


def rewrite_state(run_dir: Path, change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    """Replace the state of a checkpoint of step 1 and its entry in the manifest."""
    folder = run_dir / "checkpoints" / "step-00000001"
    (folder / "state.json").write_text(json.dumps(change(json.loads((folder / "state.json").read_text()))))
    mark = FileChecksum.of((folder / "state.json").read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"bytes": mark.size, "crc32": mark.crc32}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_missing_keys_of_a_state_take_their_defaults(tmp_path: Path) -> None:
    save(tmp_path, 1)
    rewrite_state(tmp_path, lambda state: {key: state[key] for key in state if key != "rollbacks"})
    assert checkpoints(tmp_path).load_newest(PlainEngine()).rollbacks == 0


def test_unknown_keys_of_a_state_are_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, 1)
    rewrite_state(tmp_path, lambda state: {**state, "tokens_seen": 1})
    with pytest.raises(CheckpointError, match=r"state.json: expected the keys .*, got tokens_seen too; fix"):
        checkpoints(tmp_path).load_newest(PlainEngine())


def test_an_unwritable_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    saver = checkpoints(tmp_path)
    saver.save(PlainEngine(), RunState(step=1))
    with pytest.raises(CheckpointError, match=r"step 1 .*Not a directory"):
        saver.commit()


def test_a_checkpoint_describes_itself(tmp_path: Path) -> None:
    save(tmp_path, 5)
    folder = tmp_path / "checkpoints" / "step-00000005"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {key: manifest[key] for key in ("format", "step", "world", "zero_stage")} == {
        "format": 1,
        "step": 5,
        "world": 1,
        "zero_stage": 0,
    }
    notes = read_metadata(folder)
    assert notes.files.keys() == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert notes.shapes == SHAPES
    assert notes.updates == {"head.bias": 5, "head.weight": 5, "table": 5}
    shutil.copytree(folder, tmp_path / "elsewhere")
    for place in (folder, tmp_path / "elsewhere"):
        streams = [
            ShardStream(place / name, mark) for name, mark in notes.files.items() if is_shard_file(name)
        ]
        assert [len(stream.ranges) for stream in streams] == [10]
