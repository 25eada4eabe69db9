"""An error of one of several processes ends it immediately, with the reason and an exit code."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from kinemae.data_tools.command import (
    CheckpointError,
    DataError,
    Diverged,
    Stopped,
    Stuck,
    exit_code_of,
)
from kinemae.data_tools.error_file import read_error_file
from kinemae.pretrain.runtime.abort import StopSignals
from kinemae.pretrain.runtime.processes import _rendezvous, find_processes, lost_peer
from tests.forked import run_forked
from tests.ranks import free_port

# One of two processes, of which the other does not exist; a wait at exit takes long.
FAILING = """
import atexit, time
from kinemae.data_tools.command import DataError, configure_logging
from kinemae.pretrain.runtime.abort import abort_on_error
from kinemae.pretrain.runtime.processes import find_processes

configure_logging()
atexit.register(time.sleep, 1000)
with abort_on_error(find_processes("cpu")):
    {what}
"""


def fail(what: str, **more: str) -> subprocess.CompletedProcess[str]:
    variables = {**more, "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    return run_forked("-c", FAILING.format(what=what), check=False, **variables)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError(), 2),
        (DataError(), 3),
        (CheckpointError(), 4),
        (Stuck(), 5),
        (Diverged(), 6),
        (Stopped(""), 75),
        (KeyboardInterrupt(), 130),
        (RuntimeError(), 1),
    ],
)
def test_each_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert exit_code_of(error) == code


@pytest.mark.processes
def test_an_error_ends_one_of_several_processes_immediately() -> None:
    result = fail('raise DataError("no videos")')
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1 and "rank 1 ERROR no videos" in result.stderr


@pytest.mark.processes
def test_an_error_is_written_for_the_program_that_started_the_process(tmp_path: Path) -> None:
    path = tmp_path / "errors" / "rank-1.json"
    fail('raise DataError("no videos")', TORCHELASTIC_ERROR_FILE=str(path))
    error = read_error_file(path)
    assert error is not None and error["message"] == "DataError: no videos"
    assert (error["code"], error["lost_peer"]) == (3, False)
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=3, error_file=str(path))
    assert failure.timestamp == int(error["time_s"])
    assert failure.message["message"] == "DataError: no videos"
    fail(
        'raise RuntimeError("[/a/gloo/transport/tcp/pair.cc:5] closed by peer. This is")',
        TORCHELASTIC_ERROR_FILE=str(path),
    )
    assert (read_error_file(path) or {})["lost_peer"]


@pytest.mark.parametrize("text", [None, "", "[]", '{"message": 1}', '{"kinemae": {}}'])
def test_an_incomplete_error_file_counts_as_absent(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "file").write_text(text)
    assert read_error_file(tmp_path / "file") is None


@pytest.mark.processes
def test_an_unexpected_error_is_logged_with_its_traceback() -> None:
    result = fail("{}['nothing']")
    assert result.returncode == 1
    assert "unexpected error:" in result.stderr and "KeyError: 'nothing'" in result.stderr


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.slow
def test_a_failed_rendezvous_names_the_address(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = str(free_port())
    variables = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    message = rf"rank {rank}: expected to connect .* MASTER_ADDR:MASTER_PORT=127\.0\.0\.1:{port} within"
    with pytest.raises(Stuck, match=message):
        _rendezvous(find_processes("cpu"), 1.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_requests_a_stop_and_a_second_sigint_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert not signals.is_requested
        signal.raise_signal(number)
        assert signals.is_requested
        signal.raise_signal(signal.SIGTERM)
        assert signals.is_requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) == before


def test_only_errors_of_connections_count_as_a_lost_peer() -> None:
    gloo = "[/a b/gloo/transport/tcp/pair.cc:545] Read error [::1]:2: Connection reset by peer. This is"
    assert lost_peer(RuntimeError(gloo)) == "Read error [::1]:2: Connection reset by peer"
    nccl = "NCCL error in: a.cpp:5, remote process exited\nncclRemoteError: A call failed"
    assert lost_peer(RuntimeError(nccl)) == "ncclRemoteError"
    aborted = "NCCL communicator was aborted on rank 3. Original reason for failure was: ..."
    assert lost_peer(RuntimeError(aborted)) == "NCCL communicator was aborted"
    assert lost_peer(RuntimeError("ncclUnhandledCudaError: out of memory")) is None


def test_the_end_of_the_first_process_with_its_store_counts_as_a_lost_peer() -> None:
    first = dist.TCPStore("127.0.0.1", 0, is_master=True)
    second = dist.TCPStore("127.0.0.1", first.port)
    assert second.add("count", 1) == 1
    del first
    with pytest.raises(dist.DistNetworkError) as raised:
        second.add("count", 1)
    assert re.fullmatch(r"Failed to recv, .*|Broken pipe|.*reset by peer.*", lost_peer(raised.value) or "")
