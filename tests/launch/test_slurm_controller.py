"""Batch jobs on a real Slurm of two nodes: start, stop, requeue and end.

One real training with hostile names is preempted. The other jobs run a fake program, which exits as
requested, to test the batch script's reactions to exit codes and signals.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kinemae.launch.job import Job
from kinemae.launch.record import Record, read_record
from kinemae.launch.slurm.cluster import SCRIPT, SlurmCluster
from kinemae.launch.slurm.queue import CANCELLED, cancel_job, describe_job
from kinemae.launch.status import status_of
from tests.conftest import run_module
from tests.launch.conftest import losses, small_job
from tests.launch.controller import ask, controller, field, state, wait_for
from tests.launch.fake_program import are_waiting, make_job, reports

pytestmark = [pytest.mark.processes, pytest.mark.cluster]

TWO_NODES = SlurmCluster(nodes=2)
HOSTILE = "a b'c\"d $(touch pwned) `touch pwned` %j #x ä"
Submit = Callable[..., tuple[str, Job]]


@pytest.fixture(scope="module", autouse=True)
def slurm() -> Iterator[Path]:
    with controller() as folder:
        yield folder


@pytest.fixture(scope="module")
def submit(tmp_path_factory: pytest.TempPathFactory) -> Submit:
    """Submit the batch script of a job whose processes execute actions (`fake_program.py`)."""
    numbers = itertools.count()

    def submit_job(*actions: str, cluster: SlurmCluster = TWO_NODES) -> tuple[str, Job]:
        job = make_job(tmp_path_factory.mktemp(f"job-{next(numbers)}"), "report", "handle_stops", *actions)
        policy = {"max_restarts": cluster.max_restarts, "heartbeat_timeout_s": 8.0, "grace_s": 3.0}
        job = replace(job, policy={**policy, "host_wait_s": 10.0})
        job.path.write_text(job.to_json())
        for path, text in cluster.files(job).items():
            path.write_text(text)
        Record(Path(job.run_dir)).begin(kind="slurm")
        return ask("sbatch", "--parsable", str(job.path.with_name(SCRIPT))), job

    return submit_job


@pytest.fixture(scope="module", autouse=True)
def timed(slurm: Path, submit: Submit) -> tuple[str, Job]:
    """Submit a job that exceeds its time limit of a minute; Slurm checks limits every 30 s."""
    return submit("once=wait=300", cluster=SlurmCluster(partition="apart", time="1", signal_s=20))


def ended(job_id: str) -> str:
    """Return the state of a job after it has left the queue."""
    wait_for(lambda: not describe_job(job_id), seconds=300, doing=f"the end of job {job_id}")
    return state(job_id)


def exit_code(job_id: str) -> int:
    """Return the exit code of an ended job."""
    ended(job_id)
    return int(field(job_id, "ExitCode").partition(":")[0])


def starts(job: Job, rank: int) -> list[dict[str, object]]:
    """The reports of a process, one for each start."""
    return [line for line in reports(job) if line["RANK"] == str(rank)]


def node_state(node: str) -> str:
    return ask("sinfo", "--noheader", "--nodes", node, "--partition", "three", "--format", "%T")


def log_of(job_id: str, job: Job) -> str:
    return (Path(job.run_dir) / "logs" / f"slurm-{job_id}.log").read_text()


def test_each_task_gets_its_rank(submit: Submit) -> None:
    job_id, job = submit("print=here", cluster=SlurmCluster(nodes=2, processes_per_node=2))
    assert exit_code(job_id) == 0
    lines = reports(job)
    assert [line["LOCAL_RANK"] for line in lines] == ["0", "1", "0", "1"]
    same = {(line["WORLD_SIZE"], line["LOCAL_WORLD_SIZE"], line["MASTER_ADDR"]) for line in lines}
    assert same == {("4", "2", "127.0.0.1")} and len({line["MASTER_PORT"] for line in lines}) == 1
    assert (Path(job.run_dir) / "logs" / "rank-00003.log").read_text().endswith("\nhere\n")


@pytest.mark.nightly
def test_a_final_failure_of_one_process_ends_all(submit: Submit) -> None:
    job_id, job = submit("0:wait=300", "wait=0.3", "exit=3")
    assert exit_code(job_id) == 3
    assert field(job_id, "Restarts") == "0" and len(starts(job, 1)) == 1
    assert status_of(Path(job.run_dir))["code"] == 3  # Slurm may have deleted its own record
    assert "rank 1 on n2 failed: the data cannot be used (exit code 3)" in log_of(job_id, job)


@pytest.mark.nightly
def test_a_crash_restarts_in_the_same_allocation_on_another_port(submit: Submit) -> None:
    job_id, job = submit("1:wait_for=waiting", "1:once=kill=SIGKILL", "0:once=wait=300")
    assert exit_code(job_id) == 0
    assert field(job_id, "Restarts") == "0"
    first, second = starts(job, 0)
    assert first["MASTER_PORT"] != second["MASTER_PORT"]


def test_the_watchdog_exit_code_restarts_at_most_max_restarts_times(submit: Submit) -> None:
    job_id, job = submit("exit=5", cluster=SlurmCluster(nodes=1, max_restarts=1))
    assert exit_code(job_id) == 5
    assert len(starts(job, 0)) == 2


def test_cancelling_saves_and_prevents_the_requeue(submit: Submit) -> None:
    job_id, job = submit("wait=300")
    run_dir = Path(job.run_dir)
    wait_for(are_waiting(job, 2), doing="both processes")
    assert "requested a stop" in cancel_job(job_id, run_dir)
    assert exit_code(job_id) == 75
    assert len(starts(job, 0)) == 1
    assert status_of(run_dir)["message"] == "stopped on request, with a checkpoint (exit code 75)"
    assert cancel_job(job_id, run_dir) == f"job {job_id} is not in the queue"


def test_cancelling_a_pending_job_removes_it_from_the_queue(submit: Submit) -> None:
    whole = SlurmCluster(nodes=2, processes_per_node=4)
    first, _ = submit("wait=300", cluster=whole)
    waiting, job = submit(cluster=whole)
    assert "pending" in describe_job(waiting)
    assert cancel_job(waiting, Path(job.run_dir)) == f"job {waiting} left the queue"
    ask("scancel", first)
    assert ended(waiting) == "CANCELLED"
    ended(first)
    assert status_of(Path(job.run_dir))["code"] == 143


def test_a_job_that_stops_without_a_new_checkpoint_is_requeued_up_to_a_cap(submit: Submit) -> None:
    job_id, job = submit("exit=75", cluster=SlurmCluster(max_restarts=1))
    wait_for(lambda: not describe_job(job_id), doing=f"the end of job {job_id}")
    assert field(job_id, "Restarts") == "1" and len(starts(job, 0)) == 2
    assert exit_code(job_id) == 75
    assert "no requeue: 1 in a row without a new checkpoint" in log_of(job_id, job)


@pytest.mark.nightly
def test_a_spare_node_replaces_a_bad_node(submit: Submit) -> None:
    job_id, job = submit("bad_node", cluster=SlurmCluster(partition="three", nodes=2, spare=1))
    assert exit_code(job_id) == 0, log_of(job_id, job)
    bad = (Path(job.run_dir) / "bad_node").read_text()
    record = read_record(Path(job.run_dir))
    assert len(record["hosts"]) == 2 and bad not in record["hosts"]
    assert record["attempt"] == 2 or (record["attempt"], record["history"]["excluded"]) == (3, [bad])


@pytest.mark.nightly
def test_a_spare_node_replaces_a_node_that_is_down(submit: Submit) -> None:
    job_id, job = submit("once=wait=300", cluster=SlurmCluster(partition="three", nodes=2, spare=1))
    wait_for(are_waiting(job, 2), doing="both processes")
    victim = next(host for host in read_record(Path(job.run_dir))["hosts"] if host != "n1")
    ask("scontrol", "update", f"NodeName={victim}", "State=DOWN", "Reason=test")
    try:
        assert exit_code(job_id) == 0, log_of(job_id, job)
        assert victim not in read_record(Path(job.run_dir))["hosts"] and field(job_id, "Restarts") == "0"
    finally:
        ask("scontrol", "update", f"NodeName={victim}", "State=RESUME")


@pytest.mark.nightly
def test_a_drained_node_finishes_its_work_and_gets_no_more(submit: Submit) -> None:
    cluster = SlurmCluster(partition="three", nodes=2)
    job_id, job = submit("save=5", "once=wait=300", cluster=cluster)
    wait_for(are_waiting(job, 2), doing="both processes")
    victim = next(host for host in read_record(Path(job.run_dir))["hosts"] if host != "n1")
    ask("scontrol", "update", f"NodeName={victim}", "State=DRAIN", "Reason=test")
    try:
        assert node_state(victim) == "draining" and state(job_id) == "RUNNING"
        ask("scancel", "--batch", "--signal=USR1", job_id)
        assert exit_code(job_id) == 0, log_of(job_id, job)
        assert field(job_id, "Restarts") == "1" and node_state(victim) == "drained"
        hosts = read_record(Path(job.run_dir))["hosts"]
        assert len(hosts) == 2 and victim not in hosts
    finally:
        ask("scontrol", "update", f"NodeName={victim}", "State=RESUME")


def test_a_job_without_a_bad_node_comes_back(submit: Submit) -> None:
    # A new checkpoint, then the same node fails to the end of the restarts: the requeue excludes it.
    cluster = SlurmCluster(partition="three", nodes=1, max_restarts=1)
    job_id, job = submit("save=5", "bad_node", cluster=cluster)
    assert exit_code(job_id) == 0, log_of(job_id, job)
    bad = (Path(job.run_dir) / "bad_node").read_text()
    assert field(job_id, "Restarts") == "1" and field(job_id, "ExcNodeList") == bad
    assert bad not in read_record(Path(job.run_dir))["hosts"]


def test_jobs_in_sequence_resume_the_run(submit: Submit) -> None:
    first, job = submit("once=exit=75", cluster=SlurmCluster(nodes=1, requeue=False))
    second = ask("sbatch", "--parsable", "--dependency=singleton", str(job.path.with_name(SCRIPT)))
    assert (exit_code(first), exit_code(second)) == (75, 0)
    assert len(starts(job, 0)) == 2 and read_record(Path(job.run_dir))["job_id"] == second


def test_a_preempted_training_on_two_nodes_equals_one_process(
    synth_shards: Path, alone: list[float], tmp_path: Path
) -> None:
    run = tmp_path / HOSTILE
    (run / "launch").mkdir(parents=True)
    (run / "launch" / CANCELLED).touch()  # of an earlier launch; the new launch removes it
    run_dir = (
        f"run_dir={json.dumps(str(run), ensure_ascii=False)}"  # read as YAML, where ` #` begins a comment
    )
    demo = small_job(synth_shards)
    launch = ["launch", "slurm", "nodes=2", "--", *demo, run_dir]
    urgent_job = [
        "sbatch",
        "--parsable",
        "--partition=urgent",
        "--nodes=2",
        "--exclusive",
        "--output=/dev/null",
    ]
    first_in_line = ask(*urgent_job, "--wrap=sleep 300")
    job_id = run_module(*launch).stdout.split()[1].strip(";")
    second = run_module(*launch, check=False)
    assert second.returncode == 2 and f"job {job_id} of {run} is pending" in second.stderr
    ask("scancel", first_in_line)
    wait_for((run / "metrics.jsonl").exists, doing="the first steps")
    urgent = ask(*urgent_job, "--wrap=true")
    assert ended(job_id) == "COMPLETED" and ended(urgent) == "COMPLETED"
    assert field(job_id, "Restarts") == "1"
    assert "requeueing the job" in (run / "logs" / f"slurm-{job_id}.log").read_text()
    assert losses(run) == pytest.approx(alone, rel=1e-5)
    assert not list(Path.cwd().glob("pwned")) and not list(tmp_path.rglob("pwned"))
    assert (run / "logs" / "rank-00001.log").exists()


def test_before_the_time_limit_the_job_saves_and_is_requeued(timed: tuple[str, Job]) -> None:
    job_id, job = timed
    assert ended(job_id) == "COMPLETED"
    assert field(job_id, "Restarts") == "1" and len(starts(job, 0)) == 2
    assert "with a checkpoint (SIGUSR1)" in log_of(job_id, job)
