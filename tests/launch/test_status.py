"""`launch status|logs|cancel`."""

import errno
import fcntl
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kinemae.launch.__main__ import main
from kinemae.launch.job import Job
from kinemae.launch.record import Record, is_locked, lock_run, request_stop, take_stop_request
from tests.launch.fake_program import are_waiting, launcher_of, make_job, run_launcher, wait_for


def output_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


def with_metrics(job: Job) -> Path:
    run_dir = Path(job.run_dir)
    (run_dir / "config.yaml").write_text("steps: 30\nbatch: {global_clips: 10}\n")
    lines = [json.dumps({"step": step, "loss": 1.0 - step / 100, "clips_per_s": 0.5}) for step in range(12)]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 12, "lo')
    for name in ("step-00000005", "step-00000010", "step-00000012.partial"):
        (run_dir / "checkpoints" / name).mkdir(parents=True)
    return run_dir


@pytest.mark.processes
def test_status_logs_and_cancel_of_a_running_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(tmp_path, "print=here I am", "1:print=and I", "handle_stops", "wait=600")
    run_dir = with_metrics(job)
    launcher = launcher_of(job, "local", "processes=2")
    wait_for("processes", are_waiting(job, 2))
    status = output_of(capsys, "status", str(run_dir))
    assert "running since" in status and f"local, process {launcher.pid} on" in status
    assert "localhost: 2 processes" in status and "12 of 30, loss 0.8900" in status and "5, 10\n" in status
    assert ", 6 min left\n" in status  # 18 steps of 10 clips at one clip in 2 s
    assert output_of(capsys, "logs", str(run_dir)).splitlines()[-1] == "here I am"
    assert output_of(capsys, "logs", str(run_dir), "--rank", "1", "--lines", "1") == "and I\n"
    assert "requested a stop with a checkpoint" in output_of(capsys, "cancel", str(run_dir))
    assert launcher.wait(timeout=60) == 75
    status = json.loads(output_of(capsys, "status", str(run_dir), "--json"))
    assert (status["state"], status["code"], status["step"]) == ("ended", 75, 12)
    assert status["checkpoints"] == [5, 10]
    assert status["remaining_s"] is None
    assert status["message"] == "stopped on request, with a checkpoint (exit code 75)"
    assert main(["cancel", str(run_dir)]) == 2
    assert "expected a running run; stopped on request" in capsys.readouterr().err


@pytest.mark.processes
def test_a_run_whose_agent_was_killed_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(tmp_path, "handle_stops", "wait=600")
    launcher = launcher_of(job, "local")
    wait_for("process", are_waiting(job, 1))
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait(timeout=60)
    assert "its agents were killed; start the run again" in output_of(capsys, "status", job.run_dir)


@pytest.mark.processes
def test_following_a_log_ends_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(tmp_path, "print=first", "print=last")
    assert run_launcher(job, "local")[0] == 0
    assert output_of(capsys, "logs", job.run_dir, "--follow", "--lines", "1") == "last\n"
    assert main(["logs", job.run_dir, "--rank", "7", "--follow"]) == 2
    assert "contains launch.log, rank-00000.log" in capsys.readouterr().err


def test_following_waits_for_the_start_of_a_queued_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Record(tmp_path).begin(kind="slurm", job_id="41", state="submitted")
    monkeypatch.setattr("kinemae.launch.status._POLL_SCHEDULER_S", 0.1)
    states = iter(["pending", "pending", "running", "running"])

    def describe(job_id: str) -> str:
        state = next(states, "")
        if state == "running":
            (tmp_path / "logs").mkdir(exist_ok=True)
            (tmp_path / "logs" / "rank-00000.log").write_text("a line\n")
        return state

    monkeypatch.setattr("kinemae.launch.status.describe_job", describe)
    assert output_of(capsys, "logs", str(tmp_path), "--follow") == "a line\n"


