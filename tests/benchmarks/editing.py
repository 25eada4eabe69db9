"""Time and memory of changes of large indexes.

    python -m tests.benchmarks.editing                     # ten minutes and 15 GB of disk, removed afterwards
    python -m tests.benchmarks.editing --samples 100000

Generates two data sets over empty tars, and measures `merge`, `add`, `remove`, `subset`, `data.where` and
`data.weight` on their indexes: seconds, CPU seconds (of interest on a busy machine), and the largest
anonymous memory, without mapped files, beyond that before the command.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from kinemae.data_tools.__main__ import main as data
from kinemae.data_tools.conditions import select_rows
from kinemae.data_tools.index import IndexWriter, open_index
from kinemae.data_tools.stream.mixture import Concatenation
from tests.benchmarks.index import generate, own_mb, rows

_SMALL = 100_000
_KEYS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    samples = parser.parse_args().samples
    with tempfile.TemporaryDirectory(prefix="kinemae-editing-benchmark-") as scratch:
        folder = Path(scratch)
        for name, count, first in (
            ("a", samples // 2, 0),
            ("b", samples // 2, samples),
            ("small", _SMALL, 2 * samples),
        ):
            generate(folder / name, count)
            _rename(folder / name, count, first)
        key = open_index(folder / "a", check_shards=False).column("key")
        (folder / "keys.txt").write_text("\n".join(key[:: max(1, len(key) // _KEYS)]))
        del key
        print_cost(
            f"merge of {samples // 2} + {samples // 2}",
            command("merge", folder / "a", folder / "b", folder / "all"),
        )
        print_cost(f"remove of {_KEYS} keys", command("remove", folder / "all", folder / "keys.txt"))
        print_cost("remove by a condition", command("remove", folder / "all", "where=label == 'class 3'"))
        print_cost(f"add of {_SMALL}", command("add", folder / "all", folder / "small"))
        print_cost(
            "subset of a half", command("subset", folder / "all", folder / "half", "where=label < 200")
        )
        index = open_index(folder / "all", check_shards=False)
        print_cost("data.where", lambda: select_rows(index, "label < 200 and duration_s > 5"))
        weighted: list[Concatenation] = []
        print_cost("data.weight", lambda: weighted.append(Concatenation({"all": index}, weight="frames")))
        begin = time.perf_counter()
        for slot in range(0, len(index), len(index) // 1000):
            weighted[0].locate(0, 0, slot)
        sys.stdout.write(f"a weighted sample, microseconds      {(time.perf_counter() - begin) * 1e3:9.1f}\n")


def _rename(folder: Path, samples: int, first: int) -> None:
    """Give the rows keys of their own."""
    index = open_index(folder, check_shards=False)
    with IndexWriter(folder, classes=index.classes, made_by={}, base=index.state) as writer:
        at = first
        for batch in index.batches():
            own = rows(np.arange(at, at + len(batch)))
            at += len(batch)
            table = pa.Table.from_batches([batch])
            for name in ("key", "name", "content"):
                table = table.set_column(table.schema.get_field_index(name), name, own.column(name))
            writer.add_batch(table)
        writer.add_shards(index.shards)


def command(*words: object) -> Callable[[], object]:
    """Return the run of a command of `kinemae data`."""

    def run() -> None:
        assert data([str(word) for word in words]) == 0, words

    return run


def print_cost(what: str, action: Callable[[], object]) -> None:
    """Run, and print seconds and memory."""
    before, largest, done = own_mb(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.02):
            largest = max(largest, own_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    action()
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu_begin
    done.set()
    watcher.join()
    sys.stdout.write(f"{what:36} {seconds:9.1f} s {cpu:9.1f} s of CPU {max(largest - before, 0):9.0f} MB\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
