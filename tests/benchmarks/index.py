"""Benchmark the time and memory to open an index of 10 million samples.

    python tests/benchmarks/index.py                     # half a minute and 2 GB of disk, removed afterwards
    python tests/benchmarks/index.py --samples 100000

Generates an index with 1000 samples per shard (the shards are sparse files), opens it in a new process, and
prints seconds and the maximum resident set before and after, beyond the imports. Then it measures samples
in random order, as in training, and the check of labels at the start of fine-tuning. Pages of the mapped
file are part of the resident set, although all processes share them; "own memory" excludes them.
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
import torch

from kinemae.data_tools.index import COLUMNS, INDEX_NAME, IndexWriter, Shard, open_index
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
        generate(Path(folder), arguments.samples)
        size = (Path(folder) / INDEX_NAME).stat().st_size
        command = [sys.executable, __file__, "--open", folder]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{arguments.samples} samples, {size / 1e9:.2f} GB of index")
    for name, value in found.items():
        print(f"{name:32} {value:10.3f}")


def measure(folder: Path) -> dict[str, float]:
    """Measure opening in this process."""
    before_mb, begin_s = peak_mb(), time.perf_counter()
    index = open_index(folder)
    opened_s, opened_mb = time.perf_counter() - begin_s, peak_mb()
    chance = random.Random(0)
    begin_s = time.perf_counter()
    for _ in range(1000):
        index.sample(chance.randrange(len(index)))
    sample_s = (time.perf_counter() - begin_s) / 1000
    begin_s = time.perf_counter()
    label_R = index.column("label")
    assert label_R.min() == 0 and len(np.unique(label_R)) == min(_CLASSES, len(index))
    return {
        "open, seconds": opened_s,
        "memory before, MB": before_mb,
        "memory after opening, MB": opened_mb,
        "random sample, microseconds": sample_s * 1e6,
        "labels checked, seconds": time.perf_counter() - begin_s,
        "memory at the end, MB": peak_mb(),
        "own memory at the end, MB": own_mb(),
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
        for number in range(-(-samples // _PER_SHARD)):
            held = min(_PER_SHARD, samples - number * _PER_SHARD)
            size = held * _VIDEO_BYTES
            name = f"shard-{number:06d}.tar"
            writer.add_shards([Shard(name=name, samples=held, bytes=size, sha256=f"{number:064x}")])
            with (folder / name).open("wb") as tar:
                tar.truncate(size)


def rows(number_R: np.ndarray) -> pa.RecordBatch:
    """Make rows with keys and digests of realistic length."""
    count = len(number_R)
    key = pa.array([f"class_name_some_video_{number:011d}" for number in number_R.tolist()])
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
        "content": [f"{number:064x}" for number in number_R.tolist()],
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
