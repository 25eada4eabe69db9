"""Inject faults into a running job: signals, cut links, full disks, damaged checkpoints."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kinemae.launch.record import read_record, request_stop
from tests.chaos.scene import Scene, WrongReaction
from tests.chaos.seen import ProcessInfo, read_process
from tests.launch.hosts import Host

_POLL_S = 0.001
_IDLE_SAMPLES = 5


def to_a_rank(number: signal.Signals) -> Callable[[Scene, random.Random], None]:
    """Send a signal to a random rank."""
    return lambda scene, chance: chance.choice(scene.ranks()).send(number)


def to_an_agent(number: signal.Signals) -> Callable[[Scene, random.Random], None]:
    """Send a signal to the agent of a random host."""
    return lambda scene, chance: chance.choice(scene.agents()).send(number)


def to_the_launcher(number: signal.Signals) -> Callable[[Scene, random.Random], None]:
    """Send a signal to the launcher."""

    def inflict(scene: Scene, chance: random.Random) -> None:
        assert scene.launcher is not None
        scene.launcher.send_signal(number)

    return inflict


def kill_all_at_once(scene: Scene, chance: random.Random) -> None:
    """Kill all processes as in a power failure: all are suspended before the first one is killed."""
    processes = scene.processes()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for seen in processes:
            seen.send(number)


def kill_a_starting_rank(scene: Scene, chance: random.Random) -> None:
    """Kill a rank, and another one while the job restarts."""
    old = {seen.name for seen in scene.ranks()}
    chance.choice(scene.ranks()).send(signal.SIGKILL)

    def new() -> list[ProcessInfo]:
        found = scene.ranks()
        return [] if old & {seen.name for seen in found} else found

    found = scene.wait_for("new processes after a kill", new, while_it_runs=True)
    chance.choice(found).send(signal.SIGKILL)


def kill_during_a_checkpoint(scene: Scene, chance: random.Random) -> None:
    """A rank dies while its checkpoint is being written: a partial folder is there."""
    victim = chance.choice(scene.ranks())
    folder = scene.run_dir / "checkpoints"

    def is_writing() -> bool:
        deadline_s = time.monotonic() + 1.0
        while time.monotonic() < deadline_s:
            if any(folder.glob("*.partial")):
                return True
            time.sleep(_POLL_S)
        return False

    scene.wait_for("a checkpoint that is being written", is_writing, while_it_runs=True)
    victim.send(signal.SIGKILL)


def kill_an_idle_worker(scene: Scene, chance: random.Random) -> None:
    """Kill a loader worker between two samples.

    Its rank is suspended meanwhile, so that the worker has read ahead and waits. The sample of a worker that
    dies while it reads is skipped (tests/data_tools/stream/test_worker_pool.py).
    """
    held = chance.choice(scene.ranks())
    servers = {seen.pid for seen in scene.processes() if seen.parent == held.pid}
    worker = chance.choice([seen for seen in scene.workers() if seen.parent in servers])
    held.send(signal.SIGSTOP)
    try:
        scene.wait_for("an idle loader worker", lambda: _is_idle(worker))
        worker.send(signal.SIGKILL)
        scene.wait_for("the end of a killed worker", lambda: read_process(worker.pid) is None)
    finally:
        held.send(signal.SIGCONT)


def _is_idle(worker: ProcessInfo) -> bool:
    looks = []
    for _ in range(_IDLE_SAMPLES):
        now = read_process(worker.pid)
        if now is None:
            raise WrongReaction(f"loader worker {worker.pid} has ended while its rank was held")
        looks.append((now.state, now.cpu_ticks))
        time.sleep(0.05)
    return set(looks) == {("S", looks[0][1])}


def suspend_briefly(scene: Scene, chance: random.Random) -> None:
    """Suspend a rank for less than timeouts.step_s."""
    victim = chance.choice(scene.ranks())
    victim.send(signal.SIGSTOP)
    time.sleep(1.0)
    victim.send(signal.SIGCONT)


def kill_a_host(scene: Scene, chance: random.Random) -> None:
    """Kill a host; `restore_hosts` starts it again."""
    chance.choice(active_hosts(scene)).kill()


def cut_a_link(scene: Scene, chance: random.Random) -> None:
    """Disconnect a host; its processes keep running."""
    chance.choice(active_hosts(scene)).disconnect()


def active_hosts(scene: Scene) -> list[Host]:
    """Return the hosts with processes of the job; a restored host has none until the next start."""
    pids = {seen.pid for seen in scene.ranks()}
    return [host for host in scene.hosts if pids & set(host.processes())]


def restore_hosts(scene: Scene) -> None:
    """Start killed hosts and reconnect the others."""
    for host in scene.hosts:
        if host.processes():
            host.reconnect()
        else:
            host.start()


def kill_a_connection(scene: Scene, chance: random.Random) -> None:
    """Kill the ssh process that the launcher started for a host."""
    connections = [seen for seen in scene.processes() if Path(seen.argv[0]).name == "ssh"]
    chance.choice(connections).send(signal.SIGKILL)


def lose_the_launcher(scene: Scene, chance: random.Random) -> None:
    """Kill the launcher; the run goes on and is cancelled through its folder."""
    before, step = scene.ranks(), scene.metrics_step()
    to_the_launcher(signal.SIGKILL)(scene, chance)
    scene.wait_for("steps without the launcher", lambda: scene.metrics_step() >= step + 5)
    if {seen.name for seen in scene.ranks()} != {seen.name for seen in before}:
        raise WrongReaction(f"expected the same processes as before\n{scene.describe()}")
    request_stop(scene.run_dir)


def abort_like_nccl(scene: Scene, chance: random.Random) -> None:
    """Kill a rank; the others end by SIGABRT, as by the watchdog of NCCL. The first is named as the cause."""
    victim, *others = chance.sample(scene.ranks(), len(scene.ranks()))
    attempt = read_record(scene.run_dir)["attempt"]
    victim.send(signal.SIGKILL)
    time.sleep(0.1)
    for seen in others:
        seen.send(signal.SIGABRT)

    found = scene.wait_for("the record of the failure", lambda: _failure_of(scene, attempt))
    if found["rank"] != victim.rank:
        raise WrongReaction(f"expected rank {victim.rank} as the first failure, got {found}")


def _failure_of(scene: Scene, attempt: int) -> dict[str, Any]:
    """The recorded failure of an attempt; empty before it."""
    found: dict[str, Any] = read_record(scene.run_dir).get("failure") or {}
    return found if found.get("attempt") == attempt else {}


def suspend_a_host(scene: Scene, chance: random.Random) -> None:
    """Suspend agent and processes of a host other than that of rank 0, and resume them after the restart."""
    first = scene.ranks()[0].pid
    host = chance.choice([host for host in active_hosts(scene) if first not in host.processes()])
    pids = set(host.processes())
    suspended = [seen for seen in scene.processes() if seen.pid in pids and "python" in seen.argv[0]]
    before = {seen.name for seen in scene.ranks()}
    for seen in suspended:
        seen.send(signal.SIGSTOP)
    try:
        has_restarted = lambda: {seen.name for seen in scene.ranks()} - before  # noqa: E731
        scene.wait_for("a restart without the suspended host", has_restarted, while_it_runs=True)
    finally:
        for seen in suspended:
            seen.send(signal.SIGCONT)


def stale_files(scene: Scene, chance: random.Random) -> None:
    """Files of the run folder are stale during a checkpoint, for 2 of the retries; then it is written."""
    saved = scene.committed()
    with scene.fault_inside("stale") as met:
        scene.wait_for("a process that meets a stale file", met, while_it_runs=True)
        time.sleep(1.0)
    scene.wait_for(
        "a checkpoint after stale files", lambda: scene.committed()[-1:] != saved[-1:], while_it_runs=True
    )


def restart_without_locks(scene: Scene, chance: random.Random) -> None:
    """Kill a rank; the restarted processes find a file system without locks."""
    before = {seen.pid for seen in scene.ranks()}
    with scene.fault_inside("no_locks") as met:
        chance.choice(scene.ranks()).send(signal.SIGKILL)
        scene.wait_for("a new process without locks", lambda: met() - before, while_it_runs=True)


def die_with_a_long_line(scene: Scene, chance: random.Random) -> None:
    """A rank dies after a line of 100 kB: the log has all of it, the report its end."""
    victim = chance.choice(scene.ranks())
    log = scene.run_dir / "logs" / f"rank-{victim.rank:05d}.log"
    attempt, size = read_record(scene.run_dir)["attempt"], log.stat().st_size
    victim.send(signal.SIGUSR2)
    failure = scene.wait_for("the record of the failure", lambda: _failure_of(scene, attempt))
    longest = max(map(len, failure["last_lines"]))
    if failure["rank"] != victim.rank or not 1000 < longest < 3000:
        raise WrongReaction(f"expected the end of a long line of rank {victim.rank}, got {failure}")
    if log.stat().st_size < size + 100_000:
        raise WrongReaction(f"expected 100 kB of new output in {log}, got {log.stat().st_size - size} bytes")


def fill_checkpoint_disk(scene: Scene, chance: random.Random) -> None:
    """No disk space for the next checkpoint."""
    assert scene.checkpoint_disk is not None
    scene.checkpoint_disk.fill()


def fill_log_disk(scene: Scene, chance: random.Random) -> None:
    """No disk space for metrics, sample keys, TensorBoard and logs, for two checkpoint intervals."""
    assert scene.disk is not None
    before, saves = scene.metrics_step(), dict(scene.committed())
    scene.disk.fill()
    try:
        scene.wait_for(
            "two checkpoints while the logs' disk is full",
            lambda: len(dict(scene.committed()).keys() - saves.keys()) >= 2,
            while_it_runs=True,
        )
    finally:
        scene.disk.free()
    # Lines that fit into the last block of the file were written while the disk was full.
    freed = max(scene.newest_intact(), scene.metrics_step())
    scene.wait_for(
        "metrics after the logs' disk was freed", lambda: scene.metrics_step() > freed, while_it_runs=True
    )
    scene.full_disk_steps.append((max(before - 1, 0), scene.metrics_step()))


def damage_newest(how: Callable[[Path, random.Random], None]) -> Callable[[Scene, random.Random], None]:
    """Kill the job and damage its newest checkpoint."""

    def inflict(scene: Scene, chance: random.Random) -> None:
        scene.wait_for("two intact checkpoints", lambda: len(set(scene.committed()) - scene.damaged) >= 2)
        kill_all_at_once(scene, chance)
        scene.wait_for("the end of all processes", scene.has_ended)
        newest = max(set(scene.committed()) - scene.damaged)
        how(scene.checkpoint(newest[0]), chance)
        scene.damaged |= {entry for entry in scene.committed() if entry[0] == newest[0]}

    return inflict


def flip_a_bit(folder: Path, chance: random.Random) -> None:
    """Flip a bit of the largest file."""
    victim = max(folder.rglob("*.*"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    victim.write_bytes(content)


def truncate_a_file(folder: Path, chance: random.Random) -> None:
    """Truncate the largest file."""
    victim = max(folder.rglob("*.*"), key=lambda path: path.stat().st_size)
    with victim.open("r+b") as file:
        file.truncate(chance.randrange(victim.stat().st_size))


def remove_manifest(folder: Path, chance: random.Random) -> None:
    """Remove the manifest, as in an incomplete copy."""
    (folder / "manifest.json").unlink()


def remove_a_file(folder: Path, chance: random.Random) -> None:
    """Remove a shard file."""
    chance.choice(sorted(folder.glob("*.safetensors"))).unlink()


def has_checkpoint_disk(scene: Scene) -> bool:
    """Check whether the checkpoints have a disk of their own."""
    return scene.checkpoint_disk is not None


def has_hosts(scene: Scene) -> bool:
    """Check whether the job runs on hosts that can be disconnected and killed."""
    return bool(scene.hosts)


def has_several_ranks(scene: Scene) -> bool:
    """Check whether the job has other ranks that notice a suspended one."""
    return len(scene.ranks()) > 1


def has_two_active_hosts(scene: Scene) -> bool:
    """Check whether a host other than that of rank 0 has processes of the job."""
    return len(active_hosts(scene)) > 1


def has_connections(scene: Scene) -> bool:
    """Check whether the launcher is connected to a host."""
    return any(Path(seen.argv[0]).name == "ssh" for seen in scene.processes())


def has_agents(scene: Scene) -> bool:
    """Check whether the job has agents."""
    return bool(scene.agents())
