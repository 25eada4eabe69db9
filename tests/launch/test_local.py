"""`launch local`: ranks, first failure, restarts, stops, no orphans."""

import re
import signal
from pathlib import Path

import pytest

from kinemae.launch.record import AGENT_LOCK, LAUNCHER_LOCK, is_locked, read_record
from tests.launch.fake_program import (
    are_waiting,
    launcher_of,
    make_job,
    processes_of,
    reports,
    run_launcher,
    wait_for,
)

pytestmark = pytest.mark.processes

HOSTILE = ["a b", "$(touch x)", "it's", '"', "a;b|c>d", "ü\nz", "--flag", "-x", "", "*", "\\"]


def test_each_process_gets_its_rank_and_hostile_words_unchanged(tmp_path: Path) -> None:
    folder = tmp_path / "it's $(a) folder"
    folder.mkdir()
    job = make_job(folder, "report", *HOSTILE, GIVEN="$HOME 'x'")
    code, output = run_launcher(job, "local", "processes=2")
    assert code == 0, output
    for rank, process in enumerate(reports(job)):
        assert process["argv"] == ["pretrain", "CONFIG", "report", *HOSTILE]
        assert (process["RANK"], process["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (process["WORLD_SIZE"], process["LOCAL_WORLD_SIZE"]) == ("2", "2")
        assert process["MASTER_ADDR"] == "127.0.0.1" and str(process["MASTER_PORT"]).isdigit()
        assert process["GIVEN"] == "$HOME 'x'" and process["cwd"] == job.cwd and process["path"] == job.code


def test_the_first_failure_is_reported_once_and_ends_the_others(tmp_path: Path) -> None:
    job = make_job(
        tmp_path,
        *(
            "0:print=rank 0 here",
            "0:report",
            "1:wait_for=reports.jsonl",
            "1:print=reason",
            "1:exit=4",
        ),
        *("fork", "handle_stops", "wait=600"),
    )
    code, output = run_launcher(job, "local", "processes=3")
    assert code == 4
    assert (
        output.count("rank 1 on localhost failed: a checkpoint cannot be read or written (exit code 4)") == 1
    )
    assert output.count("failed") == 2 and output.count("reason") == 1 and "rank 0 here" in output
    assert "reason" in (Path(job.run_dir) / "logs" / "rank-00001.log").read_text()
    assert processes_of(job) == []


def test_of_failures_on_one_host_the_earliest_that_is_no_victim_is_the_cause(tmp_path: Path) -> None:
    late = ["2:ignore_stops", "2:print=ready", "2:report", "2:wait=0.3", "2:fail=6"]
    early = ["0:wait_for=reports.jsonl", "0:kill=SIGABRT", "1:wait_for=reports.jsonl", "1:lose_peer=1"]
    job = make_job(tmp_path, *early, *late)
    code, output = run_launcher(job, "local", "processes=3", "max_restarts=0")
    assert code == 6, output
    assert read_record(Path(job.run_dir))["failure"]["rank"] == 2


@pytest.mark.parametrize(
    ("victim", "cause", "code"),
    [
        ("lose_peer=5", "fail=3", 3),
        ("kill=SIGABRT", "fail=1", 1),  # the watchdog of NCCL
    ],
)
def test_a_victim_of_another_failure_is_not_its_cause(
    tmp_path: Path, victim: str, cause: str, code: int
) -> None:
    job = make_job(tmp_path, f"0:{victim}", "1:wait=1", f"1:{cause}")
    found, output = run_launcher(job, "local", "processes=2", "max_restarts=0")
    assert found == code and "rank 1 on localhost failed" in output and "rank 0 on" not in output
    assert read_record(Path(job.run_dir))["failure"]["message"] == "RuntimeError: own fault"


def test_a_process_that_lost_its_connection_to_a_stopped_one_is_no_failure(tmp_path: Path) -> None:
    job = make_job(tmp_path, "0:exit=75", "1:wait=1", "1:lose_peer=1")
    code, output = run_launcher(job, "local", "processes=2", "max_restarts=0")
    assert code == 75 and "failed" not in output


def test_a_failure_of_victims_alone_names_the_earliest(tmp_path: Path) -> None:
    job = make_job(tmp_path, "0:wait=0.5", "lose_peer=1", "wait=600")
    code, output = run_launcher(job, "local", "processes=2", "max_restarts=0")
    assert code == 1
    assert "rank 1 on localhost failed: crashed (exit code 1), after another process whose" in output


def test_an_error_file_of_an_earlier_start_is_not_read(tmp_path: Path) -> None:
    job = make_job(tmp_path, "0:once=fail=5", "0:wait=600", "1:wait_for=once-0", "1:wait=1", "1:kill=SIGKILL")
    code, output = run_launcher(job, "local", "processes=2", "max_restarts=1")
    failure = read_record(Path(job.run_dir))["failure"]
    assert (failure["attempt"], failure["rank"], failure["message"]) == (2, 1, None), output
    assert code == 137


def test_a_process_that_ignores_sigterm_is_killed_with_its_workers(tmp_path: Path) -> None:
    job = make_job(tmp_path, "0:ignore_stops", "0:fork", "0:wait=600", "1:wait_for=waiting", "1:exit=3")
    code, output = run_launcher(job, "local", "processes=2", "grace_s=0.5")
    assert code == 3 and "rank 0 did not end in time: SIGKILL" in output
    wait_for("end of the loader", lambda: processes_of(job) == [])


@pytest.mark.parametrize("action", ["exit=1", "kill=SIGSEGV", "exit=5"])
def test_a_crash_is_restarted_at_a_new_port(tmp_path: Path, action: str) -> None:
    job = make_job(tmp_path, "report", f"1:once={action}", "0:print=done")
    code, output = run_launcher(job, "local", "processes=2", "max_restarts=1")
    assert code == 0, output
    assert "restart 1 of 1, from the start" in output
    rendezvous = re.findall(r"rendezvous (\S+)", output)
    assert len(set(rendezvous)) == 2
    assert "--- " in (log := (Path(job.run_dir) / "logs" / "rank-00000.log").read_text()) and "done" in log


@pytest.mark.parametrize("code", [2, 3, 6])
def test_a_failure_that_a_restart_would_repeat_is_final(tmp_path: Path, code: int) -> None:
    job = make_job(tmp_path, f"0:exit={code}", "handle_stops", "wait=600")
    assert run_launcher(job, "local", "processes=2")[0] == code
    assert read_record(Path(job.run_dir))["attempt"] == 1


def test_restarts_end_after_max_restarts_without_a_new_checkpoint(tmp_path: Path) -> None:
    job = make_job(tmp_path, "kill=SIGKILL")
    code, output = run_launcher(job, "local", "max_restarts=2")
    assert code == 137 and read_record(Path(job.run_dir))["attempt"] == 3
    assert "giving up after 2 restarts without a new checkpoint (max_restarts)" in output


def test_a_new_checkpoint_resets_the_restart_count(tmp_path: Path) -> None:
    job = make_job(tmp_path, "once=kill=SIGKILL", "save=5", "exit=1")
    code, output = run_launcher(job, "local", "max_restarts=1")
    assert code == 1 and read_record(Path(job.run_dir))["attempt"] == 3
    assert output.count("restart 1 of 1") == 2 and "from step 5" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_launcher_stops_all_processes(tmp_path: Path, number: signal.Signals) -> None:
    job = make_job(tmp_path, "handle_stops", "wait=600")
    launcher = launcher_of(job, "local", "processes=2")
    wait_for("processes", are_waiting(job, 2))
    launcher.send_signal(number)
    assert launcher.wait(timeout=60) == 75
    record = read_record(Path(job.run_dir))
    assert (record["state"], record["code"], record["attempt"]) == ("ended", 75, 1)
    assert f"stopped on request, with a checkpoint ({number.name})" in Path(job.run_dir, "output").read_text()


def test_a_process_that_is_killed_before_it_can_save_has_not_stopped_with_a_checkpoint(
    tmp_path: Path,
) -> None:
    job = make_job(tmp_path, "wait=600")  # without handlers, as during its imports
    launcher = launcher_of(job, "local", "processes=2")
    wait_for("processes", are_waiting(job, 2))
    launcher.send_signal(signal.SIGUSR1)
    assert launcher.wait(timeout=60) == 138
    assert read_record(Path(job.run_dir))["cause"] == "stopped"


def test_a_sigterm_to_a_process_that_cannot_save_yet_is_a_crash(tmp_path: Path) -> None:
    job = make_job(tmp_path, "0:wait_for=once-1", "0:once=kill=SIGTERM", "1:once=wait=600")
    code, output = run_launcher(job, "local", "processes=2")
    assert code == 0 and "killed by signal 15" in output and "restart 1 of 3" in output


def test_a_stop_that_takes_too_long_ends_in_a_kill(tmp_path: Path) -> None:
    job = make_job(tmp_path, "ignore_stops", "wait=600")
    launcher = launcher_of(job, "local", "stop_s=0.5")
    wait_for("processes", are_waiting(job, 1))
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=60) == 137
    assert processes_of(job) == []


def test_a_stop_of_one_process_waits_for_the_others(tmp_path: Path) -> None:
    job = make_job(tmp_path, "1:exit=75", "ignore_stops", "0:wait=1", "0:exit=75")
    code, output = run_launcher(job, "local", "processes=2")
    assert code == 75 and "SIGKILL" not in output


def test_no_process_outlives_a_killed_launcher(tmp_path: Path) -> None:
    job = make_job(tmp_path, "handle_stops", "wait=600")
    launcher = launcher_of(job, "local", "processes=2", "max_restarts=0")
    wait_for("processes", are_waiting(job, 2))
    launcher.kill()
    assert launcher.wait(timeout=60) == -9
    wait_for("end of all processes", lambda: processes_of(job) == [])
    assert not is_locked(Path(job.run_dir))


def test_a_second_launcher_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, "handle_stops", "wait=600")
    launcher = launcher_of(job, "local")
    wait_for("process", are_waiting(job, 1))
    # The agent holds the launcher's lock too: it was the launcher before exec.
    assert is_locked(Path(job.run_dir), LAUNCHER_LOCK) and is_locked(Path(job.run_dir), AGENT_LOCK)
    code, output = run_launcher(job, "local")
    assert code == 1 and f"process {launcher.pid} on" in output and "launch cancel" in output
    launcher.terminate()
    launcher.wait(timeout=60)


