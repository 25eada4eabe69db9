"""Train every combination of components for three steps at a tiny size, or check that it is refused.

    python -m tests.benchmarks.combinations [--processes 2] [--only masking=tube,blocks]

Prints the numbers of trained and refused combinations, the reasons, and the failures; exit code 1 if there
are any. `tests/pretrain/test_combinations.py` tests a part of them each day.
"""

import argparse
import os
import re
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

CHUNK = 50
REPORT_S = 15


def try_all(combinations: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Try combinations; return ("trained" or "refused" or "failed", reason) for each."""
    import torch

    from tests.component_combinations import train_or_reject

    torch.set_num_threads(1)
    found = []
    for combination in combinations:
        try:
            refusal = train_or_reject(combination)
            found.append(("trained", "") if refusal is None else ("refused", refusal))
        except Exception:
            found.append(("failed", f"{combination}\n{traceback.format_exc(limit=-4)}"))
    return found


def chosen(only: list[str]) -> list[dict[str, str]]:
    """Return all combinations, or those given by AXIS=NAME,NAME."""
    from tests.component_combinations import all_combinations, axes

    names = {axis: set(components) for axis, components in axes().items()}
    for choice in only:
        axis, _, given = choice.partition("=")
        if axis not in names or not set(given.split(",")) <= names[axis]:
            known = "; ".join(f"{name}={','.join(sorted(of))}" for name, of in names.items())
            sys.exit(f"--only {choice}: expected one of {known}")
        names[axis] = set(given.split(","))
    return [row for row in map(dict, all_combinations()) if all(row[axis] in names[axis] for axis in row)]


def report(found: list[tuple[str, str]], seconds: float) -> None:
    """Print counts, reasons, and the first failures."""
    outcomes = Counter(outcome for outcome, _ in found)
    print(f"\n{len(found)} combinations in {seconds / 60:.1f} minutes")
    print(f"{outcomes['trained']:8} trained")
    print(f"{outcomes['refused']:8} refused")
    reasons = Counter(re.sub(r"\d+(\.\d+)?", "N", text) for outcome, text in found if outcome == "refused")
    for reason, count in reasons.most_common():
        print(f"{count:16} {reason}")
    print(f"{outcomes['failed']:8} failed")
    for _, text in [row for row in found if row[0] == "failed"][:10]:
        print(f"\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", action="append", default=[], metavar="AXIS=NAME,NAME")
    arguments = parser.parse_args()
    rows = chosen(arguments.only)
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    found: list[tuple[str, str]] = []
    begin = reported = time.monotonic()
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(try_all, chunk) for chunk in chunks]):
            found += done.result()
            if time.monotonic() - reported > REPORT_S:
                reported = time.monotonic()
                left_s = (reported - begin) / len(found) * (len(rows) - len(found))
                failed = sum(outcome == "failed" for outcome, _ in found)
                progress = f"{len(found)}/{len(rows)}, {failed} failed, {left_s / 60:.1f} minutes left"
                print(progress, file=sys.stderr, flush=True)
    report(found, time.monotonic() - begin)
    sys.exit(any(outcome == "failed" for outcome, _ in found))


if __name__ == "__main__":
    main()
