"""Cluster file of `launch slurm`."""

import re
from dataclasses import dataclass, field
from typing import Literal

from kinemae.data_tools.overrides import ConfigError, require

# Times that sbatch accepts: minutes, minutes:seconds, hours:minutes:seconds, each optionally after `days-`.
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")
# Options that the batch script sets; a second one in `extra` would override it.
_OWN_OPTIONS = re.compile(
    "account|array|chdir|cpus-per-task|error|export|gres|job-name|kill-on-bad-exit|mem|(no-)?requeue|no-kill"
    "|nodes|ntasks(-per-node)?|open-mode|output|parsable|partition|qos|signal|time|wait"
)


@dataclass(frozen=True, kw_only=True)
class Container:
    """Container of the processes.

    Attributes:
        runtime: `pyxis` (srun's --container-image) or `apptainer` (a command prefix `apptainer exec`).
        image: in the form that the runtime takes.
        mounts: FOLDER:INSIDE pairs; the run folder must be mounted under its own name.
    """

    runtime: Literal["none", "pyxis", "apptainer"] = "none"
    image: str = ""
    mounts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        is_used = self.runtime != "none"
        require(is_used or not self.image, "container.runtime", "be pyxis or apptainer with an image", "none")
        require(bool(self.image) or not is_used, "container.image", f"be set for {self.runtime}", self.image)
        for mount in self.mounts:
            require(":" in mount, "container.mounts", "contain FOLDER:INSIDE pairs", mount)


@dataclass(frozen=True, kw_only=True)
class SlurmCluster:
    """Cluster file of `launch slurm`; an empty text leaves the choice to the cluster.

    Attributes:
        partition, account, qos: as of sbatch; empty for the cluster's default.
        nodes, processes_per_node, gpus_per_node: machines; processes of each, one per GPU; GPUs of each.
        spare: further machines, which replace lost and bad ones.
        name: the job's name; empty for the run folder's name.
        time: time limit as for sbatch, such as 1-00:00:00.
        cpus_per_process: for the process and its data workers.
        gpu_type: as the cluster names it, such as a100; empty for any.
        memory: of each node, such as 200G.
        extra: further sbatch options, such as --constraint=a100.
        requeue: requeue the job after a stop with a checkpoint (time limit, preemption).
        array: an alternative to `requeue`: this many jobs in sequence, each resuming the run.
        signal_s: seconds before the time limit at which Slurm sends SIGUSR1, which requests a checkpoint, and
            the time for a checkpoint after any request.
        max_restarts: restarts, or requeues, in a row without a new checkpoint.
        environment: variables of each process.
        python: the interpreter on the nodes; empty for the one that submits.
        link_gbit: network speed between the nodes, for `launch doctor` to compare with; None if unknown.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    name: str = ""
    time: str = ""
    nodes: int = 1
    spare: int = 0
    processes_per_node: int = 1
    cpus_per_process: int = 1
    gpus_per_node: int = 0
    gpu_type: str = ""
    memory: str = ""
    extra: list[str] = field(default_factory=list)
    requeue: bool = True
    array: int = 0
    signal_s: int = 600
    max_restarts: int = 3
    container: Container = field(default_factory=Container)
    environment: dict[str, str] = field(default_factory=dict)
    python: str = ""
    link_gbit: float | None = None

    def __post_init__(self) -> None:
        for key in ("nodes", "processes_per_node", "cpus_per_process"):
            require(getattr(self, key) >= 1, key, "be at least 1", getattr(self, key))
        for key in ("gpus_per_node", "array", "max_restarts", "spare"):
            require(getattr(self, key) >= 0, key, "be at least 0", getattr(self, key))
        for key in ("partition", "account", "qos", "name", "time", "memory", "gpu_type"):
            require(getattr(self, key).isprintable(), key, "be one line of text", getattr(self, key))
        for option in self.extra:
            _check_extra(option)
        require(self.link_gbit is None or self.link_gbit > 0, "link_gbit", "be above 0", self.link_gbit)
        require(not (self.requeue and self.array), "array", "be 0, or requeue=false", self.array)
        seconds, limit = self.signal_s, seconds_of(self.time)
        require(1 <= seconds <= 65535, "signal_s", "lie between 1 and 65535 seconds", seconds)
        require(limit is None or seconds < limit, "signal_s", f"be less than time={self.time}", seconds)
        has_python = bool(self.python) or self.container.runtime == "none"
        require(has_python, "python", "name the interpreter inside the container", self.python)

    def gres(self) -> str:
        """The value of --gres for the GPUs of a node; empty for none."""
        if not self.gpus_per_node:
            return ""
        return ":".join(filter(None, ["gpu", self.gpu_type, str(self.gpus_per_node)]))

    def pyxis_options(self) -> list[str]:
        """Options of srun for a pyxis container."""
        if self.container.runtime != "pyxis":
            return []
        mounts = ",".join(self.container.mounts)
        image = f"--container-image={self.container.image}"
        return [image, *([f"--container-mounts={mounts}"] if mounts else [])]

    def container_command(self) -> list[str]:
        """The command prefix of each process in an apptainer container."""
        if self.container.runtime != "apptainer":
            return []
        mounts = [word for mount in self.container.mounts for word in ("--bind", mount)]
        gpus = ["--nv"] if self.gpus_per_node else []
        return ["apptainer", "exec", *gpus, *mounts, self.container.image]


def _check_extra(option: str) -> None:
    name = option.removeprefix("--").partition("=")[0]
    is_long = option.startswith("--") and bool(name) and option.isprintable()
    require(is_long, "extra", "contain long options of sbatch, such as --constraint=a100", option)
    is_free = not _OWN_OPTIONS.fullmatch(name)
    require(is_free, "extra", f"not contain --{name}, which the launcher sets", option)


def seconds_of(limit: str) -> int | None:
    """Convert a time limit of Slurm to seconds; None for no limit.

    Raises:
        ValueError: sbatch would not accept it.
    """
    if limit.upper() in ("", "UNLIMITED", "INFINITE"):
        return None
    match = _TIME.fullmatch(limit)
    if match is None:
        raise ConfigError(f"time must be as in 30 (minutes), 12:30:00 or 1-00:00:00, got {limit!r}")
    parts = [int(part) for part in match["parts"].split(":")]
    if match["days"]:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    hours, minutes, seconds = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
    return (hours * 60 + minutes) * 60 + seconds
