"""A job: one training run, checked once, with its code and config frozen in the run folder.

RUN/launch/code-DIGEST/         copy of the package
RUN/launch/config-DIGEST.yaml   copy of the config file
RUN/launch/job.json             read by the agents: no argument passes through a shell
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kinemae.data_tools.config_files import find_config
from kinemae.data_tools.files import atomic_write_text, commit_of_code, to_json_lines
from kinemae.data_tools.overrides import ConfigError, require

LAUNCH_FOLDER, LOGS_FOLDER = "launch", "logs"
_FOLDERS = ("configs", "data_tools", "finetune", "launch", "pretrain")
# In a checkout the folders lie beside `kinemae/`; installed or frozen, inside it.
_ROOT = Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / "kinemae" if (_ROOT / "kinemae").is_dir() else _ROOT
_DIGITS = 12  # of the names of frozen files


class JobRefused(Exception):
    """A command that checks or measures the job failed; the message is its error output."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Job:
    """The content of `job.json`, and the summary of the dry run.

    Attributes:
        argv: the command and its arguments; the config is the frozen copy.
        cwd: working folder of the processes; it must exist on every host.
        code: folder of the frozen package.
        python: the interpreter on the hosts.
        environment: variables from the cluster file; none of the launcher's own environment.
        commit: git commit of the code, if known.
        run_dir: absolute path.
        config: the original config file.
        policy: limits of the supervision, see `PolicyConfig`; empty: the defaults.
        summary: what the dry run printed (`process_counts`, `steps`, ...); empty without a dry run.
    """

    argv: list[str]
    cwd: str
    code: str
    python: str
    environment: dict[str, str]
    commit: str | None
    run_dir: str
    config: str
    policy: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Path of `job.json`."""
        return Path(self.run_dir) / LAUNCH_FOLDER / "job.json"

    @property
    def frozen_config(self) -> str:
        """Path of the frozen config file."""
        return self.argv[1 if self.argv[0] == "pretrain" else 2]

    def script(self, name: str) -> str:
        """Path of a frozen script of `launch/`, such as `supervisor/agent.py`."""
        return str(Path(self.code) / "kinemae" / "launch" / name)

    @staticmethod
    def read(path: Path) -> "Job":
        """Read a `job.json`."""
        return Job(**json.loads(path.read_text(encoding="utf-8")))

    def to_json(self) -> str:
        """The text of `job.json`."""
        return to_json_lines(asdict(self))


def prepare_job(
    job_argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    python: str = sys.executable,
    world_size: int = 1,
    trains_here: bool = True,
    dry_run: bool = True,
) -> Job:
    """Check a job with a dry run and describe it; write nothing. Raises `JobRefused` if the dry run fails.

    Args:
        job_argv: as in ["pretrain", "configs/pretrain/demo.yaml", "seed=1"].
        environment: variables from the cluster file.
        python: the interpreter on the hosts; the dry run uses the current one.
        trains_here: False if this machine only starts the job; it may have no GPU.
        dry_run: False if data and run_dir are not visible here; the arguments must then contain run_dir.
    """
    index = config_index(job_argv)
    summary = {}
    if dry_run:
        summary = check_job(job_argv, environment, world_size=world_size, trains_here=trains_here)
    given = [word.partition("=")[2] for word in job_argv[index + 1 :] if word.startswith("run_dir=")]
    expected = "be given after the config, because the config is not checked here"
    require(bool(summary or given), "run_dir", expected, None)
    run_dir = summary["run_dir"] if summary else given[-1]
    folder = Path(run_dir).absolute() / LAUNCH_FOLDER
    is_one_path = os.pathsep not in str(folder)
    require(is_one_path, "run_dir", f"contain no {os.pathsep!r}, which splits PYTHONPATH", run_dir)
    config = find_config(job_argv[index], job_argv[0])
    digest = hashlib.sha256(config.read_bytes()).hexdigest()[:_DIGITS]
    frozen = folder / f"config-{digest}.yaml"
    return Job(
        argv=[*job_argv[:index], str(frozen), *job_argv[index + 1 :]],
        cwd=os.getcwd(),
        code=str(folder / f"code-{digest_of_code()}"),
        python=python,
        environment=dict(environment),
        commit=commit_of_code(),
        run_dir=str(folder.parent),
        config=str(config.absolute()),
        summary=summary,
    )


def plan_text(
    job: Job, processes: int, files: Mapping[Path, str], commands: Mapping[str, Sequence[str]]
) -> str:
    """The output of `--dry-run`.

    Args:
        files: those that the launcher writes besides the job's own.
        commands: by the host that runs each.
    """
    lines = [
        f"checked: {job.argv[0]} accepts the job on {processes} processes",
        "would write:",
        f"  {job.code}/  the code{f' of commit {job.commit}' if job.commit else ''}",
        f"  {job.frozen_config}  a copy of {job.config}",
    ]
    for path, text in {job.path: job.to_json(), **files}.items():
        lines += [f"  {path}:", textwrap.indent(text.rstrip(), "    ")]
    lines.append("would run:")
    for host, command in commands.items():
        lines += [f"  on {host}:", f"    {shlex.join(command)}"]
    return "\n".join(lines) + "\n"


def write_job(job: Job) -> None:
    """Freeze code and config in the run folder and write `job.json`."""
    try:
        job.path.parent.mkdir(parents=True, exist_ok=True)
        (Path(job.run_dir) / LOGS_FOLDER).mkdir(exist_ok=True)
        freeze_code(Path(job.code))
        atomic_write_text(Path(job.frozen_config), Path(job.config).read_text(encoding="utf-8"))
        atomic_write_text(job.path, job.to_json())
    except OSError as error:
        raise ConfigError(f"cannot write to {job.path.parent}: {error}; fix: set another run_dir") from error


def digest_of_code() -> str:
    """A short digest of all frozen files."""
    digest = hashlib.sha256()
    for name, path in _code_files().items():
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:_DIGITS]


def freeze_code(folder: Path) -> None:
    """Copy the package to a folder named by its digest, atomically; do nothing if it exists."""
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")  # of this launcher, which holds the run's lock
    for name, path in _code_files().items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial / name)
    partial.rename(folder)


def _code_files() -> dict[str, Path]:
    """All files of the package by their path in the frozen copy, sorted."""
    files = {f"kinemae/{path.name}": path for path in _PACKAGE.iterdir() if path.is_file()}
    for folder in _FOLDERS:
        for path in (_ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files[f"kinemae/{path.relative_to(_ROOT)}"] = path
    return dict(sorted(files.items()))


def check_job(
    job_argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    world_size: int,
    trains_here: bool = True,
) -> dict[str, Any]:
    """Run the job's command with `--dry-run --json` and return what it prints, see `read_output`."""
    elsewhere = ["engine.device=auto", "engine.residual_dtype=fp32"]  # what this machine may lack
    words = [*job_argv, *([] if trains_here else elsewhere), "--dry-run", "--json"]
    rank = {"RANK": "0", "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    rank |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    return read_output(words, {**environment, **rank})


def read_output(words: Sequence[str], variables: Mapping[str, str]) -> dict[str, Any]:
    """Run `kinemae WORDS` with further environment variables, and return the JSON object that it prints."""
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "kinemae", *words],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
    )
    if ran.returncode != 0:
        raise JobRefused(ran.returncode, ran.stderr.rstrip())
    return dict(json.loads(ran.stdout[ran.stdout.index("{") :]))


def config_index(job_argv: Sequence[str]) -> int:
    """The index of the config in the job's arguments."""
    given = " ".join(job_argv[:2]) or "nothing"
    expected = "expected `pretrain CONFIG [a.b=c]` or `finetune train CONFIG [a.b=c]` after --"
    if not job_argv or job_argv[0] not in ("pretrain", "finetune"):
        raise ConfigError(f"{expected}, got {given!r}")
    index = 1 if job_argv[0] == "pretrain" else 2
    is_training = job_argv[1:2] not in (["preview"], ["cost"]) if index == 1 else job_argv[1:2] == ["train"]
    if not is_training:
        raise ConfigError(
            f"{expected}, got {given!r}: it is not a training; fix: run kinemae {shlex.join(job_argv)}"
        )
    if "--dry-run" in job_argv:
        raise ConfigError("expected --dry-run before --, got it after; fix: move it before --")
    if len(job_argv) <= index or job_argv[index].startswith("-") or "=" in job_argv[index]:
        raise ConfigError(f"{expected}; fix: write the config directly after {' '.join(job_argv[:index])}")
    return index
