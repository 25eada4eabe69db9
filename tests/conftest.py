"""Shared fixtures: the repository, real videos, small shards, an S3 server."""

import fcntl
import logging
import os
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import log, run_program
from kinemae.data_tools.storage import location as location_module
from kinemae.data_tools.storage import remote
from kinemae.data_tools.storage.location import Location, RetryPolicy
from kinemae.pretrain.runtime import file_retries
from tests.faulty_server import FaultyServer, faulty_server
from tests.seeds import IS_NIGHTLY, SEED

torch.set_num_threads(1)  # two threads on two busy cores are slower than one
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in `make test &`; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

SECONDS = {"chaos": 100, "cluster": 5, "processes": 5, "slow": 3}  # rough duration of a test with this marker
REPO = Path(__file__).resolve().parents[1]
QUICK = RetryPolicy(attempts=2, idle_s=10.0, total_s=20.0, pause_s=0.01)  # time for a busy machine


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "TEST_CASES" in os.environ:
        keep_few_cases(config, items, int(os.environ["TEST_CASES"]))
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("nightly") and not IS_NIGHTLY:
            item.add_marker(pytest.mark.skip(reason="part of make test-nightly"))
    if "PYTEST_XDIST_WORKER" in os.environ:
        begin_with_the_longest_files(items)


def keep_few_cases(config: pytest.Config, items: list[pytest.Item], most: int) -> None:
    """Deselect all but the first cases of each parametrized test, as `make quick` does."""
    seen: Counter[str] = Counter()
    kept, left = [], []
    for item in items:
        function = item.nodeid.partition("[")[0]
        seen[function] += 1
        (kept if seen[function] <= most else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def begin_with_the_longest_files(items: list[pytest.Item]) -> None:
    """Sort files by duration, longest first; see `--no-loadscope-reorder`."""
    seconds: Counter[Path] = Counter()
    for item in items:
        seconds[item.path] += sum(SECONDS[mark.name] for mark in item.iter_markers() if mark.name in SECONDS)
    items.sort(key=lambda item: -seconds[item.path])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if IS_NIGHTLY:
        terminalreporter.write_line(f"TEST_SEED={SEED} --hypothesis-seed={SEED} repeat these random tests")


@pytest.fixture(autouse=True)
def process_as_new() -> Iterator[None]:
    """Restore state that commands change: logging, and `linear`, which DeepSpeed replaces at ZeRO 3.

    Random numbers of torch and the level of the log do not depend on the tests that the process ran before.
    """
    torch.manual_seed(SEED)
    log.handlers[:], log.propagate = [], True
    log.setLevel(logging.INFO)  # as commands do
    linear = torch.nn.functional.linear
    yield
    torch.nn.functional.linear = linear


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def videos() -> Path:
    folder = REPO.parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip(f"no real videos at {folder}; tests use those of tests/data/videos")
    return folder


def run_module(*arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` on one thread and return its output."""
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check and result.returncode != 0:
        raise AssertionError(
            f"python -m {' '.join(arguments)} exited with {result.returncode}:\n{result.stderr}"
        )
    return result


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Make a folder once for all processes of pytest-xdist: `made_once(name, make)` returns its path."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def made(name: str, make: Callable[[Path], None]) -> Path:
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / name).exists():
                make(root / f"{name}.partial")
                (root / f"{name}.partial").rename(root / name)
        return root / name

    return made


def data_tools(*arguments: str) -> None:
    """Run `kinemae data` in this process, without new imports."""
    assert run_program(PROGRAM, [*arguments, "workers=1"]) == 0


@pytest.fixture(scope="session")
def synth_videos(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    counts = ("train_per_class=4", "validation_per_class=3", "unlabelled=40")
    return made_once("synth-videos", lambda folder: data_tools("synth", str(folder), *counts))


@pytest.fixture(scope="session")
def synth_shards(synth_videos: Path, made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    shard = ("shard", str(synth_videos))
    return made_once("synth-shards", lambda folder: data_tools(*shard, str(folder), "samples_per_shard=16"))


def demo_job(shards: Path, *, steps: int) -> list[str]:
    """Return the demo's pretraining job with other steps and shards, without `run_dir`."""
    config = str(REPO / "configs" / "pretrain" / "demo.yaml")
    data = f"data.shards={shards / 'unlabelled'}"
    return ["pretrain", config, data, f"steps={steps}", "engine.device=cpu"]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Start an S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a bucket and set the environment for it; return its URL."""
    return new_bucket(s3_server, s3_server, monkeypatch)


@pytest.fixture
def proxied_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FaultyServer, str]]:
    """Make a bucket behind a server with injected faults."""
    with faulty_server(s3_server) as proxy:
        yield proxy, new_bucket(s3_server, proxy.url, monkeypatch)
        remote._file_system_of.cache_clear()


@pytest.fixture
def quick_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the retries of storage and files to two quick attempts."""
    monkeypatch.setattr(file_retries, "DELAYS_S", (0.01,))
    monkeypatch.setattr(Location.__dataclass_fields__["retry_policy"], "default", QUICK)
    monkeypatch.setattr(location_module, "DEFAULT_RETRY_POLICY", QUICK)
    monkeypatch.setitem(location_module.location.__kwdefaults__, "retry_policy", QUICK)


def new_bucket(server: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    settings = {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    remote._file_system_of.cache_clear()  # a file system keeps its endpoint
    name = f"bucket-{uuid.uuid4().hex}"
    urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", method="PUT")).close()
    return f"s3://{name}"
