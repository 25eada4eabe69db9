"""Faults against a running job, for as long as one likes; prints the table of docs/reliability.md.

    python -m tests.benchmarks.chaos SHARDS [--minutes 30] [--seed N] [--only WORDS] [--places local]

The same faults and promises as tests/chaos; SHARDS is a split, as in SHARDS/unlabelled of
`data_tools synth` and `data_tools shard`. A broken promise ends it with what the launcher said last.
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
from pathlib import Path

from tests.chaos.campaign import Kept, deal, disturb
from tests.chaos.faults import FAULTS
from tests.chaos.scene import Scene
from tests.chaos.setting import STEPS, local_scene, run_undisturbed, scene_on_hosts, write_config
from tests.chaos.verdict import TOLERANCE, check
from tests.launch.hosts import hosts_on_this_machine

PLACES = ["local", "hosts"]
REPO = Path(__file__).resolve().parents[2]


def main() -> int:
    """Parse, disturb run after run until the time is up, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose names hold one of these words")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=PLACES, help="where, in turn")
    parser.add_argument("--keep", type=Path, help="a folder to work in, which stays")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        runs = disturb_runs(folder, arguments)
    print(f"seed {arguments.seed}, {len(runs)} runs of {STEPS} steps, {sum(map(len, runs))} faults\n")
    print(table([kept for run in runs for kept in run]))
    return 0


def disturb_runs(folder: Path, arguments: argparse.Namespace) -> list[list[Kept]]:
    """One run after another until the time is up, here and on two hosts in turn; each is compared."""
    chance = random.Random(arguments.seed)
    config = write_config(folder, arguments.shards.absolute())
    undisturbed = run_undisturbed(folder, config, REPO)
    faults = [fault for fault in FAULTS if any(words in fault.name for words in arguments.only)]
    dealt = {place: deal(faults, chance) for place in arguments.places}
    until_s = time.monotonic() + 60 * arguments.minutes
    runs: list[list[Kept]] = []
    while time.monotonic() < until_s:
        place = arguments.places[len(runs) % len(arguments.places)]
        with scene_at(place, folder / f"{place}-{len(runs)}", config) as scene:
            runs.append(disturb(scene, dealt[place], chance, last=STEPS, until_s=until_s))
            is_bitwise = len(scene.worlds) == 1
            check(scene, undisturbed, bitwise=is_bitwise)
        how = "to the last bit" if is_bitwise else f"within {TOLERANCE:g}"
        logging.info("%s: equal to the undisturbed run %s, after %d faults", place, how, len(runs[-1]))
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


def table(kept: list[Kept]) -> str:
    """Markdown: fault, what followed, how often, and the median and the longest times."""
    by_name: dict[str, list[Kept]] = defaultdict(list)
    for one in kept:
        by_name[one.fault.name].append(one)
    rows = [
        "| fault | what followed | times | s until that | s until further than before | steps repeated |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(by_name):
        found = by_name[name]
        code = found[0].fault.exit_code
        followed = found[0].fault.promise.value + (f" (exit {code})" if code is not None else "")
        rows.append(
            f"| {name} | {followed} | {len(found)} | {_spread([one.outcome_s for one in found])} "
            f"| {_spread([one.further_s for one in found])} | {_spread([one.repeated for one in found], 0)} |"
        )
    return "\n".join(rows)


def _spread(values: list[float] | list[int], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} (at most {max(values):.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
