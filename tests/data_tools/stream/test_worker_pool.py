"""Worker pool with real processes: order of items, and workers that die, hang or fail."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kinemae.data_tools.command import DataError
from kinemae.data_tools.stream import worker_pool as pool_module
from kinemae.data_tools.stream.loader import samples_in_progress
from kinemae.data_tools.stream.worker import ItemReader
from kinemae.data_tools.stream.worker_pool import Prefetcher, WorkerPool
from tests.forked import ForkedPython

SAMPLES = 3  # samples in an item
ITEMS = 12


class Unpicklable:
    def __reduce__(self):
        raise TypeError("this one stays here")


class ForeignError(Exception):
    """An error whose pickling works and whose unpickling does not."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os._exit(7)


def hang():
    time.sleep(600)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def fail():
    raise OSError("the disk is on fire")


def fail_foreign():
    raise ForeignError("one", "two")


def run_out_of_memory():
    # The limit of a file's size holds for files in memory too.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@dataclass(frozen=True)
class Numbers(ItemReader[Any]):
    """Items of three samples each; some samples run an action when they are read."""

    deeds: dict[int, Callable[[], None]] = field(default_factory=dict)
    length: int = ITEMS
    pace_s: float = 0.0
    before: Callable[[], None] | None = None
    more: Any = None

    def __len__(self) -> int:
        return self.length

    def read(self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]) -> Any:
        if self.before:
            self.before()
        values, skipped = [], {}
        for sample in range(number * SAMPLES, (number + 1) * SAMPLES):
            key = f"sample-{sample}"
            if key in quarantined:
                skipped[key] = quarantined[key]
                continue
            on_sample(key)
            time.sleep(self.pace_s)
            self.deeds.get(sample, int)()
            values.append(sample)
        return {"values": torch.tensor(values), "skipped": skipped, "pid": os.getpid(), "more": self.more}


def pool_of(numbers: ItemReader[Any], *, workers: int = 2, timeout_s: float = 60.0) -> WorkerPool[Any]:
    return WorkerPool(numbers, workers=workers, timeout_s=timeout_s, preload=[__name__])


def processes_alive() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.name == "kinemae-loader"]


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(pool_module.log, "propagate", True)
    return caplog


@pytest.mark.parametrize("workers", [1, 3, pytest.param(20, marks=pytest.mark.nightly)])
@pytest.mark.slow
def test_items_come_in_order_with_any_number_of_workers(workers: int) -> None:
    items = list(pool_of(Numbers(), workers=workers))
    assert [item["values"].tolist() for item in items] == [
        [3 * n, 3 * n + 1, 3 * n + 2] for n in range(ITEMS)
    ]
    assert len({item["pid"] for item in items}) <= min(workers, ITEMS)
    assert wait_until(lambda: processes_alive() == [])


def test_no_more_items_are_read_than_the_prefetch_factor(tmp_path: Path) -> None:
    pool = pool_of(Counting(str(tmp_path)), workers=2)
    for taken in range(1, 5):
        assert next(pool) == taken - 1
        assert wait_until(lambda taken=taken: len(list(tmp_path.iterdir())) == taken + 4)
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) == 8  # 4 taken, and 2 for each worker
    pool.close()


@dataclass(frozen=True)
class Counting(ItemReader[int]):
    folder: str

    def __len__(self) -> int:
        return 100

    def read(self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]) -> int:
        (Path(self.folder) / str(number)).touch()
        return number


@pytest.mark.parametrize(
    ("deed", "how"),
    [
        (die, "was killed by SIGKILL"),
        (crash, "was killed by SIGSEGV"),
        pytest.param(leave, "left with exit code 7", marks=pytest.mark.nightly),
        (hang, "did nothing for data.timeout_s=5 seconds"),
        pytest.param(stop, "did nothing for data.timeout_s=5 seconds", marks=pytest.mark.nightly),
    ],
)
def test_the_sample_that_kills_or_blocks_a_worker_is_skipped_and_all_others_are_read(
    warnings: pytest.LogCaptureFixture, deed: Callable[[], None], how: str
) -> None:
    items = list(pool_of(Numbers({7: deed}), timeout_s=5.0))
    assert [value for item in items for value in item["values"].tolist()] == [
        sample for sample in range(SAMPLES * ITEMS) if sample != 7
    ]
    assert items[2]["skipped"] == {
        "sample-7": f"a loader worker {how} while it read the sample, earlier in this run"
    }
    [record] = warnings.records
    assert f"a loader worker {how} while it read sample sample-7: it is skipped" in record.getMessage()
    assert wait_until(lambda: processes_alive() == [])


def test_a_long_run_may_quarantine_many_samples() -> None:
    pool, taken = pool_of(Numbers()), []
    for number in range(ITEMS):
        pool.quarantined |= {f"{number}/{place}": "killed" * 20 for place in range(80)}
        pool.quarantined[f"sample-{3 * number + 12}"] = "killed"  # of an item that is not assigned yet
        taken.append(next(pool))
    assert len(json.dumps(pool.quarantined)) > 1 << 16
    assert [list(item["skipped"]) for item in taken[4:]] == [[f"sample-{3 * n}"] for n in range(4, ITEMS)]


