"""Two hosts, shared by a module; the losses of a small job on one process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kinemae.data_tools.files import read_jsonl
from tests.conftest import demo_job
from tests.forked import run_forked
from tests.launch.hosts import Network, hosts_on_this_machine, why_no_hosts

STEPS = 120  # enough for a kill or a preemption to occur during them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "network" in getattr(item, "fixturenames", ()):
            item.add_marker("cluster")
            item.add_marker("processes")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Two hosts behind ssh; a test that breaks one repairs it."""
    reason = why_no_hosts()
    if reason:
        pytest.skip(reason)
    with hosts_on_this_machine(tmp_path_factory.mktemp("hosts")) as made:
        yield made


def small_job(shards: Path) -> list[str]:
    """The demo job with small batches."""
    return [*demo_job(shards, steps=STEPS), "batch.global_clips=8", "batch.clips_per_device=8"]


def losses(run_dir: Path) -> list[float]:
    """The losses of a run of STEPS steps."""
    lines = list(read_jsonl(run_dir / "metrics.jsonl"))
    assert [line["step"] for line in lines] == list(range(STEPS))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="session")
def alone(synth_shards: Path, made_once: Callable[[str, Callable[[Path], None]], Path]) -> list[float]:
    """The losses of the small job on one process."""

    def run(folder: Path) -> None:
        run_forked("-m", *small_job(synth_shards), f"run_dir={folder}")

    return losses(made_once("small-alone", run))
