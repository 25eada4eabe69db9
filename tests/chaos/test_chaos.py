"""Whatever happens to a job, it ends or goes on as promised, and its result is that of an undisturbed run."""

import datetime
import logging
import random
import time
from pathlib import Path

import pytest

from tests.chaos.campaign import deal, disturb
from tests.chaos.faults import FAULTS
from tests.chaos.setting import STEPS, local_scene, run_undisturbed, write_config
from tests.chaos.verdict import check

SECONDS = 130.0  # of faults; what has begun is followed to its end
SEED = datetime.date.today().toordinal()


@pytest.mark.processes
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "seed", [SEED]
)  # stands in the test's name: `-k SEED` tells nothing, set SEED to repeat
def test_a_run_survives_whatever_happens_to_it(
    seed: int, tmp_path: Path, synth_shards: Path, repo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "chaos")
    chance = random.Random(seed)
    config = write_config(tmp_path, synth_shards / "unlabelled")
    undisturbed = run_undisturbed(tmp_path, config, repo)
    scene = local_scene(tmp_path / "local", config, repo)
    try:
        until_s = time.monotonic() + SECONDS
        disturb(scene, deal(FAULTS, chance), chance, last=STEPS, until_s=until_s)
        check(scene, undisturbed, bitwise=True)
    finally:
        scene.close()
