"""Checkpoints in S3 are complete or absent, as in a folder, and their errors have the same exit codes."""

import json
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kinemae.data_tools.command import CheckpointError, Stuck, exit_code_of, run_program
from kinemae.data_tools.exit_codes import EXIT_CHECKPOINT, EXIT_STUCK
from kinemae.data_tools.storage import remote
from kinemae.data_tools.storage.location import Location, location
from kinemae.launch.record import saved_steps
from kinemae.pretrain.__main__ import PROGRAM
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.checkpoint import Checkpoints, RunState
from kinemae.pretrain.runtime.run_folder import IGNORED_ENTRIES, check_run_dir, open_run_dir
from tests.checkpointing import PlainEngine, alone
from tests.conftest import QUICK
from tests.faulty_server import FaultyServer
from tests.pretrain.runtime.test_resume import losses
from tests.ranks import run_ranks, started


def checkpoints(run_dir: Path, bucket: str, *, keep: int = 2, background: bool = True) -> Checkpoints:
    run_dir.mkdir(exist_ok=True)
    return Checkpoints(run_dir, alone(), save_to=f"{bucket}/run", keep=keep, background=background)


def save(run_dir: Path, bucket: str, *steps: int, keep: int = 9) -> Checkpoints:
    saver, engine = checkpoints(run_dir, bucket, keep=keep), PlainEngine()
    for step in steps:
        engine.train_to(step)
        saver.save(engine, RunState(step=step))
    saver.commit()
    saver.commit()  # waits for the removal of old ones
    return saver


def newest_of(run_dir: Path, bucket: str) -> int:
    """Step of the checkpoint that a new start loads; checks that all values are of that step."""
    engine = PlainEngine()
    state = checkpoints(run_dir, bucket).load_newest(engine)
    assert not state.step or engine.is_at(state.step)
    return state.step


def saves(bucket: str) -> dict[int, list[str]]:
    """Names of the objects of each save, by step."""
    folder = location(f"{bucket}/run")
    return {int(name[5:13]): (folder / name).list() for name in folder.list() if name.startswith("step-")}


def place_of(bucket: str, step: int) -> Location:
    folder = location(f"{bucket}/run")
    return next(folder / name for name in folder.list() if name.startswith(f"step-{step:08d}."))


def unfinished_uploads(bucket: str) -> int:
    url = f"{bucket}/run"
    fs = remote._file_system(url, QUICK)
    name = bucket.removeprefix("s3://")
    return len(remote._run(lambda: fs._call_s3("list_multipart_uploads", Bucket=name), 10).get("Uploads", []))


def test_saves_are_kept_loaded_and_removed_as_in_a_folder(tmp_path: Path, bucket: str) -> None:
    assert newest_of(tmp_path, bucket) == 0
    save(tmp_path, bucket, 1, 2, 3, keep=2)
    found = saves(bucket)
    files = ["manifest.json", "parameters.json", "shard-00000-of-00001.safetensors", "state.json"]
    assert found == {2: files, 3: files}
    assert newest_of(tmp_path, bucket) == 3
    assert saved_steps(tmp_path) == [2, 3] and not (tmp_path / "checkpoints").exists()
    assert newest_of(tmp_path / "elsewhere", bucket) == 3


