"""Time and memory of `kinemae data duplicates` on a large index.

    python -m tests.benchmarks.near_duplicates                     # 6 GB of disk
    python -m tests.benchmarks.near_duplicates --samples 100000

Generates an index of random perceptual hashes. A tenth of the samples are near copies: another hash with 0 to
16 flipped bits. Prints seconds, CPU seconds (of interest on a busy machine), and the largest anonymous memory
beyond that before the command; then the numbers of planted and of found copies.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from kinemae.data_tools.curation.frame_stats import HASH_BITS
from kinemae.data_tools.index import IndexWriter, Shard
from tests.benchmarks.editing import command, print_cost
from tests.benchmarks.index import rows

_CHUNK = 65_536
_BITS = 16
_COPY_OF_EVERY = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    samples = parser.parse_args().samples
    with tempfile.TemporaryDirectory(prefix="kinemae-duplicates-benchmark-") as scratch:
        folder = Path(scratch)
        planted = generate(folder / "set", samples)
        print_cost(
            f"duplicates of {samples}",
            command("duplicates", folder / "set", folder / "lists", f"bits={_BITS}"),
        )
        with (folder / "lists" / "keys.txt").open() as keys:
            found = sum(1 for _ in keys)
        sys.stdout.write(f"{planted} planted copies, {found} samples to remove\n")


def generate(folder: Path, samples: int) -> int:
    """Write an index with hashes; return the number of near copies."""
    chance, planted = np.random.default_rng(0), 0
    with IndexWriter(folder, classes=["x"], made_by={}, extra={"phash": pa.string()}) as writer:
        for begin in range(0, samples, _CHUNK):
            number_R = np.arange(begin, min(begin + _CHUNK, samples))
            bits_RB = chance.integers(0, 2, (len(number_R), HASH_BITS), dtype=np.uint8)
            copies = np.arange(1, len(number_R), _COPY_OF_EVERY)
            planted += len(copies)
            flips = np.arange(HASH_BITS) < chance.integers(0, _BITS + 1, (len(copies), 1))
            bits_RB[copies] = bits_RB[copies - 1] ^ chance.permuted(flips, axis=1)
            text = np.packbits(bits_RB, axis=1).tobytes().hex()
            width = HASH_BITS // 4
            hashes = pa.array([text[at : at + width] for at in range(0, len(text), width)])
            writer.add_batch(rows(number_R).append_column("phash", hashes))
        size = samples * 200_000
        writer.add_shards([Shard(name="shard-000000.tar", samples=samples, bytes=size, sha256="")])
    return planted


if __name__ == "__main__":
    main()
