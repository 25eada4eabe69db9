"""Compare pretraining methods on real clips at equal training FLOPs, for docs/results.md.

    python -m tests.benchmarks.learning VIDEOS WORK --methods transformers,demo,tubelet1 \\
        --flops 7e12,2e13,6e13 --seeds 0,1,2 --folds 'F04 M02 F05,M01 F01 F06,...' --jobs 2
    python -m tests.benchmarks.learning VIDEOS WORK ... --list    # what is done, and CPU minutes of the rest
    python -m tests.benchmarks.learning VIDEOS WORK ... --table   # the table of what is done
    python -m tests.benchmarks.learning VIDEOS WORK ... --table --against muon_motion   # differences to it

VIDEOS holds a folder per class; the group of a clip is its file name up to the first _. methods.yaml has the
methods. Each one pretrains an encoder on all clips without their labels, once per budget and seed. Each fold
holds out whole groups; hyperparameters are chosen inside the training part. The floors are logistic
regressions on pixels. WORK keeps every finished unit as JSON, and a repeated command continues.
"""

import argparse
import json
import logging
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.index import open_index
from tests.benchmarks.learning.plan import Run, Wanted, estimate_s, finished, plan_floors, plan_runs
from tests.benchmarks.learning.plot import draw
from tests.benchmarks.learning.report import Table
from tests.benchmarks.learning.settings import (
    METHODS,
    PEER,
    Board,
    fold_name,
    open_tree,
    parse_folds,
    parse_numbers,
)
from tests.benchmarks.learning.units import Interrupted, Runner, Unit
from tests.benchmarks.real_clips import ALL, in_groups, prepare

log = logging.getLogger("learning")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    found.add_argument("videos", type=Path)
    found.add_argument("work", type=Path)
    found.add_argument("--methods", default="random,transformers,demo", help="names in methods.yaml, or all")
    found.add_argument("--flops", default="7e12,2e13,6e13", help="budgets of one pretraining")
    found.add_argument("--seeds", default="0,1,2")
    found.add_argument("--folds", default="5", help="held-out groups of each fold, 'A B,C D'; or a number")
    found.add_argument("--attentive", default="", help="methods with attentive probes too")
    found.add_argument("--finetune", default="", help="methods with fine-tuning too, random for scratch")
    found.add_argument("--more-flops", help="budgets of these two; default: the largest")
    found.add_argument("--against", default=PEER, help="one of --methods, for the table of differences")
    found.add_argument("--config", type=Path, default=METHODS, help="another methods.yaml")
    found.add_argument("--jobs", type=int, default=1, help="units at a time, one core each")
    found.add_argument("--list", action="store_true", help="print the units and the CPU minutes of the rest")
    found.add_argument("--table", action="store_true", help="run nothing: write the table of what is done")
    return found


def open_board(options: argparse.Namespace, *, has_folds: bool) -> Board:
    """Shard the clips once, and each fold for fine-tuning; write the base config."""
    work, tree = options.work.resolve(), open_tree(options.config)
    folds = parse_folds(options.folds, options.videos)
    work.mkdir(parents=True, exist_ok=True)
    parts = {fold_name(fold): in_groups(fold) for fold in folds if has_folds}
    prepare(options.videos, work, ALL | parts, has_groups=True)
    fingerprint = open_index(work / "all" / "train").fingerprint
    board = Board(work=work, tree=tree, folds=folds, fingerprint=fingerprint)
    if not board.base_file.exists():  # named by its content; several commands share the folder
        atomic_write_text(board.base_file, yaml.safe_dump(tree["base"]))
    return board


def read_wanted(options: argparse.Namespace, known: Sequence[str]) -> Wanted:
    """What the command line asks for.

    Raises:
        ValueError: an option that is no list of numbers, or a method of an option without a run.
    """
    budgets = parse_numbers(options.flops, float, "--flops")
    more = [max(budgets)] if options.more_flops is None else options.more_flops
    if isinstance(more, str):
        more = parse_numbers(more, float, "--more-flops")
    names = {
        option: list(known) if value == "all" else value.split(",") if value else []
        for option, value in vars(options).items()
        if option in ("methods", "attentive", "finetune")
    }
    for option in ("attentive", "finetune"):
        other = sorted(set(names[option]) - set(names["methods"]))
        if other:
            raise ValueError(f"--{option}: expected some of --methods, got {other[0]}; fix: add it there")
    if options.against not in (PEER, *names["methods"]):
        raise ValueError(
            f"--against: expected one of --methods, got {options.against}; fix: add it there, or correct it"
        )
    if not set(more) <= set(budgets):
        raise ValueError(f"--more-flops: expected some of --flops={options.flops}, got {more}; fix: add them")
    seeds = parse_numbers(options.seeds, int, "--seeds")
    return Wanted(budgets=budgets, more_budgets=more, seeds=seeds, **names)


def run_all(runner: Runner, floors: Unit, runs: Sequence[Run], jobs: int) -> int:
    """Run missing units; return the number of failures.

    Units of one run go one after another. Attentive probes and fine-tuning begin after all frozen probes.
    """

    def run(units: Sequence[Unit]) -> int:
        for unit in units:
            try:
                if not runner.run(unit):
                    log.warning("%s: another process runs it", unit.label)
                    return 0
            except Interrupted:
                return 0
            except RuntimeError as error:
                log.error("%s", error)
                return 1
            log.info("done: %s", unit.label)
        return 0

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: runner.stop())
    with ThreadPoolExecutor(jobs) as pool:
        failures = sum(pool.map(run, [[floors], *(one.units for one in runs)]))
        ready = [one for one in runs if one.units[-2].result(runner.work) is not None]
        return failures + sum(pool.map(run, [[unit] for one in ready for unit in one.more]))


def print_list(work: Path, floors: Unit, runs: Sequence[Run]) -> None:
    """Print each unit, done or with its estimated CPU minutes, and the sum of the rest."""
    done, rest_s = finished(work), 0.0
    for unit in [floors, *(unit for run in runs for unit in (*run.units, *run.more))]:
        result = unit.result(work)
        if result is None:
            seconds = estimate_s(unit, done)
            rest_s += seconds
            sys.stdout.write(f"{seconds / 60:7.1f} min  {unit.label}\n")
        else:
            sys.stdout.write(f"   done {result['cost']['cpu_s'] / 60:5.1f}  {unit.label}\n")
    sys.stdout.write(f"{rest_s / 60:7.1f} CPU minutes remain\n")


def write_table(work: Path, floors: Unit, runs: Sequence[Run], against: str) -> None:
    """Write table.md, table.json and a plot of each measure of what is done; print the table."""
    table = Table.of(work, floors, runs, against)
    text = table.markdown()
    atomic_write_text(work / "table.md", text)
    content: dict[str, Any] = table.as_json()
    atomic_write_text(work / "table.json", json.dumps(content, indent=1) + "\n")
    for measure in table.measures:
        draw(table, measure, work / f"{measure.replace(', ', '-')}.png")
    sys.stdout.write(text)


def main() -> int:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options = parser().parse_args()
    wanted = read_wanted(options, list(open_tree(options.config)["methods"]))
    board = open_board(options, has_folds=bool(wanted.finetune))
    runs, floors, failures = plan_runs(board, wanted), plan_floors(board), 0
    if options.list:
        print_list(board.work, floors, runs)
        return 0
    if not options.table:
        failures = run_all(Runner(board.work), floors, runs, options.jobs)
    write_table(board.work, floors, runs, options.against)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