def test_a_large_file_is_uploaded_in_parts_and_a_failed_part_is_repeated(
    tmp_path: Path, proxied_bucket: tuple[FaultyServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, bucket = proxied_bucket
    shapes = {f"w{number}": (3, 1_000_000) for number in range(1)}  # 36 MB with its moments
    saver, engine = checkpoints(tmp_path, bucket, background=False), PlainEngine(shapes)
    engine.train_to(5)
    proxy.script(None, 503, None, "reset")
    saver.save(engine, RunState(step=5))
    assert proxy.injected == [503, "reset"]
    sent = [path for method, path, _ in proxy.requests if method == "PUT" and "partNumber=" in path]
    assert len(sent) == 2 + 2, "parts of 16 MiB, two of them twice"
    loaded = PlainEngine(shapes)
    assert checkpoints(tmp_path, bucket).load_newest(loaded).step == 5 and loaded.is_at(5)
    assert unfinished_uploads(bucket) == 0


def test_an_interrupted_save_is_never_listed_and_the_next_start_removes_it(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, bucket, 1)
    engine = PlainEngine()
    engine.train_to(2)
    killed = checkpoints(tmp_path, bucket, background=True)
    killed.save(engine, RunState(step=2))  # and never committed
    while not killed.is_written():
        time.sleep(0.01)
    fs = remote._file_system(bucket, QUICK)
    for run in ("run", "run/finetuned"):  # another run writes below this one
        key = {
            "Bucket": bucket.removeprefix("s3://"),
            "Key": f"{run}/step-00000003.abc-1/shard-00000-of-00001",
        }
        remote._run(partial(fs._call_s3, "create_multipart_upload", **key), 10)
    assert saves(bucket)[2] == ["shard-00000-of-00001.safetensors"] and unfinished_uploads(bucket) == 2
    assert newest_of(tmp_path, bucket) == 1
    assert list(saves(bucket)) == [1] and unfinished_uploads(bucket) == 1, "that of the other run"


def test_the_removal_of_old_saves_keeps_a_save_that_is_being_written(tmp_path: Path, bucket: str) -> None:
    saver, engine = checkpoints(tmp_path, bucket, keep=1), PlainEngine()
    for step in (1, 2):
        engine.train_to(step)
        saver.save(engine, RunState(step=step))
        while not saver.is_written():
            time.sleep(0.01)
    saver._storage.remove_dropped(saver.attempt or "", place_of(bucket, 1))
    saver.commit()
    assert newest_of(tmp_path, bucket) == 2


def test_a_damaged_checkpoint_is_quarantined_and_the_one_before_it_is_loaded(
    tmp_path: Path, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, bucket, 1, 2, 3)
    for step, file in ((3, "shard-00000-of-00001.safetensors"), (2, "state.json")):
        damaged = place_of(bucket, step) / file
        damaged.write(damaged.read()[:-1] + b"?")
    for _ in range(2):
        assert newest_of(tmp_path, bucket) == 1
    assert "step-00000003" in caplog.text and "has changed since it was written" in caplog.text
    assert caplog.text.count("is quarantined") == 2
    assert all("quarantined" in saves(bucket)[step] for step in (2, 3))
    save(tmp_path, bucket, 4, keep=1)
    assert sorted(saves(bucket)) == [2, 3, 4], "nothing removes a quarantined one"


def test_the_loaded_step_can_be_saved_again(tmp_path: Path, bucket: str) -> None:
    save(tmp_path, bucket, 1)
    saver, engine = checkpoints(tmp_path, bucket), PlainEngine()
    saver.load_newest(engine)
    saver.save(engine, RunState(step=1, rollbacks=1))
    saver.commit()
    saver.commit()
    assert list(saves(bucket)) == [1]
    assert checkpoints(tmp_path, bucket).load_newest(engine).rollbacks == 1


@pytest.mark.usefixtures("quick_failures")
@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (403, CheckpointError, "access denied"),
        (503, Stuck, "HTTP 503"),
        ("reset", Stuck, "cannot write s3://"),
    ],
)
def test_a_store_that_fails_has_the_exit_code_of_a_folder(
    tmp_path: Path,
    proxied_bucket: tuple[FaultyServer, str],
    fault: str | int,
    kind: type[Exception],
    message: str,
) -> None:
    (proxy, bucket), code = proxied_bucket, EXIT_STUCK if kind is Stuck else EXIT_CHECKPOINT
    saver = save(tmp_path, bucket, 1)
    proxy.fault = lambda method, path: fault
    with pytest.raises(kind, match=f"could not write the checkpoint of step 2 to s3://.*{message}") as error:
        saver.save(PlainEngine(), RunState(step=2))
        saver.commit()
    assert exit_code_of(error.value) == code
    with pytest.raises(kind, match="s3://") as error:
        checkpoints(tmp_path, bucket).load_newest(PlainEngine())
    assert exit_code_of(error.value) == code
    proxy.fault = lambda method, path: None
    assert newest_of(tmp_path, bucket) == 1


@pytest.mark.usefixtures("quick_failures")
def test_an_old_save_that_cannot_be_removed_does_not_cost_the_new_one(
    tmp_path: Path, proxied_bucket: tuple[FaultyServer, str]
) -> None:
    proxy, bucket = proxied_bucket
    saver, engine, refused = save(tmp_path, bucket, 1, keep=1), PlainEngine(), []

    def refuse_once(method: str, path: str) -> int | None:
        if method == "DELETE" and not refused:
            refused.append(path)
            return 403
        return None

    proxy.fault = refuse_once
    engine.train_to(2)
    saver.save(engine, RunState(step=2))
    with pytest.raises(CheckpointError, match="access denied"):
        saver.commit()
    assert "step-00000001" in refused[0] and newest_of(tmp_path, bucket) == 2


