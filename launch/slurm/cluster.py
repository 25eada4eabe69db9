"""Cluster file of `launch slurm`."""

from dataclasses import dataclass, field

from kinemae.data_tools.overrides import require

# Options that the batch script sets; a second one in `extra` would override it. An array of one run would
# write to its folder several times at once.
_OWN_OPTIONS = (
    *("account", "array", "chdir", "cpus-per-task", "error", "export", "gres", "job-name", "mem", "no-kill"),
    *("no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "partition"),
    *("qos", "requeue", "signal", "time", "wait"),
)


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
        srun: further options of srun for the agents, such as --container-image=IMAGE of pyxis.
        requeue: requeue the job after a stop with a checkpoint (time limit, preemption).
        signal_s: seconds before the time limit at which Slurm sends SIGUSR1, which requests a checkpoint, and
            the time for a checkpoint after any request.
        max_restarts: restarts, or requeues, in a row without a new checkpoint.
        container: command prefix of each agent, as in [apptainer, exec, --nv, IMAGE].
        environment: variables of each process.
        python: the interpreter of agents and processes; empty for the one that submits.
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
    srun: list[str] = field(default_factory=list)
    requeue: bool = True
    signal_s: int = 600
    max_restarts: int = 3
    container: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    python: str = ""

    def __post_init__(self) -> None:
        for key in ("nodes", "processes_per_node", "cpus_per_process"):
            require(getattr(self, key) >= 1, key, "be at least 1", getattr(self, key))
        for key in ("gpus_per_node", "max_restarts", "spare"):
            require(getattr(self, key) >= 0, key, "be at least 0", getattr(self, key))
        seconds = self.signal_s
        require(1 <= seconds <= 65535, "signal_s", "lie between 1 and 65535 seconds", seconds)
        for option in self.extra:
            name = option.partition("=")[0]
            example = "contain long options of sbatch, such as --constraint=a100"
            require(name.startswith("--"), "extra", example, option)
            is_free = name.removeprefix("--") not in _OWN_OPTIONS
            require(is_free, "extra", f"not contain {name}, which the launcher sets", option)

    def options(self, **own: str) -> list[str]:
        """Options of sbatch, and of the doctor's srun; an empty value leaves the choice to the cluster.

        Args:
            own: further options, with `_` for `-`.
        """
        gpus = ["gpu", self.gpu_type, str(self.gpus_per_node)] if self.gpus_per_node else []
        given = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "ntasks_per_node": "1",
            "cpus_per_task": str(self.processes_per_node * self.cpus_per_process),
            "gres": ":".join(filter(None, gpus)),
            "mem": self.memory,
        }
        values = {**own, **given}
        return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value]
