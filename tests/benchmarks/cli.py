"""CPU time of `--help` and of wrong usage, for every command line.

python tests/benchmarks/cli.py [REPEATS]
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
COMMANDS = (
    "data --help",
    "data shard --help",
    "pretrain --help",
    "pretrain preview --help",
    "pretrain no_such_file.yaml",
    "finetune --help",
    "finetune train --help",
    "finetune import --help",
    "launch --help",
    "launch local --help",
    "launch doctor --help",
)


def cpu_s(words: list[str]) -> float:
    """User and system time of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, cwd=REPO, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for command in COMMANDS:
        times = [cpu_s([sys.executable, "-m", "kinemae", *command.split()]) for _ in range(repeats)]
        print(f"{command:32s} {min(times):6.2f} s of CPU, min of {repeats}")


if __name__ == "__main__":
    main()
