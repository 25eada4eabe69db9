"""Time to start: `--help` of every command, wrong usage, and `import kinemae`.

python tests/benchmarks/startup.py [REPEATS]

CPU time of a process, the smallest of the repeats: on an idle machine the wall time is about the same. The
limits are 0.3 s for `--help` and 2 s for the import.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from kinemae.data_tools.__main__ import PROGRAM as DATA
from kinemae.data_tools.config_files import PROGRAM as CONFIGS
from kinemae.finetune.__main__ import PROGRAM as FINETUNE
from kinemae.launch.__main__ import PROGRAM as LAUNCH
from kinemae.pretrain.__main__ import PROGRAM as PRETRAIN

REPO = Path(__file__).resolve().parents[2]
PYTHON = (
    "import kinemae",
    "import kinemae; kinemae.pretrain; kinemae.finetune",
    "import torch",
    "import kinemae; kinemae.load",
    "import kinemae; kinemae.clips; kinemae.read_clip",
)


def command_lines() -> Iterator[str]:
    """All commands with `--help`, and a wrong usage."""
    yield "--help"
    for program in (DATA, PRETRAIN, FINETUNE, LAUNCH, CONFIGS):
        yield f"{program.name} --help"
        yield from (f"{program.name} {command.name} --help" for command in program.commands if command.name)
    yield "pretrain no_such_file.yaml"


def cpu_s(words: list[str]) -> float:
    """User and system time of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, cwd=REPO, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    programs = {
        f"kinemae {line}": [sys.executable, "-m", "kinemae", *line.split()] for line in command_lines()
    }
    programs |= {line: [sys.executable, "-c", line] for line in PYTHON}
    for name, words in programs.items():
        print(f"{name:50s} {min(cpu_s(words) for _ in range(repeats)):6.2f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
