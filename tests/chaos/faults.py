"""The faults and the expected reaction to each, as in docs/reliability.md."""

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from tests.chaos.inflict import (
    abort_like_nccl,
    cut_a_link,
    damage_newest,
    die_with_a_long_line,
    fill_checkpoint_disk,
    fill_log_disk,
    flip_a_bit,
    has_agents,
    has_checkpoint_disk,
    has_connections,
    has_hosts,
    has_several_ranks,
    has_two_active_hosts,
    kill_a_connection,
    kill_a_host,
    kill_a_starting_rank,
    kill_all_at_once,
    kill_an_idle_worker,
    kill_during_a_checkpoint,
    lose_the_launcher,
    remove_a_file,
    remove_manifest,
    restart_without_locks,
    restore_hosts,
    stale_files,
    suspend_a_host,
    suspend_briefly,
    to_a_rank,
    to_an_agent,
    to_the_launcher,
    truncate_a_file,
)
from tests.chaos.scene import Scene


class Reaction(Enum):
    """Reaction to a fault without intervention."""

    ENDS = "ends"
    RESTARTS = "restarts"
    CONTINUES = "continues"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of a job.

    Attributes:
        exit_code: exit code of the launcher if the job ends.
        inflict: cause the fault in a running job.
        repair: repair by the user or the cluster, before the run must get further than before.
        is_possible: whether the fault is possible in a scene.
    """

    name: str
    reaction: Reaction
    inflict: Callable[[Scene, random.Random], None]
    exit_code: int | None = None
    repair: Callable[[Scene], None] = lambda scene: None
    is_possible: Callable[[Scene], bool] = lambda scene: True


KILLED = -int(signal.SIGKILL)

FAULTS = (
    Fault(
        name="SIGTERM to a rank",
        reaction=Reaction.ENDS,
        exit_code=75,
        inflict=to_a_rank(signal.SIGTERM),
    ),
    Fault(
        name="SIGTERM to the launcher",
        reaction=Reaction.ENDS,
        exit_code=75,
        inflict=to_the_launcher(signal.SIGTERM),
    ),
    Fault(
        name="SIGTERM to an agent",
        reaction=Reaction.ENDS,
        exit_code=75,
        inflict=to_an_agent(signal.SIGTERM),
        is_possible=has_agents,
    ),
    Fault(
        name="SIGINT to the launcher",
        reaction=Reaction.ENDS,
        exit_code=75,
        inflict=to_the_launcher(signal.SIGINT),
    ),
    Fault(
        name="SIGUSR1 to a rank",
        reaction=Reaction.ENDS,
        exit_code=75,
        inflict=to_a_rank(signal.SIGUSR1),
    ),
    Fault(
        name="SIGUSR1 to the launcher",
        reaction=Reaction.ENDS,
        exit_code=75,
        inflict=to_the_launcher(signal.SIGUSR1),
    ),
    Fault(name="kill -9 of a rank", reaction=Reaction.RESTARTS, inflict=to_a_rank(signal.SIGKILL)),
    Fault(
        name="kill -9 of a rank, and of a rank of the restarted job",
        reaction=Reaction.RESTARTS,
        inflict=kill_a_starting_rank,
    ),
    Fault(
        name="kill -9 of a rank during a checkpoint write",
        reaction=Reaction.RESTARTS,
        inflict=kill_during_a_checkpoint,
    ),
    Fault(name="kill -9 of a loader worker", reaction=Reaction.CONTINUES, inflict=kill_an_idle_worker),
    Fault(
        name="kill -9 of an agent",
        reaction=Reaction.RESTARTS,
        inflict=to_an_agent(signal.SIGKILL),
        is_possible=has_hosts,
    ),
    Fault(
        name="kill -9 of the launcher",
        reaction=Reaction.ENDS,
        exit_code=KILLED,
        inflict=to_the_launcher(signal.SIGKILL),
        is_possible=lambda scene: not has_hosts(scene),
    ),
    Fault(
        name="kill -9 of the launcher; the run goes on, and is cancelled",
        reaction=Reaction.ENDS,
        exit_code=KILLED,
        inflict=lose_the_launcher,
        is_possible=has_hosts,
    ),
    Fault(
        name="kill -9 of a rank, after which the others abort as by NCCL's watchdog",
        reaction=Reaction.RESTARTS,
        inflict=abort_like_nccl,
        is_possible=has_several_ranks,
    ),
    Fault(
        name="all processes of a host suspended until the run has restarted",
        reaction=Reaction.RESTARTS,
        inflict=suspend_a_host,
        is_possible=has_two_active_hosts,
    ),
    Fault(
        name="kill -9 of all processes at once",
        reaction=Reaction.ENDS,
        exit_code=KILLED,
        inflict=kill_all_at_once,
    ),
    Fault(
        name="kill -9 of a host",
        reaction=Reaction.RESTARTS,
        inflict=kill_a_host,
        repair=restore_hosts,
        is_possible=has_hosts,
    ),
    Fault(
        name="link cut",
        reaction=Reaction.RESTARTS,
        inflict=cut_a_link,
        repair=restore_hosts,
        is_possible=has_hosts,
    ),
    Fault(
        name="kill -9 of an ssh connection",
        reaction=Reaction.CONTINUES,
        inflict=kill_a_connection,
        is_possible=has_connections,
    ),
    Fault(
        name="rank suspended",
        reaction=Reaction.RESTARTS,
        inflict=to_a_rank(signal.SIGSTOP),
        is_possible=has_several_ranks,
    ),
    Fault(
        name="kill -9 of a rank, after a line of 100 kB",
        reaction=Reaction.RESTARTS,
        inflict=die_with_a_long_line,
    ),
    Fault(
        name="kill -9 of a rank; the restart finds a file system without locks",
        reaction=Reaction.RESTARTS,
        inflict=restart_without_locks,
    ),
    Fault(name="stale files (ESTALE) during a checkpoint", reaction=Reaction.CONTINUES, inflict=stale_files),
    Fault(name="rank suspended for a second", reaction=Reaction.CONTINUES, inflict=suspend_briefly),
    Fault(
        name="checkpoint disk full",
        reaction=Reaction.ENDS,
        exit_code=4,
        inflict=fill_checkpoint_disk,
        repair=lambda scene: scene.checkpoint_disk.free() if scene.checkpoint_disk else None,
        is_possible=has_checkpoint_disk,
    ),
    Fault(
        name="log disk full",
        reaction=Reaction.CONTINUES,
        inflict=fill_log_disk,
        is_possible=has_checkpoint_disk,
    ),
    *(
        Fault(
            name=f"newest checkpoint damaged: {name}",
            reaction=Reaction.ENDS,
            exit_code=KILLED,
            inflict=damage_newest(how),
        )
        for name, how in (
            ("a bit flipped", flip_a_bit),
            ("a file truncated", truncate_a_file),
            ("a file missing", remove_a_file),
            ("manifest missing", remove_manifest),
        )
    ),
)
