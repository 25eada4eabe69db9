"""A job: one room's training, checked once, with its code and config frozen in the run's folder.

RUN/launch/code-DIGEST/         the packages and recipes, once for each content
RUN/launch/config-DIGEST.yaml   the config file as it was when the job was started
RUN/launch/job.json             what `task.py` reads: the argv never travels through a shell
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kinemae.launch.cluster import UsageError, require
from kinemae.launch.freezing import (
    atomic_write_text,
    commit_of_code,
    digest_of_code,
    digest_of_file,
    find_recipe,
    freeze_code,
)

LAUNCH_FOLDER, LOGS_FOLDER = "launch", "logs"
_PROGRAMS = (("python", "-m", "kinemae"), ("python", "-m"), ("kinemae",))


class JobRefused(Exception):
    """The room refused the job before anything was started; it has said why."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every process of a job needs to know, and `task.py` reads.

    Attributes:
        argv: the room and its arguments; the config is the frozen copy.
        cwd: where relative paths of the arguments begin; every host must have it.
        code: folder of the frozen packages.
        python: the interpreter on the hosts.
        environment: what the cluster file sets for each process; nothing of the starter's own.
        commit: of the code, where it lay in a git repository.
        run_dir: absolute.
        config: the config file that is frozen.
        container: words before the interpreter of each process; the process must stay our child.
        counts: what the room's `--dry-run` counted (`global_clips`, ...); empty where it was not asked.
    """

    argv: list[str]
    cwd: str
    code: str
    python: str
    environment: dict[str, str]
    commit: str | None
    run_dir: str
    config: str
    container: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where `job.json` is, or will be."""
        return Path(self.run_dir) / LAUNCH_FOLDER / "job.json"

    def script(self, name: str) -> str:
        """The frozen copy of one of our scripts, as in `script("supervisor/task.py")`."""
        return str(Path(self.code) / "kinemae" / "launch" / name)


def prepare(
    job_argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    python: str = sys.executable,
    processes: int = 1,
    is_node: bool = True,
    is_checked: bool = True,
) -> Job:
    """Check a job by the room's own `--dry-run` and say what it will be. Writes nothing.

    Args:
        job_argv: as in ["pretrain", "configs/pretrain/demo.yaml", "seed=1"].
        environment: what the cluster file sets for each process.
        python: the interpreter on the hosts; the check runs under this one.
        processes: how many there will be, so that a batch that they cannot share is refused.
        is_node: whether this machine trains too. Where not, `engine.device=auto` is checked: it has no GPU.
        is_checked: False where data and run_dir cannot be seen from here; `run_dir` is read as written.

    Raises:
        UsageError: the job is not the training of a room.
        JobRefused: the room refused it; carries its message and exit code.
    """
    place = _place_of_config(job_argv)
    counts = {}
    if is_checked:
        counts = dry_run(job_argv, environment, processes=processes, is_node=is_node)
        run_dir = counts["run_dir"]
    else:
        run_dir = _run_dir_as_written(job_argv, place)
    folder = _launch_folder(run_dir)
    config = find_recipe(job_argv[place], job_argv[0])
    frozen = folder / f"config-{digest_of_file(config)}.yaml"
    return Job(
        argv=[*job_argv[:place], str(frozen), *job_argv[place + 1 :]],
        cwd=os.getcwd(),
        code=str(folder / f"code-{digest_of_code()}"),
        python=python,
        environment=dict(environment),
        commit=commit_of_code(),
        run_dir=str(folder.parent),
        config=str(config.absolute()),
        counts=counts,
    )


def publish(job: Job) -> Path:
    """Freeze code and config in the run's folder and write `job.json`; its path.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        job.path.parent.mkdir(parents=True, exist_ok=True)
        (Path(job.run_dir) / LOGS_FOLDER).mkdir(exist_ok=True)
        freeze_code(Path(job.code))
        atomic_write_text(
            Path(job.argv[_place_of_config(job.argv)]), Path(job.config).read_text(encoding="utf-8")
        )
        atomic_write_text(job.path, describe(job) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write to {job.path.parent}: {error}; choose another run_dir") from error
    return job.path


def describe(job: Job) -> str:
    """The text of `job.json`."""
    told = {key: value for key, value in asdict(job).items() if key != "counts"}
    return json.dumps(told, indent=1, ensure_ascii=False)


def read_job(run_dir: Path) -> Job:
    """The job that was last started in a run's folder.

    Raises:
        UsageError: none was.
    """
    path = run_dir / LAUNCH_FOLDER / "job.json"
    try:
        return Job(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"cannot read {path}: {error}; is {run_dir} a run that was launched?") from error


def dry_run(
    job_argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    processes: int,
    is_node: bool = True,
    code: str | None = None,
) -> dict[str, Any]:
    """What the room's own `--dry-run --json` says of a job on so many processes.

    Args:
        code: frozen packages to ask; None for the installed ones.

    Raises:
        JobRefused: it refused; carries its message and exit code.
    """
    words = [*job_argv, *([] if is_node else ["engine.device=auto"]), "--dry-run", "--json"]
    world = {"RANK": "0", "WORLD_SIZE": str(processes), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    own_path = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "kinemae", *words],
        env={**os.environ, **environment, **world, "MASTER_PORT": "1", "PYTHONPATH": own_path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
    )
    if ran.returncode != 0:
        raise JobRefused(ran.returncode, ran.stderr.rstrip())
    counts = json.loads(ran.stdout[ran.stdout.index("{") :])
    assert isinstance(counts, dict)
    return counts


def _place_of_config(job_argv: Sequence[str]) -> int:
    """Where in the argv the config stands."""
    given = " ".join(job_argv[:2]) or "nothing"
    wanted = "expected `pretrain CONFIG [a.b=c]` or `finetune train CONFIG [a.b=c]` after --"
    program = next((start for start in _PROGRAMS if tuple(job_argv[: len(start)]) == start), ())
    if program:
        rest = shlex.join(job_argv[len(program) :])
        raise UsageError(f"{wanted}, got {given!r}; fix: write -- {rest}")
    if not job_argv or job_argv[0] not in ("pretrain", "finetune"):
        raise UsageError(f"{wanted}, got {given!r}")
    place = 1 if job_argv[0] == "pretrain" else 2
    is_training = job_argv[1:2] not in (["preview"], ["cost"]) if place == 1 else job_argv[1:2] == ["train"]
    if not is_training:
        raise UsageError(
            f"{wanted}, got {given!r}: only trainings are launched, "
            f"start it as kinemae {shlex.join(job_argv)}"
        )
    if "--dry-run" in job_argv:
        raise UsageError("--dry-run after -- would start processes that do nothing: put it before --")
    if len(job_argv) <= place or job_argv[place].startswith("-") or "=" in job_argv[place]:
        raise UsageError(f"{wanted}: the config comes right after {' '.join(job_argv[:place])}")
    return place


def _launch_folder(run_dir: str) -> Path:
    folder = Path(run_dir).absolute() / LAUNCH_FOLDER
    no_split = f"hold no {os.pathsep!r}: PYTHONPATH would be split"
    require(os.pathsep not in str(folder), "run_dir", no_split, run_dir)
    return folder


def _run_dir_as_written(job_argv: Sequence[str], place: int) -> str:
    given = [word.partition("=")[2] for word in job_argv[place + 1 :] if word.startswith("run_dir=")]
    if given:
        return given[-1]
    path = find_recipe(job_argv[place], job_argv[0])
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the config file {path}: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("run_dir"), str):
        raise UsageError(f"no run_dir in {path}: set it as run_dir=...")
    return str(config["run_dir"])
