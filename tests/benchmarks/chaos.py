"""Inject faults into running jobs for a given time; print the table of docs/reliability.md.

    python -m tests.benchmarks.chaos SHARDS [--minutes 30] [--seed N] [--only WORDS] [--places local]

The faults and reactions are those of tests/chaos. SHARDS is a split, such as SHARDS/unlabelled of
`kinemae data synth` and `kinemae data shard`. A wrong reaction ends the benchmark with the launcher's output.
"""

import argparse
import logging
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.campaign import FaultQueue, FaultResult, disturb
from tests.chaos.faults import FAULTS
from tests.chaos.scene import Scene
from tests.chaos.setting import STEPS, local_scene, run_undisturbed, scene_on_hosts, write_config
from tests.chaos.verdict import TOLERANCE, check
from tests.launch.hosts import hosts_on_this_machine

PLACES = ["local", "hosts"]
REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A disturbed run that finished and equals the undisturbed one."""

    place: str
    kept: list[FaultResult]
    is_bitwise: bool


def main() -> int:
    """Disturb runs until the time is over, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", default=[""], help="faults whose names contain one of these words"
    )
    parser.add_argument("--places", nargs="+", choices=PLACES, default=PLACES, help="places, used in turn")
    parser.add_argument("--keep", type=Path, help="a working folder to keep")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        runs = disturb_runs(folder, arguments)
    faults, exact = sum(len(run.kept) for run in runs), sum(run.is_bitwise for run in runs)
    print(f"seed {arguments.seed}: {faults} faults in {len(runs)} runs of {STEPS} steps, all as documented;")
    print(
        f"{exact} runs equal the undisturbed one to the last bit, {len(runs) - exact} within {TOLERANCE:g}\n"
    )
    print(table(runs))
    return 0


def disturb_runs(folder: Path, arguments: argparse.Namespace) -> list[Run]:
    """Disturb runs, locally and on two hosts in turn; compare each with an undisturbed run."""
    chance = random.Random(arguments.seed)
    config = write_config(folder, arguments.shards.absolute())
    undisturbed = run_undisturbed(folder, config, REPO)
    faults = [fault for fault in FAULTS if any(words in fault.name for words in arguments.only)]
    decks = {place: FaultQueue(faults, chance) for place in arguments.places}
    until_s = time.monotonic() + 60 * arguments.minutes
    runs: list[Run] = []
    while time.monotonic() < until_s:
        place = arguments.places[len(runs) % len(arguments.places)]
        with scene_at(place, folder / f"{place}-{len(runs)}", config) as scene:
            kept = disturb(scene, decks[place], chance, last=STEPS, until_s=until_s)
            run = Run(place=place, kept=kept, is_bitwise=len(scene.worlds) == 1)
            check(scene, undisturbed, bitwise=run.is_bitwise)
        how = "to the last bit" if run.is_bitwise else f"within {TOLERANCE:g}"
        logging.info("%s: equal to the undisturbed run %s, after %d faults", place, how, len(kept))
        runs.append(run)
    return runs


@contextmanager
def scene_at(place: str, folder: Path, config: Path) -> Iterator[Scene]:
    """A run that can be disturbed, "local" or on two "hosts"."""
    with ExitStack() as stack:
        if place == "hosts":
            folder.mkdir(parents=True)
            network = stack.enter_context(hosts_on_this_machine(folder))
            scene = scene_on_hosts(folder, config, REPO, network)
        else:
            scene = local_scene(folder, config, REPO)
        stack.callback(scene.close)
        yield scene


def table(runs: list[Run]) -> str:
    """Markdown table: fault, reaction, count, and median and longest times."""
    found: dict[tuple[str, str], list[FaultResult]] = defaultdict(list)
    for run in runs:
        for kept in run.kept:
            found[kept.fault.name, run.place].append(kept)
    rows = [
        "| fault | place | reaction | count | s to reaction | s to progress | steps repeated |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, place), kepts in sorted(found.items()):
        code = kepts[0].fault.exit_code
        followed = kepts[0].fault.reaction.value + (f" (exit {code})" if code is not None else "")
        spreads = [
            _spread([kept.outcome_s for kept in kepts]),
            _spread([kept.further_s for kept in kepts]),
            _spread([kept.repeated for kept in kepts], 0),
        ]
        rows.append(f"| {' | '.join([name, place, followed, str(len(kepts)), *spreads])} |")
    return "\n".join(rows)


def _spread(values: list[float] | list[int], digits: int = 1) -> str:
    median, longest = f"{statistics.median(values):.{digits}f}", f"{max(values):.{digits}f}"
    return median if median == longest else f"{median} (at most {longest})"


if __name__ == "__main__":
    sys.exit(main())
