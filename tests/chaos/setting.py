"""A small pretraining for the chaos test, its undisturbed run, and the commands that launch it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.disks import Disk, can_mount
from tests.chaos.scene import FAULTS_FOLDER, Scene
from tests.launch.hosts import Network

STEPS = 500
PROCESSES = 2
SMALL_RUN = """
seed: 7
steps: {steps}
save_every_steps: 20
keep_checkpoints: 3
data: {{shards: {shards}, num_workers: 1}}
clip: {{frames: 4, stride: 2, size: 32}}
batch: {{global_clips: 4}}
model: {{size: tiny, patch_size: 8, width: 24, depth: 2, decoder_width: 24, decoder_depth: 1}}
masking: {{name: uniform, args: {{ratio: 0.5}}}}
noise: {{name: gaussian, args: {{std: 0.3}}}}
optim: {{lr: 1e-3, warmup_fraction: 0.0}}
engine: {{device: cpu, cpu_threads: 1}}
log: {{every_steps: 1, samples: true}}
pictures: {{every_steps: 0}}
monitor: {{every_steps: 0}}
timeouts: {{step_s: 10, save_s: 30, straggler_ratio: 100}}
"""
# Short timeouts for suspended and disconnected processes; faults may come faster than checkpoints.
SHORT_TIMEOUTS = ("max_restarts=10", "grace_s=3", "heartbeat_timeout_s=10", "host_wait_s=30")
HOOK = Path(__file__).with_name("hook")
LOCAL = ("local", f"processes={PROCESSES}", *SHORT_TIMEOUTS)


def write_config(folder: Path, shards: Path, *, steps: int = STEPS) -> Path:
    """Write the config of the run, without `run_dir`."""
    path = folder / "chaos.yaml"
    path.write_text(SMALL_RUN.format(steps=steps, shards=shards))
    return path


def launched(cluster: Sequence[str], config: Path, run_dir: Path) -> list[str]:
    """Build the launch command; `cluster` is the kind, its file and its overrides."""
    hook = [f"environment.PYTHONPATH={HOOK}", f"environment.KINEMAE_FAULTS={run_dir.parent / FAULTS_FOLDER}"]
    training = ["pretrain", str(config), f"run_dir={run_dir}"]
    return [sys.executable, "-m", "kinemae", "launch", *cluster, *hook, "--", *training]


def run_undisturbed(folder: Path, config: Path, repo: Path) -> Path:
    """Run without faults; return the run folder."""
    run_dir = folder / "undisturbed"
    scene = Scene(run_dir, launched(LOCAL, config, run_dir), repo=repo)
    scene.start()
    try:
        scene.wait_for("the undisturbed run's end", scene.has_ended, bound_s=600)
        assert scene.exit_code() == 0, scene.describe()
    finally:
        scene.close()
    return run_dir


def local_scene(folder: Path, config: Path, repo: Path) -> Scene:
    """Two processes on this machine, on a separate disk if this user may mount one."""
    disk = Disk(folder) if can_mount() else None
    folder.mkdir(parents=True, exist_ok=True)
    return Scene(folder / "run", launched(LOCAL, config, folder / "run"), repo=repo, disk=disk)


def scene_on_hosts(folder: Path, config: Path, repo: Path, network: Network) -> Scene:
    """One process on each host of a network; the launcher runs on this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    command = launched(["ssh", *network.overrides(), *SHORT_TIMEOUTS], config, folder / "run")
    return Scene(folder / "run", command, repo=repo, hosts=network.hosts)