def test_a_full_disk_for_logs_does_not_end_the_run(tmp_path: Path) -> None:
    job = make_job(tmp_path, "print=out", "exit=0")
    (Path(job.run_dir) / "logs" / "rank-00000.log").symlink_to("/dev/full")
    code, output = run_launcher(job, "local")
    assert code == 0 and "out\n" in output
    assert output.count("No space left on device; rank 0 continues without") == 1


def test_the_container_prefix_wraps_the_agent_and_its_processes(tmp_path: Path) -> None:
    job = make_job(tmp_path, "report")
    assert run_launcher(job, "local", "container=[env, GIVEN=wrapped]")[0] == 0
    assert reports(job)[0]["GIVEN"] == "wrapped"


def test_a_last_line_of_100_kilobytes_is_cut_in_the_report_and_not_in_the_log(tmp_path: Path) -> None:
    line = "x" * 100_000
    job = make_job(tmp_path, f"1:print={line}", "1:exit=3", "0:wait=600")
    code, output = run_launcher(job, "local", "processes=2")
    assert code == 3 and "rank 1 on localhost failed: the data cannot be used" in output
    assert 1000 < len(read_record(Path(job.run_dir))["failure"]["last_lines"][-1]) < 3000
    assert line in (Path(job.run_dir) / "logs" / "rank-00001.log").read_text()