def test_another_run_in_the_same_place_is_refused_and_a_lost_run_folder_is_not(
    tmp_path: Path,
    bucket: str,
    small_config: Callable[..., PretrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = f"save_to={bucket}/run"
    first = small_config(place, f"run_dir={tmp_path / 'a'}")
    assert not check_run_dir(tmp_path / "a", first)
    open_run_dir(tmp_path / "a", first)
    other = small_config(place, "seed=8", f"run_dir={tmp_path / 'b'}")
    with pytest.raises(
        ValueError, match=r"save_to s3://.* another config \(seed: run 3, config 8.*choose another save_to"
    ):
        check_run_dir(tmp_path / "b", other)
    again = small_config(place, "optim.lr=2e-3", f"run_dir={tmp_path / 'b'}")
    check_run_dir(tmp_path / "b", again)
    before: list[set[str]] = []  # files of an interrupted start
    replace = Path.replace

    def watched_replace(path: Path, target: Path) -> Path:
        before.append({one.name for one in path.parent.iterdir()})
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", watched_replace)
        open_run_dir(tmp_path / "b", again)
    assert before[0] <= set(IGNORED_ENTRIES), "the next start accepts such a folder"
    assert (tmp_path / "b" / "config.yaml").read_text() == (tmp_path / "a" / "config.yaml").read_text()
    with pytest.raises(ValueError, match=r"another config \(save_to: run .s3:"):
        check_run_dir(tmp_path / "a", small_config(f"save_to={bucket}/other", f"run_dir={tmp_path / 'a'}"))


@pytest.mark.usefixtures("bucket")
def test_a_missing_bucket_ends_the_run_before_its_first_step(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second start finds a run folder
        assert run_program(PROGRAM, [str(small_run), "save_to=s3://no-such-bucket/run"]) == EXIT_CHECKPOINT
        error = capsys.readouterr().err.splitlines()[-1]
        assert "save_to=s3://no-such-bucket/run: cannot write" in error and "there is no such file" in error
    assert (tmp_path / "run" / "config.yaml").exists() and not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("value", ["s3://bucket", "gs://bucket/run", "/folder", "https://host/run"])
def test_save_to_is_a_prefix_of_a_bucket(small_config: Callable[..., PretrainConfig], value: str) -> None:
    with pytest.raises(ValueError, match="save_to must be null or s3://bucket/prefix, got"):
        small_config(f"save_to={value}")


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.processes
def test_two_processes_killed_in_an_upload_continue_with_equal_losses(
    small_run: Path, tmp_path: Path, proxied_bucket: tuple[FaultyServer, str]
) -> None:
    proxy, bucket = proxied_bucket
    job = ["pretrain", str(small_run), "steps=8", "engine.zero_stage=1"]
    run_ranks(2, "-m", *job, f"run_dir={tmp_path / 'unbroken'}")
    there = [*job, f"run_dir={tmp_path / 'killed'}", f"save_to={bucket}/run"]
    held: list[str] = []

    def hold(method: str, path: str) -> str | None:
        """A part of one file of step 4 gets no answer."""
        if method == "PUT" and "step-00000004" in path and "shard-00001" in path and "uploadId" in path:
            held.append(path)
            return "slow"
        return None

    proxy.fault = hold
    with started(tmp_path, *there) as ranks:
        ranks.wait_until(lambda: bool(held))
        for process in ranks.processes:
            process.send_signal(signal.SIGKILL)
        assert ranks.exit_codes() == [-signal.SIGKILL] * 2
    proxy.fault = lambda method, path: None
    assert "manifest.json" not in saves(bucket).get(4, [])
    assert unfinished_uploads(bucket) >= 1, "the kill may hit the other process in its upload, too"
    run_ranks(2, "-m", *there)
    assert losses(tmp_path / "killed") == losses(tmp_path / "unbroken")
    assert sorted(saves(bucket)) == [6, 8] and saved_steps(tmp_path / "killed") == [6, 8]
    assert unfinished_uploads(bucket) == 0
    state = json.loads((place_of(bucket, 8) / "state.json").read())
    assert (state["step"], state["world"]) == (8, 2)
