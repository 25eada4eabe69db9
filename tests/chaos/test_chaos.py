"""After each fault a job reacts as documented, and its result equals that of an undisturbed run.

The name of a test contains the seed of its faults; `make test-nightly` takes the date and more time.
`python -m tests.benchmarks.chaos` runs for a given time.
"""

import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.campaign import FaultQueue, disturb
from tests.chaos.faults import FAULTS
from tests.chaos.scene import Scene
from tests.chaos.setting import local_scene, run_undisturbed, scene_on_hosts, write_config
from tests.chaos.verdict import check
from tests.launch.hosts import hosts_on_this_machine, why_no_hosts
from tests.seeds import IS_NIGHTLY, SEED

# Time for faults; the run then continues to its end.
LOCAL_S, HOSTS_S = (900.0, 600.0) if IS_NIGHTLY else (35.0, 30.0)
STEPS = 500 if IS_NIGHTLY else 260

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.parametrize("seed", [SEED]),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, synth_shards: Path, repo: Path) -> Path:
    """The undisturbed run, in one folder with the config."""
    folder = tmp_path_factory.mktemp("chaos")
    return run_undisturbed(folder, write_config(folder, synth_shards / "unlabelled", steps=STEPS), repo)


@pytest.fixture(autouse=True)
def log_faults(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Log the faults and reactions; pytest shows them for a failure."""
    with caplog.at_level(logging.INFO, "chaos"):
        yield


def survive(scene: Scene, undisturbed: Path, *, seed: int, seconds: float) -> None:
    chance = random.Random(seed)
    try:
        kept = disturb(
            scene, FaultQueue(FAULTS, chance), chance, last=STEPS, until_s=time.monotonic() + seconds
        )
        assert kept
        check(scene, undisturbed, bitwise=len(scene.worlds) == 1)
    finally:
        scene.close()


@pytest.mark.nightly
def test_a_run_on_this_machine_survives(seed: int, undisturbed: Path, tmp_path: Path, repo: Path) -> None:
    scene = local_scene(tmp_path / "local", undisturbed.parent / "chaos.yaml", repo)
    survive(scene, undisturbed, seed=seed, seconds=LOCAL_S)


@pytest.mark.cluster
@pytest.mark.skipif(why_no_hosts() is not None, reason=str(why_no_hosts()))
def test_a_run_on_two_hosts_survives(seed: int, undisturbed: Path, tmp_path: Path, repo: Path) -> None:
    with hosts_on_this_machine(tmp_path) as network:
        config = undisturbed.parent / "chaos.yaml"
        scene = scene_on_hosts(tmp_path / "hosts", config, repo, network)
        survive(scene, undisturbed, seed=seed, seconds=HOSTS_S)
