"""The faults, and what is promised for each: the table of docs/reliability.md."""

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from tests.chaos.inflict import (
    bring_the_hosts_back,
    cut_a_file,
    cut_a_link,
    damage_the_newest,
    fill_the_checkpoints_disk,
    fill_the_logs_disk,
    flip_a_bit,
    freeze_and_thaw,
    has_agents,
    has_hosts,
    has_several_ranks,
    has_two_disks,
    kill_a_connection,
    kill_a_host,
    kill_a_starting_rank,
    kill_all_at_once,
    kill_an_idle_worker,
    kill_inside_a_checkpoint,
    lose_a_file,
    lose_the_manifest,
    to_a_rank,
    to_an_agent,
    to_the_launcher,
)
from tests.chaos.scene import Scene


class Promise(Enum):
    """What follows on a fault, without anybody's help."""

    ENDS = "the job ends; the same command goes on"
    RESTARTS = "the launcher starts it again"
    GOES_ON = "the job goes on as it is"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that happens to a job.

    Attributes:
        exit_code: the launcher's, where the job ends.
        inflict: does it, once the run is at work.
        repair: what a person or the cluster does afterwards, before the run is to be further than it was.
        is_possible: whether the scene has what it takes.
    """

    name: str
    promise: Promise
    inflict: Callable[[Scene, random.Random], None]
    exit_code: int | None = None
    repair: Callable[[Scene], None] = lambda scene: None
    is_possible: Callable[[Scene], bool] = lambda scene: True


KILLED = -int(signal.SIGKILL)

FAULTS = (
    Fault(
        name="SIGTERM to a rank",
        promise=Promise.ENDS,
        exit_code=143,
        inflict=to_a_rank(signal.SIGTERM),
    ),
    Fault(
        name="SIGTERM to the launcher",
        promise=Promise.ENDS,
        exit_code=143,
        inflict=to_the_launcher(signal.SIGTERM),
    ),
    Fault(
        name="SIGTERM to an agent",
        promise=Promise.ENDS,
        exit_code=143,
        inflict=to_an_agent(signal.SIGTERM),
        is_possible=has_agents,
    ),
    Fault(
        name="SIGINT to the launcher",
        promise=Promise.ENDS,
        exit_code=130,
        inflict=to_the_launcher(signal.SIGINT),
    ),
    Fault(
        name="SIGUSR1 to a rank",
        promise=Promise.ENDS,
        exit_code=138,
        inflict=to_a_rank(signal.SIGUSR1),
    ),
    Fault(
        name="SIGUSR1 to the launcher",
        promise=Promise.ENDS,
        exit_code=138,
        inflict=to_the_launcher(signal.SIGUSR1),
    ),
    Fault(name="kill -9 of a rank", promise=Promise.RESTARTS, inflict=to_a_rank(signal.SIGKILL)),
    Fault(
        name="kill -9 of a rank, and of one that starts in its place",
        promise=Promise.RESTARTS,
        inflict=kill_a_starting_rank,
    ),
    Fault(
        name="kill -9 of a rank inside a checkpoint write",
        promise=Promise.RESTARTS,
        inflict=kill_inside_a_checkpoint,
    ),
    Fault(name="kill -9 of a loader worker", promise=Promise.GOES_ON, inflict=kill_an_idle_worker),
    Fault(
        name="kill -9 of an agent",
        promise=Promise.RESTARTS,
        inflict=to_an_agent(signal.SIGKILL),
        is_possible=has_agents,
    ),
    Fault(
        name="kill -9 of the launcher",
        promise=Promise.ENDS,
        exit_code=KILLED,
        inflict=to_the_launcher(signal.SIGKILL),
    ),
    Fault(
        name="kill -9 of everything at once", promise=Promise.ENDS, exit_code=KILLED, inflict=kill_all_at_once
    ),
    Fault(
        name="kill -9 of a host",
        promise=Promise.RESTARTS,
        inflict=kill_a_host,
        repair=bring_the_hosts_back,
        is_possible=has_hosts,
    ),
    Fault(
        name="cut link",
        promise=Promise.RESTARTS,
        inflict=cut_a_link,
        repair=bring_the_hosts_back,
        is_possible=has_hosts,
    ),
    Fault(
        name="kill -9 of an ssh connection",
        promise=Promise.RESTARTS,
        inflict=kill_a_connection,
        is_possible=has_hosts,
    ),
    Fault(
        name="frozen rank",
        promise=Promise.RESTARTS,
        inflict=to_a_rank(signal.SIGSTOP),
        is_possible=has_several_ranks,
    ),
    Fault(name="rank frozen for a second", promise=Promise.GOES_ON, inflict=freeze_and_thaw),
    Fault(
        name="disk of the checkpoints full",
        promise=Promise.ENDS,
        exit_code=4,
        inflict=fill_the_checkpoints_disk,
        repair=lambda scene: scene.checkpoint_disk.free() if scene.checkpoint_disk else None,
        is_possible=has_two_disks,
    ),
    Fault(
        name="disk of the logs full",
        promise=Promise.GOES_ON,
        inflict=fill_the_logs_disk,
        is_possible=has_two_disks,
    ),
    *(
        Fault(
            name=f"newest checkpoint damaged: {name}",
            promise=Promise.ENDS,
            exit_code=KILLED,
            inflict=damage_the_newest(how),
        )
        for name, how in (
            ("a bit flipped", flip_a_bit),
            ("a file cut short", cut_a_file),
            ("a file missing", lose_a_file),
            ("manifest missing", lose_the_manifest),
        )
    ),
)
