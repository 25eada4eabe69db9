"""What can be done to a running job: signals, kills, cuts, full disks, damaged checkpoints."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.scene import PromiseBroken, Scene
from tests.chaos.seen import Seen, look_at
from tests.launch.hosts import Host

_POLL_S = 0.001
_IDLE_LOOKS = 5


def to_a_rank(number: signal.Signals) -> Callable[[Scene, random.Random], None]:
    """The signal to one of the job's processes."""
    return lambda scene, chance: chance.choice(scene.ranks()).send(number)


def to_an_agent(number: signal.Signals) -> Callable[[Scene, random.Random], None]:
    """The signal to one who looks after a host's processes."""
    return lambda scene, chance: chance.choice(scene.agents()).send(number)


def to_the_launcher(number: signal.Signals) -> Callable[[Scene, random.Random], None]:
    """The signal to the command itself."""

    def inflict(scene: Scene, chance: random.Random) -> None:
        assert scene.launcher is not None
        scene.launcher.send_signal(number)

    return inflict


def kill_all_at_once(scene: Scene, chance: random.Random) -> None:
    """As when the machine loses its power: all stand still before the first is gone."""
    processes = scene.processes()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for seen in processes:
            seen.send(number)


def kill_a_starting_rank(scene: Scene, chance: random.Random) -> None:
    """A rank dies; another one dies while the job starts again."""
    old = {seen.name for seen in scene.ranks()}
    chance.choice(scene.ranks()).send(signal.SIGKILL)

    def new() -> list[Seen]:
        found = scene.ranks()
        return [] if old & {seen.name for seen in found} else found

    found = scene.wait_for("new processes after a kill", new, while_it_runs=True)
    chance.choice(found).send(signal.SIGKILL)


def kill_inside_a_checkpoint(scene: Scene, chance: random.Random) -> None:
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
    """A loader worker dies between two samples.

    Its rank is held meanwhile, so that the worker has read ahead and waits. One that dies at a sample costs
    that sample its place in the run, as promised (tests/data_tools/stream/test_worker_pool.py).
    """
    held = chance.choice(scene.ranks())
    servers = {seen.pid for seen in scene.processes() if seen.parent == held.pid}
    worker = chance.choice([seen for seen in scene.workers() if seen.parent in servers])
    held.send(signal.SIGSTOP)
    try:
        scene.wait_for("an idle loader worker", lambda: _is_idle(worker))
        worker.send(signal.SIGKILL)
        scene.wait_for("the end of a killed worker", lambda: look_at(worker.pid) is None)
    finally:
        held.send(signal.SIGCONT)


def _is_idle(worker: Seen) -> bool:
    looks = []
    for _ in range(_IDLE_LOOKS):
        now = look_at(worker.pid)
        if now is None:
            raise PromiseBroken(f"loader worker {worker.pid} has ended while its rank was held")
        looks.append((now.state, now.cpu_ticks))
        time.sleep(0.05)
    return set(looks) == {("S", looks[0][1])}


def freeze_and_thaw(scene: Scene, chance: random.Random) -> None:
    """A rank stands still for less than timeouts.step_s."""
    victim = chance.choice(scene.ranks())
    victim.send(signal.SIGSTOP)
    time.sleep(1.0)
    victim.send(signal.SIGCONT)


def kill_a_host(scene: Scene, chance: random.Random) -> None:
    """A host loses its power; it is found running again after the job has gone on without it."""
    chance.choice(hosts_at_work(scene)).kill()


def cut_a_link(scene: Scene, chance: random.Random) -> None:
    """A host's network is gone, and its processes are not."""
    chance.choice(hosts_at_work(scene)).disconnect()


def hosts_at_work(scene: Scene) -> list[Host]:
    """Those that have processes of the job: one that came back meanwhile waits for the next start."""
    pids = {seen.pid for seen in scene.ranks()}
    return [host for host in scene.hosts if pids & set(host.processes())]


def bring_the_hosts_back(scene: Scene) -> None:
    """Power and network are there again."""
    for host in scene.hosts:
        if host.processes():
            host.reconnect()
        else:
            host.start()


def kill_a_connection(scene: Scene, chance: random.Random) -> None:
    """The ssh that the launcher started for a host dies."""
    connections = [seen for seen in scene.processes() if Path(seen.argv[0]).name == "ssh"]
    chance.choice(connections).send(signal.SIGKILL)


def fill_the_checkpoints_disk(scene: Scene, chance: random.Random) -> None:
    """No disk space for the next checkpoint."""
    assert scene.checkpoint_disk is not None
    scene.checkpoint_disk.fill()


def fill_the_logs_disk(scene: Scene, chance: random.Random) -> None:
    """No disk space for metrics, sample keys, TensorBoard and logs, for two checkpoint intervals."""
    assert scene.disk is not None
    before, saves = scene.metrics_step(), scene.committed()
    scene.disk.fill()
    try:
        scene.wait_for(
            "two checkpoints while the logs' disk is full",
            lambda: len(set(scene.committed()) - set(saves)) >= 2,
            while_it_runs=True,
        )
    finally:
        scene.disk.free()
    freed = scene.newest_sound()
    scene.wait_for(
        "metrics after the logs' disk was freed", lambda: scene.metrics_step() > freed, while_it_runs=True
    )
    scene.full_spells.append((max(before - 1, 0), scene.metrics_step()))


def damage_the_newest(how: Callable[[Path, random.Random], None]) -> Callable[[Scene, random.Random], None]:
    """The job is killed, and the newest of its checkpoints is no longer what it was."""

    def inflict(scene: Scene, chance: random.Random) -> None:
        scene.wait_for("two sound checkpoints", lambda: len(set(scene.committed()) - scene.damaged) >= 2)
        kill_all_at_once(scene, chance)
        scene.wait_for("everybody's end", scene.has_ended)
        newest = max(set(scene.committed()) - scene.damaged)
        how(scene.checkpoint(newest[0]), chance)
        scene.damaged |= {entry for entry in scene.committed() if entry[0] == newest[0]}

    return inflict


def flip_a_bit(folder: Path, chance: random.Random) -> None:
    """In the middle of the largest file."""
    victim = max(folder.rglob("*.*"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    victim.write_bytes(content)


def cut_a_file(folder: Path, chance: random.Random) -> None:
    """The largest file loses its end."""
    victim = max(folder.rglob("*.*"), key=lambda path: path.stat().st_size)
    with victim.open("r+b") as file:
        file.truncate(chance.randrange(victim.stat().st_size))


def lose_the_manifest(folder: Path, chance: random.Random) -> None:
    """As if the folder had been copied in part."""
    (folder / "manifest.json").unlink()


def lose_a_file(folder: Path, chance: random.Random) -> None:
    """A file of values is gone."""
    chance.choice(sorted(folder.glob("*.safetensors"))).unlink()


def has_two_disks(scene: Scene) -> bool:
    """Whether logs and checkpoints can be filled apart."""
    return scene.checkpoint_disk is not None


def has_hosts(scene: Scene) -> bool:
    """Whether the job runs on hosts that can be cut off and killed."""
    return bool(scene.hosts)


def has_several_ranks(scene: Scene) -> bool:
    """Whether a process that stands still leaves others who notice."""
    return len(scene.ranks()) > 1


def has_agents(scene: Scene) -> bool:
    """Whether somebody besides the launcher looks after the job's processes."""
    return bool(scene.agents())
