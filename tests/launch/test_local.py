"""`launch local`: who a process is, one failure that ends all, restarts, stops, no orphans."""

import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from kinemae.launch.job import describe
from kinemae.launch.record import is_held, read_record
from tests.launch.rooms import are_waiting, head, make_job, processes_of, run_head, told, wait_for

pytestmark = pytest.mark.processes

HOSTILE = ["a b", "$(touch x)", "it's", '"', "a;b|c>d", "ü\nz", "--flag", "-x", "", "*", "\\"]


def test_each_process_knows_who_it_is_and_gets_hostile_words_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "it's $(a) folder"
    folder.mkdir()
    job = make_job(folder, "tell", *HOSTILE, GIVEN="$HOME 'x'")
    code, said = run_head(job, "local", "processes=2")
    assert code == 0, said
    for rank, process in enumerate(told(job)):
        assert process["argv"] == ["pretrain", "CONFIG", "tell", *HOSTILE]
        assert (process["RANK"], process["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (process["WORLD_SIZE"], process["LOCAL_WORLD_SIZE"]) == ("2", "2")
        assert process["MASTER_ADDR"] == "127.0.0.1" and str(process["MASTER_PORT"]).isdigit()
        assert process["GIVEN"] == "$HOME 'x'" and process["cwd"] == job.cwd and process["path"] == job.code


def test_the_first_failure_is_said_once_and_ends_the_others(tmp_path: Path) -> None:
    job = make_job(
        tmp_path,
        *("0:say=I am the first", "0:tell", "1:meet=told.jsonl", "1:say=this is why", "1:leave=4"),
        *("fork", "obey", "wait=600"),
    )
    code, said = run_head(job, "local", "processes=3")
    assert code == 4
    assert said.count("rank 1 on localhost failed: a checkpoint cannot be read or written (exit code 4)") == 1
    assert said.count("failed") == 2 and said.count("this is why") == 1 and "I am the first" in said
    assert "this is why" in (Path(job.run_dir) / "logs" / "rank-00001.log").read_text()
    assert processes_of(job) == []


def test_one_that_does_not_listen_is_killed_with_its_loaders(tmp_path: Path) -> None:
    job = make_job(tmp_path, "0:ignore", "0:fork", "0:wait=600", "1:meet=waiting", "1:leave=3")
    code, said = run_head(job, "local", "processes=2", "grace_s=0.5")
    assert code == 3 and "rank 0 did not end in time: SIGKILL" in said
    wait_for("end of the loader", lambda: processes_of(job) == [])


@pytest.mark.parametrize("deed", ["leave=1", "die=SIGSEGV", "leave=5"])
def test_a_crash_is_started_again_at_a_new_port(tmp_path: Path, deed: str) -> None:
    job = make_job(tmp_path, "tell", f"1:once={deed}", "0:say=done")
    code, said = run_head(job, "local", "processes=2", "max_restarts=1")
    assert code == 0, said
    assert "restart 1 of at most 1, from its start" in said
    meetings = re.findall(r"meeting at (\S+)", said)
    assert len(set(meetings)) == 2
    assert "--- " in (log := (Path(job.run_dir) / "logs" / "rank-00000.log").read_text()) and "done" in log


@pytest.mark.parametrize("code", [2, 3, 6])
def test_what_a_restart_cannot_mend_is_final(tmp_path: Path, code: int) -> None:
    job = make_job(tmp_path, f"0:leave={code}", "obey", "wait=600")
    assert run_head(job, "local", "processes=2")[0] == code
    assert read_record(Path(job.run_dir))["attempt"] == 1


def test_it_gives_up_after_max_restarts_without_progress(tmp_path: Path) -> None:
    job = make_job(tmp_path, "die=SIGKILL")
    code, said = run_head(job, "local", "max_restarts=2")
    assert code == 137 and read_record(Path(job.run_dir))["attempt"] == 3
    assert "given up after 2 restarts without a new checkpoint (max_restarts)" in said


def test_a_run_that_saved_meanwhile_has_its_restarts_back(tmp_path: Path) -> None:
    job = make_job(tmp_path, "once=die=SIGKILL", "save=5", "leave=1")
    code, said = run_head(job, "local", "max_restarts=1")
    assert code == 1 and read_record(Path(job.run_dir))["attempt"] == 3
    assert said.count("restart 1 of at most 1") == 2 and "from step 5" in said


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)]
)
def test_a_signal_to_the_launcher_reaches_all_and_is_final(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    job = make_job(tmp_path, "obey", "wait=600")
    launcher = head(job, "local", "processes=2")
    wait_for("processes", are_waiting(job, 2))
    launcher.send_signal(number)
    assert launcher.wait(timeout=60) == code
    record = read_record(Path(job.run_dir))
    assert (record["state"], record["code"], record["attempt"]) == ("ended", code, 1)


def test_a_stop_that_takes_too_long_ends_in_a_kill(tmp_path: Path) -> None:
    job = make_job(tmp_path, "ignore", "wait=600")
    launcher = head(job, "local", "stop_s=0.5")
    wait_for("processes", are_waiting(job, 1))
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=60) == 137
    assert processes_of(job) == []


def test_a_stop_that_one_process_was_told_waits_for_the_others(tmp_path: Path) -> None:
    job = make_job(tmp_path, "1:leave=143", "ignore", "0:wait=1", "0:leave=143")
    code, said = run_head(job, "local", "processes=2")
    assert code == 143 and "SIGKILL" not in said


@pytest.mark.parametrize("victim", ["launcher", "agent"])
def test_nothing_outlives_a_killed_launcher_or_agent(tmp_path: Path, victim: str) -> None:
    job = make_job(tmp_path, "obey", "wait=600")
    launcher = head(job, "local", "processes=2", "max_restarts=0")
    wait_for("processes", are_waiting(job, 2))
    wait_for("record", lambda: read_record(Path(job.run_dir))["agents"])
    agent = read_record(Path(job.run_dir))["agents"]["localhost"]["pid"]
    os.kill(launcher.pid if victim == "launcher" else agent, signal.SIGKILL)
    assert launcher.wait(timeout=60) == (-9 if victim == "launcher" else 1)
    wait_for("end of all processes", lambda: processes_of(job) == [])
    assert not is_held(Path(job.run_dir))


def test_a_second_launcher_is_refused_by_name(tmp_path: Path) -> None:
    job = make_job(tmp_path, "obey", "wait=600")
    launcher = head(job, "local")
    wait_for("process", are_waiting(job, 1))
    code, said = run_head(job, "local")
    assert code == 1 and f"is run by process {launcher.pid} on" in said and "launch cancel" in said
    launcher.terminate()
    launcher.wait(timeout=60)


def test_a_full_disk_for_logs_does_not_end_the_run(tmp_path: Path) -> None:
    job = make_job(tmp_path, "say=out", "leave=0")
    (Path(job.run_dir) / "logs" / "rank-00000.log").symlink_to("/dev/full")
    code, said = run_head(job, "local")
    assert code == 0 and "out\n" in said
    assert said.count("No space left on device; rank 0 goes on without") == 1


def test_words_before_the_interpreter_wrap_each_process(tmp_path: Path) -> None:
    job = make_job(tmp_path, "tell")
    job.path.write_text(describe(replace(job, container=["env", "GIVEN=wrapped"])))
    assert run_head(job, "local")[0] == 0
    assert told(job)[0]["GIVEN"] == "wrapped"
