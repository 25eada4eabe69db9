"""Ray engine on a cluster of two nodes: equal to local runs, also if a node is killed; lost heads."""

import json
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools import ray_pool
from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.exit_codes import EXIT_CONFIG, EXIT_STUCK
from kinemae.data_tools.index import open_index
from kinemae.data_tools.indexing.command import LOG_NAME
from kinemae.data_tools.pool import CRASHED, imap, imap_unordered
from tests.data_tools.test_pool import crash_on_three, fail, failed_why, square
from tests.faulty_server import FaultyServer, faulty_server
from tests.sharding import video_bytes

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.processes]


class RayCluster:
    """A head and a second node, with a core each, on this machine."""

    def __init__(self, folder: str):
        from ray.cluster_utils import Cluster

        small = {"num_cpus": 1, "object_store_memory": 80 << 20}
        head = {**small, "include_dashboard": False, "temp_dir": folder}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._small = small
        self._second: Any = None
        self.address: str = self._cluster.address

    def start_second(self) -> None:
        self._second = self._second or self._cluster.add_node(**self._small)

    def kill_second(self) -> None:
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = None

    def kill_head(self) -> None:
        self._cluster.remove_node(self._cluster.head_node, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def running() -> Iterator[RayCluster]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    folder = tempfile.mkdtemp(prefix="ray-")  # short: it holds sockets
    os.environ["RAY_TMPDIR"] = folder
    Path(folder, "ray").mkdir()  # for the address of the cluster; Ray does not create it
    cluster = RayCluster(folder)
    yield cluster
    cluster.shutdown()
    del os.environ["RAY_TMPDIR"]
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(running: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    running.start_second()
    monkeypatch.setenv("RAY_ADDRESS", running.address)
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "3")
    return running


@pytest.mark.nightly
def test_results_crashes_and_errors_are_those_of_the_local_engine(cluster: RayCluster):
    jobs = list(range(6))
    assert list(imap(square, jobs, workers=0, engine="ray")) == [square(job) for job in jobs]
    found = dict(imap_unordered(crash_on_three, jobs, workers=2, on_failure=failed_why, engine="ray"))
    assert found == {**dict(enumerate(jobs)), 3: f"3: {CRASHED}"}
    with pytest.raises(ValueError, match=r"number \d is wrong") as caught:
        list(imap(fail, jobs, workers=0, engine="ray"))
    assert "in fail" in str(caught.value.__cause__)


def test_a_node_with_another_version_is_an_error():
    with pytest.raises(ValueError, match=r"kinemae 0\.1\.0 on the node"):
        ray_pool._run_task("0.0.1", square, [1], 1.0)


@pytest.mark.nightly
def test_no_cluster_and_nodes_without_the_code_are_errors(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    ray_pool._client.cache_clear()
    monkeypatch.chdir(tmp_path)  # Ray adds the working directory to the path of its workers
    with pytest.raises(ValueError, match=r"expected nodes with kinemae .* got .*No module named 'tests'"):
        list(imap(square, [1], workers=0, engine="ray"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ValueError, match=r"engine=ray: expected a Ray cluster.*`ray start --head`"):
        list(imap(square, [1], workers=0, engine="ray"))


def written(folder: Path) -> dict[str, bytes]:
    """Contents of the files of an index."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.nightly
def test_an_index_made_while_a_node_is_killed_equals_a_local_one(
    cluster: RayCluster, synth_shards: Path, tmp_path: Path
):
    with faulty_server(synth_shards / "unlabelled") as server:
        command = ["index", f"{server.url}/shard-{{000000..000002}}.tar"]
        assert run_program(PROGRAM, [*command, str(tmp_path / "local"), "workers=1"]) == 0
        server.requests.clear()
        server.fault = lambda method, path: "trickle" if is_read(method, path) else None
        killer = threading.Thread(target=kill_second_when_both_read, args=(cluster, server))
        killer.start()
        assert run_program(PROGRAM, [*command, str(tmp_path / "ray"), "engine=ray"]) == 0
        killer.join()
        reads = Counter(path for method, path, _ in server.requests if is_read(method, path))
    assert sorted(reads.values()) == [1, 2], "the shard of the killed node is read again"
    assert written(tmp_path / "ray") == written(tmp_path / "local")


def is_read(method: str, path: str) -> bool:
    """Check for the read of a whole shard; the command reads the first one for its labels."""
    return method == "GET" and "000000.tar" not in path


def kill_second_when_both_read(cluster: RayCluster, server: FaultyServer) -> None:
    """Kill the second node while each node reads a shard, which takes 6 seconds."""
    while len({path for method, path, _ in server.requests if is_read(method, path)}) < 2:
        time.sleep(0.05)
    cluster.kill_second()


@pytest.mark.nightly
def test_verify_and_report_equal_local_ones(
    cluster: RayCluster, synth_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(synth_shards / "validation", tmp_path / "shards")
    with next((tmp_path / "shards").glob("*.tar")).open("r+b") as file:
        file.seek(2000)
        file.write(b"damage")
    for command in (["verify", "--full"], ["report", str(tmp_path / "page.html")]):
        command.insert(1, str(tmp_path / "shards"))
        results = []
        for overrides in (["workers=1"], ["engine=ray"]):
            code = run_program(PROGRAM, [*command, "--json", *overrides])
            results.append((code, json.loads(capsys.readouterr().out)))
        assert results[0] == results[1]


def test_sharding_while_a_node_is_killed_equals_a_local_run(
    cluster: RayCluster, synth_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, out = str(synth_videos / "validation"), tmp_path / "ray"
    common = ["validation_fraction=0.3", "workers=1"]
    killer = threading.Thread(target=kill_second_after_a_part, args=(cluster, out / "parts"))
    killer.start()
    command = ["shard", source, str(out), *common, "engine=ray", "parts=4"]
    assert run_program(PROGRAM, command) == 0
    killer.join()
    assert run_program(PROGRAM, command) == 0, "a repeated command finds its result"
    assert "is complete already" in capsys.readouterr().err
    assert run_program(PROGRAM, ["shard", source, str(tmp_path / "local"), *common]) == 0
    for split in ("train", "validation"):
        assert video_bytes(open_index(out / split)) == video_bytes(open_index(tmp_path / "local" / split))
    (out / "shard.json").unlink()
    assert run_program(PROGRAM, [*command[:-1], "parts=5"]) == EXIT_CONFIG
    assert "parts: expected 4, the number of parts in" in capsys.readouterr().err


def kill_second_after_a_part(cluster: RayCluster, parts: Path) -> None:
    """Kill the second node when a part is complete, so that others are at work or wait."""
    while not any(b'"complete": true' in path.read_bytes() for path in parts.glob("*/shard.json")):
        time.sleep(0.05)
    cluster.kill_second()


@pytest.mark.nightly
def test_a_lost_head_is_an_error_and_finished_results_are_kept(
    cluster: RayCluster, synth_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The last test: it ends the cluster."""
    with faulty_server(synth_shards / "unlabelled") as server:
        server.fault = lambda method, path: "slow" if method == "GET" and "2.tar" in path else None
        command = ["index", f"{server.url}/shard-{{000000..000002}}.tar", str(tmp_path / "out")]
        killer = threading.Thread(target=kill_head_after_two, args=(cluster, tmp_path / "out" / LOG_NAME))
        killer.start()
        assert run_program(PROGRAM, [*command, "engine=ray"]) == EXIT_STUCK
        killer.join()
        assert (
            "its head ended; fix: start the cluster and run the same command again" in capsys.readouterr().err
        )
        server.fault = lambda method, path: None
        server.requests.clear()
        assert run_program(PROGRAM, [*command, "workers=1"]) == 0
    read_again = {path for method, path, _ in server.requests if is_read(method, path)}
    assert read_again == {"/shard-000002.tar"}


def kill_head_after_two(cluster: RayCluster, log_file: Path) -> None:
    while not log_file.exists() or log_file.read_text().count("\n") < 2:
        time.sleep(0.05)
    cluster.kill_head()