@pytest.mark.nightly
@pytest.mark.slow
def test_two_bad_samples_of_one_item_are_both_skipped(warnings: pytest.LogCaptureFixture) -> None:
    pool = pool_of(Numbers({3: crash, 5: hang, 20: die}), timeout_s=5.0)
    items = list(pool)
    left_out = ["sample-20", "sample-3", "sample-5"]
    assert sorted(key for item in items for key in item["skipped"]) == left_out
    assert sorted(pool.quarantined) == left_out and len(warnings.records) == 3
    assert items[1]["values"].tolist() == [4]


def test_a_worker_killed_from_outside_is_replaced_and_nothing_is_lost() -> None:
    pool = pool_of(Numbers(pace_s=0.05), workers=2)
    first = next(pool)
    os.kill(first["pid"], signal.SIGKILL)
    items = [first, *pool]
    seen = [value for item in items for value in item["values"].tolist()]
    left_out = [int(key.removeprefix("sample-")) for item in items for key in item["skipped"]]
    assert sorted(seen + left_out) == list(range(SAMPLES * ITEMS)) and len(left_out) <= 1
    assert first["pid"] not in [item["pid"] for item in items[-4:]]


def test_an_idle_worker_that_is_killed_costs_no_sample(
    warnings: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    last_ahead = tmp_path / "read"  # of the two items that it prefetches
    pool = pool_of(Numbers({3 * SAMPLES - 1: partial(Path.touch, last_ahead)}), workers=1)
    first = next(pool)
    assert wait_until(lambda: last_ahead.exists() and samples_in_progress(pool) == [])
    os.kill(first["pid"], signal.SIGKILL)
    items = [first, *pool]
    assert [value for item in items for value in item["values"].tolist()] == list(range(SAMPLES * ITEMS))
    assert "was killed by SIGKILL between two samples: a new one takes its place" in warnings.text


@pytest.mark.slow
def test_a_slow_main_process_does_not_replace_a_worker() -> None:
    pool = pool_of(Numbers(pace_s=0.1, length=3), workers=1, timeout_s=2.0)
    first = next(pool)
    time.sleep(3.0)  # longer than a worker's limit
    assert {item["pid"] for item in pool} == {first["pid"]}


def test_samples_in_progress_are_listed() -> None:
    pool = pool_of(Numbers({0: hang, 3: hang}))
    assert wait_until(lambda: sorted(samples_in_progress(pool)) == ["sample-0", "sample-3"])
    assert sorted(samples_in_progress(Prefetcher(pool, lambda item: item))) == ["sample-0", "sample-3"]
    pool.close()
    assert samples_in_progress(pool) == [] == samples_in_progress(iter([1]))


def test_many_deaths_end_the_run_and_name_the_samples() -> None:
    pool = pool_of(Numbers(dict.fromkeys(range(36), die)))
    message = (
        r"11 loader workers died or hung, the last one was killed by SIGKILL; samples they read: sample-"
    )
    with pytest.raises(DataError, match=message):
        list(pool)
    assert wait_until(lambda: processes_alive() == [])
    assert list(pool) == []


def test_deaths_that_are_far_apart_do_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinemae.data_tools.stream.worker_pool._DEATH_ITEMS", 1)
    assert ITEMS > 11
    pool = pool_of(Numbers({SAMPLES * item: die for item in range(ITEMS)}))
    assert len(list(pool)) == ITEMS
    assert len(pool.quarantined) == ITEMS


def test_a_worker_that_cannot_begin_ends_the_run() -> None:
    message = (
        "a loader worker left with exit code 7 before it had read anything; .*data.num_workers=0 reads in the"
    )
    with pytest.raises(DataError, match=message):
        list(pool_of(Numbers(before=leave)))


@pytest.mark.slow
def test_a_worker_that_hangs_before_its_first_sample_ends_the_run() -> None:
    with pytest.raises(DataError, match=r"did nothing for data.timeout_s=1 seconds before it had read"):
        list(pool_of(Numbers(before=hang), timeout_s=1.0))


def test_an_error_keeps_its_type_with_traceback_and_sample() -> None:
    with pytest.raises(OSError, match="the disk is on fire") as caught:
        list(pool_of(Numbers({4: fail})))
    assert str(caught.value) == "the disk is on fire"
    assert caught.value.__notes__ == ["in a loader worker, at sample sample-4"]
    assert "in fail\n" in str(caught.value.__cause__)
    assert wait_until(lambda: processes_alive() == [])


def test_an_error_that_cannot_be_pickled_is_raised_with_its_text() -> None:
    with pytest.raises(RuntimeError, match="ForeignError: one and two"):
        list(pool_of(Numbers({4: fail_foreign})))


def test_a_stream_that_cannot_be_pickled_is_an_error() -> None:
    message = (
        r"2 loader workers: expected classes .*, got: this one stays here; fix: .* data.num_workers=0 in"
    )
    with pytest.raises(ValueError, match=message):
        pool_of(Numbers(more=Unpicklable()))


def test_an_item_that_cannot_be_pickled_is_an_error() -> None:
    class_of_this_test = Numbers(more=None)
    assert len(list(pool_of(class_of_this_test))) == ITEMS
    with pytest.raises(TypeError, match="this one stays here"):
        list(pool_of(MadeThere()))


class MadeThere(Numbers):
    def read(self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]) -> Any:
        return Unpicklable()


