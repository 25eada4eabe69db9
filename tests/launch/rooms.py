"""Jobs of a room that does as it is told, without torch: for what happens around a process, not in it."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kinemae.launch.job import Job, describe
from tests.conftest import REPO

# Each word of its argv is one deed; the words that stand for a rank alone are written RANK:DEED.
ROOM = """
import json, os, pathlib, signal, sys, time

RANK = os.environ["RANK"]
HERE = pathlib.Path(os.environ["KINEMAE_TEST_RUN"])


def leave(code):
    sys.stdout.flush()
    os._exit(code)


def note(name, text):
    with (HERE / name).open("a") as file:
        file.write(text + "\\n")


def do(deed, value):
    if deed == "say":
        print(value, flush=True)
    elif deed == "tell":
        names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT GIVEN"
        told = {name: os.environ.get(name) for name in names.split()}
        note("told.jsonl", json.dumps(dict(told, argv=sys.argv[1:], cwd=os.getcwd(), path=sys.path[0])))
    elif deed == "leave":
        leave(int(value))
    elif deed == "die":
        os.kill(os.getpid(), signal.Signals[value])
        time.sleep(60)
    elif deed == "once":  # the first start does the deed behind it, later ones do not
        mark = HERE / f"once-{RANK}"
        if not mark.exists():
            mark.touch()
            do(*value.split("=", 1))
    elif deed == "save":
        (HERE / "checkpoints" / f"step-{int(value):08d}").mkdir(parents=True, exist_ok=True)
    elif deed == "obey":  # as a training does: signals end it with the code of a stop
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: leave(128 + number))
    elif deed == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif deed == "fork":  # a loader process, which outlives its parent if nobody ends it
        if os.fork() == 0:
            note("forked", str(os.getpid()))
            time.sleep(600)
    elif deed == "meet":  # until another one has come to a file
        while not (HERE / value).exists():
            time.sleep(0.05)
    elif deed == "wait":
        note("waiting", RANK)
        time.sleep(float(value))


if "--dry-run" in sys.argv:  # three processes cannot share four clips
    print('{"global_clips": 4}')
    leave(2 if os.environ["WORLD_SIZE"] == "3" else 0)
for word in sys.argv[3:]:
    name, _, value = word.partition("=")
    of, colon, deed = name.rpartition(":")
    if not colon or of == RANK:
        do(deed, value)


def main(argv):
    return 0
"""


def make_job(folder: Path, *deeds: str, **environment: str) -> Job:
    """A job whose processes do the deeds in order; its run's folder is `folder / "run"`."""
    run_dir, code = folder / "run", folder / "run" / "launch" / "code-test"
    package, no_cache = code / "kinemae", shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPO / "kinemae", package, ignore=no_cache)
    shutil.copytree(REPO / "launch", package / "launch", ignore=no_cache)
    (package / "pretrain").mkdir()
    (package / "pretrain" / "__init__.py").touch()
    (package / "pretrain" / "__main__.py").write_text(ROOM)
    (run_dir / "logs").mkdir()
    job = Job(
        argv=["pretrain", "CONFIG", *deeds],
        cwd=str(folder),
        code=str(code),
        python=sys.executable,
        environment={"KINEMAE_TEST_RUN": str(run_dir), **environment},
        commit=None,
        run_dir=str(run_dir),
        config="CONFIG",
        counts={"global_clips": 4},
    )
    job.path.write_text(describe(job))
    return job


def told(job: Job) -> list[dict[str, object]]:
    """What the processes told, by rank."""
    lines = (Path(job.run_dir) / "told.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda line: int(line["RANK"]))


def wait_for(what: str, is_there: Callable[[], object], most_s: float = 60.0) -> None:
    """Look until it is there."""
    until = time.monotonic() + most_s
    while not is_there():
        assert time.monotonic() < until, f"no {what} after {most_s:g} s"
        time.sleep(0.02)


def are_waiting(job: Job, count: int) -> Callable[[], bool]:
    """Whether so many processes have come to their `wait`."""
    path = Path(job.run_dir) / "waiting"
    return lambda: path.exists() and len(path.read_text().splitlines()) >= count


def processes_of(job: Job) -> list[int]:
    """Processes of a job that live, found by what they were started with."""
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


# `launch` for a job that is prepared already: the command line's own way would check it by the real room.
HEAD = """
import sys
from dataclasses import replace
from pathlib import Path
from kinemae.launch.cluster import UsageError, read_cluster
from kinemae.launch.job import read_job
from kinemae.launch.local import LocalCluster, launch_of as local
from kinemae.launch.record import Record, held
from kinemae.launch.ssh import SshCluster, launch_of as ssh
from kinemae.launch.supervisor.supervise import Supervisor

kind, run_dir, *words = sys.argv[1:]
cluster, launch_of = {"local": (LocalCluster, local), "ssh": (SshCluster, ssh)}[kind]
launch, job = launch_of(read_cluster(cluster, None, words)), read_job(Path(run_dir))
job = replace(job, counts={"global_clips": 4})
try:
    with held(Path(run_dir)):
        sys.exit(Supervisor(launch, job, Record(Path(run_dir), kind=kind)).run())
except UsageError as error:
    sys.exit(str(error))
"""


def head(job: Job, kind: str, *words: str) -> "subprocess.Popen[str]":
    """A launcher of the job; its output is `job.run_dir/said`."""
    said = Path(job.run_dir) / "said"
    with said.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-c", HEAD, kind, job.run_dir, *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            text=True,
        )


def run_head(job: Job, kind: str, *words: str) -> tuple[int, str]:
    """The launcher's exit code, and all that it and rank 0 printed."""
    code = head(job, kind, *words).wait(timeout=120)
    return code, (Path(job.run_dir) / "said").read_text()
