"""Jobs with a fake `kinemae pretrain` that executes a list of actions, without torch: tests of launchers."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kinemae.launch.job import Job
from tests.conftest import REPO

# Each word of its argv is one action; RANK:ACTION restricts it to one rank.
PROGRAM = """
import json, os, pathlib, signal, sys, time

RANK = os.environ["RANK"]
HERE = pathlib.Path(os.environ["KINEMAE_TEST_RUN"])


def exit(code):
    sys.stdout.flush()
    os._exit(code)


def note(name, text):
    with (HERE / name).open("a") as file:
        file.write(text + "\\n")


def execute(action, value):
    if action == "print":
        print(value, flush=True)
    elif action == "report":
        names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT GIVEN"
        rank = {name: os.environ.get(name) for name in names.split()}
        note("reports.jsonl", json.dumps(dict(rank, argv=sys.argv[1:], cwd=os.getcwd(), path=sys.path[0])))
    elif action == "exit":
        exit(int(value))
    elif action in ("fail", "lose_peer"):  # as a training, which writes why it failed
        from kinemae.data_tools.error_file import write_error_file
        write_error_file(RuntimeError("own fault"), int(value), lost_peer=action == "lose_peer")
        exit(int(value))
    elif action == "kill":
        os.kill(os.getpid(), signal.Signals[value])
        time.sleep(60)
    elif action == "once":  # only in the first start
        mark = HERE / f"once-{RANK}"
        if not mark.exists():
            mark.touch()
            execute(*value.split("=", 1))
    elif action == "save":
        (HERE / "checkpoints" / f"step-{int(value):08d}").mkdir(parents=True, exist_ok=True)
    elif action == "handle_stops":  # as a training: signals end it with the code of a stop
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: exit(75))
    elif action == "ignore_stops":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif action == "fork":  # a loader worker, which outlives its parent unless it is killed
        if os.fork() == 0:
            note("forked", str(os.getpid()))
            time.sleep(600)
    elif action == "wait_for":  # until another rank has written a file
        while not (HERE / value).exists():
            time.sleep(0.05)
    elif action == "bad_node":  # the node of the first process that comes here
        mark = HERE / "bad_node"
        try:
            with mark.open("x") as file:
                file.write(os.environ["SLURMD_NODENAME"])
        except FileExistsError:
            time.sleep(0.2)
        if mark.read_text() == os.environ["SLURMD_NODENAME"]:
            exit(1)
    elif action == "wait":
        note("waiting", RANK)
        time.sleep(float(value))


for word in sys.argv[3:]:
    name, _, value = word.partition("=")
    of, colon, action = name.rpartition(":")
    if not colon or of == RANK:
        execute(action, value)


def main(argv):
    return 0
"""


def make_job(folder: Path, *actions: str, **environment: str) -> Job:
    """A job whose processes execute the actions in order; its run folder is `folder / "run"`."""
    run_dir, code = folder / "run", folder / "run" / "launch" / "code-test"
    package, no_cache = code / "kinemae", shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPO / "kinemae", package, ignore=no_cache)
    shutil.copytree(REPO / "launch", package / "launch", ignore=no_cache)
    (package / "data_tools").symlink_to(REPO / "data_tools")
    (package / "pretrain").mkdir()
    (package / "pretrain" / "__init__.py").touch()
    (package / "pretrain" / "__main__.py").write_text(PROGRAM)
    (run_dir / "logs").mkdir()
    job = Job(
        argv=["pretrain", "CONFIG", *actions],
        cwd=str(folder),
        code=str(code),
        python=sys.executable,
        environment={"KINEMAE_TEST_RUN": str(run_dir), **environment},
        commit=None,
        run_dir=str(run_dir),
        config="CONFIG",
        summary={"process_counts": [1, 2, 4]},
    )
    job.path.write_text(job.to_json())
    return job


def reports(job: Job) -> list[dict[str, object]]:
    """The reports of the `report` actions, by rank."""
    lines = (Path(job.run_dir) / "reports.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda line: int(line["RANK"]))


def wait_for(what: str, is_there: Callable[[], object], most_s: float = 60.0) -> None:
    """Poll until a condition holds."""
    until = time.monotonic() + most_s
    while not is_there():
        assert time.monotonic() < until, f"no {what} after {most_s:g} s"
        time.sleep(0.02)


def are_waiting(job: Job, count: int) -> Callable[[], bool]:
    """A condition: this many processes have reached their `wait`."""
    path = Path(job.run_dir) / "waiting"
    return lambda: path.exists() and len(path.read_text().splitlines()) >= count


def processes_of(job: Job) -> list[int]:
    """Ids of the living processes of a job, found by their command and environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            is_dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        mine = f"KINEMAE_TEST_RUN={job.run_dir}".encode()
        if b"pretrain" in words and not is_dead and _has(folder / "environ", mine):
            found.append(int(folder.name))
    return found


def _has(path: Path, text: bytes) -> bool:
    try:
        return text in path.read_bytes()
    except OSError:
        return False


# `launch` of a prepared job: the real command line would run the dry run of the real command.
LAUNCHER = """
import sys
from dataclasses import replace
from pathlib import Path
from kinemae.launch.cluster import read_cluster
from kinemae.launch.job import Job
from kinemae.launch.local import LocalCluster
from kinemae.launch.record import Record, lock_run
from kinemae.launch.ssh import SshCluster

kind, run_dir, *words = sys.argv[1:]
cluster = read_cluster({"local": LocalCluster, "ssh": SshCluster}[kind], None, words)
job = Job.read(Path(run_dir, "launch", "job.json"))
job = replace(job, policy=cluster.policy())
job.path.write_text(job.to_json())
try:
    with lock_run(Path(run_dir)):
        Record(Path(run_dir)).begin(kind=kind, run_id="1")
        sys.exit(cluster.run(job))
except ValueError as error:
    sys.exit(str(error))
"""


def launcher_of(job: Job, kind: str, *words: str) -> "subprocess.Popen[str]":
    """A launcher of the job; its output is `job.run_dir/output`."""
    output = Path(job.run_dir) / "output"
    with output.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, kind, job.run_dir, *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            text=True,
        )


def run_launcher(job: Job, kind: str, *words: str) -> tuple[int, str]:
    """The launcher's exit code, and all output of it and of rank 0."""
    code = launcher_of(job, kind, *words).wait(timeout=120)
    return code, (Path(job.run_dir) / "output").read_text()