@pytest.mark.parametrize("lines", [0, 1, 5, 50_000])
def test_the_last_lines_of_a_long_log(tmp_path: Path, lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    whole = [f"line {number} ä\n" for number in range(30_000)]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-00000.log").write_text("".join(whole), encoding="utf-8")
    shown = output_of(capsys, "logs", str(tmp_path), "--lines", str(lines))
    assert shown == "".join(whole[len(whole) - min(lines, len(whole)) :])


def test_the_end_of_a_slurm_job_is_known_after_slurm_deleted_its_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("squeue", ""), ("scontrol", "slurm_load_jobs error: Invalid job id specified")):
        script = f"#!/bin/sh\necho '{text}' >&2\n{'exit 1' if text else ''}\n"
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    run_dir = tmp_path / "run"
    (run_dir / "launch").mkdir(parents=True)
    record = Record(run_dir)
    record.begin(kind="slurm", job_id="41", steps=30, state="submitted")
    assert "Slurm ended job 41 (sacct -j 41); start the run again" in output_of(
        capsys, "status", str(run_dir)
    )
    record.update(state="ended", code=75)
    status = json.loads(output_of(capsys, "status", str(run_dir), "--json"))
    assert (status["state"], status["code"], status["steps"]) == ("ended", 75, 30)
    assert status["message"] == "stopped on request, with a checkpoint (exit code 75)"


def test_a_file_system_without_locks_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)  # as on Lustre without -o flock
    (tmp_path / "launch").mkdir()
    for _ in range(2):
        with lock_run(tmp_path):
            assert not is_locked(tmp_path)
    Record(tmp_path).begin(kind="local")
    assert "perhaps running; its file system has no locks" in output_of(capsys, "status", str(tmp_path))
    assert "requested a stop" in output_of(capsys, "cancel", str(tmp_path))
    assert take_stop_request(tmp_path) == signal.SIGTERM
    Record(tmp_path).end(0)
    assert main(["cancel", str(tmp_path)]) == 2
    assert "expected a running run; finished" in capsys.readouterr().err


def test_a_request_that_is_written_while_another_is_read_is_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "launch").mkdir()
    request_stop(tmp_path)
    read_text = Path.read_text

    def read_late(path: Path, **options: str) -> str:
        request_stop(tmp_path, signal.SIGKILL)
        return read_text(path, **options)

    with monkeypatch.context() as late:
        late.setattr(Path, "read_text", read_late)
        assert take_stop_request(tmp_path) == signal.SIGTERM
    assert take_stop_request(tmp_path) == signal.SIGKILL
    assert take_stop_request(tmp_path) is None


def test_writers_of_a_record_do_not_undo_one_another(tmp_path: Path) -> None:
    Record(tmp_path).begin(kind="ssh")

    def write(name: str) -> None:
        record = Record(tmp_path)
        for value in range(20):
            record.update(**{name: value})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, "abcd"))
    values = Record(tmp_path).read()
    assert [values[name] for name in "abcd"] == [19] * 4


def test_a_record_on_a_full_disk_keeps_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    record = Record(tmp_path)
    record.begin(kind="local")
    with monkeypatch.context() as full:
        full.setattr("kinemae.launch.record.atomic_write_text", refuse)
        record.update(attempt=1)
        record.update(history={"restarts": 1})
        assert (record.read()["attempt"], record.read()["history"]) == (1, {"restarts": 1})
        assert Record(tmp_path).read()["attempt"] == 0
    Record(tmp_path).update(state="running")  # by another process
    record.update(code=1)
    values = Record(tmp_path).read()
    assert (values["attempt"], values["history"], values["state"]) == (1, {"restarts": 1}, "running")


def test_a_stop_request_on_a_full_disk_is_an_error_with_its_fix(tmp_path: Path) -> None:
    (tmp_path / "launch" / "stop.partial").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"cannot write .*/launch/stop: .*; fix: send SIGTERM to an agent"):
        request_stop(tmp_path)


def test_a_damaged_config_of_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Record(tmp_path).begin(kind="local")
    (tmp_path / "config.yaml").write_text("steps: [")
    assert main(["status", str(tmp_path)]) == 2
    assert f"{tmp_path / 'config.yaml'}: expected YAML" in capsys.readouterr().err
