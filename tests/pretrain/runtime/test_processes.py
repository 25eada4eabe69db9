"""Rank and world size from the launcher's variables; communication of one and of two processes."""

import json
import os
import resource

import pytest
import torch

from kinemae.pretrain.runtime.processes import find_processes, init_process_group
from tests.ranks import start_ranks

VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
LAUNCHED = {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}

# The program of each of two processes; it prints the values that it received.
EXCHANGE = """
import json
import torch
from kinemae.pretrain.runtime.processes import (
    destroy_process_group, find_processes, init_process_group
)
from kinemae.pretrain.runtime.rank_flags import RankFlags

processes = find_processes("cpu")
init_process_group(processes)
init_process_group(processes)
total = processes.all_reduce(torch.tensor([1.0, 10.0 * processes.rank]))
own = torch.tensor([1.0 + processes.rank], requires_grad=True)
summed = processes.total(own)
((processes.rank + 3) * summed.square()).sum().backward()  # the sum of both losses is 7 * (1 + 2)^2
gathered = processes.all_gather_object({"rank": processes.rank})
from_first = processes.broadcast_object(f"from {processes.rank}")
largest = processes.maximum(138 * processes.rank)
found = []
for stop in (True, False):  # the second store has no values of the first one
    flags = RankFlags(processes.new_store(), world=2, on_phase=lambda phase: None, interval_s=0.0)
    for is_writing in (processes.is_first, False, False):
        found.append(flags.read())
        flags.post(stop=stop and not processes.is_first, is_writing=is_writing)
        stop = False
processes.barrier()
destroy_process_group()
destroy_process_group()
sums = [summed.item(), own.grad.item()]
print(json.dumps([processes.is_first, total.tolist(), sums, gathered, from_first, largest, found]))
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def launched(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_without_a_launcher_there_is_one_process() -> None:
    processes = find_processes("cpu")
    assert (processes.rank, processes.world) == (0, 1)
    assert processes.is_first and processes.device == torch.device("cpu")


def test_the_variables_of_a_launcher_set_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, **LAUNCHED, LOCAL_RANK="1")
    processes = find_processes("cpu")
    assert (processes.rank, processes.world) == (5, 8)
    assert not processes.is_first


@pytest.mark.parametrize("lacking", ["WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_incomplete_variables_are_named(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    launched(monkeypatch, **{name: value for name, value in LAUNCHED.items() if name != lacking})
    with pytest.raises(
        ValueError, match=f"RANK: expected {lacking} to be set too.*start with torchrun, or unset"
    ):
        find_processes("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_refused_without_a_device() -> None:
    with pytest.raises(ValueError, match=r"engine\.device must be cpu or auto if there is no CUDA device"):
        find_processes("cuda")
    assert find_processes("auto").device == torch.device("cpu")


@pytest.mark.gpu
def test_each_process_of_a_machine_has_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, **LAUNCHED, LOCAL_RANK="1")
    assert find_processes("auto").device == torch.device("cuda", 1)
    assert find_processes("cpu").device == torch.device("cpu")


def test_one_process_communicates_without_a_group() -> None:
    processes = find_processes("cpu")
    values = torch.tensor([1.0, 2.0])
    assert processes.all_reduce(values) is values and values.tolist() == [1.0, 2.0]
    assert processes.total(values) is values
    assert processes.all_gather_object("mine") == ["mine"]
    assert processes.broadcast_object("mine") == "mine"
    processes.barrier()
    assert processes.maximum(143) == 143
    stores = processes.new_store(), processes.new_store()
    assert [store.add("count", 2) for store in stores] == [2, 2]


def test_a_process_may_open_as_many_files_as_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, before[1]))
    try:
        init_process_group(find_processes("cpu"))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.processes
def test_two_processes_reduce_gather_broadcast_and_agree_on_flags() -> None:
    ranks = start_ranks(2, "-c", EXCHANGE)
    first, second = (json.loads(rank.communicate(timeout=120)[0]) for rank in ranks)
    values = [
        [2.0, 10.0],
        [3.0, 42.0],
        [{"rank": 0}, {"rank": 1}],
        "from 0",
        138,
        [[False, True], [True, True], [False, False], *2 * [[False, True]], [False, False]],
    ]
    assert first == [True, *values]
    assert second == [False, *values]


CORES = """
import json, os, sys
from kinemae.pretrain.runtime.processes import (
    destroy_process_group, find_processes, init_process_group, share_cores
)
import kinemae.data_tools.command, torch

kinemae.data_tools.command.configure_logging()
del os.environ["OMP_NUM_THREADS"]
processes, found = find_processes("cpu"), []
init_process_group(processes)
cores = sorted(os.sched_getaffinity(0))
for mask in ({cores[processes.rank]}, set(cores)):
    os.sched_setaffinity(0, mask)
    processes.barrier()
    found.append([share_cores(processes, workers=-1, cpu_threads=0), torch.get_num_threads()])
    found.append(share_cores(processes, workers=1, cpu_threads=2))
destroy_process_group()
print(json.dumps(found))
"""


@pytest.mark.processes
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_processes_bound_to_their_own_cores_do_not_divide_them() -> None:
    ranks = start_ranks(2, "-c", CORES)
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    cores = len(os.sched_getaffinity(0)) // 2
    expected = [[0, 1], 1, [max(cores - 1, 0), 1], 1]
    assert [json.loads(out) for out, _ in outputs] == [expected, expected]
    first, second = (errors for _, errors in outputs)
    assert (
        "each process: 1 of its machine's cores, 1 threads, 0 loader workers (data.num_workers=-1)" in first
    )
    assert "each process: 1 of its machine's cores, 2 threads, 1 loader workers (data.num_workers=1)" in first
    assert "more than" not in first + second
    assert "each process" not in second
