"""The cluster file of `launch slurm`: what may stand in it, and what is refused by name."""

import re
from dataclasses import dataclass, field
from typing import Literal

from kinemae.launch.cluster import UsageError, require

# sbatch's forms: minutes, minutes:seconds, hours:minutes:seconds, and the same behind days-.
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")
# The script sets these itself; a second one in `extra` would undo what it promises.
_OWN_OPTIONS = re.compile(
    "account|array|chdir|cpus-per-task|error|export|gres|job-name|kill-on-bad-exit|mem|(no-)?requeue|nodes"
    "|ntasks(-per-node)?|open-mode|output|parsable|partition|qos|signal|time|wait"
)


@dataclass(frozen=True, kw_only=True)
class Container:
    """What the processes run in.

    Attributes:
        through: `pyxis` (srun's --container-image) or `apptainer` (an `apptainer exec` in front of python).
        image: as pyxis or apptainer take it.
        mounts: FOLDER:INSIDE pairs; the run's folder must be among them, under its own name.
    """

    through: Literal["none", "pyxis", "apptainer"] = "none"
    image: str = ""
    mounts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        is_used = self.through != "none"
        require(is_used or not self.image, "container.through", "be pyxis or apptainer with an image", "none")
        require(
            bool(self.image) or not is_used, "container.image", f"be given for {self.through}", self.image
        )
        for mount in self.mounts:
            require(":" in mount, "container.mounts", "hold FOLDER:INSIDE pairs", mount)


@dataclass(frozen=True, kw_only=True)
class SlurmCluster:
    """A cluster file for `launch slurm`; empty text leaves a choice to the cluster.

    Attributes:
        name: the job's name; the run folder's where empty.
        time: a limit as sbatch takes it, as in 1-00:00:00.
        cpus_per_process: for the process and its data workers.
        gpu_type: as the cluster names it, as in a100; any where empty.
        memory: for each node, as in 200G.
        extra: further sbatch options, as in --constraint=a100.
        requeue: into the queue again after a stop with a checkpoint: at the time limit, and by preemption.
        array: in place of `requeue`, so many elements one after another, each going on with the run.
        warn_s: seconds before the time limit at which SIGUSR1 asks for a checkpoint.
        max_restarts: starts after a crash, in the same allocation.
        environment: for each process.
        python: the interpreter on the nodes; the one that submits where empty.
        link_gbit: what the network between nodes gives, for `launch doctor`; None: what the drivers say.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    name: str = ""
    time: str = ""
    nodes: int = 1
    processes_per_node: int = 1
    cpus_per_process: int = 1
    gpus_per_node: int = 0
    gpu_type: str = ""
    memory: str = ""
    extra: list[str] = field(default_factory=list)
    requeue: bool = True
    array: int = 0
    warn_s: int = 120
    max_restarts: int = 3
    container: Container = field(default_factory=Container)
    environment: dict[str, str] = field(default_factory=dict)
    python: str = ""
    link_gbit: float | None = None

    def __post_init__(self) -> None:
        for key in ("nodes", "processes_per_node", "cpus_per_process"):
            require(getattr(self, key) >= 1, key, "be at least 1", getattr(self, key))
        for key in ("gpus_per_node", "array", "max_restarts"):
            require(getattr(self, key) >= 0, key, "be at least 0", getattr(self, key))
        for key in ("partition", "account", "qos", "name", "time", "memory", "gpu_type"):
            require(getattr(self, key).isprintable(), key, "be one line of text", getattr(self, key))
        for option in self.extra:
            _check_extra(option)
        require(self.link_gbit is None or self.link_gbit > 0, "link_gbit", "be above 0", self.link_gbit)
        require(not (self.requeue and self.array), "array", "be 0, or requeue=false", self.array)
        require(1 <= self.warn_s <= 65535, "warn_s", "lie between 1 and 65535 seconds", self.warn_s)
        limit = seconds_of(self.time)
        require(limit is None or self.warn_s < limit, "warn_s", f"be less than time={self.time}", self.warn_s)
        is_inside = self.container.through != "none"
        require(
            bool(self.python) or not is_inside,
            "python",
            "name the interpreter inside the container",
            self.python,
        )

    def gres(self) -> str:
        """The GPUs of a node as Slurm is asked for them; empty for none."""
        if not self.gpus_per_node:
            return ""
        return ":".join(filter(None, ["gpu", self.gpu_type, str(self.gpus_per_node)]))

    def pyxis_options(self) -> list[str]:
        """What srun is told of a container that pyxis starts around each process."""
        if self.container.through != "pyxis":
            return []
        mounts = ",".join(self.container.mounts)
        return [
            f"--container-image={self.container.image}",
            *([f"--container-mounts={mounts}"] if mounts else []),
        ]

    def container_command(self) -> list[str]:
        """The words before the interpreter of each process."""
        if self.container.through != "apptainer":
            return []
        mounts = [word for mount in self.container.mounts for word in ("--bind", mount)]
        return [
            "apptainer",
            "exec",
            *(["--nv"] if self.gpus_per_node else []),
            *mounts,
            self.container.image,
        ]


def _check_extra(option: str) -> None:
    name = option.removeprefix("--").partition("=")[0]
    is_long = option.startswith("--") and bool(name) and option.isprintable()
    require(is_long, "extra", "hold long options of sbatch, as in --constraint=a100", option)
    require(
        not _OWN_OPTIONS.fullmatch(name),
        "extra",
        f"leave --{name} to the launcher (its own key, or fixed)",
        option,
    )


def seconds_of(limit: str) -> int | None:
    """A time limit in seconds; None where there is none.

    Raises:
        UsageError: sbatch would not take it.
    """
    if limit.upper() in ("", "UNLIMITED", "INFINITE"):
        return None
    match = _TIME.fullmatch(limit)
    if match is None:
        raise UsageError(f"time must be as in 30 (minutes), 12:30:00 or 1-00:00:00, got {limit!r}")
    parts = [int(part) for part in match["parts"].split(":")]
    if match["days"]:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    hours, minutes, seconds = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
    return (hours * 60 + minutes) * 60 + seconds
