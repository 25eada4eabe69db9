"""Benchmark the time and memory to open an index of 10 million samples.

    python tests/benchmarks/index.py                         # a minute and 2.3 GB of disk, removed afterwards
    python tests/benchmarks/index.py --samples 100000000     # 23 GB of disk
    python tests/benchmarks/index.py --samples 100000

Generates an index with 1000 samples per shard (the shards are sparse files), opens it in a new process, and
prints seconds and the maximum resident set before and after, beyond the imports. Then it measures samples
in random order, as in training, and the check of labels at the start of fine-tuning. Last, it removes one
row in a thousand and measures the same. Pages of the mapped files are part of the resident set, although all
processes share them; "own memory" excludes them.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from kinemae.data_tools.index import COLUMNS, INDEX_NAME, IndexWriter, Shard, open_index, write_removed
from kinemae.pretrain.runtime.train_step import peak_memory_bytes

_PER_SHARD = 1000
_VIDEO_BYTES = 200_000
_CHUNK = 65_536
_CLASSES = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument(
        "--open", help="open this folder and print the measurements; used by the script itself"
    )
    arguments = parser.parse_args()
    if arguments.open:
        print(json.dumps(measure(Path(arguments.open))))
        return
    with tempfile.TemporaryDirectory(prefix="kinemae-index-benchmark-") as folder:
        begin_s = time.perf_counter()
        generate(Path(folder), arguments.samples)
        size = (Path(folder) / INDEX_NAME).stat().st_size
        print(f"{arguments.samples} samples, {size / 1e9:.2f} GB of index")
        print_values({"generated, seconds": time.perf_counter() - begin_s})
        command = [sys.executable, __file__, "--open", folder]
        for title in ("all rows", "one in a thousand removed"):
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(title)
            print_values(json.loads(done.stdout))
            begin_s = time.perf_counter()
            index = open_index(folder, check_shards=False)
            write_removed(index.folder, index.state, np.arange(0, arguments.samples, 1000), index.shards)
        print_values({"removed, seconds": time.perf_counter() - begin_s})


def print_values(values: dict[str, float]) -> None:
    for name, value in values.items():
        print(f"{name:32} {value:10.3f}")


def measure(folder: Path) -> dict[str, float]:
    """Measure opening in this process."""
    before_mb, before_own_mb, begin_s = peak_mb(), own_mb(), time.perf_counter()
    index = open_index(folder, check_shards=False)
    opened_s, opened_mb, opened_own_mb = time.perf_counter() - begin_s, peak_mb(), own_mb()
    begin_s = time.perf_counter()
    open_index(folder)
    checked_s = time.perf_counter() - begin_s
    chance = random.Random(0)
    begin_s = time.perf_counter()
    for _ in range(1000):
        index.sample(chance.randrange(len(index)))
    sample_s = (time.perf_counter() - begin_s) / 1000
    sampled_own_mb, begin_s = own_mb(), time.perf_counter()
    label_R = index.column("label")
    assert label_R.min() == 0 and len(np.unique(label_R)) == min(_CLASSES, len(index))
    return {
        "open, seconds": opened_s,
        "open and check shards, seconds": checked_s,
        "memory before, MB": before_mb,
        "memory after opening, MB": opened_mb,
        "own memory of the index, MB": opened_own_mb - before_own_mb,
        "own memory after samples, MB": sampled_own_mb - before_own_mb,
        "random sample, microseconds": sample_s * 1e6,
        "labels checked, seconds": time.perf_counter() - begin_s,
        "memory at the end, MB": peak_mb(),
    }


def peak_mb() -> float:
    """Return the maximum resident set so far, with pages of the mapped file."""
    return peak_memory_bytes(torch.device("cpu")) / 1e6


def own_mb() -> float:
    """Return anonymous memory, without mapped files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1000


def generate(folder: Path, samples: int) -> None:
    """Write an index as `kinemae data shard` does, without videos."""
    classes = [f"class {number}" for number in range(_CLASSES)]
    with IndexWriter(folder, classes=classes, made_by={}) as writer:
        for begin in range(0, samples, _CHUNK):
            writer.add_batch(rows(np.arange(begin, min(begin + _CHUNK, samples))))
        shards = []
        for number in range(-(-samples // _PER_SHARD)):
            held = min(_PER_SHARD, samples - number * _PER_SHARD)
            size = held * _VIDEO_BYTES
            shards.append(
                Shard(name=f"shard-{number:06d}.tar", samples=held, bytes=size, sha256=f"{number:064x}")
            )
            with (folder / shards[-1].name).open("wb") as tar:
                tar.truncate(size)
        writer.add_shards(shards)


def rows(number_R: np.ndarray) -> pa.RecordBatch:
    """Make rows with keys and digests of realistic length."""
    count = len(number_R)
    digits = pa.array(number_R).cast(pa.string())
    key = pc.binary_join_element_wise("class_name_some_video", pc.utf8_lpad(digits, 11, "0"), "_")
    columns = {
        "key": key,
        "shard": number_R // _PER_SHARD,
        "offset": number_R % _PER_SHARD * _VIDEO_BYTES,
        "length": np.full(count, _VIDEO_BYTES - 2048),
        "crc32": number_R,
        "frames": np.full(count, 300),
        "duration_s": np.full(count, 10.0),
        "width": np.full(count, 340),
        "height": np.full(count, 256),
        "codec": ["h264"] * count,
        "label": number_R % _CLASSES,
        "name": key,
        "group": [""] * count,
        "start_s": np.zeros(count),
        "content": pc.utf8_lpad(digits, 64, "0"),
        "reference_stride": np.full(count, 4),
        "reference_phase": number_R % 4,
        "frame_step": np.full(count, 2),
    }
    arrays = [
        values if isinstance(values, pa.Array) else pa.array(values).cast(field.type)
        for field, values in zip(COLUMNS, (columns[name] for name in COLUMNS.names), strict=True)
    ]
    return pa.record_batch(arrays, schema=COLUMNS)


if __name__ == "__main__":
    main()
