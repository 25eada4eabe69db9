"""Benchmark reading from object storage with latency: our orders and read-ahead against common loaders.

    python tests/benchmarks/streaming.py
    python tests/benchmarks/streaming.py --clips 64 --latency-ms 50 --readers ours

The peers run in a virtual environment of their own, which is no dependency of the project:

    python -m venv PEERS
    PEERS/bin/pip install torch torchvision av opencv-python-headless -e '.[s3]' \\
        webdataset mosaicml-streaming litdata
    python tests/benchmarks/streaming.py --peers PEERS/bin/python

A server process serves a folder by HTTP and S3 with a latency before each answer and a bandwidth of all
connections together. All readers read the same clips: H.264 of 10 s at 256x340 with a key frame every
30 frames, as tars (ours, webdataset), MDS shards and litdata chunks of `--block-mb` each. They decode 16
frames at stride 4 on one thread, with equal random starts, crops and flips, without loader processes: with
our code, or with torchcodec and torchvision where the name says so. Columns:

    clips/s        wall time after the first batch of 8
    of local       the same reader's rate on the local disk; peers: the rate of the first row on it
    CPU ms         CPU time of the reader's process per clip, decoding included, from the first batch to half
                   of the clips; `--clips` must be above twice the samples that a reader reads ahead
    first batch    seconds from the constructor of the loader to its first batch
    requests, kB   sent to the server and read from it, per clip
    exact          whether each clip came once
    distance       mean distance of successive clips in storage order; 1 is that of a random permutation
    neighbours     successive clips that are neighbours in storage, in percent; random order has 200 / clips

Rates are medians over `--repeats`, which go over all rows in turns; they need two idle cores, one of them
for the server.
"""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loader_videos import _encode, _scene
from streaming_readers import BATCH, OURS, READERS

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.index import open_index

_DISTINCT = 6
_HERE = Path(__file__).resolve().parent
_REPO = _HERE.parents[1]
_AWS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "OMP_NUM_THREADS": "1",
}


def main() -> None:
    """Write the clips in all formats, then run each reader at each latency."""
    arguments = parsed()
    with tempfile.TemporaryDirectory(prefix="kinemae-streaming-") as name:
        root = Path(name)
        readers = [reader for reader in READERS if reader.startswith(arguments.readers)]
        bench = Bench(root, arguments)
        bench.write_formats(readers)
        with served(root) as endpoint:
            bench.run(readers, endpoint)


def parsed() -> argparse.Namespace:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=240, help=f"a multiple of {BATCH}")
    parser.add_argument("--latency-ms", type=float, nargs="+", default=[0, 20, 50])
    parser.add_argument("--megabytes-per-s", type=float, default=100.0)
    parser.add_argument("--block-mb", type=float, default=4.0)
    parser.add_argument("--window", type=int, default=8, help="blocks that are shuffled at a time")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--readers", default="", help="only readers whose names start with this")
    parser.add_argument("--peers", help="python of the peers; without it, webdataset alone")
    return parser.parse_args()


