"""Jsonl log of results, so that a repeated command computes only the missing ones."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from kinemae.data_tools.files import atomic_write_text, read_jsonl

Result = TypeVar("Result")


def load_results(log_file: Path, parse: Callable[[dict[str, Any]], Result]) -> dict[str, Result]:
    """Read the results of an earlier run by key; an incomplete last line is ignored.

    Args:
        parse: converts the fields of a result to its dataclass.
    """
    return {entry.pop("key"): parse(entry) for entry in read_jsonl(log_file)}


def save_results(log_file: Path, results: Mapping[str, Any]) -> None:
    """Replace a log; results are dataclasses by a key that changes if the input or the options change."""
    atomic_write_text(log_file, "".join(_line(*entry) for entry in results.items()))


def collect_results(
    log_file: Path, known: Mapping[str, Result], keys: Sequence[str], done: Iterable[tuple[int, Result]]
) -> dict[str, Result]:
    """Log results as they arrive.

    Args:
        known: results of an earlier run; they stay in the log.
        keys: the keys of the new results.
        done: positions in `keys` and results, as from `imap_unordered`.

    Returns:
        All results by key.
    """
    results = dict(known)
    save_results(log_file, known)
    with log_file.open("a", encoding="utf-8") as file:
        for position, result in done:
            results[keys[position]] = result
            file.write(_line(keys[position], result))
            file.flush()
    return results


def _line(key: str, result: Any) -> str:
    return json.dumps({"key": key, **asdict(result)}) + "\n"