def test_a_batch_without_memory_is_an_error_with_a_fix() -> None:
    with pytest.raises(
        DataError, match=r"no memory for a batch of 0\.0 MB .*lower data.num_workers or batch.clips"
    ):
        list(pool_of(Numbers({4: run_out_of_memory}, more=torch.zeros(10_000))))


def test_a_deleted_pool_ends_its_workers() -> None:
    pool = pool_of(Numbers())
    pid = next(pool)["pid"]
    del pool
    assert wait_until(lambda: not runs(pid) and processes_alive() == [])


PROGRAM = """
import json
import sys
from tests.data_tools.stream.test_worker_pool import Numbers, Prefetcher, pool_of, hang, processes_alive, stop

pool = pool_of(Numbers({9: hang, 12: stop}, length=1000), workers=2)
next(pool)
print(json.dumps(processes_alive()), flush=True)
exec(sys.argv[1])
"""


def start(ending: str) -> tuple[ForkedPython, list[int]]:
    """A program that reads one item, whose workers get stuck, and that continues with `ending`."""
    pipe = subprocess.PIPE
    process = ForkedPython("-c", PROGRAM, ending, environment={}, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    pids = json.loads(process.stdout.readline())
    assert len(pids) == 2  # the workers have run; the ending may close them at once
    return process, pids


@pytest.mark.processes
def test_workers_do_not_outlive_a_main_process_that_is_killed() -> None:
    process, pids = start("list(pool)")
    time.sleep(0.5)  # one of them hangs, the other is stopped
    process.kill()
    process.communicate()
    assert wait_until(lambda: not any(runs(pid) for pid in pids))


SUSPENDED = """
pool.close()
pool = pool_of(Numbers(pace_s=0.2, length=6), workers=2, timeout_s=2.0)
first = [next(pool), next(pool)]
print(json.dumps([item["pid"] for item in first]), flush=True)
print(json.dumps([item["pid"] for item in pool]), flush=True)
"""


@pytest.mark.processes
def test_a_job_that_was_suspended_does_not_replace_its_workers() -> None:
    process, _ = start(SUSPENDED)
    assert process.stdout is not None
    pids = json.loads(process.stdout.readline())
    for pid in (process.pid, *pids):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3.0)  # longer than a worker's limit
    for pid in (process.pid, *pids):
        os.kill(pid, signal.SIGCONT)
    rest, errors = process.communicate(timeout=60)
    assert set(json.loads(rest)) <= set(pids) and errors == ""


@pytest.mark.processes
def test_ctrl_c_ends_the_program_at_once_with_its_workers() -> None:
    process, pids = start("list(pool)")
    time.sleep(0.5)
    for pid in (process.pid, *pids):  # as a terminal does, to all of the group
        os.kill(pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in errors
    assert "loader worker" not in errors
    assert wait_until(lambda: not any(runs(pid) for pid in pids))


@pytest.mark.nightly
@pytest.mark.processes
def test_a_program_that_ends_early_ends_with_its_workers() -> None:
    process, pids = start("one = Prefetcher(pool, dict); next(one); raise SystemExit(5)")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 5 and errors == ""
    assert wait_until(lambda: not any(runs(pid) for pid in pids))


def doubled(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "values": item["values"] * 2}


def test_the_prefetcher_transforms_items_in_order() -> None:
    items = list(Prefetcher(pool_of(Numbers()), doubled))
    assert [value for item in items for value in item["values"].tolist()] == list(range(0, 72, 2))
    assert wait_until(lambda: processes_alive() == [])


def test_the_prefetcher_raises_errors_of_workers_and_of_the_transform() -> None:
    prefetcher = Prefetcher(pool_of(Numbers({4: fail})), doubled)
    with pytest.raises(OSError, match="the disk is on fire"):
        list(prefetcher)
    assert list(prefetcher) == []
    with pytest.raises(KeyError, match="nothing"):
        list(Prefetcher(pool_of(Numbers()), lambda item: item["nothing"]))
    assert wait_until(lambda: processes_alive() == [])


def test_a_deleted_prefetcher_ends_its_workers() -> None:
    prefetcher = Prefetcher(pool_of(Numbers()), doubled)
    next(prefetcher)
    del prefetcher
    assert wait_until(lambda: processes_alive() == [])