class Bench:
    """The data and the results of one call."""

    def __init__(self, root: Path, arguments: argparse.Namespace):
        self.root = root
        self.folder = root / "bench"
        self.arguments = arguments
        self.number_of: dict[str, dict[str, int]] = {}  # by format and key
        self.options: dict[str, Any] = {}
        package = root / "package" / "kinemae"
        package.mkdir(parents=True)
        for path in (*(_REPO / "kinemae").iterdir(), *(_REPO / name for name in ("data_tools", "configs"))):
            (package / path.name).symlink_to(path)
        self.environment = {**os.environ, **_AWS, "PYTHONPATH": str(package.parent)}

    def write_formats(self, readers: list[str]) -> None:
        """Write clips, tars with an index, MDS shards and litdata chunks."""
        videos = self.folder / "videos"
        videos.mkdir(parents=True)
        scenes = [self.root / f"{number}.mp4" for number in range(_DISTINCT)]
        for number, scene in enumerate(scenes):
            _encode(scene, _scene(number), 30)
        for number, scene in zip(range(self.arguments.clips), itertools.cycle(scenes), strict=False):
            (videos / f"clip_{number:06}.mp4").hardlink_to(scene)
        size = statistics.mean(scene.stat().st_size for scene in scenes)
        each = max(round(self.arguments.block_mb * 1e6 / size), 1)
        out = self.root / "sharded"
        limits = [
            f"samples_per_shard={each}",
            "layout={name: copy}",
            "segment_s=null",
            "validation_fraction=0",
        ]
        assert run_program(PROGRAM, ["shard", str(videos), str(out), *limits, "workers=1"]) == 0
        [split] = [path.parent for path in out.glob("*/dataset.json")]
        split.rename(self.folder / "tars")
        tars = sorted(path.name for path in (self.folder / "tars").glob("*.tar"))
        self.options = {
            "clips": self.arguments.clips,
            "pattern": re.sub(r"(\d+)\.tar$", f"{{{tars[0][-10:-4]}..{tars[-1][-10:-4]}}}.tar", tars[0]),
            "block_mb": self.arguments.block_mb,
            "window": self.arguments.window,
            "samples_per_block": each,
        }
        index = open_index(self.folder / "tars")
        in_tars = {index.sample(position).key: position for position in range(len(index))}
        by_name = {path.stem: number for number, path in enumerate(sorted(videos.iterdir()))}
        self.number_of = {"tars": in_tars, "other": by_name}
        for format_, reader in (("mds", "mosaicml-streaming"), ("litdata", "litdata")):
            if reader in readers and self.arguments.peers:
                out = self.folder / format_
                block_mb = str(self.arguments.block_mb)
                written = self._process(reader, f"write_{format_}", str(videos), str(out), block_mb)
                assert "error" not in written, written

    def run(self, readers: list[str], endpoint: str) -> None:
        """Run each reader locally, then at each latency, and print a table."""
        settings: list[float | None] = [None, *self.arguments.latency_ms]
        rows = [
            (latency_ms, reader)
            for latency_ms, reader in itertools.product(settings, readers)
            if reader in OURS
            or (latency_ms is not None and (self.arguments.peers or reader.startswith("webdataset")))
        ]
        runs: dict[tuple[float | None, str], list[dict[str, Any]]] = {row: [] for row in rows}
        for _, row in itertools.product(
            range(self.arguments.repeats), rows
        ):  # rows in turns: the load changes
            runs[row].append(self._run(row[1], endpoint, row[0]))
        local: dict[str, float] = {}
        for (latency_ms, reader), found in runs.items():
            rate = statistics.median(run["clips_per_s"] for run in found)
            cpu_ms = statistics.median(run.get("cpu_ms", 0.0) for run in found)
            if latency_ms is None:
                local[reader] = rate
            against = local.get(reader, next(iter(local.values()), rate))
            result = {**found[0], "clips_per_s": rate, "cpu_ms": cpu_ms, "of_local": rate / against}
            self._print(reader, latency_ms, result)

    def _run(self, reader: str, endpoint: str, latency_ms: float | None) -> dict[str, Any]:
        store, http = "s3://bench", f"{endpoint}/bench"
        if latency_ms is None:
            store = http = str(self.folder)
        else:
            limit = f"megabytes_per_s={self.arguments.megabytes_per_s}"
            asked(f"{endpoint}/-/configure?latency_s={latency_ms / 1000}&{limit}")
        with tempfile.TemporaryDirectory(dir=self.root) as scratch:
            places = {"store": store, "http": http, "endpoint": endpoint, "scratch": scratch}
            self.environment["AWS_ENDPOINT_URL_S3"] = endpoint
            result = self._process(reader, reader, json.dumps({**places, **self.options}))
        return {**result, **asked(f"{endpoint}/-/stats")}

    def _process(self, reader: str, *arguments: str) -> dict[str, Any]:
        python = self.arguments.peers if reader not in OURS and self.arguments.peers else sys.executable
        command = [python, str(_HERE / "streaming_readers.py"), *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "Error" in line] or ["no message"]
            return {"error": lines[-1].strip(), "clips_per_s": 0.0}
        lines = done.stdout.strip().splitlines()
        return dict(json.loads(lines[-1])) if lines and lines[-1].startswith("{") else {}

    def _print(self, reader: str, latency_ms: float | None, result: dict[str, Any]) -> None:
        where = "local" if latency_ms is None else f"{latency_ms:g} ms"
        if "error" in result:
            print(f"{where:7} {reader:40} {result['error']}", flush=True)
            return
        is_other = reader.startswith(("mosaicml-streaming", "litdata"))
        numbers = [
            self.number_of["other" if is_other else "tars"][key.rpartition("/")[2]] for key in result["keys"]
        ]
        clips = self.arguments.clips
        exact = "yes" if sorted(numbers) == list(range(clips)) else f"no ({len(set(numbers))})"
        requests, kilobytes = result["requests"] / clips, result["bytes"] / clips / 1000
        if latency_ms is None:
            requests = kilobytes = 0.0
        print(
            f"{where:7} {reader:40} {result['clips_per_s']:7.1f} clips/s {result['of_local']:7.0%} of local "
            f"{result['cpu_ms']:4.0f} CPU ms {result['first_s']:6.2f} s first batch "
            f"{requests:6.2f} requests {kilobytes:6.0f} kB "
            f"exact {exact:9} distance {distance(numbers):4.2f} neighbours {neighbours(numbers):5.1f} %",
            flush=True,
        )


def distance(numbers: Sequence[int]) -> float:
    """Mean distance of successive numbers, relative to a random permutation."""
    steps = [abs(second - first) for first, second in itertools.pairwise(numbers)]
    return statistics.mean(steps) / ((len(numbers) + 1) / 3)


def neighbours(numbers: Sequence[int]) -> float:
    """Percentage of successive numbers that differ by one."""
    steps = [abs(second - first) for first, second in itertools.pairwise(numbers)]
    return 100 * sum(step == 1 for step in steps) / len(steps)


def asked(url: str) -> dict[str, Any]:
    """Get JSON."""
    with urllib.request.urlopen(url) as answer:
        return dict(json.loads(answer.read()))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder from another process; yields the URL."""
    command = [sys.executable, str(_HERE / "streaming_server.py"), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


if __name__ == "__main__":
    main()
