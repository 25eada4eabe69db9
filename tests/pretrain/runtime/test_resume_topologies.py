"""A killed run goes on with another number of processes and workers, and sees each remaining sample once."""

import json
import random
import shutil
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_tools.index import open_index
from data_tools.stream.order import sample_at
from pretrain.config import PretrainConfig
from pretrain.runtime.metrics import read_metrics
from tests.conftest import run_module
from tests.pretrain.runtime.test_resume import start, wait_for_step

STEPS, CLIPS, SAVED_EVERY = 20, 12, 2
RUN = [
    f"steps={STEPS}", f"batch.global_clips={CLIPS}", f"save_every_steps={SAVED_EVERY}",
    "batch.clips_per_device=2", "data.workers=4",
]  # fmt: skip


def line_of_samples(config: PretrainConfig, count: int) -> Iterator[str]:
    """The keys of the run in order, by the arithmetic alone."""
    assert config.data.shards
    index = open_index(config.data.shards)
    for place in range(count):
        epoch, i = divmod(place, len(index))
        yield index.sample(sample_at(config.seed, epoch, i, len(index))).key


def keys_by_step(run_dir: Path) -> dict[int, list[str]]:
    """The keys that the ranks noted, together."""
    found: dict[int, list[str]] = {}
    for path in sorted((run_dir / "samples").glob("rank-*.jsonl")):
        for line in read_metrics(path):
            found.setdefault(line["step"], []).extend(line["keys"])
    return found


@pytest.fixture(scope="module")
def killed_once() -> dict[str, Path]:
    return {}


@pytest.fixture
def killed(
    killed_once: dict[str, Path],
    small_run: Path,
    small_config: Callable[..., PretrainConfig],
    repo: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run of one process and 4 workers that was killed at a random step, made once for all tests here."""
    if "run" not in killed_once:
        run_dir = tmp_path_factory.mktemp("killed") / "run"
        moment = random.Random(11).randrange(SAVED_EVERY, STEPS - 4)
        process = start(small_run, repo, f"run_dir={run_dir}", *RUN)
        wait_for_step(process, run_dir, moment)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed_once["run"] = run_dir
    return killed_once["run"]


@pytest.mark.processes
@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 2), (3, 1)])
def test_a_killed_run_of_four_workers_sees_each_remaining_sample_once_in_any_number_of_processes(
    killed: Path,
    small_run: Path,
    small_config: Callable[..., PretrainConfig],
    tmp_path: Path,
    processes: int,
    workers: int,
) -> None:
    run_dir = shutil.copytree(killed, tmp_path / "resumed")
    saved = max(
        int(path.name.removeprefix("step-")) for path in (run_dir / "checkpoints").glob("step-*[0-9]")
    )
    assert 0 < saved < STEPS
    stale = run_dir / "samples" / "rank-00009.jsonl"  # of a rank that there was before, and is not now
    stale.write_text(
        "".join(json.dumps({"step": step, "keys": ["stale"]}) + "\n" for step in range(saved, STEPS))
    )
    job = ["pretrain", str(small_run), f"run_dir={run_dir}", *RUN[:-1], f"data.workers={workers}"]
    run_module("launch", "local", f"processes={processes}", "--", *job)
    assert len(list((run_dir / "samples").glob("*"))) == processes + 1
    keys = keys_by_step(run_dir)
    expected = list(line_of_samples(small_config(), STEPS * CLIPS))
    assert sorted(keys) == list(range(STEPS))
    for step in range(saved, STEPS):
        assert Counter(keys[step]) == Counter(expected[step * CLIPS : (step + 1) * CLIPS])
    # And so every sample once in each epoch, over the killed run and the resumed one together.
    assert Counter(key for step in range(STEPS) for key in keys[step]) == Counter(expected)
    fingerprints = [
        sum(zlib.crc32(key.encode()) for key in expected[step * CLIPS : (step + 1) * CLIPS])
        for step in range(STEPS)
    ]
    assert [line["samples"] for line in read_metrics(run_dir / "metrics.jsonl")] == fingerprints
